"""PDF: the text of the pages as paragraphs, in the order in which the file draws it.

pdfium finds the characters and the ends of lines; page_layout.py joins the lines into paragraphs. A page
whose fonts do not map to characters is skipped.
"""

import ctypes
import math
import re
import time
import unicodedata
from typing import Any

import pypdfium2
from pypdfium2 import raw

from llmcli.data.documents.extracted import Extracted, ExtractionError, File, SkippedParts
from llmcli.data.documents.page_layout import Line, paragraphs, without_margins
from llmcli.data.documents.paragraphs import is_cjk, spaced

MAX_UNREADABLE = 0.05  # share of the characters of a page
_NO_TEXT = "page without text"
_UNREADABLE_PAGE = "page without readable text"
_DAMAGED = "damaged page"
_LONG = "rest of a page that takes long to read"
MAX_SECONDS = 30.0  # per page, ...
_CHECKED = 1 << 10  # ... which is checked after this many characters
_HYPHEN = 0x02  # pdfium's character for a hyphen at the end of a line, instead of a line end
_LINE_ENDS = (0x0A, 0x0D)
_SPACE = 0x20
# minimum gaps between characters, relative to the font size: between cells of a table (a tab), for a space
# next to Chinese and Japanese characters, and for a space where pdfium wrongly reports the end of a line
_COLUMN_GAP = 1.5
_CJK_SPACE = 0.8
_SPACE_AFTER_END = 0.15
_SAME_HEIGHT = 0.3  # maximum difference of baselines on the same line / font size
_VERTICAL = 2.0  # minimum height / width of a line of vertical text
# control characters, private-use characters, the replacement character and noncharacters, which programs
# write for glyphs without a known character
_UNREADABLE = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd-\uffff\U000f0000-\U0010ffff]|\\(cid:"
)
# radicals instead of characters, and ligatures
_PRESENTATION_FORMS = re.compile("[\u2e80-\u2fdf\ufb00-\ufb06]")


def extract(file: File, skipped: SkippedParts) -> Extracted:
    try:
        with pypdfium2.PdfDocument(file) as document:
            pages = (_lines(document, number, skipped) for number in range(len(document)))
            yield from spaced(paragraphs(without_margins(pages)))
            if skipped[_NO_TEXT] == len(document):
                raise ExtractionError(
                    "has no text: its pages are images; recognize it first: ocrmypdf IN.pdf OUT.pdf"
                )
    except pypdfium2.PdfiumError as error:
        if error.err_code == raw.FPDF_ERR_PASSWORD:
            advice = "decrypt it first: qpdf --decrypt --password=PASSWORD IN.pdf OUT.pdf"
            raise ExtractionError(f"is encrypted; {advice}") from error
        raise


def _lines(document: pypdfium2.PdfDocument, number: int, skipped: SkippedParts) -> list[Line]:
    """Return the lines of a page; none if it cannot be read."""
    try:
        page = document[number]
        text = page.get_textpage()
    except pypdfium2.PdfiumError:
        skipped[_DAMAGED] += 1
        return []
    reader = _PageReader(text.raw)
    skipped[_LONG] += reader.is_cut
    text.close()
    page.close()
    if not reader.characters:
        skipped[_NO_TEXT] += 1
    elif reader.unreadable > MAX_UNREADABLE * reader.characters:
        skipped[_UNREADABLE_PAGE] += 1
        return []
    return reader.lines


class _PageReader:
    """Collects the characters of a page in lines. pdfium reports some horizontal pages as vertical text, so
    the lines are checked."""

    def __init__(self, page: Any) -> None:
        self.lines: list[Line] = []
        self.characters = self.unreadable = 0
        self._page = page
        self._pieces: list[str] = []
        self._space = False  # pdfium found a space, or the end of a line, before the next character
        self._line_ended = False
        self._box: list[float] = []  # the line's left, bottom, right, top
        self._baseline = self._size = 0.0
        box = raw.FS_RECTF()
        self.is_cut = False
        end = time.monotonic() + MAX_SECONDS
        for index in range(raw.FPDFText_CountChars(page)):
            if index % _CHECKED == 0 and time.monotonic() > end:
                self.is_cut = True
                break
            code = raw.FPDFText_GetUnicode(page, index)
            if code in _LINE_ENDS:
                self._space = self._line_ended = True
            elif code == _SPACE:
                if raw.FPDFText_IsGenerated(page, index) == 1:
                    self._space = True
                else:
                    self._pieces.append(" ")
            elif code == _HYPHEN and raw.FPDFText_IsHyphen(page, index):
                self._pieces.append("-")
                self._end_line(hyphenated=True)
            else:
                raw.FPDFText_GetLooseCharBox(page, index, box)
                self._add(index, chr(code), box)
                self.unreadable += raw.FPDFText_HasUnicodeMapError(page, index) == 1
        self._end_line()

    def _add(self, index: int, character: str, box: Any) -> None:
        self.characters += 1
        if self._line_ended and self._box and not self._is_beside(index, box):
            self._end_line()
        line = self._box
        if not line:
            self._start_line(index, box)
        else:
            gap = max(box.left - line[2], line[1] - box.top)
            if gap > _COLUMN_GAP * self._size:
                self._pieces.append("\t")
            elif self._space and gap > self._smallest_space(character):
                self._pieces.append(" ")
            line[0] = min(box.left, line[0])
            line[1] = min(box.bottom, line[1])
            line[2] = max(box.right, line[2])
            line[3] = max(box.top, line[3])
        self._space = self._line_ended = False
        self._pieces.append(character)

    def _is_beside(self, index: int, box: Any) -> bool:
        """Return whether a character continues the line."""
        same_height = abs(self._origin(index) - self._baseline) < _SAME_HEIGHT * self._size
        return same_height and box.left > self._box[2] - _SAME_HEIGHT * self._size

    def _smallest_space(self, character: str) -> float:
        """Return the smallest gap before a character that counts as a space if pdfium reports one."""
        if is_cjk(character) or (self._pieces and is_cjk(self._pieces[-1])):
            return _CJK_SPACE * self._size
        return _SPACE_AFTER_END * self._size if self._line_ended else -math.inf

    def _start_line(self, index: int, box: Any) -> None:
        matrix = raw.FS_MATRIX()
        raw.FPDFText_GetMatrix(self._page, index, matrix)
        self._size = raw.FPDFText_GetFontSize(self._page, index) * math.hypot(matrix.c, matrix.d)
        self._baseline = self._origin(index)
        self._box = [box.left, box.bottom, box.right, box.top]

    def _origin(self, index: int) -> float:
        x = ctypes.c_double()
        y = ctypes.c_double()
        raw.FPDFText_GetCharOrigin(self._page, index, x, y)
        return y.value

    def _end_line(self, *, hyphenated: bool = False) -> None:
        # pdfium counts in UTF-16 on Windows
        text = "".join(self._pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        self.unreadable += len(_UNREADABLE.findall(text))
        text = _PRESENTATION_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = "\t".join(cell.strip(" ") for cell in text.split("\t")).strip(" \t")
        if text and self._box:
            left, bottom, right, top = self._box
            if len(text) > 1 and top - bottom > _VERTICAL * (right - left):
                line = Line(text, -top, -bottom, (left + right) / 2, self._size, hyphenated, is_vertical=True)
            else:
                line = Line(text, left, right, self._baseline, self._size, hyphenated)
            self.lines.append(line)
        self._pieces = []
        self._box = []
        self._space = False
        self._line_ended = False
