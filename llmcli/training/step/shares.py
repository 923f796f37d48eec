"""What each of several processes computes of a step: the gradients of a share of the batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.config import TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.distributed.process_group import explain_lost_process
from llmcli.training.distributed.processes import Processes
from llmcli.training.planning.cost_model import micro_batches
from llmcli.training.step.compute import Gradients


@dataclass(frozen=True)
class Share:
    """What one process computes of a step."""

    ids: Tensor  # [rows, T + 1]
    learned: Tensor | None  # the same shape; None: all
    weight: float  # of its mean loss in that of the whole batch
    pieces: int  # in which it passes through the model, to limit memory
    sharded_over: int = 0  # processes that have a part of each weight; 0: each has whole weights


def take_share(
    processes: Processes,
    model: LanguageModel,
    settings: TrainConfig,
    step: int,
    ids: Tensor,
    learned: Tensor | None,
    *,
    sharded: bool = False,
) -> Share:
    """The rows of a batch [B, T + 1] that this process has. The model will draw the dropout masks that these rows would
    get in the whole batch, unless they pass through it in pieces.

    With `sharded` weights all processes have the same number of pieces.
    """
    B, rank, count = len(ids), processes.rank, processes.count
    rows = range(B)[B * rank // count : B * (rank + 1) // count]
    part = slice(rows.start, rows.stop)
    weight = len(rows) / B if learned is None else float(learned[part, 1:].sum() / learned[:, 1:].sum())
    pieces = micro_batches(model.config, settings, count)
    if sharded and not rows:
        part, rows = slice(0, 1), range(1)  # with weight 0
    if pieces > 1:
        model.dropout.set_rows(None)
        model.dropout.seed(settings.seed, step, rank)
    else:
        model.dropout.set_rows(rows, B)
    return Share(ids[part], None if learned is None else learned[part], weight, pieces, count if sharded else 0)


def share_gradients(gradients: Gradients, model: LanguageModel, share: Share) -> Tensor:
    """Accumulate the gradients of a share of a batch, times its weight; returns its loss times its weight."""
    if share.sharded_over:
        return _sharded_gradients(model, share)
    if not share.weight:
        return torch.zeros((), device=share.ids.device)
    loss = gradients(model, share.ids, share.pieces, share.learned)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(share.weight)
    return loss * share.weight


def _sharded_gradients(model: LanguageModel, share: Share) -> Tensor:
    """As `share_gradients`. The backward pass replaces the gradients of each process by the mean over all, of which it
    keeps its part."""
    total = torch.zeros((), device=share.ids.device)
    for ids, learned, weight in _equal_pieces(share):
        with explain_lost_process():
            loss = model.loss(ids, learned) * weight
            torch.autograd.backward(loss * share.sharded_over)
        total += loss.detach()
    return total


def _equal_pieces(share: Share) -> Iterator[tuple[Tensor, Tensor | None, float]]:
    """The pieces of a share, as many as at the other processes, with their weights: (ids, which are learned, weight).
    Where nothing is learned, or no row is left, a row with weight 0."""
    learned = torch.ones_like(share.ids, dtype=torch.bool, device="cpu") if share.learned is None else share.learned
    count = int(learned[:, 1:].sum())
    for ids, mask in zip(share.ids.tensor_split(share.pieces), learned.tensor_split(share.pieces), strict=True):
        own = int(mask[:, 1:].sum())
        if own:
            yield ids, None if share.learned is None else mask, share.weight * own / count
        else:
            yield share.ids[:1], None, 0.0
