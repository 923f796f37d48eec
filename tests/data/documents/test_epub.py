"""Books: the order of chapters, what is left out, and what is refused."""

import pytest

pytest.importorskip("resiliparse")

from llmcli.data.documents import epub
from llmcli.data.documents.extracted import ExtractionError
from tests.data.documents import samples

CHAPTERS = {
    "nav": "<nav><ol><li><a href='two.xhtml'>Two</a></li></ol></nav>",
    "one": '<h1>One</h1><p>First<a id="x"/> chapter.</p><p>猫<ruby>は<rt>わ</rt></ruby>鳴く。</p>',
    "two": '<h1>Two</h1><div class="footer"><p>Not left out.</p></div>',
    "notes": "<p>Beside the text.</p>",
}
ENCRYPTION = (
    '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
    '<EncryptedData xmlns="http://www.w3.org/2001/04/xmlenc#">'
    '<EncryptionMethod Algorithm="{}"/></EncryptedData></encryption>'
)


def test_chapters_in_the_order_of_the_spine() -> None:
    book = samples.epub(CHAPTERS, ["nav", "two", "one", 'notes linear="no"'])
    text, skipped = samples.extracted(epub, book)
    assert text == "Two\n\nNot left out.\n\nOne\n\nFirst chapter.\n\n猫は鳴く。\n"
    assert skipped == {"table of contents": 1, "part outside the main text": 1}


def test_a_protected_book_is_refused_and_one_with_obfuscated_fonts_is_not() -> None:
    drm, fonts = (
        samples.epub(CHAPTERS, ["one"], {"META-INF/encryption.xml": ENCRYPTION.format(algorithm)})
        for algorithm in ("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "http://www.idpf.org/2008/embedding")
    )
    with pytest.raises(ExtractionError, match="DRM"):
        samples.extracted(epub, drm)
    assert samples.extracted(epub, fonts)[0].startswith("One\n")


def test_damaged_books_are_errors_with_one_line() -> None:
    for book in (
        samples.zipped({"mimetype": "application/epub+zip"}),
        samples.epub({}, []),
        samples.epub(CHAPTERS, ["one"], {"META-INF/container.xml": "<container><rootfile"}),
        samples.epub(CHAPTERS, ["one"], {"OEBPS/book.opf": '<!DOCTYPE p [<!ENTITY a "a">]><package>&a;</package>'}),
    ):
        with pytest.raises(ExtractionError) as caught:
            samples.extracted(epub, book)
        assert "\n" not in str(caught.value)
