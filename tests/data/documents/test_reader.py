"""Documents of all kinds in child processes: what is read, in which order, and which limits end the reading."""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmcli.data.child_process import end_after
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.documents import reader, worker
from llmcli.data.documents.worker import FileLimits
from llmcli.data.sources import Sources, read_sources
from tests import platforms
from tests.data.corpora import SMALL, error_of, put, write_parquet, zstd
from tests.data.documents import samples

for package in ("resiliparse", "fastwarc", "pypdfium2"):
    pytest.importorskip(package, exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_hang")]  # starts processes

PAGE = "<!DOCTYPE html><html><body><p>A page about cats.</p></body></html>"
CATS = "A page about cats.\n"


def texts(sources: Sources) -> dict[str, str]:
    """{name: text}"""
    return {part.document.name: "".join(part.text()) for part in sources.text.contents}


def zipped(members: dict[str, str | bytes]) -> bytes:
    return samples.zipped(members).read()


def page(text: str) -> bytes:
    return PAGE.replace("A page about cats.", text).encode()


def pdf(text: str) -> bytes:
    return samples.pdf(samples.lines_at(text)).read()


def warc(text: str) -> bytes:
    return samples.warc(("Content-Type: text/html", page(text))).read()


DOCUMENTS: dict[str, tuple[Callable[[str], bytes], str]] = {  # name -> (text -> file, kind)
    "a.html": (page, "HTML page"),
    "utf16.htm": (lambda text: page(text).decode().encode("utf-16"), "HTML page"),
    "a.html.gz": (lambda text: gzip.compress(page(text)), "HTML page"),
    "a.xhtml": (lambda text: f"<p>{text}</p>".encode(), "HTML page"),
    "a.pdf": (pdf, "PDF"),
    "a.pdf.xz": (lambda text: lzma.compress(pdf(text)), "PDF"),
    "a.epub": (lambda text: samples.epub({"a": f"<p>{text}</p>"}, ["a"]).read(), "EPUB book"),
    "a.docx": (lambda text: samples.docx(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>").read(), "Word document"),
    "a.odt": (lambda text: samples.odt(f"<text:p>{text}</text:p>").read(), "OpenDocument text"),
    "a.pptx": (lambda text: samples.pptx([samples.shape(text)], [1]).read(), "presentation"),
    "a.ipynb": (lambda text: samples.notebook(("markdown", text)).read(), "notebook"),
    "a.mbox": (lambda text: samples.mbox(samples.message("", text)).read(), "mailbox"),
    "a.eml": (lambda text: samples.message("", text).as_bytes(), "e-mail"),
    "a.warc": (warc, "WARC file"),
    "a.warc.gz": (lambda text: gzip.compress(warc(text)), "WARC file"),
}

NAMES = {  # of the only document in a collection
    "a.mbox": "a.mbox/1", **{name: f"{name}/1 http://example.org/0" for name in ("a.warc", "a.warc.gz")},
}  # fmt: skip


def test_a_document_is_its_text_in_the_order_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when several processes read them at once."""
    monkeypatch.setattr(reader, "cpu_cores", lambda: 3)
    for name, (made, _) in DOCUMENTS.items():
        put(f"d/{name}", made(f"A page about {name}."))
    put("d/b.txt", b"A page about b.txt.\n")
    names = sorted([*DOCUMENTS, "b.txt"])
    sources = read_sources(["d"])
    assert list(texts(sources).items()) == [(f"d/{NAMES.get(name, name)}", f"A page about {name}.\n") for name in names]
    kinds = [DOCUMENTS[name][1] if name in DOCUMENTS else "" for name in names]
    assert [(document.kind, document.skipped) for document in sources.text.documents] == [(kind, ()) for kind in kinds]


CONVERSATIONS = b'{"prompt": "Hi", "completion": "Ho"}\n{"prompt": "How?", "completion": "So."}\n'
MEMBERS = {
    "a.html": PAGE.encode(),
    "b/c.txt": "猫\n".encode(),
    "b/d.jsonl": CONVERSATIONS,
    "b/e.jsonl": b'{"text": "One.", "id": 1}\n{"text": "Two.", "id": 2}\n',
    "b/f.jsonl.gz": gzip.compress(CONVERSATIONS.replace(b"Hi", b"Hey")),
    "g.png": b"\x89PNG\r\n\x1a\n\0",
    ".hidden": b"hidden",
    "__MACOSX/a.html": b"hidden",
}


def test_an_archive_is_read_like_a_directory() -> None:
    for form in ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]:
        compress = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}.get(form, bytes)
        name = put(f"a.{form}", zipped(MEMBERS) if form == "zip" else compress(samples.tarred(MEMBERS)))
        sources = read_sources([name])
        assert texts(sources) == {
            f"{name}/a.html": CATS, f"{name}/b/c.txt": "猫\n", f"{name}/b/e.jsonl": "One.\n\nTwo."
        }, form  # fmt: skip
        assert [file.name for file in sources.conversation_files] == [f"{name}/b/d.jsonl", f"{name}/b/f.jsonl.gz"], form
        assert [one.messages[0].content for one in sources.conversations] == ["Hi", "How?", "Hey", "How?"], form
        assert [document.member for document in sources.text.documents] == ["a.html", "b/c.txt", "b/e.jsonl"], form
        [skipped] = sources.text.skipped
        assert skipped.startswith(f"{name}/g.png is an image, not text"), form


def test_a_table_in_an_archive_is_a_table() -> None:
    data = write_parquet("a.parquet", [{"question": "Hi?", "answer": "Ho."}])
    sources = read_sources([put("a.zip", zipped({"x/a.parquet": data, "b.csv": b"question,answer\nWho?,Me.\n"}))])
    assert [file.name for file in sources.conversation_files] == ["a.zip/x/a.parquet", "a.zip/b.csv"]
    assert [one.messages[0].content for one in sources.conversations] == ["Hi?", "Who?"]
    [plain] = read_sources(["a.parquet"]).conversation_files
    assert plain.sha256 == sources.conversation_files[0].sha256


def nested(depth: int) -> bytes:
    data = zipped({"a.html": PAGE})
    for number in range(1, depth):
        data = zipped({"in.zip": data, "b.txt": f"b{number}"})
    return data


def test_archives_in_archives_are_read_to_a_depth_of_three() -> None:
    assert texts(read_sources([put("a.zip", nested(3))])) == {
        "a.zip/in.zip/in.zip/a.html": CATS, "a.zip/in.zip/b.txt": "b1", "a.zip/b.txt": "b2"
    }  # fmt: skip
    sources = read_sources([put("b.zip", nested(4))])
    assert list(texts(sources).values()) == ["b1", "b2", "b3"]
    assert sources.text.skipped == (
        "b.zip/in.zip/in.zip/in.zip is an archive inside 3 others and is not read; unpack it first",
    )


def test_plain_text_keeps_its_markup_and_other_documents_are_extracted() -> None:
    plain = ReadOptions(plain=True)
    assert texts(read_sources([put("a.html", PAGE.encode())], plain)) == {"a.html": PAGE}
    files: dict[str, str | bytes] = {"a.html": PAGE, "a.docx": DOCUMENTS["a.docx"][0]("A page about cats.")}
    assert texts(read_sources([put("a.zip", zipped(files))], plain)) == {"a.zip/a.html": PAGE, "a.zip/a.docx": CATS}


def test_the_line_says_what_documents_were_taken_for() -> None:
    put("d/a.html", page("Dogs."))
    put("d/a.docx", DOCUMENTS["a.docx"][0]("A page about cats."))
    assert read_sources(["d"]).describe() == (
        "data: text in d/a.docx (Word document); text in d/a.html (HTML page; otherwise: `plain`)"
    )


def test_each_message_of_a_mailbox_is_a_document() -> None:
    for name in ["a.mbox", "a.zip"]:
        messages = [samples.message(*one) for one in (("A", "Yes."), ("", ""), ("B", "> Yes.\nNo."), ("A", "Yes."))]
        data = samples.mbox(*messages).read()
        text = read_sources([put(name, data if name == "a.mbox" else zipped({"m/a.mbox": data}))]).text
        inner = name if name == "a.mbox" else f"{name}/m/a.mbox"
        assert [(one.name, one.relative_name, one.kind, one.skipped) for one in text.documents] == [
            (f"{inner}/1", f"{inner}/1", "mailbox", ()), (f"{inner}/3", f"{inner}/3", "mailbox", (("quoted line", 1),)),
        ], name  # fmt: skip
        assert ["".join(part.text()) for part in text.contents] == ["Subject: A\n\nYes.\n", "Subject: B\n\nNo.\n"], name
        assert text.skipped == (
            f"1 document with the text of another, which is read once: {inner}/4 (as {inner}/1)",
        ), name


# ---- what cannot be read


def test_advice_for_a_file_in_an_archive_names_no_path() -> None:
    put("a.zip", zipped({"a.txt": "ein Text", "b.txt": b"caf\xe9 \x81\xff" * 9}))
    (line,) = read_sources(["a.zip"]).text.skipped
    assert line.startswith("a.zip/b.txt is not UTF-8 text: byte 0xe9 at position 3; its encoding is uncertain; ")


def problem_of(*names: str) -> str:
    return error_of(read_sources, names)


def test_a_damaged_document_is_an_error_alone_and_skipped_among_others() -> None:
    put("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj")
    assert problem_of("a.pdf").startswith("a.pdf is damaged")
    put("b.html", PAGE.encode())
    sources = read_sources(["a.pdf", "b.html"])
    assert texts(sources) == {"b.html": CATS} and sources.text.skipped[0].startswith("a.pdf is damaged")
    put("a.pdf.gz", gzip.compress(b"%PDF-1.7 x"))
    assert "no text found in a.pdf, a.pdf.gz" in problem_of("a.pdf", "a.pdf.gz")


def test_rtf_is_refused_unless_it_is_read_as_plain_text() -> None:
    put("a.rtf", rb"{\rtf1\ansi Text.}")
    assert problem_of("a.rtf").startswith("a.rtf is an RTF document, not text; save it as plain text first: soffice")
    assert texts(read_sources(["a.rtf"], ReadOptions(plain=True))) == {"a.rtf": r"{\rtf1\ansi Text.}"}


def test_a_zip_archive_that_is_no_text_has_its_advice() -> None:
    assert problem_of(put("a.xlsx", zipped({"xl/workbook.xml": "<x/>"}))) == (
        "a.xlsx is a spreadsheet, not text; save it as CSV first: soffice --headless --convert-to csv a.xlsx"
    )
    assert problem_of(put("a.zip", b"PK\x03\x04" + bytes(40))).startswith("a.zip is damaged")
    assert problem_of(put("empty.zip", zipped({}))) == "empty.zip has no files to read"
    assert problem_of(put("empty.html", b"<html><body></body></html>")) == "empty.html has no text"


def test_a_missing_package_is_a_line_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    put("a.html", PAGE.encode())
    Path("blocked/resiliparse").mkdir(parents=True)
    put("blocked/resiliparse/__init__.py", b"raise ModuleNotFoundError('no', name='resiliparse')")
    with fresh_children():
        monkeypatch.syspath_prepend(str(Path("blocked").absolute()))
        assert problem_of("a.html") == (
            "reading a.html needs resiliparse, which this installation lacks; install it: pip install "
            '"llmcli[documents]"; or `plain` to read it as it is'
        )


@contextlib.contextmanager
def fresh_children() -> Iterator[None]:
    """No child process from before the block is used in it, nor one from the block after it."""
    stop_idle()
    try:
        yield
    finally:
        stop_idle()


def stop_idle() -> None:
    while reader._idle:
        reader._idle.pop().stop()


# ---- limits


def limit(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    monkeypatch.setattr(reader, "LIMITS", replace(FileLimits(), **limits))  # type: ignore[arg-type]


BOMB = "over 200 times its size"


def test_a_bomb_in_an_archive_costs_that_file() -> None:
    bomb = bytes(40 << 20)
    put("a.zip", zipped({"a.txt": "a", "zeros.txt": bomb, "b.txt": "b"}))
    put("b.tar", samples.tarred({"in.zip": zipped({"c.txt": "c", "zeros.txt": bomb, "d.txt": "d"}), "e.txt": b"e"}))
    sources = read_sources(["a.zip", "b.tar"])
    found = ["a.zip/a.txt", "a.zip/b.txt", "b.tar/in.zip/c.txt", "b.tar/in.zip/d.txt", "b.tar/e.txt"]
    assert list(texts(sources)) == found
    assert sources.text.not_read == (
        f"a.zip/zeros.txt unpacks to over 32.00 MB, {BOMB}",
        f"b.tar/in.zip/zeros.txt unpacks to over 32.00 MB, {BOMB}",
    )


def test_a_compressed_file_that_unpacks_to_more_than_its_limit_costs_that_file() -> None:
    bomb = b"\x1f\x8b\x08\0" + bytes(60 << 20)  # of zeros, which are no gzip file
    sources = read_sources([put("a.zip", zipped({"a.gz": bomb, "b.txt": "cats"}))])
    assert texts(sources) == {"a.zip/b.txt": "cats"}
    assert "a.zip/a.gz unpacks to over" in sources.text.skipped[0]


def test_many_bombs_in_an_archive_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, unpacked_bytes=10_000, archive_bytes=35_000, ratio=1)
    name = put("a.zip", zipped({"a.txt": "a", **{f"{n}.txt": bytes(20_000) for n in range(3)}, "b.txt": "b"}))
    sources = read_sources([name])
    assert list(texts(sources)) == ["a.zip/a.txt"]
    assert sources.text.not_read == (
        "a.zip/0.txt unpacks to over 10.00 kB, over 1 times its size",
        "a.zip/1.txt unpacks to over 10.00 kB, over 1 times its size",
        "a.zip/2.txt is not read: a.zip unpacks to over 35.00 kB, over 1 times its size",
        "a.zip unpacks to over 35.00 kB, over 1 times its size; the rest is skipped",
    )


def test_a_file_that_is_skipped_in_a_compressed_archive_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, archive_bytes=1_000_000)
    members = {"a.txt": b"a", ".hidden": bytes(2_000_000), "b.txt": b"b"}
    sources = read_sources([put("a.tar.gz", gzip.compress(samples.tarred(members)))])
    assert list(texts(sources)) == ["a.tar.gz/a.txt"]
    assert sources.text.skipped == (f"a.tar.gz unpacks to over 1.00 MB, {BOMB}; the rest is skipped",)


@platforms.posix
def test_time_without_text_goes_on_when_a_document_begins() -> None:
    """Thus a file that is read twice, to recognize and to send it, has no more time than another."""
    request = {"name": "a", "reading": {}, "after": None, "limits": {"stalled_seconds": 1000}}
    answer = worker._AnswerWriter(lambda header, data: None, request, 0)
    try:
        end_after(900)
        answer.begin([], "", "", 0)
        answer.end()
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 900
        answer.add(b"text")
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        end_after(0)


COMPRESSED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def test_compressed_text_ends_at_the_ratio_alone_and_in_archives() -> None:
    for suffix in ("gz", "zst"):
        compress = COMPRESSED[suffix]
        bomb = compress(b"a" * 35_000_000)
        assert problem_of(put(f"a.{suffix}", bomb)) == (f"a.{suffix} unpacks to over 32.00 MB, {BOMB}"), suffix
        members = {f"a.{suffix}": compress(b"text"), f"b.{suffix}": bomb, f"c.{suffix}": compress(b"more")}
        for name, data in (("c.zip", zipped(members)), (f"d.tar.{suffix}", compress(samples.tarred(members)))):
            sources = read_sources([put(name, data)])
            assert texts(sources) == {f"{name}/a.{suffix}": "text", f"{name}/c.{suffix}": "more"}, suffix
            assert sources.text.not_read == (f"{name}/b.{suffix} unpacks to over 32.00 MB, {BOMB}",)


def test_a_table_ends_at_the_ratio() -> None:
    data = write_parquet("a.parquet", [{"text": "word " * 10_000}] * 800)
    assert len(data) < 10_000
    put("a.zip", zipped({"a.parquet": data}))
    for name in ["a.parquet", "a.zip"]:
        assert "unpacks to over 32.00 MB, over 200 times its size" in problem_of(name), name


@platforms.linux
def test_a_bomb_takes_no_more_memory_than_a_good_file() -> None:
    import resource

    def peaks() -> tuple[int, int]:
        """Peak memory of this process and of the idle child, in kB."""
        [child] = reader._idle
        [line] = re.findall(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{child._process.pid}/status").read_text())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, int(line)

    with fresh_children():
        read_sources([put("a.zip", zipped({f"a.{suffix}": COMPRESSED[suffix](b"text") for suffix in ("gz", "bz2")}))])
        before = peaks()
        for suffix in ("gz", "bz2"):
            bomb = COMPRESSED[suffix](b"a" * 40_000_000)
            before = (max(before[0], peaks()[0]), before[1])  # making it took memory
            problem_of(put("a.txt." + suffix, bomb))
            problem_of(put("b.zip", zipped({"a.txt." + suffix: bomb})))
        assert all(after - first < 32_000 for first, after in zip(before, peaks(), strict=True))


def test_a_file_much_larger_than_the_limit_may_be_as_large_as_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed text has several times its size."""
    text = "".join(f"{n:x} " for n in range(50_000)).encode()
    limit(monkeypatch, bytes=10_000)
    assert len(texts(read_sources([put("a.txt.gz", gzip.compress(text))]))["a.txt.gz"]) == len(text)
    limit(monkeypatch, bytes=10_000, usual_ratio=1)
    assert problem_of("a.txt.gz").startswith("a.txt.gz unpacks to over ")


def test_many_members_or_documents_in_a_collection_end_at_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    put("a.mbox", samples.mbox(*(samples.message(f"{n}", "") for n in range(20))).read())
    put("a.zip", zipped({f"{n}.txt": f"{n}" for n in range(1, 21)}))
    limit(monkeypatch, members=10)
    for name, suffix in (("a.mbox", ""), ("a.zip", ".txt")):
        sources = read_sources([name])
        assert list(texts(sources)) == [f"{name}/{n}{suffix}" for n in range(1, 11)]
        assert sources.text.skipped == (f"{name} has over 10 members; the rest is skipped",)
    limit(monkeypatch, members=10, bytes_per_member=Path("a.mbox").stat().st_size // 20)
    assert len(texts(read_sources(["a.mbox"]))) == 20


def test_a_document_that_vanishes_before_its_turn_is_a_line() -> None:
    with reader.DocumentReader(ReadOptions(plain=True)) as documents:
        job = documents.submit("a.html", Path("a.html"), b"", plain=False)
        _, problems, _ = documents.wait(job, lambda name, size: None)
    assert problems == [("a.html", "a.html cannot be read: No such file or directory")]


def endless(name: str, start: bytes = b"") -> str:
    """A tar archive with a hidden file of a terabyte, which is skipped for many minutes."""
    hidden = tarfile.TarInfo(".hidden")
    hidden.size = 1 << 40
    with open(put(name, start + hidden.tobuf(tarfile.GNU_FORMAT)), "r+b") as file:
        file.truncate(1 << 40)
    return name


@platforms.posix
def test_a_document_that_takes_too_long_is_left_and_what_it_gave_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent documents in one archive take twice the time of one together."""
    monkeypatch.setattr(reader, "cpu_cores", lambda: 4)  # they are silent at the same time
    limit(monkeypatch, stalled_seconds=1.0)
    text, endless_xml = "word " * 20_000, "<w:x/>" * 10_000_000
    silent = samples.docx(endless_xml).read()
    put("a.docx", samples.docx(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>{endless_xml}").read())
    put("d.zip", zipped({"a.docx": silent, "b.docx": silent, "c.docx": silent, "d.txt": "d"}))
    put("e.html", PAGE.encode())
    endless("b.tar")
    endless("c.tar", samples.tarred({"a.txt": b"a" * 512})[:1024])
    sources = read_sources(["a.docx", "b.tar", "c.tar", "d.zip", "e.html"])
    expected = {"a.docx": f"{text.strip()}\n", "c.tar/a.txt": "a" * 512, "d.zip/d.txt": "d", "e.html": CATS}
    assert texts(sources) == expected
    assert sources.text.not_read == (
        "a.docx timed out after 1 s without output; the rest is skipped",
        "b.tar timed out after 1 s without output",
        "c.tar timed out after 1 s without output; the rest is skipped",
        "d.zip/a.docx timed out after 1 s without output",
        "d.zip/b.docx timed out after 0.5 s without output",
        "d.zip/c.docx timed out after 0.25 s without output",
    )


def test_a_process_that_dies_costs_one_document_or_one_file_in_an_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are read by another process. It dies in a document, before the first document of a file, or in the
    second letter of a mailbox and then before the third one."""
    frames, deaths = reader.ChildProcess.frames, list[tuple[str, bool]]()

    def dying(self: reader.ChildProcess, request: dict[str, object]) -> Iterator[tuple[dict[str, object], bytes]]:
        for header, data in frames(self, request):
            yield header, data
            if deaths and (str(header.get("name")).partition("/")[2], "kind" in header) == deaths[0]:
                del deaths[0]
                self.kill()
                raise EOFError

    monkeypatch.setattr(reader.ChildProcess, "frames", dying)
    letter = "From a@b Mon Jan  1 00:00:00 2024\nSubject: cat\n\nLetter {}\n\n"
    mailbox = "".join(map(letter.format, range(3)))
    members: dict[str, str | bytes] = {"a.txt": "a", "b.mbox": mailbox, "c.html": PAGE, "d.txt": "d", "e.txt": "e"}
    letters = ["b.mbox/1", "b.mbox/2", "b.mbox/3"]
    others = ["c.html", "d.txt", "e.txt"]
    for places, found, skipped in [
        ([("c.html", True)], ["a.txt", *letters, "d.txt", "e.txt"], ["c.html"]),
        ([("d.txt", True)], ["a.txt", *letters, "c.html", "e.txt"], ["d.txt"]),
        ([("b.mbox/2", True)], ["a.txt", "b.mbox/1", "b.mbox/3", *others], ["b.mbox/2"]),
        ([("b.mbox", False)], ["a.txt", *others], ["b.mbox"]),
        ([("b.mbox/2", True), ("b.mbox", False)], ["a.txt", "b.mbox/1", *others], ["b.mbox/2", "b.mbox"]),
    ]:
        deaths[:] = places
        sources = read_sources([put("a.zip", zipped(members))])
        assert list(texts(sources)) == [f"a.zip/{name}" for name in found], places
        assert [line.split(" is damaged")[0] for line in sources.text.skipped] == [f"a.zip/{name}" for name in skipped]


def test_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, ratio=10**6)
    # Python stores each character of such a text in four bytes
    put("a.ipynb.gz", gzip.compress('{"cells": ["🍎'.encode() + b" " * (240 << 20) + b'"]}', 1))
    assert "1,024 MB of memory" in problem_of("a.ipynb.gz")


@platforms.posix
def test_ctrl_c_ends_the_reading_and_leaves_no_process() -> None:
    endless("a.tar")
    code = (
        "from pathlib import Path\n"
        "from llmcli.data.conversations.record_kinds import ReadOptions\n"
        "from llmcli.data.documents import reader\n"
        "with reader.DocumentReader(ReadOptions(plain=True)) as documents:\n"
        "    job = documents.submit('a.tar', Path('a.tar'), b'', plain=True)\n"
        "    while not documents._readers or not documents._readers[0].child.is_running: pass\n"
        "    print(documents._readers[0].child._process.pid, flush=True)\n"
        "    documents.wait(job, print)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_progress_counts_the_text_of_documents_and_may_end_the_reading() -> None:
    from llmcli.data.text.temporary_files import ReadingEndsError

    put("d/a.html", PAGE.encode())
    put("d/a.zip", zipped({"b.txt": "b" * 1000}))
    sizes: dict[str, int] = {}

    def on_read(name: str, size: int) -> None:
        sizes[name] = sizes.get(name, 0) + size

    read_sources(["d"], on_read=on_read)
    assert sizes["d/a.html"] == len(CATS) and sizes["d/a.zip/b.txt"] == 1000

    def end(name: str, size: int) -> None:
        raise ReadingEndsError("enough")

    with pytest.raises(ReadingEndsError, match="enough"):
        read_sources(["d"], on_read=end)


def test_a_file_is_found_again_by_the_record(llm: Callable[..., object]) -> None:
    """A model names its documents, and they are the same text later."""
    from llmcli.evaluation.training_text import find_sources
    from llmcli.formats.loading import load

    for number, (name, (made, _)) in enumerate(DOCUMENTS.items()):
        put(f"d/{number}{name}", made(f"A page about {name}. " * 9))
    put("d/z.zip", zipped({"a.html": PAGE.replace("cats", "dogs " * 400), "b.txt": "b " * 400}))
    answer = llm("train", "d", "-o", "m.safetensors", *SMALL)
    assert answer.exit_code == 0, answer.stderr  # type: ignore[attr-defined]
    record = load(Path("m.safetensors")).record
    entries = {entry.name: entry for entry in record.corpus}
    assert entries["z.zip/a.html"].kind == "HTML page" and entries["z.zip/b.txt"].member == "b.txt"
    found = find_sources(record, Path("m.safetensors")).text.documents
    assert {document.sha256 for document in found} == {entry.sha256 for entry in record.corpus}
    put("d/z.zip", b"PK\x03\x04")
    assert "z.zip/a.html, is missing or has changed" in error_of(find_sources, record, Path("m.safetensors"))


def test_json_of_a_broken_character_is_text() -> None:
    cells = {"cells": [{"cell_type": "markdown", "source": "a\ud800b\0c"}], "nbformat": 4}
    assert texts(read_sources([put("a.ipynb", json.dumps(cells).encode())])) == {"a.ipynb": "a?bc\n"}
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("\x1b[31m.txt", "red")
    [name] = texts(read_sources(["a.zip"]))
    assert "\x1b" not in name
