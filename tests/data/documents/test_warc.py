"""Pages in web archives."""

import gzip
import io

import pytest

pytest.importorskip("fastwarc")

from llmcli.data.documents import warc
from llmcli.data.documents.extracted import ExtractionError
from tests.data.documents import samples
from tests.data.documents.test_html import ENGLISH, JAPANESE, PAGE

ARCHIVE = (
    ("Content-Type: text/html; charset=utf-8", PAGE.format(charset="utf-8", **ENGLISH).encode()),
    ("Content-Type: image/png", b"\x89PNG"),
    ("Content-Type: text/html; charset=Shift_JIS", PAGE.format(charset="", **JAPANESE).encode("shift_jis")),
    ("HTTP/1.1 404 Not Found\r\nContent-Type: text/html", b"<p>not here</p>"),
    ("Content-Type: text/html\r\nContent-Encoding: gzip", gzip.compress(b"<p>Compressed by the server.</p>")),
)


def test_pages_are_read_and_others_counted() -> None:
    for compressed in [False, True]:
        file = samples.warc(*ARCHIVE)
        if compressed:
            file = io.BytesIO(gzip.compress(file.read()))
        text, skipped = samples.extracted(warc, file)
        assert text.startswith("A title\n") and text.endswith("\nCompressed by the server.\n"), compressed
        assert JAPANESE["text"] in text and "not here" not in text, compressed
        assert skipped == {"record that is not HTML": 1, "page with an error status": 1}, compressed


def test_a_page_that_is_too_large_or_cannot_be_parsed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    main_text = warc.main_text

    def parse(html: str) -> str:
        if "<font>" in html:
            raise ValueError("Failed to parse HTML document.")
        return main_text(html)

    monkeypatch.setattr(warc, "main_text", parse)
    monkeypatch.setattr(warc, "_MAX_PAGE", 1 << 20)
    bomb = "Content-Type: text/html\r\nContent-Encoding: gzip", gzip.compress(b"<p>word " * 1_000_000)
    hostile, good = (("Content-Type: text/html", text) for text in (b"<font>" * 9, b"<p>A good page.</p>"))
    text, skipped = samples.extracted(warc, samples.warc(bomb, hostile, good))
    assert text == "A good page.\n" and skipped == {"page over 1 MB": 1, "page that cannot be parsed": 1}


def test_an_archive_without_pages_is_an_error() -> None:
    with pytest.raises(ExtractionError, match="has no pages"):
        samples.extracted(warc, io.BytesIO(b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n"))
