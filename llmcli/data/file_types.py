"""What kind of file some bytes are, where they are not text, and what to do to get text out of it.

Files are recognised by their first bytes (and ZIP containers by the names of what is in them), not by their name.
Knows the standard library only.
"""

import json
import shlex
from collections.abc import Iterable

START = 4096  # bytes that are looked at, at the beginning of a file ...
END = 65536  # ... and at its end, where a ZIP archive lists what is in it

_PANDOC = "extract its text first: pandoc {file} -t plain -o {text}"
_OCR = "recognise its text first, if it shows some: tesseract {file} {stem}"
_TRANSCRIBE = "transcribe it first"
_MODEL = "to fine-tune a model on a text: llm train TEXT --from {file}; to look into it: llm inspect {file}"
_UNPACK = "unpack it into a directory and name that: "
_DATA = "write its text to a text file first"
_PROGRAM = "name a text file, or a directory of them"
# (first bytes, what it is, what to do), the longest of a kind first
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
    (b"\x7fELF", "a program", _PROGRAM),
    (b"\xcf\xfa\xed\xfe", "a program", _PROGRAM),
    (b"\xca\xfe\xba\xbe", "a program", _PROGRAM),
    (b"\0asm", "a program", _PROGRAM),
    (b"OggS", "a recording (Ogg)", _TRANSCRIBE),
    (b"fLaC", "a recording (FLAC)", _TRANSCRIBE),
    (b"ID3", "a recording (MP3)", _TRANSCRIBE),
    (b"\xff\xfb", "a recording (MP3)", _TRANSCRIBE),
    (b"\x1aE\xdf\xa3", "a video (Matroska)", _TRANSCRIBE),
    (b"MZ", "a program", _PROGRAM),
    (b"BM", "an image (BMP)", _OCR),
)  # fmt: skip
_AT_4 = ((b"ftyp", "a video or recording (MP4)", _TRANSCRIBE),)
_RIFF = {b"WAVE": ("a recording (WAV)", _TRANSCRIBE), b"AVI ": ("a video (AVI)", _TRANSCRIBE),
         b"WEBP": ("an image (WebP)", _OCR)}  # fmt: skip
_ZIPPED: tuple[tuple[tuple[bytes, ...], str, str], ...] = (  # (a name in it that tells, what it is, what to do)
    ((b"application/epub+zip", b"META-INF/container.xml"), "an EPUB book", _PANDOC),
    ((b"word/document.xml", b"word/styles.xml"), "a Word document", _PANDOC),
    ((b"application/vnd.oasis.opendocument.text",), "an OpenDocument text", _PANDOC),
    ((b"xl/workbook.xml", b"opendocument.spreadsheet"), "a spreadsheet", "save it as CSV first"),
    ((b"ppt/presentation.xml", b"opendocument.presentation"), "a presentation", "save its text to a text file first"),
    ((b"data.pkl", b"/data/0"), "a model of PyTorch", "convert it to safetensors first, with the program that made it"),
)


def not_text(name: str, start: bytes, end: bytes = b"", packed: bool = False) -> str | None:
    """What a file is that is not text, and what to do, as one line; None for what is not recognised. `start` and `end`
    are its first and last bytes; `packed` says that they came out of a .gz.

    >>> not_text("my book.pdf", b"%PDF-1.7 ...")
    "my book.pdf is a PDF, not text; extract its text first: pdftotext 'my book.pdf' 'my book.txt'"
    """
    found = _kind(start, end)
    if found is None:
        return None
    what, advice = found
    file = "FILE" if name == "standard input" else name
    first = ""
    if packed and not advice.startswith(_UNPACK):
        file, first = file.removesuffix(".gz"), f"unpack it (gzip -dk {shlex.quote(file)}), then "
    bare = file.removesuffix(".gz").rpartition(".")[0]
    words = {"file": file, "text": _text_name(file), "stem": bare or f"{file}-unpacked"}
    advice = first + advice.format(**{key: shlex.quote(word) for key, word in words.items()})
    return f"{name} is {what}, not text; {advice}"


def _text_name(file: str) -> str:
    """A name for the text of a file, other than its own.

    >>> [_text_name(name) for name in ("a/b.pdf", "b", "b.txt")]
    ['a/b.txt', 'b.txt', 'b-text.txt']
    """
    bare = file.rpartition(".")[0] or file
    return f"{bare}.txt" if f"{bare}.txt" != file else f"{bare}-text.txt"


def _kind(start: bytes, end: bytes) -> tuple[str, str] | None:
    """(what it is, what to do)"""
    if start.startswith(b"PK\x03\x04") or start.startswith(b"PK\x05\x06"):
        for marks, what, advice in _ZIPPED:
            if any(mark in start or mark in end for mark in marks):
                return what, advice
        return "a ZIP archive", _UNPACK + "unzip {file} -d {stem}"
    if start[257:262] == b"ustar":
        return "a tar archive", _UNPACK + "mkdir {stem} && tar -xf {file} -C {stem}"
    if start.startswith(b"RIFF") and start[8:12] in _RIFF:
        return _RIFF[start[8:12]]
    if start[8:9] == b"{" and start[4:8] == bytes(4):  # after the length of the header
        return "a model (safetensors)", _MODEL
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a Python pickle", f"{_DATA}, with the program that made it"
    for mark, what, advice in _AT_4:
        if start[4 : 4 + len(mark)] == mark:
            return what, advice
    return next(((what, advice) for mark, what, advice in _SIGNATURES if start.startswith(mark)), None)


def structured(name: str, text: str, whole: bool) -> str | None:
    """What to know of a text that is JSON or JSON Lines and would be learned as it stands, as one line; None of other
    text. `text` is its beginning, or all of it if `whole`.

    >>> structured("a.jsonl", '{"text": "Hello"}\\n{"text": "Bye"}\\n', whole=True).split("; ")[1]
    'for one field only: jq -r .text a.jsonl > a.txt'
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not whole:
        lines = lines[:-1]  # the last may be cut
    records = [record for record in map(_object, lines[:3]) if record is not None]
    if lines and len(records) == len(lines[:3]) and (len(lines) > 1 or name.lower().endswith((".jsonl", ".ndjson"))):
        return _told(name, "JSON Lines", records[0], "")
    value = _json(text) if whole else None
    if isinstance(value, dict | list) and value:
        first = value[0] if isinstance(value, list) else value
        return _told(name, "JSON", first if isinstance(first, dict) else {}, ".[]" if isinstance(value, list) else "")
    if not whole and name.lower().endswith(".json") and text.lstrip()[:1] in ("{", "["):
        return _told(name, "JSON", {}, "")
    return None


_TEXT_FIELDS = ("text", "content", "body", "story", "article", "document", "output", "completion", "response")


def _told(name: str, form: str, record: dict[str, object], before: str) -> str:
    fields = [key for key, value in record.items() if isinstance(value, str)]
    longest = max(fields, key=lambda key: len(str(record[key])), default="")
    field = next((key for key in _TEXT_FIELDS if key in fields), longest)
    query = _path(field) if field else _inside(record)
    how = ""
    if query:
        query = before + query if before or query.startswith(".") else f".{query}"
        command = shlex.join(["jq", "-r", query, name])
        how = f"; for one field only: {command} > {shlex.quote(_text_name(name))}"
    return f"{name} is {form} and is learned as raw text, with its keys and braces{how}"


def _inside(record: dict[str, object]) -> str:
    """The path to the texts of a conversation, as {"messages": [{"role": ..., "content": ...}, ...]} holds them."""
    for key, value in record.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict):
            inner = next((name for name in ("content", "value", "text") if isinstance(first.get(name), str)), "")
            return f"{_path(key)}[]{_path(inner)}" if inner else ""
    return ""


def _path(key: str) -> str:
    """A key as a step of jq's paths."""
    return f".{key}" if key.isidentifier() and key.isascii() else f"[{json.dumps(key, ensure_ascii=False)}]"


def _object(line: str) -> dict[str, object] | None:
    found = _json(line)
    return found if isinstance(found, dict) else None


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def notes(texts: Iterable[tuple[str, str, bool]]) -> list[str]:
    """What `structured` says of several texts (name, text, whole), in two lines at most."""
    found = [note for name, text, whole in texts if (note := structured(name, text, whole))]
    return [*found[:1], *([f"and {len(found) - 1:,} more files are JSON"] if len(found) > 1 else [])]
