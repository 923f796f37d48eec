"""The output of `llm explain --without` and `--compare`: two predictions side by side."""

from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.comparison import CACHE
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.reports.explanation import lens_cell
from llmcli.cli.terminal import console, tables
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.cli.terminal.text_layout import terminal_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmcli.analysis.comparison import Comparison, TextChange

MAX_LENS_LABEL = 20  # columns


def show(comparison: "Comparison", prompt: str, other: str | None, count: int) -> None:
    """Print two predictions side by side. `other` is the prompt of the second; None: parts were switched off
    in the second."""
    names = ("before", "after") if other is None else ("1", "2")
    off = ", ".join(_part(name) for name in comparison.without)
    console.heading(f"switched off{'' if other is None else ' in both'}: {off}" if off else "two prompts")
    if other is not None:
        for name, text in zip(names, (prompt, other), strict=True):
            console.paragraph(f"{name}: {token_output.prompt_end(text)}")
    likeliest = comparison.next_tokens(1)[0]
    console.paragraph(
        f"{visible_whitespace(likeliest.text)}: {units.probability(likeliest.first)} to "
        f"{units.probability(likeliest.second)} ({_bits(likeliest)} bits); "
        f"KL divergence {units.bits(comparison.kl_divergence)} bits"
    )
    _show_changes("next token", names, comparison.next_tokens(count))
    if comparison.first.words.words:
        _show_changes("next word", names, comparison.next_words(count))
    _show_lenses(comparison, names)
    console.caption(
        "-1.00 bits: half as likely. KL divergence: the change of the whole prediction, 0 if nothing "
        "changed. Layers and heads are numbered from 1: --without 2.3 switches off head 3 of layer 2, "
        "--without 2 the whole layer."
    )


def _part(name: str) -> str:
    """
    >>> _part("2"), _part("2.3"), _part("cache")
    ('layer 2', 'head 3 of layer 2', 'n-gram cache')
    """
    if name == CACHE:
        return "n-gram cache"
    layer, _, head = name.partition(".")
    return f"head {head} of layer {layer}" if head else f"layer {layer}"


def _bits(change: "TextChange") -> str:
    return "" if change.bits is None else units.bits(change.bits, signed=True)


def _show_changes(column: str, names: tuple[str, str], changes: "Sequence[TextChange]") -> None:
    """Print both probabilities of each text."""
    console.heading(column)
    rows = [
        (
            visible_whitespace(change.text),
            units.probability(change.first),
            units.probability(change.second),
            _bits(change),
        )
        for change in changes
    ]
    tables.table((column, *names, "change in bits"), rows, numbers=(1, 2, 3))


def _show_lenses(comparison: "Comparison", names: tuple[str, str]) -> None:
    from llmcli.pages.explanation_json import explanation_json

    console.heading("most likely after each layer (logit lens)")
    max_label = min(MAX_LENS_LABEL, max(4, terminal_width() // 2 - 14))
    lenses = (
        explanation_json(explanation, "", 1, attention=False)["lens"]
        for explanation in (comparison.first, comparison.second)
    )
    rows = [
        (str(pair[0]["layer"] or "none"), *(lens_cell(row["next_tokens"][0], max_label) for row in pair))
        for pair in zip(*lenses, strict=True)
    ]
    tables.table(("layer", *names), rows, numbers=(0,))
