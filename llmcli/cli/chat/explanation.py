"""The output of /why: the probability of each token in the last answer, and an explanation of one token."""

import math
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console, styles
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.errors import usage

if TYPE_CHECKING:
    from llmcli.analysis.explain import Explanation
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.generation.chat import Assistant
    from llmcli.generation.generator import Piece

CANDIDATES = 5  # next tokens shown


def show(
    source: "Checkpoint | Ensemble",
    assistant: "Assistant",
    prompt_ids: list[int],
    answer: "Sequence[Piece]",
    which: str,
) -> None:
    """Explain a token of an answer. `which` is its number (from 1), a word, or "" for the first token.
    Empties the KV cache."""
    from llmcli.cli.reports import explanation as report

    position = find_token(answer, which)
    piece = answer[position]
    ids = [piece.id for piece in answer if piece.id is not None]
    if styles.has_colors(sys.stdout):
        console.heading("the answer, each token colored by its probability")
        for token in answer:
            token_output.with_probability(token)
        console.result(f"\n{styles.legend(styles.PROBABILITIES)}", raw=True)
    explanation = _explain(source, assistant, prompt_ids + ids[:position], position, ids[position])
    number = f"token {position + 1} of {len(answer)}"
    label = visible_whitespace(assistant.tokenizer.label(ids[position]))
    console.heading(f"{number}: {label}, probability {units.probability(math.exp(piece.logprob))}")
    report.show(explanation, CANDIDATES, is_summary=True)
    if len(answer) > 1:
        console.note("/why N explains the Nth token of the answer, /why WORD the token of a word")


def find_token(answer: "Sequence[Piece]", which: str) -> int:
    """Return the index of a token given by its number (from 1) or by text of the answer. Raises LLMError."""
    count = len(answer)
    if not count:
        raise usage("the last answer has no token to explain")
    if which.isdecimal() or not which:
        number = int(which or 1)
        if not 1 <= number <= count:
            raise usage(f"the last answer has {units.count(count, 'token')}, found number {number}")
        return number - 1
    place = "".join(piece.text for piece in answer).find(which)
    if place < 0:
        raise usage(
            f"the last answer has no {visible_whitespace(which)}; give a word of it, or the number of a token"
        )
    ends = accumulate(len(piece.text) for piece in answer)
    return next(index for index, end in enumerate(ends) if end > place)


def _explain(
    source: "Checkpoint | Ensemble", assistant: "Assistant", before: list[int], written: int, token: int
) -> "Explanation":
    from llmcli.analysis.explain import choose_explained_model, explain
    from llmcli.generation.token_healing import Prompt

    runtime, tokenizer = assistant.runtime, assistant.tokenizer
    prompt = Prompt(before, written=written)
    try:
        subject = choose_explained_model(source, tokenizer, prompt, on_note=console.note, runtime=runtime)
        return explain(
            subject.network,
            tokenizer,
            prompt,
            candidates=CANDIDATES,
            token=token,
            predictor=subject.predictor,
        )
    finally:
        assistant.runtime.rewind()
