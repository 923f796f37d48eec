"""Data parallel training: each process computes the gradients of a slice of the batch and updates some
matrices.

Rank 0, the leader, does everything else: it reads, plans, keeps the clock, evaluates and saves. The other
ranks hold the same weights, or their own part of each sharded weight, and execute its commands. The run is
therefore the same function of (seed, step) for any number of processes, except for the order of sums.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from llmcli.config import ModelConfig, TrainConfig, as_record
from llmcli.formats.huggingface.config import dump_config, parse_config
from llmcli.models.runtime import Array
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.step.hardware import keep_freed_memory
from llmcli.training.step.initialization import compile_layers, new_model
from llmcli.training.step.optimizer import Optimizer
from llmcli.training.step.training_step import Batch, training_step


class Leader:
    """Rank 0, which sends commands to the other processes."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self._has_started = False  # whether the other ranks run a model and must be shut down

    def new_model(
        self, config: ModelConfig, settings: TrainConfig, new_tokens: range, *, sharded: bool
    ) -> LanguageModel:
        """Create a model without weights in all processes. The base model lacks the `new_tokens`."""
        added = [new_tokens.start, new_tokens.stop]
        self.group.broadcast_json([dump_config(config), as_record(settings), added, sharded])
        self._has_started = True
        self.group.is_sharded = sharded
        return _new_model(config, settings, new_tokens, self.group)

    def send_state(self, model: LanguageModel, optimizer: Mapping[str, Array] | None) -> None:
        """Send the weights (unless sharded) and, in a resumed run, the optimizer's state to the other
        ranks."""
        if not self.group.is_sharded:
            self.group.broadcast_json(["receive weights"])
            for parameter in model.parameters():
                self.group.broadcast(parameter.data)
        if optimizer is not None:
            shapes = [[name, list(array.shape)] for name, array in optimizer.items()]
            self.group.broadcast_json(["load optimizer", shapes])
            for array in optimizer.values():
                self.group.broadcast(torch.from_numpy(array))

    def send_batch(self, batch: Batch) -> None:
        """Take a step in all processes."""
        is_masked = batch.loss_mask is not None
        shape = list(batch.ids.shape)
        self.group.broadcast_json(["step", batch.step, batch.progress, batch.dropout, shape, is_masked])
        self.group.broadcast(batch.ids)
        if batch.loss_mask is not None:
            self.group.broadcast(batch.loss_mask)

    def read_optimizer(self, optimizer: Optimizer) -> dict[str, Array]:
        self.group.broadcast_json(["save optimizer"])
        return optimizer.to_arrays()

    def end(self) -> None:
        if self._has_started:
            self._has_started = False
            self.group.broadcast_json(["end"])


def _new_model(
    config: ModelConfig, settings: TrainConfig, new_tokens: range, group: ProcessGroup
) -> LanguageModel:
    if group.is_sharded:
        from llmcli.training.step.sharded_model import new_sharded_model  # slow to import

        return new_sharded_model(config, settings, new_tokens, group)
    return new_model(config, settings, new_tokens)


def execute_commands(group: ProcessGroup) -> None:
    """Execute, in ranks above 0, the leader's commands until it ends."""
    dumped, recorded, new_tokens, group.is_sharded = group.broadcast_json()
    config = parse_config(dumped)
    settings = TrainConfig(**recorded)
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    # a ShardedModel (not imported here, since that takes time) or a LanguageModel
    model: Any = _new_model(config, settings, range(*new_tokens), group)
    optimizer = Optimizer(model, settings, group)
    compile_layers(model, settings)
    while (message := group.broadcast_json())[0] != "end":
        command, *arguments = message
        if command == "step":
            step, progress, dropout, shape, is_masked = arguments
            ids = group.broadcast(torch.zeros(shape, dtype=torch.int64, device=settings.device))
            mask = group.broadcast(torch.zeros(shape, dtype=torch.bool)) if is_masked else None
            batch = Batch(step, progress, dropout, ids, mask)
            training_step(model, optimizer, batch, settings, group=group)
        elif command == "save optimizer":  # participate in reading its state
            for _ in optimizer.state():
                pass
        elif command == "load optimizer":
            for name, shape in arguments[0]:
                array = np.zeros(shape, np.float32)
                group.broadcast(torch.from_numpy(array))
                optimizer.load_array(name, array)
        elif command == "receive weights":
            for parameter in model.parameters():
                group.broadcast(parameter.data)
        else:
            model.run_command(command, *arguments)  # only for sharded weights
