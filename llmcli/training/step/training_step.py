"""One training step, in one process or data parallel in several."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.config import TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.distributed.process_group import ProcessGroup, explain_lost_process
from llmcli.training.distributed.processes import Processes
from llmcli.training.interruption import CutShortError
from llmcli.training.planning.cost_model import micro_batches
from llmcli.training.step.base_divergence import BaseDivergence
from llmcli.training.step.optimizer import Optimizer

Split = Callable[[Tensor, int], Sequence[Tensor]]  # torch.chunk or torch.tensor_split
# (ids [b, T + 1], loss mask, weight in the loss of the batch)
MicroBatch = tuple[Tensor, Tensor | None, float]


@dataclass(frozen=True)
class Batch:
    """The input of a step, the same for all processes."""

    step: int  # counted from 0
    progress: float  # position in the schedules, 0 to 1
    dropout: float
    ids: Tensor  # [B, T + 1]
    # [B, T + 1], on the CPU, where reading it does not wait; None: all tokens
    loss_mask: Tensor | None = None


def accumulate_gradients(
    model: LanguageModel, ids: Tensor, count: int, loss_mask: Tensor | None = None
) -> Tensor:
    """Return the mean loss in nats per token of a batch ids [B, T + 1], where `loss_mask` [B, T + 1] is True.
    Gradients are accumulated in the parameters, in at most `count` micro-batches, to limit memory."""
    parts = _split(ids, loss_mask, torch.chunk, count)
    counted = sum(tokens for _, _, tokens in parts)
    return _accumulate(model, [(part, mask, tokens / counted) for part, mask, tokens in parts if tokens])


def _accumulate(model: LanguageModel, batches: Iterable[MicroBatch], scale: float = 1.0) -> Tensor:
    """Return the weighted sum of the losses of micro-batches; gradients are multiplied by `scale`."""
    total = torch.zeros((), device=model.cos.device)
    for ids, mask, weight in batches:
        loss = model.loss(ids, mask) * weight
        torch.autograd.backward(loss * scale)
        total += loss.detach()
    return total


def _split(
    ids: Tensor, loss_mask: Tensor | None, split: Split, count: int
) -> list[tuple[Tensor, Tensor | None, int]]:
    """Return (ids, loss mask, counted tokens) of each micro-batch."""
    masks = split(
        torch.ones_like(ids, dtype=torch.bool, device="cpu") if loss_mask is None else loss_mask, count
    )
    counted = [int(mask[:, 1:].sum()) for mask in masks]
    return list(
        zip(split(ids, count), [None] * len(masks) if loss_mask is None else masks, counted, strict=True)
    )


def training_step(
    model: LanguageModel,
    optimizer: Optimizer,
    batch: Batch,
    settings: TrainConfig,
    *,
    group: ProcessGroup | None = None,
    base_divergence: BaseDivergence | None = None,
    interruptible: AbstractContextManager[None] | None = None,
) -> float | None:
    """Take a step on a batch. Returns its mean loss in nats per token; None if it was interrupted, in which
    case nothing has changed. All processes of a `group` call this with the same batch; each computes its own
    rows."""
    model.dropout.set_rate(batch.dropout)
    model.dropout.seed(settings.seed, batch.step)
    model.train()
    loss: Tensor | None = None
    with contextlib.suppress(CutShortError), interruptible or contextlib.nullcontext():
        # forward pass, loss, backward pass
        if group is None:
            count = micro_batches(model.config, settings)
            computed = accumulate_gradients(model, batch.ids, count, batch.loss_mask)
        else:
            local = local_batch(batch, group.processes, model, settings, sharded=group.is_sharded)
            computed = local_gradients(model, local, group.count if group.is_sharded else 0)
        if base_divergence:  # the divergence from the base model adds its gradients
            model.dropout.set_rows(None)
            base_divergence.add_gradients(batch.step)
        loss = computed
    if group:
        values = [0.0, 0.0] if loss is None else [float(loss), 1.0]
        total, finished = group.sum(torch.tensor(values, dtype=torch.float64))
        loss = total if round(float(finished)) == group.count else None
    if loss is None:
        model.zero_grad(set_to_none=True)
        return None
    # the optimizer sums the gradients of all processes and applies the schedules of learning rate and
    # momentum
    optimizer.step(batch.progress)
    return float(loss.item())


# ---- several processes


@dataclass(frozen=True)
class LocalBatch:
    """The rows of a batch that one process computes."""

    ids: Tensor  # [rows, T + 1]
    loss_mask: Tensor | None
    weight: float  # weight of its mean loss in the loss of the whole batch
    micro_batches: int


def local_batch(
    batch: Batch, processes: Processes, model: LanguageModel, settings: TrainConfig, *, sharded: bool = False
) -> LocalBatch:
    """Select the rows of a process. A single micro-batch gets its dropout masks from the whole batch."""
    ids = batch.ids
    mask = batch.loss_mask
    B = len(batch.ids)
    rows = range(B)[B * processes.rank // processes.count : B * (processes.rank + 1) // processes.count]
    part = slice(rows.start, rows.stop)
    weight = len(rows) / B if mask is None else float(mask[part, 1:].sum() / mask[:, 1:].sum())
    count = micro_batches(model.config, settings, processes.count)
    if sharded and not rows:
        # its weight is 0
        part = slice(0, 1)
        rows = range(1)
    if count > 1:
        model.dropout.set_rows(None)
        model.dropout.seed(settings.seed, batch.step, processes.rank)
    else:
        model.dropout.set_rows(rows, B)
    return LocalBatch(ids[part], None if mask is None else mask[part], weight, count)


def local_gradients(model: LanguageModel, local: LocalBatch, sharded_over: int = 0) -> Tensor:
    """Accumulate the gradients of a local batch, times its weight; return its loss times its weight."""
    if sharded_over:  # the backward pass gives each process its part of the mean gradients
        with explain_lost_process():
            return _accumulate(model, equal_micro_batches(local), sharded_over)
    if not local.weight:
        return torch.zeros(())
    loss = accumulate_gradients(model, local.ids, local.micro_batches, local.loss_mask)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(local.weight)
    return loss * local.weight


def equal_micro_batches(local: LocalBatch) -> Iterator[MicroBatch]:
    """Split into as many micro-batches as in the other processes; a micro-batch without tokens in the loss
    has weight 0."""
    parts = _split(local.ids, local.loss_mask, torch.tensor_split, local.micro_batches)
    counted = sum(tokens for _, _, tokens in parts)
    for ids, mask, tokens in parts:
        yield (ids, mask, local.weight * tokens / counted) if tokens else (local.ids[:1], None, 0.0)
