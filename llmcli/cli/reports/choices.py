"""The output of --choices: the probability of each choice."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import one_line, visible_whitespace

if TYPE_CHECKING:
    from llmcli.generation.choices import ScoredText


def print_choices(what: str, prompt: str, scored: "Sequence[ScoredText]", *, json_: bool) -> None:
    """Print choices, most likely first; `what` is the heading of their column."""
    from llmcli.generation.choices import ranked

    rows = ranked(scored)
    if json_:
        console.json_result({
            "prompt": prompt,
            "choices": [
                {
                    "text": choice.text, "probability": round(probability, 6), "logprob": round(choice.logprob, 6),
                    "tokens": choice.tokens,
                }
                for choice, probability in rows
            ],
        })  # fmt: skip
        return
    if sys.stdout.isatty() and what == "continuation":
        console.heading(f"{token_output.prompt_end(prompt)}…")
    shown = one_line if what == "answer" else visible_whitespace
    token_output.probabilities(what, [(shown(choice.text), probability) for choice, probability in rows])
    total = math.fsum(choice.probability for choice in scored)
    console.caption(
        f"Normalized over these choices. Among all {what}s, their probabilities sum to {units.probability(total)}."
    )
