"""Training with several processes: each computes the gradients of a slice of the batch, and updates a part of the
matrices.

Rank 0, the leader, runs everything else: it reads, plans, keeps the clock, evaluates and saves. The others follow: they
hold the same weights, and do what the leader says step by step. So the run is the same function of (seed, step) with
any number of processes, but for the order of sums.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmcli.config import TrainConfig, as_record
from llmcli.formats.hf_config import dump_config, parse_config
from llmcli.models.transformer import LanguageModel
from llmcli.training.compute import Compute, Gradients
from llmcli.training.cost_model import micro_batches
from llmcli.training.hardware import keep_freed_memory
from llmcli.training.initialization import compile_layers, new_model
from llmcli.training.optimizer import Optimizer
from llmcli.training.process_group import ProcessGroup
from llmcli.training.processes import Processes

STEP, STATE, END = range(3)  # what the leader says ...
HEADER_LENGTH = 7  # ... in this many numbers


@dataclass(frozen=True)
class Share:
    """What one process computes of a step."""

    ids: Tensor  # [rows, T + 1]
    learned: Tensor | None  # the same shape; None: all
    weight: float  # of its mean loss in that of the whole batch
    pieces: int  # in which it passes through the model, to limit memory


class Leader:
    """Rank 0: tells the other processes what to compute."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self._settings: TrainConfig | None = None  # None: the others have nothing to do yet, or have ended

    def start(
        self, model: LanguageModel, settings: TrainConfig, new_tokens: range, state: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Give the others the model, and the state of the optimizer of a resumed run."""
        self.group.broadcast_json(
            {
                "config": dump_config(model.config),
                "settings": as_record(settings),
                "new_tokens": [new_tokens.start, new_tokens.stop],
                "state": [[name, list(array.shape)] for name, array in state.items()],
            }
        )
        self._settings = settings
        self.group.broadcast_all(model.parameters())
        self.group.broadcast_all(torch.from_numpy(array) for array in state.values())

    def begin_step(
        self, model: LanguageModel, step: int, progress: float, ids: Tensor, learned: Tensor | None
    ) -> Share:
        """Send a batch; what this process computes of it."""
        assert self._settings, "it was started"
        self._say(STEP, step, progress, model.dropout.rate, *ids.shape, learned is not None)
        self.group.broadcast(ids)
        if learned is not None:
            self.group.broadcast(learned)
        return take_share(self.group.processes, model, self._settings, step, ids, learned)

    def end_step(self, loss: Tensor | None) -> Tensor | None:
        """The loss of the whole batch, from that of the share times its weight; None if the step is given up."""
        return _agree(self.group, loss)

    def before_state(self) -> None:
        """Have the others take part in reading the optimizer's state."""
        self._say(STATE)

    def end(self) -> None:
        """Have the others end."""
        if self._settings:
            self._settings = None
            self._say(END)

    def _say(self, command: int, *values: float) -> None:
        header = [float(command), *map(float, values)]
        self.group.broadcast(torch.tensor(header + [0.0] * (HEADER_LENGTH - len(header)), dtype=torch.float64))


def follow(group: ProcessGroup) -> None:
    """Any rank but 0: compute what the leader says until it ends."""
    plan = group.broadcast_json()
    settings = TrainConfig(**plan["settings"])
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    model = new_model(parse_config(plan["config"]), settings, range(*plan["new_tokens"]))
    group.broadcast_all(model.parameters())
    optimizer = Optimizer(model, settings, model.config.hidden_size, group)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in plan["state"]}
    group.broadcast_all(torch.from_numpy(array) for array in arrays.values())
    if arrays:
        optimizer.load_arrays(arrays)
    compile_layers(model, settings)
    _Follower(group, model, optimizer, settings).run()


class _Follower:
    def __init__(self, group: ProcessGroup, model: LanguageModel, optimizer: Optimizer, settings: TrainConfig) -> None:
        self._group, self._model, self._optimizer, self._settings = group, model, optimizer, settings
        self._gradients = Compute().gradients

    def run(self) -> None:
        while True:
            command, *values = self._group.broadcast(torch.zeros(HEADER_LENGTH, dtype=torch.float64)).tolist()
            if command == END:
                return
            if command == STATE:
                self._optimizer.to_arrays()
            else:
                self._step(*values)

    def _step(self, step: float, progress: float, dropout: float, rows: float, columns: float, masked: float) -> None:
        device, shape = self._settings.device, (int(rows), int(columns))
        ids = self._group.broadcast(torch.zeros(shape, dtype=torch.int64, device=device))
        learned = self._group.broadcast(torch.zeros(shape, dtype=torch.bool)) if masked else None
        self._model.dropout.set_rate(dropout)
        self._model.dropout.seed(self._settings.seed, int(step))
        self._model.train()
        share = take_share(self._group.processes, self._model, self._settings, int(step), ids, learned)
        loss = share_gradients(self._gradients, self._model, share)
        if _agree(self._group, loss) is None:
            self._model.zero_grad(set_to_none=True)
        else:
            self._optimizer.step(progress)


def take_share(
    processes: Processes, model: LanguageModel, settings: TrainConfig, step: int, ids: Tensor, learned: Tensor | None
) -> Share:
    """The rows of a batch [B, T + 1] that this process has. The model will draw the dropout masks that these rows would
    get in the whole batch, unless they pass through it in pieces."""
    B, rank, count = len(ids), processes.rank, processes.count
    rows = range(B)[B * rank // count : B * (rank + 1) // count]
    part = slice(rows.start, rows.stop)
    weight = len(rows) / B if learned is None else float(learned[part, 1:].sum() / learned[:, 1:].sum())
    pieces = math.ceil(micro_batches(model.config, settings) * len(rows) / B)
    if pieces > 1:
        model.dropout.set_rows(None)
        model.dropout.seed(settings.seed, step, rank)
    else:
        model.dropout.set_rows(rows, B)
    return Share(ids[part], None if learned is None else learned[part], weight, pieces)


def share_gradients(gradients: Gradients, model: LanguageModel, share: Share) -> Tensor:
    """Accumulate the gradients of a share of a batch, times its weight; returns its loss times its weight."""
    if not share.weight:
        return torch.zeros((), device=share.ids.device)
    loss = gradients(model, share.ids, share.pieces, share.learned)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(share.weight)
    return loss * share.weight


def _agree(group: ProcessGroup, loss: Tensor | None) -> Tensor | None:
    """The sum of the losses of all processes; None if one of them has none."""
    values = [0.0, 0.0] if loss is None else [float(loss), 1.0]
    total, finished = group.sum(torch.tensor(values, dtype=torch.float64))
    return total if round(float(finished)) == group.count else None


@contextmanager
def all_threads(group: ProcessGroup | None, threads: int) -> Iterator[None]:
    """Inside, this process uses the threads of all on this machine, which wait meanwhile."""
    if group is None:
        yield
        return
    torch.set_num_threads(threads * group.processes.local_count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
