"""The two computations that take nearly all the time of a run: gradients of a batch, and losses of held-out windows.

They are passed to a run as a value, so that a test can replace them by a simulated machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.models.torch_scoring import score
from llmcli.models.transformer import LanguageModel


def accumulate_gradients(model: LanguageModel, ids: torch.Tensor, micro_batches: int) -> torch.Tensor:
    """Mean loss in nats per token of a batch ids [B, T + 1]. Its gradients are accumulated in the parameters.

    The batch passes through the model in at most `micro_batches` pieces, to limit memory.
    """
    total = torch.zeros((), device=ids.device)
    for micro_batch in ids.chunk(micro_batches):
        loss = model.loss(micro_batch) * (len(micro_batch) / len(ids))
        torch.autograd.backward(loss)
        total += loss.detach()
    return total


def synchronize(device: str) -> None:
    """Wait until the device has finished what was queued on it."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Compute:
    """The implementations of both computations."""

    gradients: Callable[[LanguageModel, torch.Tensor, int], torch.Tensor] = accumulate_gradients
    # ids [B, T + 1] -> nats, and whether the target was the most likely token; both [B, T]
    score: Callable[[LanguageModel, NDArray[np.int64]], tuple[NDArray[np.floating], NDArray[np.bool_]]] = score
