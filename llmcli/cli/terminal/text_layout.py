"""Text in the columns of a terminal, where a wide character (CJK, emoji) takes two."""

import itertools
import math
import os
import re
import sys
from contextlib import suppress
from typing import TextIO

DEFAULT_WIDTH = 80  # columns, where there is no terminal
TAB = 8  # columns between the tab stops of a terminal


def terminal_width(stream: TextIO | None = None) -> int:
    """Return the columns of the terminal of a stream (by default stdout); $COLUMNS overrides it."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    for candidate in (sys.stdout if stream is None else stream, sys.stdin, sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # not a terminal, or not a file at all
            if size := os.get_terminal_size(candidate.fileno()).columns:
                return size
    return DEFAULT_WIDTH


def text_width(text: str) -> int:
    """Count the columns of a text. rich is imported for other than ASCII only, so that short output starts fast."""
    if text.isascii() and text.isprintable():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


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
    """Wrap a paragraph if `stream` is a terminal; else it is one line."""
    columns = terminal_width(stream) if stream.isatty() else math.inf
    if 2 * len(text) + indent <= columns:  # short enough even if all characters are wide
        return [" " * indent + text]
    return wrap(text, int(columns), indent, hanging)


def wrap(text: str, columns: int, indent: int = 0, hanging: int = 0) -> list[str]:
    """Break a paragraph into lines; the first is indented by `indent`, the others by `hanging`.

    Lines break between words, and between characters where a script has no spaces. A word, path or command that is
    longer than a line stays unbroken on a line of its own, so that it can be copied.

    >>> wrap("It was still improving; more time would help: llm train a.txt --time 10m", 30)
    ['It was still improving; more', 'time would help:', 'llm train a.txt --time 10m']
    >>> wrap("私は毎朝リンゴを食べます。", 12)
    ['私は毎朝リン', 'ゴを食べま', 'す。']
    """
    joined = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    lines, line, used, is_begun = [], " " * indent, indent, False
    for space, word in re.findall(r"(\s*)(\S+)", joined):
        for unit in [word.replace("\0", " ")] if "\0" in word else split_word(word):
            size = text_width(unit)
            if is_begun and used + len(space) + size > columns:
                lines.append(line)
                line, used, is_begun = " " * hanging, hanging, False
            if is_begun or not lines:
                line, used = line + space, used + len(space)
            line, used, is_begun, space = line + unit, used + size, True, ""
    return [*lines, line if is_begun else ""]


# commands to type, in our messages: after a colon, up to the end of the clause
_COMMAND = re.compile(
    r"(?<=: )(?:bzip2|curl|hf|iconv|jq|llm|mkdir|ollama|pandoc|pdftotext|pip|tar|tesseract|unzip|xz|zstd) "
    r".+?(?:[;,)](?=\s)|$)"
)
# no line begins with a closing character, and none ends with an opening one (kinsoku shori, JIS X 4051)
_CLOSING = frozenset("、。，．・：；？！」』）］｝〉》】〕…ーぁぃぅぇぉっゃゅょァィゥェォッャュョ々")
_OPENING = frozenset("「『（［｛〈《【〔")


def split_word(word: str) -> list[str]:
    """Split a word where a line may break: at wide characters, unless punctuation forbids it."""
    if word.isascii():
        return [word]
    from unicodedata import combining, east_asian_width

    units, base = [word[0]], word[0]  # `base`: the character before, without its combining marks
    for before, character in itertools.pairwise(word):
        base = base if combining(before) else before
        is_wide = any(east_asian_width(c) in "WF" for c in (base, character))
        is_joined = combining(character) or "\u200d" in (before, character) or "\ufe00" <= character <= "\ufe0f"
        if is_wide and not is_joined and character not in _CLOSING and base not in _OPENING:
            units.append(character)
        else:
            units[-1] += character
    return units


class WordWrap:
    """Wraps a text that arrives in pieces, such as an answer, where `wrap` would.

    `feed` returns the text that can be printed so far, which ends with a complete word; `finish` returns the rest.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self._used = columns, 0  # the caller changes the columns when the window is resized
        self._space, self._word = "", ""  # the last word, not printed yet, and the space before it

    def feed(self, text: str) -> str:
        return "".join(map(self._add, text))

    def finish(self) -> str:
        """Return the last word; spaces after it are dropped."""
        word, self._word = self._word, ""
        return self._place(word)

    def _add(self, character: str) -> str:
        if character == "\n":
            line = self.finish()
            self._space, self._used = "", 0
            return line + "\n"
        if character.isspace():
            word = self.finish()
            self._space += character
            return word
        *complete, self._word = split_word(self._word + character)
        printed = "".join(map(self._place, complete))
        if len(self._word) >= self.columns:  # longer than a line: not held back, and broken by the terminal
            printed += self.finish()
            self._used %= self.columns
        return printed

    def _place(self, unit: str) -> str:
        """Put an unbreakable unit after the space before it or on a new line."""
        if not unit:
            return ""
        space, self._space = self._space, ""
        gap = len((" " * self._used + space).expandtabs(TAB)) - self._used
        end = self._used + gap + text_width(unit)
        if end > self.columns and self._used:
            space, end = "\n", text_width(unit)
        self._used = end if end <= self.columns else end % self.columns
        return space + unit
