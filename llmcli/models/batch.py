"""One token for each of several runtimes of one model, processed together where the runtime supports it.

The linear layers of a model read each weight once for all tokens, so that several texts take hardly longer than one.
Results may differ in the last bits from those of single steps, since matrix products of other shapes add in another
order. B, V = runtimes, vocabulary size.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llmcli.models.runtime import Array, Runtime


@runtime_checkable
class BatchRuntime(Protocol):
    """A runtime whose forks can be processed together."""

    @staticmethod
    def step_batch(runtimes: Sequence[Any], tokens: Sequence[int]) -> Array:
        """Process one token in each of several forks of one runtime; return the logits [B, V] after them."""


def step_batch(runtimes: Sequence[Runtime], tokens: Sequence[int]) -> Array:
    """Process one token in each of several forks of one runtime; return the logits [B, V] after them."""
    if len(runtimes) > 1 and isinstance(runtimes[0], BatchRuntime):
        return runtimes[0].step_batch(runtimes, tokens)
    return np.stack([runtime.step(token) for runtime, token in zip(runtimes, tokens, strict=True)])
