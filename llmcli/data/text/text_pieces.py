"""Long text cut into pieces that can be encoded one by one, with the token ids of the whole.

Standard library only.
"""

import re
from collections.abc import Iterable, Iterator

PIECE_CHARACTERS = 1 << 16  # searched for a place to cut, at least
WORD_END = re.compile(r"(?<=\S)[ \n]")
# in the patterns of Llama 3 and Qwen 2 a punctuation mark takes the line ends after it into its pre-token
WORD_OR_LINE_END = re.compile(r"(?<=\S) |(?<=\n)(?=\S)")


def pieces(texts: Iterable[str], boundary: re.Pattern[str] = WORD_END, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Text that comes in arbitrary parts, cut anew into pieces of about `size` characters, each of which begins at a
    match of `boundary`.

    The pattern that splits text into words always ends a word there, so encoding piece by piece gives the ids of the
    whole. In a run of 2 * PIECE_CHARACTERS without a match the cut is arbitrary.
    """
    longest = 2 * PIECE_CHARACTERS
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > longest:
            match = boundary.search(rest, start + size, start + longest)
            end = match.start() if match else start + longest
            yield rest[start:end]
            start = end
        rest = rest[start:]
    start = 0
    while size < PIECE_CHARACTERS and (match := boundary.search(rest, start + size)):
        yield rest[start : match.start()]
        start = match.start()
    if start < len(rest):
        yield rest[start:]


def first_cut(text: str, boundary: re.Pattern[str]) -> int | None:
    """The first position after the beginning at which a text may be cut into pieces; None if there is none.

    >>> first_cut("and so on", WORD_END)
    3
    """
    match = boundary.search(text, 1)
    return match.start() if match else None


def with_leading_space(texts: Iterable[str]) -> Iterator[str]:
    """A text that comes in parts, with a space before its first character, if it has one."""
    is_first = True
    for text in texts:
        yield " " + text if is_first and text else text
        is_first = is_first and not text
