"""PDF files written by hand, with a known text."""

import io

import pytest

pytest.importorskip("pypdfium2")

from llmcli.data.documents import pdf
from llmcli.data.documents.extracted import ExtractionError
from tests.data.documents import samples
from tests.data.documents.samples import lines_at

PARAGRAPH = ("The quick brown fox jumps over the lazy dog, and the dog sleeps on until even-", "ing comes.")
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on until evening comes."
# a font whose characters have no meaning: no ToUnicode, and glyphs by their numbers
UNREADABLE = (
    "/Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /DescendantFonts [<< /Type /Font /Subtype "
    "/CIDFontType2 /BaseFont /X /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>]"
)


def test_paragraphs_of_a_page() -> None:
    file = samples.pdf(
        [*lines_at("A title", size=20), *lines_at(*PARAGRAPH, top=740), *lines_at("Caf\xe9 (1)", top=700)]
    )
    assert samples.extracted(pdf, file) == (f"A title\n\n{TEXT}\n\nCafé (1)\n", {})


def test_headers_and_page_numbers_are_left_out() -> None:
    pages = []
    for number in range(6):
        text = lines_at(f"Page {'abcdef'[number]} has a text.", top=700 - 9 * number)
        pages.append([*lines_at("My book", top=810), *text, *lines_at(f"{number}", top=30)])
    text, _ = samples.extracted(pdf, samples.pdf(*pages))
    assert text == "\n".join(f"Page {letter} has a text.\n" for letter in "abcdef")


def test_cells_of_a_row_are_separated_by_tabs() -> None:
    rows = [(72.0 + 150 * column, 700.0 - 12 * row, 10.0, f"r{row}c{column}") for row in (1, 2) for column in (1, 2, 3)]
    text, _ = samples.extracted(pdf, samples.pdf(rows))
    assert text == "r1c1\tr1c2\tr1c3\nr2c1\tr2c2\tr2c3\n"


def test_pages_without_readable_text_are_counted() -> None:
    for file, found in (
        (samples.pdf(lines_at("Text"), [], []), ("Text\n", {"page without text": 2})),
        (samples.pdf([(72, 700, 10, "0024002500260027")], font=UNREADABLE), ("", {"page without readable text": 1})),
    ):
        assert samples.extracted(pdf, file) == found


def test_scanned_encrypted_and_damaged_files_are_errors_with_one_line() -> None:
    key = "/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{0}> /U <{0}> >> /ID [<00> <00>]".format("41" * 32)
    for file, message in (
        (samples.pdf([], []), "pages are images"),
        (samples.pdf(lines_at("Text"), encrypt=key), "is encrypted"),
        (io.BytesIO(b"%PDF-1.7\n"), "Failed to load document"),
        (io.BytesIO(b"no PDF"), "Failed to load document"),
    ):
        with pytest.raises((ExtractionError, pdf.pypdfium2.PdfiumError), match=message) as caught:
            samples.extracted(pdf, file)
        assert "\n" not in str(caught.value)


def test_a_file_with_a_broken_table_of_objects_is_read() -> None:
    data = samples.pdf(lines_at(*PARAGRAPH)).read()
    broken = data.replace(b"startxref\n", b"startxref\n9")
    assert samples.extracted(pdf, io.BytesIO(broken))[0] == TEXT + "\n"


def test_the_beginning_of_a_page_that_takes_too_long_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"Line {number} of many." for number in range(40)]
    file = samples.pdf(lines_at(*lines), lines_at("The next page."))
    monkeypatch.setattr(pdf, "_CHECKED", 100)
    clock = iter(range(1000))  # each look at it takes a second
    monkeypatch.setattr(pdf.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(pdf, "MAX_SECONDS", 4.0)
    text, skipped = samples.extracted(pdf, file)
    assert text.startswith("Line 0 of many.\nLine 1 of many.\n") and text.endswith("The next page.\n")
    assert "Line 19" in text and "Line 39" not in text and skipped == {"rest of a page that takes long to read": 1}
