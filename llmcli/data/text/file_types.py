"""The type of a file that is not text, and how to get text out of it.

A file is recognized by its first bytes, and a ZIP container by the names of its members, not by its own name.
Standard library only.
"""

import shlex

START_BYTES = 4096  # read at the beginning of a file ...
END_BYTES = 65536  # ... and at its end, where a ZIP archive lists its members

_PANDOC = "extract its text first: pandoc {file} -t plain -o {text}"
_OCR = "extract its text first, by OCR: tesseract {file} {stem}"
_TRANSCRIBE = "transcribe it first"
_MODEL = "to fine-tune a model on a text: llm train TEXT --from {file}; to inspect it: llm inspect {file}"
_UNPACK = "unpack it into a directory and name that: "
_DATA = "export its text to a text file first"
_EXECUTABLE = "name a text file, or a directory of text files"
# (first bytes, description, advice), the longest of a type first
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF", "extract its text first: pdftotext {file} {text}"),
    (b"\x89PNG\r\n\x1a\n", "an image (PNG)", _OCR),
    (b"\xff\xd8\xff", "an image (JPEG)", _OCR),
    (b"GIF87a", "an image (GIF)", _OCR),
    (b"GIF89a", "an image (GIF)", _OCR),
    (b"II*\0", "an image (TIFF)", _OCR),
    (b"MM\0*", "an image (TIFF)", _OCR),
    (b"AT&TFORM", "a DjVu document", "extract its text first: djvutxt {file} {text}"),
    (b"\x1f\x8b", "compressed twice (gzip)", "unpack it once: gzip -d {file}"),
    (b"BZh", "compressed (bzip2)", "unpack it first: bzip2 -dk {file}"),
    (b"\xfd7zXZ\0", "compressed (xz)", "unpack it first: xz -dk {file}"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it first: zstd -d {file}"),
    (b"\x04\x22\x4d\x18", "compressed (lz4)", "unpack it first: lz4 -d {file}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK + "7z x -o{stem} {file}"),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK + "unrar x {file} {stem}/"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.doc, .xls, .ppt)",
     "save it as plain text first: soffice --headless --convert-to txt:Text {file}"),
    (b"PAR1", "a Parquet table", f"{_DATA}, one column of it: pandas.read_parquet"),
    (b"ARROW1", "an Arrow table", f"{_DATA}, one column of it: pandas.read_feather"),
    (b"SQLite format 3\0", "an SQLite database", f"{_DATA}: sqlite3 {{file}} 'SELECT ...' > {{text}}"),
    (b"\x93NUMPY", "a NumPy array", _DATA),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _DATA),
    (b"GGUF", "a model (GGUF)", _MODEL),
    (b"\x7fELF", "an executable", _EXECUTABLE),
    (b"\xcf\xfa\xed\xfe", "an executable", _EXECUTABLE),
    (b"\xca\xfe\xba\xbe", "an executable", _EXECUTABLE),
    (b"\0asm", "an executable", _EXECUTABLE),
    (b"OggS", "a recording (Ogg)", _TRANSCRIBE),
    (b"fLaC", "a recording (FLAC)", _TRANSCRIBE),
    (b"ID3", "a recording (MP3)", _TRANSCRIBE),
    (b"\xff\xfb", "a recording (MP3)", _TRANSCRIBE),
    (b"\x1aE\xdf\xa3", "a video (Matroska)", _TRANSCRIBE),
    (b"MZ", "an executable", _EXECUTABLE),
    (b"BM", "an image (BMP)", _OCR),
)  # fmt: skip
_RIFF = {b"WAVE": ("a recording (WAV)", _TRANSCRIBE), b"AVI ": ("a video (AVI)", _TRANSCRIBE),
         b"WEBP": ("an image (WebP)", _OCR)}  # fmt: skip
_ZIP_MEMBERS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (  # (names of members, description, advice)
    ((b"application/epub+zip", b"META-INF/container.xml"), "an EPUB book", _PANDOC),
    ((b"word/document.xml", b"word/styles.xml"), "a Word document", _PANDOC),
    ((b"application/vnd.oasis.opendocument.text",), "an OpenDocument text", _PANDOC),
    ((b"xl/workbook.xml", b"opendocument.spreadsheet"), "a spreadsheet", "save it as CSV first"),
    ((b"ppt/presentation.xml", b"opendocument.presentation"), "a presentation", "export its text to a text file first"),
    ((b"data.pkl", b"/data/0"), "a PyTorch model", "convert it to safetensors first, with the program that wrote it"),
)


def describe_binary(name: str, start: bytes, end: bytes = b"", compressed: bool = False) -> str | None:
    """One line that says what a file is that is not text, and how to get text out of it; None if its type is not
    recognized. `start` and `end` are its first and last bytes, decompressed if it is `compressed` with gzip.

    >>> describe_binary("my book.pdf", b"%PDF-1.7 ...")
    "my book.pdf is a PDF, not text; extract its text first: pdftotext 'my book.pdf' 'my book.txt'"
    """
    recognized = _recognize(start, end)
    if recognized is None:
        return None
    description, advice = recognized
    file = "FILE" if name == "standard input" else name
    decompress = ""
    if compressed and not advice.startswith(_UNPACK):
        decompress = f"unpack it (gzip -dk {shlex.quote(file)}), then "
        file = file.removesuffix(".gz")
    stem = file.removesuffix(".gz").rpartition(".")[0] or f"{file}-unpacked"
    names = {"file": file, "text": text_file_name(file), "stem": stem}
    advice = advice.format(**{key: shlex.quote(value) for key, value in names.items()})
    return f"{name} is {description}, not text; {decompress}{advice}"


def text_file_name(file: str) -> str:
    """A name for the text of a file, different from its own.

    >>> [text_file_name(name) for name in ("a/b.pdf", "b", "b.txt")]
    ['a/b.txt', 'b.txt', 'b-text.txt']
    """
    stem = file.rpartition(".")[0] or file
    return f"{stem}.txt" if f"{stem}.txt" != file else f"{stem}-text.txt"


def _recognize(start: bytes, end: bytes) -> tuple[str, str] | None:
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _recognize_zip(start, end)
    if start[257:262] == b"ustar":
        return "a tar archive", _UNPACK + "mkdir {stem} && tar -xf {file} -C {stem}"
    if start.startswith(b"RIFF") and start[8:12] in _RIFF:
        return _RIFF[start[8:12]]
    if start[8:9] == b"{" and start[4:8] == bytes(4):  # after the eight bytes with the length of the header
        return "a model (safetensors)", _MODEL
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a Python pickle", f"{_DATA}, with the program that wrote it"
    if start[4:8] == b"ftyp":
        return "a video or recording (MP4)", _TRANSCRIBE
    return next(((what, advice) for signature, what, advice in _SIGNATURES if start.startswith(signature)), None)


def _recognize_zip(start: bytes, end: bytes) -> tuple[str, str]:
    for members, description, advice in _ZIP_MEMBERS:
        if any(member in start or member in end for member in members):
            return description, advice
    return "a ZIP archive", _UNPACK + "unzip {file} -d {stem}"
