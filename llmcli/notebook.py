"""HTML tables, which notebooks display instead of the repr of a result."""

import html
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in HTML.

    >>> table(["text", "p"], [("<b>", 0.5)])
    '<table><tr><th>text</th><th>p</th></tr><tr><td>&lt;b&gt;</td><td>0.5</td></tr></table>'
    """
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, cells: Iterable[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


class Ranking(list[tuple[str, float]]):
    """Texts with their probabilities, most likely first."""

    def _repr_html_(self) -> str:
        return table(["text", "probability"], [(text, f"{probability:.3f}") for text, probability in self])
