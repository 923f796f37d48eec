"""Wraps a text that arrives in pieces, such as an answer, at the columns of a terminal.

Terminals break lines anywhere, also inside words. Here a word is printed when it is complete, on the next line if it
does not fit. Lines break at the same places as in `text_layout.wrap`.
"""

from llmcli.cli.terminal.text_layout import split_word, text_width

TAB = 8  # columns between the tab stops of a terminal


class WordWrap:
    """`feed` returns what can be printed of the text so far; `finish` returns the rest.

    >>> w = WordWrap(10); [w.feed("I like a "), w.feed("banana"), w.feed(" best"), w.finish()]
    ['I like a', '', '\\nbanana', '\\nbest']
    """

    def __init__(self, columns: int) -> None:
        self.columns, self._used = columns, 0  # the caller changes the columns when the window is resized
        self._space, self._word = "", ""  # the last word, not printed yet, and the space before it

    def feed(self, text: str) -> str:
        return "".join(map(self._add, text))

    def finish(self) -> str:
        """The last word; spaces after it are dropped."""
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
        """A unit that no line break may split, after the space before it or on a new line."""
        if not unit:
            return ""
        space, self._space = self._space, ""
        gap = len((" " * self._used + space).expandtabs(TAB)) - self._used
        end = self._used + gap + text_width(unit)
        if end > self.columns and self._used:
            space, end = "\n", text_width(unit)
        self._used = end if end <= self.columns else end % self.columns
        return space + unit
