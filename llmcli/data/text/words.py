"""Word boundaries: the characters that form words, and where a long text may be cut without changing its
token ids."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

_Item = TypeVar("_Item")
SEARCHED_CHARACTERS = 1 << 16  # minimum number searched for a position to cut
WORD_END = re.compile(r"(?<=\S)[ \n]")
# in the patterns of Llama 3 and Qwen 2, line ends after a punctuation mark belong to its pre-token
WORD_OR_LINE_END = re.compile(r"(?<=\S) |(?<=\n)(?=\S)")
_SCRIPTS = re.compile(
    "(?P<han>[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
    "|(?P<hiragana>[\u3041-\u309f])"
    "|(?P<katakana>[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f])"
)


def pieces(
    texts: Iterable[str], boundary: re.Pattern[str] = WORD_END, size: int = SEARCHED_CHARACTERS
) -> Iterator[str]:
    """Cut text into pieces of about `size` characters at matches of `boundary`. A word always ends there, so
    the pieces have the same tokens as the whole text. Without a match in 2 * SEARCHED_CHARACTERS, the
    cut is arbitrary."""
    longest = 2 * SEARCHED_CHARACTERS
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
    while size < SEARCHED_CHARACTERS and (match := boundary.search(rest, start + size)):
        yield rest[start : match.start()]
        start = match.start()
    if start < len(rest):
        yield rest[start:]


def grouped(items: Iterable[_Item], min_size: int, size_of: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Group consecutive items; each group but the last has at least this size."""
    group: list[_Item] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if size >= min_size:
            yield group
            group = []
            size = 0
    if group:
        yield group


@lru_cache(maxsize=1 << 12)  # a search for next words calls it a million times with few different characters
def character_class(c: str) -> str:
    """Return the class of a character: a word is a run of characters of one class; each character of class
    "single" is a word.

    >>> [character_class(c) for c in "a7_漢ひカ!"]
    ['letters', 'letters', 'letters', 'han', 'hiragana', 'katakana', 'single']
    """
    if script := _SCRIPTS.match(c):
        return str(script.lastgroup)
    return "letters" if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else "single"


def begins_with_letter(data: bytes) -> bool:
    """Return whether UTF-8 begins with a letter, digit or combining mark of a script that separates words by
    spaces.

    An incomplete character is classified by its first byte: nearly all two-byte characters are letters
    (accented Latin, Greek, Cyrillic, Hebrew, Arabic); longer characters do not count as letters.

    >>> [begins_with_letter(data) for data in (b"s", b" s", b"")]
    [True, False, False]
    >>> [begins_with_letter(data) for data in ("é".encode(), b"\\xd0", "漢".encode(), b"\\xe6")]
    [True, True, False, False]
    """
    if data[:1].isascii():
        return data[:1].isalnum() or data[:1] == b"_"
    text = data[:4].decode("utf-8", "ignore")
    return character_class(text[0]) == "letters" if text else 0xC3 <= data[0] <= 0xDF
