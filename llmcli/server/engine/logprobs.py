"""The alternatives to a token, with their log probabilities under the model.

V = vocabulary size; T = tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.generation.token_healing import FirstToken
from llmcli.models.logits import log_softmax
from llmcli.models.runtime import Array
from llmcli.server.engine.requests import Alternative, PromptToken


def alternatives(logits: Array, token_bytes: Sequence[bytes], count: int) -> tuple[Alternative, ...]:
    """The `count` most likely tokens after which the model has these logits [V], most likely first.

    Their log probabilities are the same numbers as those of a Sampler.
    """
    if not count:
        return ()
    logprobs = log_softmax(logits[: len(token_bytes)])
    return tuple(Alternative(i, token_bytes[i], float(logprobs[i])) for i in _highest(logprobs, count))


def first_alternatives(first: FirstToken, count: int) -> tuple[Alternative, ...]:
    """The same for the first token after a prompt, whose tokenizations were summed."""
    if not count:
        return ()
    logprobs = log_softmax(first.logits if first.model_logits is None else first.model_logits)
    return tuple(
        Alternative(*first.token_of(i), float(logprobs[i])) for i in _highest(logprobs, count) if logprobs[i] > -np.inf
    )


def prompt_tokens(logits: Array, ids: Sequence[int], token_bytes: Sequence[bytes], count: int) -> Iterator[PromptToken]:
    """The tokens `ids` of a prompt, each of which was predicted with a row of logits [T, V]."""
    for row, token in zip(logits, ids, strict=True):
        logprobs = log_softmax(row[: len(token_bytes)])
        others = tuple(Alternative(i, token_bytes[i], float(logprobs[i])) for i in _highest(logprobs, count))
        yield PromptToken(token, token_bytes[token], float(logprobs[token]), others)


def _highest(logprobs: NDArray[np.float64], count: int) -> list[int]:
    """The indices of the highest, in order; of equal ones the first is first, as in greedy decoding."""
    if not count:
        return []
    if count < len(logprobs):
        threshold = np.partition(logprobs, -count)[-count]
        candidates = np.flatnonzero(logprobs >= threshold)
    else:
        candidates = np.arange(len(logprobs))
    order: list[int] = candidates[np.argsort(-logprobs[candidates], kind="stable")[:count]].tolist()
    return order
