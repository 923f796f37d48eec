"""Training with several processes: each computes the gradients of a slice of the batch, and updates a part of the
matrices.

Rank 0, the leader, runs everything else: it reads, plans, keeps the clock, evaluates and saves. The others follow: they
hold the same weights, or with sharded weights another part of each, and do what the leader says step by step. So the
run is the same function of (seed, step) with any number of processes, but for the order of sums.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmcli.config import ModelConfig, TrainConfig, as_record
from llmcli.formats.hf_config import dump_config, parse_config
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.distributed.commands import Command
from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.step.compute import Compute
from llmcli.training.step.hardware import keep_freed_memory
from llmcli.training.step.initialization import compile_layers, new_model
from llmcli.training.step.optimizer import Optimizer
from llmcli.training.step.shares import Share, share_gradients, take_share

MESSAGE_LENGTH = 7  # numbers that the leader sends: a Command, and what it needs


class Leader:
    """Rank 0: tells the other processes what to compute."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self._settings: TrainConfig | None = None  # None: the others have nothing to do yet, or have ended
        self._sharded = False

    def start(self, config: ModelConfig, settings: TrainConfig, new_tokens: range, *, sharded: bool) -> None:
        """Have the others make a model, with these tokens that a base model does not have."""
        self.group.broadcast_json(
            {
                "config": dump_config(config),
                "settings": as_record(settings),
                "new_tokens": [new_tokens.start, new_tokens.stop],
                "sharded": sharded,
            }
        )
        self._settings, self._sharded = settings, sharded

    def send_weights(self, model: LanguageModel) -> None:
        """Give the others the weights, if they are not sharded."""
        self.tell(Command.RECEIVE_WEIGHTS)
        self.group.broadcast_all(model.parameters())

    def send_optimizer(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Give the others the state of the optimizer of a resumed run."""
        self.tell(Command.LOAD_OPTIMIZER)
        self.group.broadcast_json([[name, list(array.shape)] for name, array in state.items()])
        for array in state.values():
            self.group.broadcast(torch.from_numpy(array))

    def begin_step(
        self, model: LanguageModel, step: int, progress: float, ids: Tensor, learned: Tensor | None
    ) -> Share:
        """Send a batch; what this process computes of it."""
        assert self._settings, "it was started"
        self.tell(Command.STEP, step, progress, model.dropout.rate, *ids.shape, learned is not None)
        self.group.broadcast(ids)
        if learned is not None:
            self.group.broadcast(learned)
        return take_share(self.group.processes, model, self._settings, step, ids, learned, sharded=self._sharded)

    def end_step(self, loss: Tensor | None) -> Tensor | None:
        """The loss of the whole batch, from that of the share times its weight; None if the step is given up."""
        return _agree(self.group, loss)

    def read_optimizer(self, optimizer: Optimizer) -> dict[str, NDArray[np.float32]]:
        """Its state, of which the others have a part."""
        self.tell(Command.SAVE_OPTIMIZER)
        return optimizer.to_arrays()

    def end(self) -> None:
        """Have the others end."""
        if self._settings:
            self._settings = None
            self.tell(Command.END)

    def tell(self, command: Command, *numbers: float) -> None:
        message = [float(command), *map(float, numbers)]
        self.group.broadcast(torch.tensor(message + [0.0] * (MESSAGE_LENGTH - len(message)), dtype=torch.float64))


def follow(group: ProcessGroup) -> None:
    """Any rank but 0: do what the leader tells until it ends."""
    plan = group.broadcast_json()
    settings, sharded = TrainConfig(**plan["settings"]), plan["sharded"]
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    config, new_tokens = parse_config(plan["config"]), range(*plan["new_tokens"])
    take_part = None
    if sharded:
        from llmcli.training.step.sharded_model import new_sharded_model  # its import takes time

        model: LanguageModel
        model = sharded_model = new_sharded_model(config, settings, new_tokens, group)
        take_part = sharded_model.take_part
    else:
        model = new_model(config, settings, new_tokens)
    optimizer = Optimizer(model, settings, config.hidden_size, group, sharded=sharded)
    compile_layers(model, settings)
    _Follower(group, model, optimizer, settings, take_part).run()


class _Follower:
    def __init__(
        self,
        group: ProcessGroup,
        model: LanguageModel,
        optimizer: Optimizer,
        settings: TrainConfig,
        take_part: Callable[..., None] | None,
    ) -> None:
        """`take_part` executes the commands that are for sharded weights alone."""
        self._group, self._model, self._optimizer, self._settings = group, model, optimizer, settings
        self._take_part = take_part
        self._gradients = Compute().gradients

    def run(self) -> None:
        while True:
            message = self._group.broadcast(torch.zeros(MESSAGE_LENGTH, dtype=torch.float64)).tolist()
            command, numbers = Command(int(message[0])), message[1:]
            if command == Command.END:
                return
            self._do(command, numbers)

    def _do(self, command: Command, numbers: Sequence[float]) -> None:
        if command == Command.STEP:
            self._step(*numbers)
        elif command == Command.SAVE_OPTIMIZER:
            for _ in self._optimizer.state():
                pass
        elif command == Command.LOAD_OPTIMIZER:
            self._load_optimizer()
        elif command == Command.RECEIVE_WEIGHTS:
            self._group.broadcast_all(self._model.parameters())
        elif self._take_part:
            self._take_part(command, *numbers)

    def _load_optimizer(self) -> None:
        for name, shape in self._group.broadcast_json():
            array = np.zeros(shape, np.float32)
            self._group.broadcast(torch.from_numpy(array))
            self._optimizer.load_array(name, array)

    def _step(self, step: float, progress: float, dropout: float, rows: float, columns: float, masked: float) -> None:
        device, shape = self._settings.device, (int(rows), int(columns))
        ids = self._group.broadcast(torch.zeros(shape, dtype=torch.int64, device=device))
        learned = self._group.broadcast(torch.zeros(shape, dtype=torch.bool)) if masked else None
        self._model.dropout.set_rate(dropout)
        self._model.dropout.seed(self._settings.seed, int(step))
        self._model.train()
        share = take_share(
            self._group.processes, self._model, self._settings, int(step), ids, learned, sharded=bool(self._take_part)
        )
        loss = share_gradients(self._gradients, self._model, share)
        if _agree(self._group, loss) is None:
            self._model.zero_grad(set_to_none=True)
        else:
            self._optimizer.step(progress)


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
