"""Which characters form one word: the kind of run that a character belongs to. Standard library only."""

import unicodedata


def kind_of_run(c: str) -> str:
    """The kind of run a character belongs to; "single" for those that stand alone.

    >>> [kind_of_run(c) for c in "a7_漢ひカ!"]
    ['letters', 'letters', 'letters', 'han', 'hiragana', 'katakana', 'single']
    """
    for kind, ranges in _RUNS.items():
        if any(low <= c <= high for low, high in ranges):
            return kind
    return "letters" if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else "single"


def begins_with_letter(data: bytes) -> bool:
    """Whether bytes of UTF-8 begin with a letter, digit or mark of a script that puts spaces between its words.

    Of a character that is not complete its first byte is all there is: those of two bytes are nearly all letters
    (Latin with accents, Greek, Cyrillic, Hebrew, Arabic), of longer ones nothing is known.

    >>> [begins_with_letter(data) for data in (b"s", b" s", "é".encode(), b"\\xd0", "漢".encode(), b"\\xe6", b"")]
    [True, False, True, True, False, False, False]
    """
    if data[:1].isascii():
        return data[:1].isalnum() or data[:1] == b"_"
    text = data[:4].decode("utf-8", "ignore")
    return kind_of_run(text[0]) == "letters" if text else 0xC3 <= data[0] <= 0xDF


_RUNS = {  # Unicode blocks; the first that holds a character counts
    "han": [
        ("\u3005", "\u3007"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"),
        ("\U00020000", "\U0003ffff"),
    ],
    "hiragana": [("\u3041", "\u309f")],
    "katakana": [("\u30a1", "\u30fa"), ("\u30fc", "\u30ff"), ("\u31f0", "\u31ff"), ("\uff66", "\uff9f")],
}  # fmt: skip
