"""Which characters form words together. Standard library only."""

import unicodedata


def character_class(c: str) -> str:
    """The class of a character: a word is a run of characters of one class, and a character of class "single" is a word
    by itself.

    >>> [character_class(c) for c in "a7_漢ひカ!"]
    ['letters', 'letters', 'letters', 'han', 'hiragana', 'katakana', 'single']
    """
    for name, ranges in _BLOCKS.items():
        if any(low <= c <= high for low, high in ranges):
            return name
    return "letters" if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else "single"


def begins_with_letter(data: bytes) -> bool:
    """Whether UTF-8 begins with a letter, digit or combining mark of a script that separates words by spaces.

    An incomplete character is classified by its first byte: nearly all characters of two bytes are such letters
    (accented Latin, Greek, Cyrillic, Hebrew, Arabic); longer ones are unknown and do not count as letters.

    >>> [begins_with_letter(data) for data in (b"s", b" s", "é".encode(), b"\\xd0", "漢".encode(), b"\\xe6", b"")]
    [True, False, True, True, False, False, False]
    """
    if data[:1].isascii():
        return data[:1].isalnum() or data[:1] == b"_"
    text = data[:4].decode("utf-8", "ignore")
    return character_class(text[0]) == "letters" if text else 0xC3 <= data[0] <= 0xDF


_BLOCKS = {  # class -> ranges of Unicode code points; the first class with a matching range wins
    "han": [
        ("\u3005", "\u3007"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"),
        ("\U00020000", "\U0003ffff"),
    ],
    "hiragana": [("\u3041", "\u309f")],
    "katakana": [("\u30a1", "\u30fa"), ("\u30fc", "\u30ff"), ("\u31f0", "\u31ff"), ("\uff66", "\uff9f")],
}  # fmt: skip
