"""The two computations that take nearly all the time of a run: gradients of a batch, and losses of held-out windows.

They are passed to a run as a value, so that a test can replace them by a simulated machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.models.torch.scoring import score
from llmcli.models.torch.transformer import LanguageModel

Gradients = Callable[[LanguageModel, torch.Tensor, int, torch.Tensor | None], torch.Tensor]
Piece = tuple[torch.Tensor, torch.Tensor | None, float]  # (ids [b, T + 1], which are learned, share of the loss)


def accumulate_gradients(
    model: LanguageModel, ids: torch.Tensor, micro_batches: int, learned: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean loss in nats per token of a batch ids [B, T + 1]; with `learned` [B, T + 1], per token where that is True.
    Its gradients are accumulated in the parameters. `learned` is on the CPU: there it is read without waiting for a
    GPU.

    The batch passes through the model in at most `micro_batches` pieces, to limit memory.
    """
    total = torch.zeros((), device=ids.device)
    pieces: list[Piece]
    if learned is None:
        pieces = [(piece, None, len(piece) / len(ids)) for piece in ids.chunk(micro_batches)]
    else:
        pieces = _learned_pieces(ids, learned, micro_batches)
    for piece, mask, share in pieces:
        loss = model.loss(piece, mask) * share
        torch.autograd.backward(loss)
        total += loss.detach()
    return total


def _learned_pieces(ids: torch.Tensor, learned: torch.Tensor, micro_batches: int) -> list[Piece]:
    """The pieces of a batch that have a learned token, each with its share of them."""
    masks = learned.chunk(micro_batches)
    counts = [int(mask[:, 1:].sum()) for mask in masks]
    return [
        (piece, mask, count / sum(counts))
        for piece, mask, count in zip(ids.chunk(micro_batches), masks, counts, strict=True)
        if count
    ]


def synchronize(device: str) -> None:
    """Wait until the device has finished what was queued on it."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Compute:
    """The implementations of both computations."""

    gradients: Gradients = accumulate_gradients
    # ids [B, T + 1] -> nats, and whether the target was the most likely token; both [B, T]
    score: Callable[[LanguageModel, NDArray[np.int64]], tuple[NDArray[np.floating], NDArray[np.bool_]]] = score
