"""Layout of text in terminal columns; a wide character (CJK, emoji) takes two."""

import itertools
import math
import os
import re
import shutil
import sys
from contextlib import suppress
from typing import TextIO


def terminal_width(stream: TextIO | None = None) -> int:
    """Return the width of a stream's terminal in columns (default: stdout); $COLUMNS overrides it."""
    if not os.environ.get("COLUMNS"):
        with suppress(OSError, ValueError, AttributeError):  # not a terminal, or not a file at all
            return os.get_terminal_size((stream or sys.stdout).fileno()).columns or 80
    return shutil.get_terminal_size().columns


def text_width(text: str) -> int:
    """Count the columns of a text. rich is imported only for characters that may be wide or invisible, so
    that short commands stay fast."""
    if re.fullmatch(_NARROW, text):
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


# ASCII, Latin letters without the soft hyphen, "…" and lines of boxes
_NARROW = "[ -~\xa1-\xac\xae-\u02ff\u2026\u2500-\u257f]*"


def truncate(text: str, columns: int) -> str:
    """Shorten a text at its end: "リンゴを" to 5 columns is "リン…"."""
    if text_width(text) <= columns:
        return text
    from rich.cells import set_cell_size

    return set_cell_size(text, columns - 1).rstrip() + "…" if columns > 0 else ""


def pad(text: str, columns: int) -> str:
    """Truncate a text to `columns` columns, or add spaces."""
    text = truncate(text, columns)
    return text + " " * (columns - text_width(text))


def fit(text: str, stream: TextIO, indent: int = 0, hanging: int = 0) -> list[str]:
    """Wrap a paragraph if `stream` is a terminal; otherwise return it as one line."""
    columns = terminal_width(stream) if stream.isatty() else math.inf
    if 2 * len(text) + indent <= columns:  # short enough even if all characters are wide
        return [" " * indent + text]
    return wrap(text, int(columns), indent, hanging)


def wrap(text: str, columns: int, indent: int = 0, hanging: int = 0) -> list[str]:
    """Break a paragraph into lines; the first is indented by `indent`, the others by `hanging`.

    Lines break between words, and between characters where a script has no spaces. A word, path or command
    that is longer than a line stays unbroken on a separate line, so that it can be copied.

    >>> wrap("It was still improving; more time would help: llm train a.txt --time 10m", 30)
    ['It was still improving; more', 'time would help:', 'llm train a.txt --time 10m']
    >>> wrap("私は毎朝リンゴを食べます。", 12)
    ['私は毎朝リン', 'ゴを食べま', 'す。']
    """
    joined = re.sub(_COMMAND, lambda command: command[0].replace(" ", _JOINER), text)
    wrapped = WordWrap(columns, indent, hanging).feed(f"{joined}\n")
    return (" " * indent + wrapped.removesuffix("\n")).split("\n")


# commands in our messages: after a colon, up to the end of the clause
_COMMAND = (
    r"(?<=: )(?:bzip2|curl|hf|iconv|jq|llm|mkdir|ollama|pandoc|pdftotext|pip|tar|tesseract|unzip|xz|zstd) "
    r".+?(?:[;,)](?=\s)|$)"
)
_JOINER = "\0"  # replaces the spaces in a command; `visible_line` has replaced any other zero byte
# no line begins with a closing character, and none ends with an opening one (kinsoku shori, JIS X 4051)
_CLOSING = frozenset("、。，．・：；？！」』）］｝〉》】〕…ーぁぃぅぇぉっゃゅょァィゥェォッャュョ々")
_OPENING = frozenset("「『（［｛〈《【〔")


def _split_word(word: str) -> list[str]:
    """Split a word where a line may break: at wide characters, unless punctuation forbids it."""
    if word.isascii() or _JOINER in word:
        return [word.replace(_JOINER, " ")]
    from unicodedata import combining, east_asian_width

    units = [word[0]]
    base = word[0]  # the previous character that is not a combining mark
    for before, character in itertools.pairwise(word):
        base = base if combining(before) else before
        is_wide = any(east_asian_width(c) in "WF" for c in (base, character))
        is_joined = (
            combining(character) or "\u200d" in (before, character) or "\ufe00" <= character <= "\ufe0f"
        )
        if is_wide and not is_joined and character not in _CLOSING and base not in _OPENING:
            units.append(character)
        else:
            units[-1] += character
    return units


class WordWrap:
    """Wraps a text that arrives in pieces, such as an answer, like `wrap`."""

    def __init__(self, columns: int, indent: int = 0, hanging: int = 0) -> None:
        self.columns = columns  # the caller changes it when the window is resized
        self._used = self._start = indent  # used columns of the line, and its start
        self._hanging = hanging
        self._pending = ""  # the last word, which may be incomplete, with the space before it

    def feed(self, text: str) -> str:
        """Return the text that can be printed so far: up to the last complete word."""
        units = [
            (space if i == 0 else "", unit)
            for space, word in re.findall(r"([^\S\n]*)(\n|\S+|$)", self._pending + text)
            for i, unit in enumerate(_split_word(word))
            if space or unit
        ]
        self._pending = "" if not units or units[-1][1] == "\n" else "".join(units.pop())
        return "".join(self._place(space, unit) for space, unit in units)

    def finish(self) -> str:
        """Return the last word; spaces after it are dropped."""
        return self.feed("\n").removesuffix("\n")

    def _place(self, space: str, unit: str) -> str:
        """Put an unbreakable unit after the space before it or on a new line."""
        if unit == "\n":
            self._used = self._start = self._hanging
            return unit
        gap = len((" " * self._used + space).expandtabs()) - self._used
        end = self._used + gap + text_width(unit)
        if end > self.columns and self._used > self._start:
            space = "\n" + " " * self._hanging
            end = self._hanging + text_width(unit)
            self._start = self._hanging
        self._used = end
        return space + unit
