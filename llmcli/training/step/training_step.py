"""One training step, in one process or data parallel in several."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.config import TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.distributed.process_group import ProcessGroup
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
    return accumulate(model, [(part, mask, tokens / counted) for part, mask, tokens in parts if tokens])


def accumulate(model: LanguageModel, batches: Iterable[MicroBatch], scale: float = 1.0) -> Tensor:
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
            # with sharded weights, the backward pass gives each process its part of the mean gradients
            scale = float(group.count) if group.is_sharded else 1.0
            computed = accumulate(model, local_micro_batches(batch, group, model, settings), scale)
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


def local_micro_batches(
    batch: Batch, group: ProcessGroup, model: LanguageModel, settings: TrainConfig
) -> list[MicroBatch]:
    """Return the micro-batches of this process. A single one gets its dropout masks from the whole batch.
    With sharded weights, all processes have equally many; one without tokens in the loss has weight 0."""
    processes = group.processes
    mask = batch.loss_mask
    B = len(batch.ids)
    rows = range(B)[B * processes.rank // processes.count : B * (processes.rank + 1) // processes.count]
    own = slice(rows.start, rows.stop)
    count = micro_batches(model.config, settings, processes.count)
    if count > 1:
        model.dropout.set_rows(None)
        model.dropout.seed(settings.seed, batch.step, processes.rank)
    else:
        model.dropout.set_rows(rows or range(1), B)
    total = batch.ids[:, 1:].numel() if mask is None else int(mask[:, 1:].sum())
    split = torch.tensor_split if group.is_sharded else torch.chunk
    parts = _split(batch.ids[own], None if mask is None else mask[own], split, count)
    return [
        (ids if len(ids) else batch.ids[:1], part_mask if tokens else None, tokens / total)
        for ids, part_mask, tokens in parts
        if tokens or group.is_sharded
    ]
