"""Files that are no text are recognised by what is in them, whatever their name, and the advice fits."""

import gzip
import io
import json
import pickle
import shlex
import shutil
import sqlite3
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from llmcli.data import file_types
from tests.conftest import TEXT

Llm = Callable[..., Result]


def zipped(*names: str, first: bytes = b"") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        if first:
            archive.writestr(zipfile.ZipInfo("mimetype"), first)
        for name in names:
            archive.writestr(name, "words " * 50_000)
    return target.getvalue()


def tarred() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return target.getvalue()


def database() -> bytes:
    connection = sqlite3.connect("made.db")
    connection.execute("CREATE TABLE t (x TEXT)")
    connection.commit()
    connection.close()
    return Path("made.db").read_bytes()


def array() -> bytes:
    target = io.BytesIO()
    np.save(target, np.arange(3))
    return target.getvalue()


def model() -> bytes:
    from safetensors.numpy import save

    return save({"a": np.zeros(300, np.float32)})


BINARY = b"\x00\xff\x80" * 20
FILES: dict[str, tuple[Callable[[], bytes] | bytes, str]] = {
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "is a PDF, not text; extract its text first: pdftotext a.pdf"),
    "my book.pdf": (b"%PDF-1.4\n\xff", "pdftotext 'my book.pdf' 'my book.txt'"),
    "corpus.zip": (lambda: zipped("a.txt"), "a ZIP archive, not text; unpack it into a directory"),
    "a.docx": (lambda: zipped("[Content_Types].xml", "word/document.xml"), "pandoc a.docx -t plain -o a.txt"),
    "b.docx": (lambda: zipped("word/document.xml"), "is a Word document, not text; extract its text first"),
    "a.epub": (lambda: zipped("c.xhtml", first=b"application/epub+zip"), "is an EPUB book, not text; extract"),
    "a.odt": (lambda: zipped("content.xml", first=b"application/vnd.oasis.opendocument.text"), "an OpenDocument"),
    "a.xlsx": (lambda: zipped("[Content_Types].xml", "xl/workbook.xml"), "is a spreadsheet, not text; save it as CSV"),
    "a.pptx": (lambda: zipped("ppt/presentation.xml"), "is a presentation"),
    "a.pth": (lambda: zipped("archive/data.pkl"), "is a model of PyTorch"),
    "a.tar": (tarred, "is a tar archive, not text; unpack it into a directory"),
    "a.tar.gz": (lambda: gzip.compress(tarred()), "name that: mkdir a && tar -xf a.tar.gz -C a"),
    "a.pdf.gz": (lambda: gzip.compress(b"%PDF-1.4\n\xff"), "(gzip -dk a.pdf.gz), then extract"),
    "a.png": (b"\x89PNG\r\n\x1a\n" + BINARY, "is an image (PNG), not text; recognise its text"),
    "a.jpg": (b"\xff\xd8\xff\xe0" + BINARY, "is an image (JPEG)"),
    "a.gif": (b"GIF89a" + BINARY, "is an image (GIF)"),
    "a.webp": (b"RIFF\x10\0\0\0WEBP" + BINARY, "is an image (WebP)"),
    "a.mp3": (b"ID3\x04\0" + BINARY, "is a recording (MP3), not text; transcribe it first"),
    "a.mp4": (b"\0\0\0\x20ftypisom" + BINARY, "is a video or recording (MP4)"),
    "a.wav": (b"RIFF\x10\0\0\0WAVE" + BINARY, "is a recording (WAV)"),
    "a.bz2": (b"BZh91AY" + BINARY, "is compressed (bzip2), not text; unpack it first: bzip2 -dk a.bz2"),
    "a.xz": (b"\xfd7zXZ\0" + BINARY, "unpack it first: xz -dk a.xz"),
    "a.zst": (b"\x28\xb5\x2f\xfd" + BINARY, "unpack it first: zstd -d a.zst"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + BINARY, "7z x -oa a.7z"),
    "a.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + BINARY, "is an old Office document"),
    "a.parquet": (b"PAR1" + BINARY, "is a Parquet table"),
    "a.db": (database, "is an SQLite database, not text; write its text to a text file first: sqlite3 a.db"),
    "a.npy": (array, "is a NumPy array"),
    "a.pkl": (lambda: pickle.dumps({"a": "b" * 300}), "is a Python pickle"),
    "a.safetensors": (model, "to fine-tune a model on a text: llm train TEXT --from a.safetensors"),
    "a.gguf": (b"GGUF" + BINARY, "is a model (GGUF), not text; to fine-tune"),
    "a.exe": (b"MZ" + BINARY, "is a program"),
    "a": (b"\x7fELF" + BINARY, "is a program"),
    "a.bin": (BINARY, "convert it first: iconv"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_text_is_named_with_the_way_to_its_text(llm: Llm, name: str) -> None:
    made, said = FILES[name]
    data = made if isinstance(made, bytes) else made()
    Path("d").mkdir()
    for place, advice in ((name, said), (f"d/{name}", "")):
        Path(place).write_bytes(data)
        for words in (["train", place, "--dry-run"], ["eval", place, "-m", "none"], ["tokenize", "--train", place]):
            if words[0] == "eval" and not advice:
                continue
            answer = llm(*words)
            assert answer.exit_code == 1 and answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
            if words[0] != "eval":
                assert advice in answer.stderr and ("iconv" in answer.stderr) == (name == "a.bin")
    Path("d/text.txt").write_text(TEXT, "utf-8")
    note = llm("train", "d", "--dry-run").stderr
    assert f"left out: d/{name}" in note and ("iconv" in note) == (name == "a.bin")


def test_a_name_says_nothing(llm: Llm) -> None:
    Path("poem.pdf").write_text(TEXT, "utf-8")
    Path("MZ.txt").write_text("MZ, BM, ID3, GGUF, PAR1, OggS and %PDF-1.7 are first bytes of files.\n" + TEXT, "utf-8")
    for name in ("poem.pdf", "MZ.txt"):
        assert llm("train", name, "--dry-run").exit_code == 0


@pytest.mark.parametrize("name", ["it's.pdf", "{x}.pdf", "a\x1b.pdf"])
def test_advice_can_be_pasted_whatever_the_name(name: str) -> None:
    said = file_types.not_text(name, b"%PDF-1.7")
    assert said and shlex.split(said.rpartition(": ")[2]) == ["pdftotext", name, name[:-3] + "txt"]


def test_a_prompt_that_is_no_text_is_named_too(llm: Llm) -> None:
    answer = llm("generate", "-", "-m", "none", stdin=b"%PDF-1.7\n\xff\xfe")
    assert answer.exit_code == 1 and "standard input is a PDF, not text" in answer.stderr
    assert "pdftotext FILE FILE.txt" in answer.stderr
    for data in (b"%PDF-1.7\n\xff\xfe", gzip.compress(b"%PDF-1.7\n\xff\xfe")):
        answer = llm("train", "-", "--dry-run", stdin=data)
        assert answer.exit_code == 1 and "standard input is a PDF, not text" in answer.stderr


def test_an_address_is_no_file(llm: Llm) -> None:
    answer = llm("train", "https://example.org/book.txt", "--dry-run")
    assert answer.exit_code == 1 and "get it first: curl -LO https://example.org/book.txt" in answer.stderr


# ---- JSON


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Bye"}]}
JSON = [
    ("a.jsonl", lines({"id": 1, "text": "One."}, {"id": 2, "text": "Two."}), "JSON Lines", ["One.", "Two."]),
    ("a.txt", lines({"text": "One."}, {"text": "Two."}), "JSON Lines", ["One.", "Two."]),
    ("one.jsonl", lines({"text": "One."}), "JSON Lines", ["One."]),
    ("a.jsonl", lines({"q": "?", "a b": "Three."}, {"q": "?", "a b": "x"}), "JSON Lines", ["Three.", "x"]),
    ("chat.jsonl", lines(CHAT, CHAT), "JSON Lines", ["Hello", "Bye"] * 2),
    ("a.json", json.dumps([{"text": "One."}, {"text": "Two."}], indent=2), "JSON", ["One.", "Two."]),
    ("a.json", json.dumps({"title": "x", "content": "One."}), "JSON", ["One."]),
    ("a.json", json.dumps([CHAT]), "JSON", ["Hello", "Bye"]),
    ("a.json", json.dumps([1, 2, 3]), "JSON", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "form", "wanted"), JSON)
def test_json_is_told_with_the_way_to_its_text(name: str, text: str, form: str, wanted: list[str] | None) -> None:
    said = file_types.structured(name, text, whole=True)
    assert said and said.startswith(f"{name} is {form} and is learned as raw text, with its keys and braces")
    assert ("jq -r" in said) == (wanted is not None)
    if wanted is None or not shutil.which("jq"):
        return
    Path(name).write_text(text, "utf-8")
    command = said.split("for one field only: ")[1]
    subprocess.run(command, shell=True, check=True)
    assert Path(shlex.split(command)[-1]).read_text("utf-8").split("\n") == [*wanted, ""]


@pytest.mark.parametrize(
    "text", ["", "Once upon a time", "{ x }\n{ y }\n", "[Scene 1]\nEnter", "12\n13\n", '"quoted"\n', "{}\n"]
)
def test_other_text_is_not_taken_for_json(text: str) -> None:
    assert file_types.structured("a.txt", text, whole=True) is None


def test_train_says_that_json_is_learned_as_it_stands(llm: Llm) -> None:
    Path("d").mkdir()
    for name in ("a.jsonl", "b.jsonl", "c.json"):
        Path("d", name).write_text(lines(*({"n": i, "text": "The cat sat."} for i in range(5000))), "utf-8")
    Path("d/d.txt").write_text(TEXT, "utf-8")
    said = llm("train", "d", "--dry-run", "--steps", 1).stderr.splitlines()
    assert said[0] == (
        "d/a.jsonl is JSON Lines and is learned as raw text, with its keys and braces; for one field only: "
        "jq -r .text d/a.jsonl > d/a.txt"
    )
    assert said[1] == "and 2 more files are JSON" and len(said) == 2
    assert llm("train", "d/d.txt", "--dry-run", "--steps", 1).stderr == ""
