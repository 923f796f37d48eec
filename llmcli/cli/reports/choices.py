"""The output of --choices: the probability of each choice, and the accuracy of the most likely one."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console, tables
from llmcli.cli.terminal.safe_text import one_line, visible_whitespace

if TYPE_CHECKING:
    from llmcli.evaluation.labels import LabelScore
    from llmcli.generation.choices import ScoredText


def print_choices(what: str, prompt: str, scored: "Sequence[ScoredText]", *, json_: bool) -> None:
    """Print choices, most likely first; `what` is the heading of their column."""
    from llmcli.generation.choices import ranked

    rows = ranked(scored)
    if json_:
        console.json_result(
            {
                "prompt": prompt,
                "choices": [
                    {
                        "text": choice.text,
                        "probability": round(probability, 6),
                        "logprob": round(choice.logprob, 6),
                        "tokens": choice.tokens,
                    }
                    for choice, probability in rows
                ],
            }
        )
        return
    if sys.stdout.isatty() and what == "continuation":
        console.heading(f"{token_output.prompt_end(prompt)}…")
    shown = one_line if what == "answer" else visible_whitespace
    token_output.probabilities(what, [(shown(choice.text), probability) for choice, probability in rows])
    total = math.fsum(choice.probability for choice in scored)
    console.caption(
        f"Normalized over these choices. Among all {what}s, "
        f"their probabilities sum to {units.probability(total)}."
    )


def print_label_scores(scores: "Sequence[tuple[str, LabelScore]]", *, json_: bool) -> None:
    """Print the score of each model, best first, and the confusion table of each."""
    scores = sorted(scores, key=lambda score: (-score[1].accuracy, score[1].calibration_error))
    if json_:
        console.json_result(
            {
                "results": [
                    {
                        "model": name,
                        "questions": len(score.labels),
                        "accuracy": round(score.accuracy, 6),
                        "expected_calibration_error": round(score.calibration_error, 6),
                        "choices": score.choices,
                        "confusion": score.confusion,
                    }
                    for name, score in scores
                ]
            }
        )
        return
    rows = [
        (name, f"{score.accuracy:.3f}", f"{score.calibration_error:.3f}", f"{len(score.labels)}")
        for name, score in scores
    ]
    tables.table(("model", "accuracy", "calibration error", "questions"), rows, numbers=(1, 2, 3))
    for name, score in scores:
        console.result()
        console.heading(f"{name}: answers in the text (rows) and chosen ones (columns)")
        names = list(map(one_line, score.choices))
        counts = [[label, *map(str, row)] for label, row in zip(names, score.confusion, strict=True)]
        tables.table(["answer", *names], counts, numbers=range(1, len(names) + 1))
    console.caption(
        "calibration error: expected difference between the probability of the chosen answer and the share "
        "of correct ones, in ten bins of equal width; 0 is best."
    )
