"""Joins the lines of pages into paragraphs, by line spacing, indentation, and the space left at the end of
lines.

Coordinates grow to the right and upwards, for horizontal text; vertical text is rotated.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import median

from llmcli.data.documents.paragraphs import Block, is_cjk, joined

_NEIGHBORS = 4  # pages before and after a page that are searched for its headers and footers
_MARGIN_LINES = 3  # lines at the top and at the bottom of a page that may be headers and footers
_SAME_PLACE = 2.0  # maximum offset of repeated lines, in points
_REPEATS = 2  # minimum number on neighboring pages; a document of two pages has one
_SAME_SIZE = 0.15  # relative difference
# maximum distance between lines of a paragraph, relative to the font size, like the following values
_MAX_LEADING = 2.2
_INDENT = 0.8
_MIN_WIDTH = 8.0  # minimum width of lines that are joined
_ROOM = 0.5  # space that a full line may leave beyond the width of the next word
# the same for scripts in which a line may break between any two characters but not before punctuation
_CJK_ROOM = 2.5
_EVEN_LINES = 3  # this many lines that end at the same position mark the end of a column
_EVEN = 1.5  # distance within which lines end at the same position
_COLUMN = 4.0  # distance within which lines begin in the same column
_SMALL = 0.65  # maximum font size of ruby, relative to the characters below it
_NEAR = 4  # maximum number of lines, in file order, between a line and its ruby
# lines around a block, in file order, that are searched for the end of its column: more than on a page of a
# book
_NEIGHBORING = 500
_MAX_PARAGRAPH = 100_000  # characters; the rest becomes another paragraph
_WIDER = 1.25  # minimum distance between paragraphs, relative to that between lines
_MARKER = re.compile(r"[•◦▪‣●○■□◆◇※①-⑳]|[・*–—-]\s|[(（]?(?:\d{1,3}|[a-z])[)）]|\d{1,3}\.\s")
_LEADERS = re.compile(r"(?:\. ?){4}\s*[\w.-]{1,8}$")  # dots to a page number in a table of contents
_DOTS = re.compile(r" ?(?:\. ?){5,}")  # dots before a page number
_MAX_LEADERS = 40  # characters at the end of a line that are searched for _LEADERS
_SENTENCE_END = re.compile(r"[.!?:;。！？：；][\"'”’」』)）\]]*$")
_KANA = re.compile("[\u3041-\u30ff\\s]+")
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b", re.I)


@dataclass(frozen=True)
class Line:
    """A line of a page and its position, in points from the lower left corner."""

    text: str
    left: float
    right: float
    baseline: float
    size: float  # font size
    hyphenated: bool = False  # it ends inside a word, with a hyphen that does not belong to the word
    is_vertical: bool = False


def without_margins(pages: Iterable[list[Line]]) -> Iterator[list[Line]]:
    """Yield the lines of each page without headers, footers and page numbers, which repeat on nearby
    pages."""
    size = 2 * _NEIGHBORS + 1
    window: deque[tuple[list[Line], dict[str, float]] | None] = deque([None] * size, maxlen=size)
    for page in chain(((lines, _margins(lines)) for lines in pages), [None] * _NEIGHBORS):
        window.append(page)
        if (current := window[_NEIGHBORS]) is None:
            continue
        others = [other[1] for other in window if other and other is not current]
        needed = min(_REPEATS, len(others)) or 1
        lines, margins = current
        repeated = {
            (text, place)
            for text, place in margins.items()
            if sum(abs(other.get(text, -1e9) - place) <= _SAME_PLACE for other in others) >= needed
        }
        yield [line for line in lines if (_same(line), line.baseline) not in repeated]


def _margins(lines: Sequence[Line]) -> dict[str, float]:
    """Return {text: baseline} for the lines that may be headers or footers; a line of numbers only if it is
    the outermost line."""
    ordered = sorted((line for line in lines if not line.is_vertical), key=lambda line: line.baseline)
    return {
        text: line.baseline
        for line in (*ordered[:_MARGIN_LINES], *ordered[-_MARGIN_LINES:])
        if re.search(r"[^\W\d_]", text := _same(line)) or line in (ordered[0], ordered[-1])
    }


def _same(line: Line) -> str:
    """Return the text of a line with all numbers replaced, since page numbers differ."""
    return _NUMBER.sub("#", line.text)


@dataclass
class _Block:
    """Lines of one font size below each other, with the same spacing."""

    lines: list[Line]
    page: int
    right: float  # where its column ends


@dataclass
class _Paragraph:
    """A paragraph that is read line by line."""

    text: str
    last: Line
    block: _Block  # the block of the last line
    lines: int = 1

    def add(self, line: Line, block: _Block) -> None:
        self.text = joined(self.text, line.text, hyphenated=self.last.hyphenated)
        self.last = line
        self.block = block
        self.lines += 1

    def continues_in(self, block: _Block) -> bool:
        """Return whether the paragraph continues in a block of the next column or page."""
        first = block.lines[0]
        last = self.last
        if block.page == self.block.page and first.baseline < last.baseline and first.left < last.right:
            return False
        if not _same_kind(last, first) or _MARKER.match(first.text) or _SENTENCE_END.search(last.text):
            return False
        indented = len(block.lines) > 1 and first.left > block.lines[1].left + _INDENT * first.size
        return last.hyphenated or (not indented and _is_full(last, first, self.block.right))

    @property
    def is_line(self) -> bool:
        """Whether the paragraph is one of several lines, as in a list."""
        return (self.lines == 1 and len(self.block.lines) > 1) or bool(_MARKER.match(self.text))


def paragraphs(pages: Iterable[Sequence[Line]]) -> Iterator[Block]:
    """Yield (paragraph, whether it is one of several lines, as in a list); empty paragraphs separate
    blocks."""
    current: _Paragraph | None = None
    for page, lines in enumerate(pages):
        for block in _blocks(_without_pronunciation(lines), page):
            for line, continues in zip(block.lines, _continuations(block), strict=True):
                is_first = line is block.lines[0]
                has_room = current is not None and len(current.text) < _MAX_PARAGRAPH
                if current and has_room and (continues or (is_first and current.continues_in(block))):
                    current.add(line, block)
                    continue
                if current:
                    yield _DOTS.sub(" ", current.text), current.is_line
                    if is_first:
                        yield "", False
                current = _Paragraph(line.text, line, block)
    if current:
        yield _DOTS.sub(" ", current.text), current.is_line


def _without_pronunciation(lines: Sequence[Line]) -> list[Line]:
    """Return the lines without ruby, the small kana above other lines that give their pronunciation."""

    def is_pronunciation(index: int) -> bool:
        line = lines[index]
        return bool(_KANA.fullmatch(line.text)) and any(
            line.size <= _SMALL * other.size
            and abs(line.baseline - other.baseline) < 2 * other.size
            and line.left < other.right
            and other.left < line.right
            for other in lines[max(0, index - _NEAR) : index + _NEAR + 1]
        )

    return [line for index, line in enumerate(lines) if not is_pronunciation(index)]


def _blocks(lines: Sequence[Line], page: int) -> Iterator[_Block]:
    block: list[Line] = []

    def complete(end: int) -> _Block:
        start = max(0, end - len(block) - _NEIGHBORING)
        return _Block(block, page, _right(block, lines[start : end + _NEIGHBORING]))

    for index, line in enumerate(lines):
        if block:
            distance = _distance(block[-1], line)
            others = [_distance(*pair) for pair in (block[-2:], lines[index : index + 2]) if len(pair) == 2]
            if not distance or distance > _WIDER * min(filter(None, others), default=distance):
                yield complete(index)
                block = []
        block.append(line)
    if block:
        yield complete(len(lines))


def _distance(line: Line, below: Line) -> float:
    """Return the distance from a line to the next one, or 0 if they cannot belong to the same block."""
    distance = line.baseline - below.baseline
    together = _same_kind(line, below) and line.left < below.right and below.left < line.right
    return distance if together and 0 < distance <= _MAX_LEADING * line.size else 0.0


def _same_kind(line: Line, other: Line) -> bool:
    return line.is_vertical == other.is_vertical and abs(line.size - other.size) <= _SAME_SIZE * line.size


def _right(block: Sequence[Line], neighbors: Sequence[Line]) -> float:
    """Return the right margin of a block: where three of its lines end, or else the rightmost end of
    neighboring lines that begin in the same column."""
    right = max(line.right for line in block)
    size = block[0].size
    if sum(line.right > right - _EVEN * size for line in block[:-1]) >= _EVEN_LINES:
        return right
    return max(
        line.right
        for line in neighbors
        if _same_kind(line, block[0]) and abs(line.left - block[0].left) <= _COLUMN * size
    )


def _continuations(block: _Block) -> list[bool]:
    """Return for each line whether it continues the paragraph of the line before it."""
    lines, size = block.lines, block.lines[0].size
    if block.right - min(line.left for line in lines) < _MIN_WIDTH * size:
        return [False, *(line.hyphenated for line in lines[:-1])]
    steps = [(line, following, _is_full(line, following, block.right)) for line, following in pairwise(lines)]
    # the first line of a paragraph is further left in lists of references, further right elsewhere
    starts = [lines[0].left, *(following.left for _, following, is_full in steps if not is_full)]
    others = [following.left for _, following, is_full in steps if is_full]
    hanging = len(starts) > 1 and bool(others) and median(others) - median(starts) > _INDENT * size / 2
    continuations = [False]
    for line, following, is_full in steps:
        indentation = (following.left - line.left) / size
        begins = indentation < -_INDENT if hanging else indentation > _INDENT and not _MARKER.match(line.text)
        begins = begins or bool(_MARKER.match(following.text)) or following.text[0] == "\u3000"
        continuations.append(line.hyphenated or (is_full and not begins))
    return continuations


def _is_full(line: Line, following: Line, right: float) -> bool:
    """Return whether the next line's first word would not fit in this line; False in tables, including tables
    of contents."""
    if "\t" in line.text or "\t" in following.text or _LEADERS.search(line.text[-_MAX_LEADERS:]):
        return False
    if is_cjk(following.text[0]):
        return line.right + _CJK_ROOM * line.size >= right
    word = len(following.text.split(maxsplit=1)[0])
    width = word / len(following.text) * (following.right - following.left)
    return line.right + width + _ROOM * line.size >= right
