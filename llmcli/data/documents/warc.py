"""Web archives (WARC): the main text of their HTML pages, or the text in an archive of plain text (WET)."""

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from llmcli import units
from llmcli.data.documents.extracted import Extracted, ExtractionError, File, SkippedParts
from llmcli.data.documents.html import decode, main_text

_RECORDS = WarcRecordType.response | WarcRecordType.conversion
_PAGES = ("text/html", "application/xhtml+xml")
_MAX_PAGE = 1 << 25  # bytes
_MAX_NAME = 200  # characters of an address


def extract(file: File, skipped: SkippedParts) -> Extracted:
    pages = 0
    try:
        for record in ArchiveIterator(file, record_types=_RECORDS, auto_decode="all"):
            text, reason = _text(record)
            if not text:
                skipped[reason] += 1
                continue
            pages += 1
            uri = "".join(filter(str.isprintable, record.headers.get("WARC-Target-URI") or ""))
            yield f"{pages} {uri[:_MAX_NAME]}".strip(), min(record.content_length, _MAX_PAGE)
            yield text
        if not pages and not skipped:
            raise ExtractionError("has no pages")
    except (OSError, RuntimeError, ValueError) as error:
        raise ExtractionError(f"is damaged after {units.count(pages, 'page')} ({error})") from error


def _text(record: WarcRecord) -> tuple[str, str]:
    """Return (text, why it is skipped if there is none)."""
    if record.record_type == WarcRecordType.conversion:
        text = record.reader.read(_MAX_PAGE).decode("utf-8", "replace").strip()
        return text and text + "\n", "record without text"
    if record.http_content_type not in _PAGES:
        return "", "record that is not HTML"
    if record.http_headers.status_code != 200:
        return "", "page with an error status"
    data = record.reader.read(_MAX_PAGE + 1)
    if len(data) > _MAX_PAGE:
        # FastWARC does not find the end of a record that it decompresses
        while record.reader.read(_MAX_PAGE):
            pass
        return "", f"page over {_MAX_PAGE >> 20} MB"
    try:
        return main_text(decode(data, record.http_charset)), "page without text"
    except (MemoryError, RuntimeError, ValueError):  # resiliparse has too little memory for the page
        return "", "page that cannot be parsed"
