"""Files that are not text are recognized by their content, whatever their name, with advice that fits."""

import gzip
import pickle
import shlex
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcli.data.sources import read_sources
from llmcli.data.text import file_types
from tests.conftest import TEXT, Llm
from tests.data.corpora import error_of, put
from tests.data.documents import samples
from tests.reliability.malformed import ONE, made


def zipped(*names: str) -> bytes:
    return samples.zipped(dict.fromkeys(names, "words " * 50_000)).read()


def database() -> bytes:
    connection = sqlite3.connect("made.db")
    connection.execute("CREATE TABLE t (x TEXT)")
    connection.commit()
    connection.close()
    return Path("made.db").read_bytes()


BINARY = b"\x00\xff\x80" * 20
FILES: dict[str, tuple[Callable[[], bytes] | bytes, str]] = {
    "a.xlsx": (lambda: zipped("[Content_Types].xml", "xl/workbook.xml"), "is a spreadsheet, not text; save it as CSV"),
    "a.pth": (lambda: zipped("archive/data.pkl"), "is a PyTorch model"),
    "a.png": (b"\x89PNG\r\n\x1a\n" + BINARY, "is an image, not text; extract its text first, by OCR"),
    "a.jpg": (b"\xff\xd8\xff\xe0" + BINARY, "is an image"),
    "a.gif": (b"GIF89a" + BINARY, "is an image"),
    "a.webp": (b"RIFF\x10\0\0\0WEBP" + BINARY, "is an image"),
    "a.mp3": (b"ID3\x04\0" + BINARY, "is a recording or video, not text; transcribe it first"),
    "a.mp4": (b"\0\0\0\x20ftypisom" + BINARY, "is a recording or video"),
    "a.wav": (b"RIFF\x10\0\0\0WAVE" + BINARY, "is a recording or video"),
    "a.txt.gz": (lambda: gzip.compress(gzip.compress(b"A text.\n" * 200)), "is compressed twice, not text"),
    "a.lz4": (b"\x04\x22\x4d\x18" + BINARY, "unpack it first: lz4 -d a.lz4"),
    "a.djvu": (b"AT&TFORM" + BINARY, "djvutxt a.djvu TEXT"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + BINARY, "7z x -oDIRECTORY a.7z"),
    "a.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + BINARY, "is an old Office document"),
    "a.parquet": (b"PAR1" + BINARY, "arquet"),  # what train says depends on whether pyarrow is installed
    "a.db": (database, "is an SQLite database, not text; export its text to a text file first: sqlite3 a.db"),
    "a.npy": (b"\x93NUMPY\x01\0" + BINARY, "is binary data (NumPy"),
    "a.pkl": (lambda: pickle.dumps({"a": "b" * 300}), "is binary data (NumPy"),
    "a.safetensors": (made({"a": ONE}, bytes(4)), "to fine-tune it on a text: llm train TEXT --from a.safetensors"),
    "a.gguf": (b"GGUF" + BINARY, "is a model, not text; to fine-tune"),
    "a.exe": (b"MZ" + BINARY, "is an executable"),
    "a": (b"\x7fELF" + BINARY, "is an executable"),
    "a.bin": (BINARY, "convert it to UTF-8 with iconv"),
}  # fmt: skip


@pytest.mark.slow
def test_the_error_says_what_a_file_is_and_how_to_get_its_text() -> None:
    put("d/text.txt", TEXT.encode())
    for name, (content, message) in FILES.items():
        data = content if isinstance(content, bytes) else content()
        put(f"d/{name}", data)
        put(name, data)
        problem = error_of(read_sources, [name])
        assert message in problem and ("iconv" in problem) == (name == "a.bin"), name
    skipped = read_sources(["d"]).text.skipped
    assert len(skipped) == len(FILES) and all(line.startswith("d/") for line in skipped)


def test_the_name_of_a_file_does_not_matter() -> None:
    first_bytes = "MZ, BM, ID3, GGUF, PAR1, OggS and %PDF-1.7 are first bytes of files.\n"
    for name, text in (("poem.pdf", TEXT), ("MZ.txt", first_bytes)):
        assert read_sources([put(name, text.encode())]).text.utf8().decode() == text


def test_commands_in_advice_can_be_pasted_for_any_name() -> None:
    for name in ["it's.djvu", "{x}.djvu", "a\x1b.djvu"]:
        message = file_types.describe_binary(name, b"AT&TFORM")
        assert message and shlex.split(message.rpartition(": ")[2]) == ["djvutxt", name, "TEXT"], name
    message = file_types.describe_binary("-food.djvu", b"AT&TFORM")
    assert message and message.endswith(": djvutxt ./-food.djvu TEXT")


def test_documents_are_recognized_by_their_first_bytes() -> None:
    mail = b"From a@b Sat Nov 28 20:00:00 2026\nSubject: x\n\nText"
    for name, start, module in (
        ("a", b"%PDF-1.7", "pdf"),
        ("a", b"PK\x03\x04", "archives"),
        ("a", bytes(257) + b"ustar", "archives"),
        ("a", b"WARC/1.1\r\n", "warc"),
        ("a.txt", b"\xef\xbb\xbf \n<!-- x --><HTML>", "html"),
        ("a.txt", "\ufeff<!doctype html>".encode("utf-16-le"), "html"),
        ("a.xhtml.gz", b'<?xml version="1.0"?><x>', "html"),
        ("a.ipynb", b'{"cells": []}', "notebook"),
        ("mail", mail, "mail"),
        ("a.eml", b"Subject: x\n\nText", "mail"),
        ("a.mhtml", b"From: <Saved by Blink>\r\nSubject: x\r\n", "mail"),
        ("a.txt", b"{\\rtf1\\ansi Text}", ""),
    ):
        known = file_types.recognize(name, start)
        assert known and known.module == module
    for name, start in (
        ("a.html", b"Once upon a time"),
        ("a.ipynb", b"cells"),
        ("a.txt", b"Subject: x\n\nText"),
        ("a.patch", mail),
        ("a.txt", b"From afar, at 12:30,\nwe saw"),
        ("a.xml", b"<?xml version='1.0'?><x>"),
        ("a", b""),
    ):
        assert file_types.recognize(name, start) is None


def test_zip_archives_are_told_apart_by_their_members() -> None:
    for members, media_type, description in (
        (["word/document.xml"], "", "a Word document"),
        (["a/word/document.xml", "b.docx"], "", "a ZIP archive"),
        (["META-INF/container.xml", "mimetype"], "application/epub+zip", "an EPUB book"),
        (["content.xml"], "application/vnd.oasis.opendocument.text", "an OpenDocument text"),
        (["content.xml"], "application/vnd.oasis.opendocument.text-template", "an OpenDocument text"),
        (["content.xml"], "application/vnd.oasis.opendocument.spreadsheet", "a spreadsheet"),
        (["m/data.pkl", "m/data/0"], "", "a PyTorch model"),
        ([], "", "a ZIP archive"),
    ):
        assert file_types.recognize_zip(members, media_type).description == description


def test_a_prompt_that_is_not_text_is_recognized_too(llm: Llm) -> None:
    answer = llm("generate", "-", "-m", "none", stdin=b"%PDF-1.7\n\xff\xfe")
    assert answer.exit_code == 1 and "standard input is a PDF, not text" in answer.stderr
    assert "llm text FILE > TEXT" in answer.stderr
    for data in (b"%PDF-1.7\n\xff\xfe", gzip.compress(b"%PDF-1.7\n\xff\xfe")):
        answer = llm("train", "-", "--dry-run", stdin=data)
        assert answer.exit_code == 1 and "standard input is damaged (Failed to load document" in answer.stderr


def test_a_page_begins_with_a_tag_after_comments() -> None:
    for start, expected in [
        ("<html>", True),
        (" \n<!DOCTYPE html>", True),
        ('<?xml version="1.0"?>\n<!-- a -->\n<!-- <p> -->\n<HTML lang="en">', True),
        ("<!-- a -->\n" * 40 + "<body>", True),
        ("<!-- a -->\n" * 40 + "x", False),
        ("<!---->" * 2000 + "<!--", False),
        ("<?xml", False),
        ("<htmlx>", False),
        ("x <html>", False),
        ("", False),
    ]:
        assert file_types.is_page(start) == expected, start
