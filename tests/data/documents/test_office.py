"""Text documents and presentations, against texts written out by hand."""

import io
import re
import zipfile

import pytest

from llmcli.data.documents import office
from llmcli.data.documents.extracted import ExtractionError
from tests.data.documents import samples

DOCX = """
<w:p><w:pPr><w:pStyle w:val="Heading1"/><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>Title</w:t></w:r></w:p>
<w:p><w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr><w:r><w:t xml:space="preserve">One </w:t><w:t>paragraph</w:t>
  <w:footnoteReference w:id="2"/><w:t>.</w:t><w:tab/><w:t>End</w:t></w:r></w:p>
<w:p><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>item</w:t></w:r></w:p>
<w:p><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>項目</w:t></w:r></w:p>
<w:p/>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc>
  <w:tc><w:tbl><w:tr><w:tc><w:p><w:r><w:t>inner</w:t></w:r></w:p></w:tc></w:tr></w:tbl><w:p/></w:tc></w:tr>
  <w:tr><w:tc><w:p><w:r><w:t>c</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>d</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>
  <w:ins><w:r><w:t>kept</w:t></w:r></w:ins></w:p>
<w:p><w:r><mc:AlternateContent><mc:Choice><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p></w:txbxContent></mc:Choice>
  <mc:Fallback><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p></w:txbxContent></mc:Fallback></mc:AlternateContent>
  <w:t>around</w:t></w:r></w:p>
<w:p><w:r><w:ruby><w:rt><w:r><w:t>かんじ</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>漢字</w:t></w:r></w:rubyBase></w:ruby>
  <w:instrText>PAGE</w:instrText></w:r></w:p>
"""
FOOTNOTES = """<w:footnote w:id="0" w:type="separator"><w:p/></w:footnote>
<w:footnote w:id="2"><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:footnote>"""

ODT = """
<text:tracked-changes><text:changed-region><text:deletion><text:p>gone</text:p></text:deletion></text:changed-region>
</text:tracked-changes>
<text:h>Title</text:h>
<text:p>One   <text:span>paragraph</text:span><text:note><text:note-citation>7</text:note-citation>
  <text:note-body><text:p>A note.</text:p></text:note-body></text:note>.<text:tab/>End<text:s text:c="3"/>!</text:p>
<text:list><text:list-item><text:p>item</text:p></text:list-item><text:list-item><text:p>項目</text:p>
  <text:p>more</text:p></text:list-item></text:list>
<table:table><table:table-row><table:table-cell><text:p>a</text:p><text:p>b</text:p></table:table-cell><table:table-cell/>
  <table:table-cell><text:p>c</text:p></table:table-cell></table:table-row></table:table>
<text:p><drawing:frame><drawing:text-box><text:p>box</text:p></drawing:text-box></drawing:frame>around</text:p>
<text:p><text:ruby><text:ruby-base>漢字</text:ruby-base><text:ruby-text>かんじ</text:ruby-text></text:ruby></text:p>
<text:p>text<office:annotation><text:p>a comment</text:p></office:annotation></text:p>
"""


def extract(file: object) -> str:
    text, skipped = samples.extracted(office, file)  # type: ignore[arg-type]
    assert not skipped
    return text


def test_spaces_that_an_element_stands_for() -> None:
    for count, spaces in [("3", 3), ("abc", 1), ("", 1), ("-1", 1), ("9" * 5000, 100), ("0", 0)]:
        assert extract(samples.odt(f'<text:p>a<text:s text:c="{count}"/>b</text:p>')) == f"a{' ' * spaces}b\n"


def test_a_word_document() -> None:
    assert extract(samples.docx(DOCX, FOOTNOTES)) == (
        "Title\n\nOne paragraph[1].\tEnd\n\n[1] A note.\n• item\n• 項目\n"
        "a b\tinner\nc\td\n\nkept\n\nbox\n\naround\n\n漢字\n"
    )


def test_an_open_document_text() -> None:
    assert extract(samples.odt(re.sub(r">\s+<", "><", ODT))) == (
        "Title\n\nOne paragraph[1].\tEnd   !\n\n[1] A note.\n• item\n• 項目\n\nmore\n\n"
        "a b\t\tc\n\nbox\n\naround\n\n漢字\n\ntext\n"
    )


def test_slides_in_the_order_of_the_presentation() -> None:
    table = "<a:tbl><a:tr>{}{}</a:tr></a:tbl>".format(
        *(f"<a:tc><a:p><a:r><a:t>{c}</a:t></a:r></a:p></a:tc>" for c in "ab")
    )
    slides = [
        samples.shape("Second", "title") + samples.shape("12", "sldNum") + table,
        samples.shape("First", "ctrTitle") + samples.shape("one\n二", "body") + samples.shape("ACME", "ftr"),
    ]
    notes = {2: samples.shape("", "sldImg") + samples.shape("Say hello.") + samples.shape("2", "sldNum")}
    assert extract(samples.pptx(slides, [2, 1], notes)) == "First\none\n二\n\nSay hello.\n\nSecond\na\tb\n"


def test_document_types_are_refused() -> None:
    laughs = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><d>&b;</d>'
    for file in (samples.zipped({"content.xml": laughs}), samples.zipped({"_rels/.rels": laughs})):
        with pytest.raises(ExtractionError, match="declares a document type"):
            extract(file)


def test_encrypted_and_damaged_documents_are_errors_with_one_line() -> None:
    manifest = "<manifest><file-entry><encryption-data/></file-entry></manifest>"
    with pytest.raises(ExtractionError, match="encrypted"):
        extract(samples.zipped({"content.xml": b"\x12\x34", "META-INF/manifest.xml": manifest}))
    whole = samples.docx(DOCX).read()
    cut = whole[: whole.index(b"PK\x01\x02")]
    for file in (samples.zipped({"a": "b"}), samples.docx("<w:p>"), io.BytesIO(cut)):
        with pytest.raises((ExtractionError, zipfile.BadZipFile)) as caught:
            extract(file)
        assert "\n" not in str(caught.value)
