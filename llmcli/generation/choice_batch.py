"""The next tokens of several texts at once: what `GeneratedText.add` chooses for each, to the same bits, in fewer
numpy calls.

B, V = texts, vocabulary size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.generation.generator import Choice, GeneratedText
from llmcli.generation.sampler import min_logit, usable_temperature
from llmcli.models.runtime import Array


def choose_together(texts: Sequence[GeneratedText], logits: Array) -> list[Choice | None]:
    """The choices of texts of one model from their rows of logits [B, V]; None for a text that has to choose alone:
    one with other filters than temperature and min-p, or all of them when a model is damaged."""
    choices: list[Choice | None] = [None] * len(texts)
    together = [i for i, text in enumerate(texts) if text.may_choose_together]
    if len(together) < 2:
        return choices
    texts = [texts[i] for i in together]
    rows = logits[:, : len(texts[0].vocabulary)]
    if len(together) < len(choices):
        rows = rows[together]
    highest = rows.max(axis=1, keepdims=True)  # [B, 1]
    if not np.isfinite(highest).all():
        return choices
    tokens = _choose(texts, _masked(rows, [text.allowed for text in texts]))
    shifted = rows - highest
    chosen = shifted[np.arange(len(rows)), tokens].astype(np.float64)
    logprobs = chosen - np.log(np.exp(shifted).sum(axis=1).astype(np.float64))  # as token_logprob
    for i, choice in zip(together, zip(tokens.tolist(), logprobs.tolist(), strict=True), strict=True):
        choices[i] = choice
    return choices


def _choose(texts: Sequence[GeneratedText], rows: Array) -> NDArray[np.int64]:
    """A token for each text [B] from logits [B, V] in which -inf marks what is not allowed."""
    tokens: NDArray[np.int64] = rows.argmax(axis=1)
    drawn = [i for i, text in enumerate(texts) if text.sampling.temperature]
    if not drawn:
        return tokens
    samplings = [texts[i].sampling for i in drawn]
    rows = rows if len(drawn) == len(texts) else rows[drawn]
    temperatures = np.array([usable_temperature(sampling.temperature) for sampling in samplings])
    scaled = (rows - rows.max(axis=1, keepdims=True)) / temperatures[:, None]
    kept = scaled >= np.array([min_logit(sampling.min_p) for sampling in samplings])[:, None]
    for i, row, kept_row in zip(drawn, scaled, kept, strict=True):
        candidates = np.flatnonzero(kept_row)
        tokens[i] = candidates[texts[i].draw(row[candidates])]
    return tokens


def _masked(rows: Array, masks: Sequence[NDArray[np.bool_] | None]) -> Array:
    """Logits [B, V], -inf where a text's mask [V] does not allow a token."""
    first = masks[0]
    if any(mask is not first for mask in masks):
        every = np.ones(rows.shape[1], bool)
        first = np.stack([every if mask is None else mask for mask in masks])
    return rows if first is None else np.where(first, rows, np.float32(-np.inf))
