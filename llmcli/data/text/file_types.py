"""File types: formats that data/documents extracts text from, and others, with advice on extracting their
text.

A file is recognized by the first bytes of its content and a ZIP container by the names of its members, not by
the file name, except for text with markup.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from llmcli.errors import as_argument, command_line

START_BYTES = 4096  # read from the beginning of a file
_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_COMPRESSED = {  # pattern of the first bytes -> program
    rb"\x1f\x8b": "gzip",
    rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)": "bzip2",
    rb"\xfd7zXZ\0": "xz",
    # a frame, or the skippable frame with which pzstd begins
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": "zstd",
}

_GENERATED_DIRECTORIES = ("__pycache__", "node_modules", "__MACOSX")


@dataclass(frozen=True)
class FileType:
    """A type of file other than plain text."""

    description: str  # such as "a PDF"
    module: str = ""  # module of data/documents that reads it
    advice: str = ""  # how to extract text if there is no such module
    is_text: bool = False  # whether it can also be read as plain text
    is_collection: bool = False  # whether it consists of documents, which are read one by one

    @property
    def kind(self) -> str:
        """
        >>> FileType("an EPUB book").kind
        'EPUB book'
        """
        return self.description.partition(" ")[2]


_UNPACK = "unpack it into a directory and name that: "
_DATA = "export its text to a text file first"
_CONVERT = "save it as plain text first: soffice --headless --convert-to txt:Text {file}"
_CSV = "save it as CSV first: soffice --headless --convert-to csv {file}"
TABLE = FileType("a table in Parquet or Arrow", "parquet", _DATA + ", one column of it: pandas.read_parquet")
_WARC = FileType("a WARC file", "warc", is_collection=True)
_READABLE = (  # (type, pattern of the first bytes)
    (FileType("a PDF", "pdf"), rb"%PDF-"),
    (_WARC, rb"WARC/"),
    (FileType("a tar archive", "archives"), rb".{257}ustar"),
    (TABLE, rb"PAR1|ARROW1|\xff\xff\xff\xff"),  # the last is a stream of Arrow
    (FileType("an RTF document", advice=_CONVERT, is_text=True), rb"\{\\rtf"),
)
_OTHERS = (  # (type, pattern of the first bytes)
    (FileType("a DjVu document", advice="extract its text first: djvutxt {file} TEXT"), rb"AT&TFORM"),
    (FileType("a 7z archive", advice=_UNPACK + "7z x -oDIRECTORY {file}"), rb"7z\xbc\xaf\x27\x1c"),
    (FileType("a RAR archive", advice=_UNPACK + "unrar x {file} DIRECTORY/"), rb"Rar!\x1a\x07"),
    (FileType("compressed twice", advice="unpack it again: gzip -d {file}"), rb"\x1f\x8b"),
    (FileType("compressed (lz4)", advice="unpack it first: lz4 -d {file}"), rb"\x04\x22\x4d\x18"),
    (
        FileType("an old Office document (.doc, .xls, .ppt)", advice=_CONVERT),
        rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    ),
    (
        FileType("an SQLite database", advice=_DATA + ": sqlite3 {file} 'SELECT ...' > TEXT"),
        rb"SQLite format 3\0",
    ),
    (  # the second is safetensors: eight bytes with the length of the header, then JSON
        FileType("a model", advice="to fine-tune it on a text: llm train TEXT --from {file}"),
        rb"GGUF|.{4}\0\0\0\0\{",
    ),
    (
        FileType("binary data (NumPy, HDF5 or Python pickle)", advice=_DATA),
        rb"\x93NUMPY|\x89HDF|\x80[\2-\5]",
    ),
    (
        FileType("an image", advice="extract its text first, by OCR: tesseract {file} TEXT"),
        rb"\x89PNG|\xff\xd8\xff|GIF8|II\*\0|MM\0\*|.{8}WEBP|BM",
    ),
    (
        FileType("a recording or video", advice="transcribe it first"),
        rb"ID3|\xff\xfb|OggS|fLaC|.{8}WAVE|.{8}AVI |.{4}ftyp|\x1aE\xdf\xa3",
    ),
    (
        FileType("an executable", advice="name a text file, or a directory of text files"),
        rb"\x7fELF|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe|\0asm|MZ",
    ),
)
ZIP = FileType("a ZIP archive", "archives")
_ZIP_TYPES = (  # (type, name of a member, or media type)
    (FileType("an EPUB book", "epub"), "META-INF/container.xml"),
    (FileType("a Word document", "office"), "word/document.xml"),
    (FileType("an OpenDocument text", "office"), "application/vnd.oasis.opendocument.text"),
    (FileType("a presentation", "office"), "ppt/presentation.xml"),
    (
        FileType(
            "a presentation", advice="save it as PPTX first: soffice --headless --convert-to pptx {file}"
        ),
        "application/vnd.oasis.opendocument.presentation",
    ),
    (FileType("a spreadsheet", advice=_CSV), "xl/workbook.xml"),
    (FileType("a spreadsheet", advice=_CSV), "application/vnd.oasis.opendocument.spreadsheet"),
)
_PYTORCH = FileType(
    "a PyTorch model", advice="convert it to safetensors first, with the program that wrote it"
)
_PAGE = FileType("an HTML page", "html", is_text=True)
_NOTEBOOK = FileType("a notebook", "notebook", is_text=True)
_MAILBOX = FileType("a mailbox", "mail", is_text=True, is_collection=True)
_MESSAGE = FileType("an e-mail", "mail", is_text=True)
_SAVED_PAGE = FileType("a saved web page", "mail", is_text=True)
COLLECTION_KINDS = {_MAILBOX.kind, _WARC.kind}
TEXT_KINDS = {known.kind for known in (_PAGE, _NOTEBOOK, _MAILBOX, _MESSAGE, _SAVED_PAGE)}
_XML_DECLARATION = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?", re.I)
_COMMENT = re.compile(r"<!--.*?-->\s*", re.S)
_FIRST_TAG = re.compile(r"<(?:!doctype html|html|head|body)\b", re.I)
_MBOX = re.compile(r"From \S.* \d\d:\d\d")
_HEADER = re.compile(r"[\w-]+:\s")
_ZIP_START = (b"PK\x03\x04", b"PK\x05\x06")


def compression(start: bytes) -> str:
    """Return the program that decompresses a file with these first bytes; "" if it is not compressed."""
    return next((program for pattern, program in _COMPRESSED.items() if re.match(pattern, start)), "")


def recognize(name: str, start: bytes) -> FileType | None:
    """Return the type of a file by its first bytes (decompressed); None for text and unknown types."""
    if start.startswith(_ZIP_START):
        return ZIP
    return _readable_text(name, start) or _matching(_READABLE, start)


def _matching(types: Iterable[tuple[FileType, bytes]], start: bytes) -> FileType | None:
    return next((known for known, pattern in types if re.match(pattern, start, re.S)), None)


def recognize_zip(members: Sequence[str], media_type: str) -> FileType:
    """Return the type of a ZIP archive by the names of its members and the content of the member
    `mimetype`."""
    names = {*members, media_type.removesuffix("-template")}
    if any(name.endswith("/data.pkl") for name in members):
        return _PYTORCH
    return next((known for known, member in _ZIP_TYPES if member in names), ZIP)


def is_page(start: str) -> bool:
    """Return whether a text begins as HTML does, after an XML declaration and comments."""
    position = _XML_DECLARATION.match(start).end()  # type: ignore[union-attr]  # the pattern matches any text
    while comment := _COMMENT.match(start, position):
        position = comment.end()
    return bool(_FIRST_TAG.match(start, position))


def _readable_text(name: str, start: bytes) -> FileType | None:
    """Return the type of text with markup."""
    suffix = suffix_of(name)
    is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = start.decode("utf-16" if is_utf16 else "utf-8", "replace").lstrip("\ufeff")
    if is_page(text) or (suffix in (".html", ".htm", ".xhtml") and text.lstrip().startswith("<")):
        return _PAGE
    if suffix == ".ipynb" and text.lstrip().startswith("{"):
        return _NOTEBOOK
    first, _, rest = text.partition("\n")
    if suffix not in (".patch", ".diff") and _MBOX.match(first) and _HEADER.match(rest):
        return _MAILBOX
    messages = {".eml": _MESSAGE, ".mht": _SAVED_PAGE, ".mhtml": _SAVED_PAGE}
    return messages.get(suffix) if _HEADER.match(text) else None


def describe_binary(name: str, start: bytes) -> str | None:
    """Describe the type of a file that is not text, by its first bytes, and how to extract its text, as the
    end of a sentence that begins with its name. None if unknown.

    >>> describe_binary("my book.djvu", b"AT&TFORM ...")
    "is a DjVu document, not text; extract its text first: djvutxt 'my book.djvu' TEXT"
    """
    known = recognize(name, start) or _matching(_OTHERS, start)
    return describe(name, known) if known and not known.is_text else None


def describe(name: str, known: FileType) -> str:
    """Describe a file and how to extract its text, as the end of a sentence that begins with its name."""
    file = "FILE" if name == "standard input" else command_line([as_argument(name)])
    advice = known.advice or "extract its text first: llm text {file} > TEXT"
    return f"is {known.description}, not text; {advice.format(file=file)}"


def is_hidden(parts: Iterable[str]) -> bool:
    """Return whether a path in a directory or archive is hidden or generated, and therefore left out unless
    the user names it."""
    return any(part.startswith(".") or part in _GENERATED_DIRECTORIES for part in parts)


def suffix_of(file: str) -> str:
    """Return the suffix of a file's name in lower case; of a compressed file, the one before.

    >>> suffix_of("data/a.csv.gz"), suffix_of("A.TXT.GZ")
    ('.csv', '.txt')
    """
    path = PurePath(file)
    return PurePath(path.stem if path.suffix.lower() in _COMPRESSED_SUFFIXES else path).suffix.lower()
