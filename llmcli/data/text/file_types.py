"""Types of files that are not text, with advice on how to extract text from them.

A file is recognized by its first bytes, and a ZIP container by the names of its members, not by the file name.
Standard library only.
"""

import shlex

START_BYTES = 4096  # read from the beginning of a file ...
END_BYTES = 65536  # ... and from its end, where a ZIP archive lists its members

_PANDOC = "extract its text first: pandoc {file} -t plain -o {text}"
_UNPACK = "unpack it into a directory and name that: "
_DATA = "export its text to a text file first"
_TYPES: tuple[tuple[str, str, tuple[tuple[int, bytes], ...]], ...] = (  # (description, advice, (position, bytes), ...)
    ("a PDF", "extract its text first: pdftotext {file} {text}", ((0, b"%PDF-"),)),
    ("a DjVu document", "extract its text first: djvutxt {file} {text}", ((0, b"AT&TFORM"),)),
    ("a tar archive", _UNPACK + "mkdir {stem} && tar -xf {file} -C {stem}", ((257, b"ustar"),)),
    ("a 7z archive", _UNPACK + "7z x -o{stem} {file}", ((0, b"7z\xbc\xaf\x27\x1c"),)),
    ("a RAR archive", _UNPACK + "unrar x {file} {stem}/", ((0, b"Rar!\x1a\x07"),)),
    ("compressed twice", "unpack it again: gzip -d {file}", ((0, b"\x1f\x8b"),)),
    ("compressed (lz4)", "unpack it first: lz4 -d {file}", ((0, b"\x04\x22\x4d\x18"),)),
    ("compressed (bzip2)", "unpack it first: bzip2 -dk {file}", ((0, b"BZh"),)),
    ("compressed (xz)", "unpack it first: xz -dk {file}", ((0, b"\xfd7zXZ\0"),)),
    ("an old Office document (.doc, .xls, .ppt)",
     "save it as plain text first: soffice --headless --convert-to txt:Text {file}",
     ((0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),)),
    ("a Parquet table", _DATA + ", one column of it: pandas.read_parquet", ((0, b"PAR1"),)),
    ("an SQLite database", _DATA + ": sqlite3 {file} 'SELECT ...' > {text}", ((0, b"SQLite format 3\0"),)),
    ("a model", "to fine-tune a model on a text: llm train TEXT --from {file}; to inspect it: llm inspect {file}",
     ((0, b"GGUF"), (4, b"\0\0\0\0{"))),  # safetensors: eight bytes with the length of the header, then JSON
    ("binary data (NumPy, HDF5, Arrow or Python pickle)", _DATA,
     ((0, b"\x93NUMPY"), (0, b"\x89HDF"), (0, b"ARROW1"), *((0, b"\x80" + bytes([i])) for i in range(2, 6)))),
    ("an image", "extract its text first, by OCR: tesseract {file} {stem}",
     ((0, b"\x89PNG"), (0, b"\xff\xd8\xff"), (0, b"GIF8"), (0, b"II*\0"), (0, b"MM\0*"), (8, b"WEBP"), (0, b"BM"))),
    ("a recording or video", "transcribe it first",
     ((0, b"ID3"), (0, b"\xff\xfb"), (0, b"OggS"), (0, b"fLaC"), (8, b"WAVE"), (8, b"AVI "), (4, b"ftyp"),
      (0, b"\x1aE\xdf\xa3"))),
    ("an executable", "name a text file, or a directory of text files",
     ((0, b"\x7fELF"), (0, b"\xcf\xfa\xed\xfe"), (0, b"\xca\xfe\xba\xbe"), (0, b"\0asm"), (0, b"MZ"))),
)  # fmt: skip
_ZIP_TYPES: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (  # (description, advice, names of members)
    ("an EPUB book", _PANDOC, (b"application/epub+zip", b"META-INF/container.xml")),
    ("a Word document", _PANDOC, (b"word/document.xml", b"word/styles.xml")),
    ("an OpenDocument text", _PANDOC, (b"application/vnd.oasis.opendocument.text",)),
    ("a spreadsheet", "save it as CSV first", (b"xl/workbook.xml", b"opendocument.spreadsheet")),
    ("a presentation", _DATA, (b"ppt/presentation.xml", b"opendocument.presentation")),
    ("a PyTorch model", "convert it to safetensors first, with the program that wrote it", (b"data.pkl", b"/data/0")),
    ("a ZIP archive", _UNPACK + "unzip {file} -d {stem}", (b"",)),
)


def describe_binary(name: str, start: bytes, end: bytes = b"", program: str = "") -> str | None:
    """Describe, in one line, the type of a file that is not text and how to extract its text; None if unknown.

    `start` and `end` are its first and last bytes, decompressed by `program` ("gzip", "zstd" or "").

    >>> describe_binary("my book.pdf", b"%PDF-1.7 ...")
    "my book.pdf is a PDF, not text; extract its text first: pdftotext 'my book.pdf' 'my book.txt'"
    """
    description, advice = _recognize(start, end)
    if not description:
        return None
    file = "FILE" if name == "standard input" else name
    unpack = ""
    if program and not advice.startswith(_UNPACK):
        unpack = f"unpack it ({program} -dk {shlex.quote(file)}), then "
        file = unpacked_name(file)
    stem = unpacked_name(file).rpartition(".")[0] or f"{file}-unpacked"
    text = f"{file.rpartition('.')[0] or file}.txt"
    names = {"file": file, "text": text if text != file else f"{file}-text.txt", "stem": stem}
    advice = advice.format(**{key: shlex.quote(value) for key, value in names.items()})
    return f"{name} is {description}, not text; {unpack}{advice}"


def unpacked_name(file: str) -> str:
    return file.removesuffix(".gz").removesuffix(".zst")


def through(command: str, name: str, output: str, program: str | None = None) -> str:
    """Return the shell line that pipes a file through a command, decompressed by `program` (default: by the suffix).

    >>> through("head -n 9", "my book.zst", "part.txt")
    "zstd -dc 'my book.zst' | head -n 9 > part.txt"
    """
    if program is None:
        program = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2], "")
    file = shlex.quote(name)
    source = f"{program} -dc {file} | {command}" if program else f"{command} {file}"
    return f"{source} > {shlex.quote(output)}"


def _recognize(start: bytes, end: bytes) -> tuple[str, str]:
    """Return (description, advice) of a file type; empty strings for an unknown one."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return next(
            (what, advice)
            for what, advice, members in _ZIP_TYPES
            if any(member in start or member in end for member in members)
        )
    return next(
        ((what, advice) for what, advice, marks in _TYPES if any(start.startswith(mark, at) for at, mark in marks)),
        ("", ""),
    )
