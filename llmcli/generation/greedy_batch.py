"""The next tokens of several greedy texts at once: what `GeneratedText.add` chooses for each, in fewer numpy calls.

B, V = texts, vocabulary size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.generation.generator import Choice, GeneratedText
from llmcli.models.runtime import Array


def choose_together(texts: Sequence[GeneratedText], logits: Array) -> list[Choice | None]:
    """The choices of texts of one model from their rows of logits [B, V]; None for a text that has to choose alone:
    one that is not greedy, or all of them when a model is damaged."""
    choices: list[Choice | None] = [None] * len(texts)
    greedy = [i for i, text in enumerate(texts) if text.is_greedy]
    if len(greedy) < 2:
        return choices
    rows = logits[:, : len(texts[0].vocabulary)]
    if len(greedy) < len(texts):
        rows = rows[greedy]
    highest = rows.max(axis=1, keepdims=True)  # [B, 1]
    if not np.isfinite(highest).all():
        return choices
    tokens = _masked(rows, [texts[i].allowed for i in greedy]).argmax(axis=1)
    shifted = rows - highest
    chosen = shifted[np.arange(len(rows)), tokens].astype(np.float64)
    logprobs = chosen - np.log(np.exp(shifted).sum(axis=1).astype(np.float64))  # as log_softmax
    for i, choice in zip(greedy, zip(tokens.tolist(), logprobs.tolist(), strict=True), strict=True):
        choices[i] = choice
    return choices


def _masked(rows: Array, masks: Sequence[NDArray[np.bool_] | None]) -> Array:
    """Logits [B, V], -inf where a text's mask [V] does not allow a token."""
    first = masks[0]
    if any(mask is not first for mask in masks):
        every = np.ones(rows.shape[1], bool)
        first = np.stack([every if mask is None else mask for mask in masks])
    return rows if first is None else np.where(first, rows, np.float32(-np.inf))
