"""What `llm generate --next` prints: the most likely next words, as a table or as JSON."""

import sys
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.cli.terminal.text_layout import terminal_width, truncate_start

if TYPE_CHECKING:
    from llmcli.generation.next_words import NextWord, NextWords


def print_next_words(search: "NextWords", prompt: str, count: int) -> None:
    """The `count` most likely words with their probabilities; the others are summed."""
    from llmcli.generation.next_words import MAX_UNEXPLORED

    rows = [(word_label(word), word.probability) for word in search.words[:count]]
    if others := search.words[count:]:
        rows.append((f"({len(others)} others)", sum(word.probability for word in others)))
    rows.append(("(unexplored)", search.unexplored))
    if sys.stdout.isatty():
        console.heading(f"{truncate_start(prompt, terminal_width() - 2)}…")
        is_lower_bound = search.unexplored >= MAX_UNEXPLORED
        console.paragraph(f"next word: {units.entropy(search.entropy, at_least=is_lower_bound)}")
    token_output.probabilities("next word", rows)
    console.caption(
        f"{units.choice(search.entropy, 'words')} The probability of a word is summed over its tokenizations; "
        "(unexplored) is the probability of those that the search did not follow to the end of a word."
    )


def word_label(word: "NextWord") -> str:
    """A word as tables show it: "…" marks one that continues the prompt's last word."""
    return "…" * word.continues + visible_whitespace(word.text)
