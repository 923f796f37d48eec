"""Paragraphs and lines as text: how they are separated, and how lines of one paragraph are joined."""

import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Block: TypeAlias = tuple[str, bool]  # (text, whether it is a line of a list, table or listing)
# Letters and punctuation of Chinese and Japanese, which put no spaces between words (Korean does).
CJK = (
    "\u2e80-\u30ff\u31c0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f\U00020000-\U0003ffff"
)
_CJK_CHARACTER = re.compile(f"[{CJK}]")
_HYPHENS = ("-", "\u2010", "\u00ad")


def spaced(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield blocks as text, each ending in "\\n". A blank line separates two blocks unless both are lines of
    a list, table or listing; an empty block that is not such a line also separates its neighbors.

    >>> list(spaced([("Title", False), ("• a", True), ("• b", True), ("Text", False)]))
    ['Title\\n', '\\n• a\\n', '• b\\n', '\\nText\\n']
    """
    previous_is_line: bool | None = None
    for text, is_line in blocks:
        if text := text.strip("\n"):
            separate = previous_is_line is not None and not (previous_is_line and is_line)
            yield f"\n{text}\n" if separate else f"{text}\n"
            previous_is_line = is_line
        elif previous_is_line is not None:
            previous_is_line = previous_is_line and is_line


def joined(text: str, line: str, *, hyphenated: bool = False) -> str:
    """Join a paragraph and its next line, with a space unless both sides are Chinese or Japanese, or a word
    is divided.

    `hyphenated`: the text ends inside a word, with a hyphen that does not belong to the word.

    >>> joined("a sen-", "tence", hyphenated=True), joined("Jean-", "Paul")
    ('a sentence', 'Jean-Paul')
    >>> joined("日本", "語"), joined("a", "b")
    ('日本語', 'a b')
    """
    text = text.rstrip(" ")
    line = line.lstrip(" ")
    if not text or not line:
        return text + line
    if text.endswith(_HYPHENS):
        divided = hyphenated or text[-1] == "\u00ad"
        return (text[:-1] if divided and line[0].islower() else text) + line
    separator = "" if is_cjk(text[-1]) and is_cjk(line[0]) else " "
    return text + separator + line


def is_cjk(character: str) -> bool:
    return bool(_CJK_CHARACTER.match(character))
