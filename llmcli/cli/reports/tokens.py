"""Tokens, words and their probabilities in a result: colours and bars in a terminal, plain lines for a program."""

import sys
from collections.abc import Iterable, Sequence

from llmcli import units
from llmcli.cli.terminal import charts, console, styles, tables
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.cli.terminal.text_layout import terminal_width, text_width, truncate

MAX_WITH_FIGURES = 80  # tokens of a text: their figures fill half a screen


def tokens(labels: Sequence[str], ids: Sequence[int]) -> None:
    """Each token above its id, as many side by side as fit; if a program reads them, one line each: id, token."""
    if not sys.stdout.isatty():
        for label, token in zip(labels, ids, strict=True):
            tables.tab_separated((str(token), label))
        return
    _side_by_side([(label, styles.alternating(label, i), str(ids[i])) for i, label in enumerate(labels)])


def _side_by_side(cells: Iterable[tuple[str, str, str]]) -> None:
    """(label, the same with a background, figure) of tokens: each above its figure, as many on a line as fit."""
    columns = terminal_width()
    top, bottom, used = "", "", 0
    for label, styled, figure in cells:
        cell = max(text_width(label), len(figure))
        if used and used + cell + 1 > columns:
            console.result(f"{top}\n{bottom}\n", raw=True)
            top, bottom, used = "", "", 0
        top += styled + " " * (cell - text_width(label) + 1)
        bottom += figure.ljust(cell + 1)
        used += cell + 1
    if used:
        console.result(f"{top.rstrip()}\n{bottom.rstrip()}", raw=True)


def probabilities(column: str, rows: Sequence[tuple[str, float]]) -> None:
    """(name, probability) pairs as a table, with bars in a terminal. `column` is the heading of the names."""
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
    """A bar of `share` (0 to 1) of the columns, in a terminal; "" if a program reads the result."""
    return charts.bar(share, columns) if sys.stdout.isatty() else ""


def surprisals(rows: Sequence[tuple[str, float]]) -> None:
    """A text as (token, surprisal in bits) pairs, each token on a background by its surprisal, with a legend; in a
    short text each token above its bits. Without colours one line each: bits, token."""
    if not styles.has_colours(sys.stdout):
        for text, bits in rows:
            tables.tab_separated((f"{bits:.2f}", visible_whitespace(text)))
        return
    if len(rows) <= MAX_WITH_FIGURES:
        labelled = [(visible_whitespace(text), bits) for text, bits in rows]
        _side_by_side((label, styles.by_surprisal(label, bits), units.bits(bits)) for label, bits in labelled)
    else:
        coloured = "".join(styles.by_surprisal(text, bits) for text, bits in rows)
        console.verbatim(coloured, end="" if coloured.endswith("\n") else "\n", raw=True)
    console.result(f"\nbits: {styles.surprisal_legend()}", raw=True)


def with_highlights(text: str, spans: Iterable[tuple[int, int]]) -> None:
    """A text with passages (first character, the one after the last) on a background, or in brackets without colours.
    No line end."""
    is_coloured = styles.has_colours(sys.stdout)
    position = 0
    for start, end in spans:
        console.verbatim(text[position:start])
        passage = text[start:end]
        console.verbatim(styles.highlighted(passage) if is_coloured else f"⟦{passage}⟧", raw=is_coloured)
        position = end
    console.verbatim(text[position:])


def conversation(title: str, text: str, learned: Iterable[tuple[int, int]]) -> None:
    """A conversation under its title, with the passages of its learned tokens as `with_highlights` shows them."""
    console.heading(title)
    with_highlights(text, learned)
    if not text.endswith("\n"):
        console.result()


def probability_legend() -> None:
    """Explains the backgrounds of `styles.by_probability`, on stderr, if colours were shown; nothing with --quiet."""
    is_coloured = sys.stdout.isatty() and styles.has_colours(sys.stdout) and styles.has_colours(sys.stderr)
    if is_coloured and not console.is_quiet():
        console.write_line(f"probability of each token: {styles.probability_legend()}", sys.stderr)
