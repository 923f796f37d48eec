"""Tokens, words and their probabilities: colors and bars in a terminal, plain lines for a program."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.terminal import charts, console, styles, tables
from llmcli.cli.terminal.safe_text import one_line, visible_whitespace
from llmcli.cli.terminal.text_layout import terminal_width, text_width, truncate

if TYPE_CHECKING:
    from llmcli.formats.metadata import Json
    from llmcli.generation.generator import Piece
    from llmcli.generation.next_words import NextWords


def tokens(labels: Sequence[str], ids: Sequence[int]) -> None:
    """Print tokens side by side, each above its id. For a program: one line per token (id, token)."""
    if not sys.stdout.isatty():
        for label, token in zip(labels, ids, strict=True):
            tables.tab_separated((str(token), label))
        return
    columns = terminal_width()
    top = bottom = ""
    for i, (label, number) in enumerate(zip(labels, map(str, ids), strict=True)):
        cell = max(text_width(label), len(number)) + 1
        if bottom and len(bottom) + cell > columns:
            console.result(f"{top}\n{bottom}\n", raw=True)
            top = bottom = ""
        top += styles.alternating(label, i) + " " * (cell - text_width(label))
        bottom += number.ljust(cell)
    if bottom:
        console.result(f"{top.rstrip()}\n{bottom.rstrip()}", raw=True)


def probabilities(column: str, rows: Sequence[tuple[str, float]]) -> None:
    """Print (name, probability) pairs as a table, with bars in a terminal; `column` is the heading of the
    names."""
    if sys.stdout.isatty():
        rows = [(truncate(name, max(12, terminal_width() // 3)), probability) for name, probability in rows]
    widest = max(map(text_width, [column, *(name for name, _ in rows)]))
    width = min(60, max(8, terminal_width() - 22 - widest))
    tables.table(
        (column, "probability", ""),
        [(name, units.probability(probability), bar(probability, width)) for name, probability in rows],
        numbers=(1,),
    )


def bar(share: float, columns: int) -> str:
    """Return a bar that fills `share` (0 to 1) of the columns; "" without a terminal."""
    return charts.bar(share, columns) if sys.stdout.isatty() else ""


def surprisals(rows: Sequence[tuple[str, float]]) -> None:
    """Print tokens on backgrounds that show their surprisal in bits. Without colors: one line per token
    (bits, token)."""
    if not styles.has_colors(sys.stdout):
        for text, bits in rows:
            tables.tab_separated((f"{bits:.2f}", visible_whitespace(text)))
        return
    colored = "".join(styles.by_value(text, bits, styles.SURPRISALS) for text, bits in rows)
    console.verbatim(colored, end="" if colored.endswith("\n") else "\n", raw=True)
    console.result(f"\nbits: {styles.legend(styles.SURPRISALS)}", raw=True)


def with_probability(piece: "Piece") -> None:
    """Print a token on a background that shows its probability."""
    colored = styles.by_value(piece.text, math.exp(piece.logprob), styles.PROBABILITIES)
    console.verbatim(colored, raw=True)


def with_highlights(text: str, spans: Iterable[tuple[int, int]]) -> None:
    """Print a text with passages (first character, one past the last) in brackets, without a line end."""
    position = 0
    for start, end in spans:
        console.verbatim(f"{text[position:start]}⟦{text[start:end]}⟧")
        position = end
    console.verbatim(text[position:])


def probability_legend() -> None:
    """Explain the backgrounds of tokens on stderr, if colors were shown; nothing with --quiet."""
    is_colored = sys.stdout.isatty() and styles.has_colors(sys.stdout) and styles.has_colors(sys.stderr)
    if is_colored and not console.settings.quiet:
        console.write_line(f"probability of each token: {styles.legend(styles.PROBABILITIES)}", sys.stderr)


def print_next_words(search: "NextWords", prompt: str, count: int) -> None:
    """Print the output of `llm generate --next`: the `count` most likely words, and the sum of the others."""
    from llmcli.generation.next_words import MAX_UNEXPLORED

    rows = [(word_label(word.as_json()), word.probability) for word in search.words[:count]]
    if others := search.words[count:]:
        rows.append((f"({len(others)} others)", sum(word.probability for word in others)))
    rows.append(("(unexplored)", search.unexplored))
    if sys.stdout.isatty():
        console.heading(f"{prompt_end(prompt)}…")
        entropy = units.entropy(search.entropy, at_least=search.unexplored >= MAX_UNEXPLORED)
        console.paragraph(f"next word: {entropy}")
    probabilities("next word", rows)
    console.caption(
        f"{units.explained_entropy(search.entropy, 'words')} The probability of a word is summed over its "
        "tokenizations; (unexplored) is the probability of the tokenizations that the search did not "
        "follow to the end of a word."
    )


def prompt_end(text: str) -> str:
    """Return the end of a text for a one-line heading."""
    text = one_line(text)
    columns = terminal_width() - 8
    return text if len(text) <= columns else f"…{text[-max(1, columns) :].lstrip()}"


def word_label(word: "Json") -> str:
    """Return a word for a table; "…" marks one that continues the prompt's last word."""
    return f"{'…' if 'continues' in word else ''}{visible_whitespace(word['text'])}"
