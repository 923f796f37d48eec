"""A model sharded over N processes: each holds 1/N of every weight (torch's FSDP2, arXiv:2304.11277).

Before a layer computes, the processes gather its weights; afterwards they drop them. The backward pass does
the same, and leaves each process with its part of the summed gradients. All processes participate when rank 0
reads weights or evaluates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.runtime import Array
from llmcli.models.torch.linear import Linear
from llmcli.models.torch.transformer import LanguageModel, LayerKVCache
from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.step.initialization import new_model


def new_sharded_model(
    config: ModelConfig, settings: TrainConfig, new_tokens: range, group: ProcessGroup
) -> "ShardedModel":
    """Create a model without weights; called by all processes at the same time."""
    plain = partial(new_model, config, replace(settings, device="cpu"), new_tokens)
    model = plain(ShardedModel)
    assert isinstance(model, ShardedModel)
    model.shard(settings.device, group, plain)
    return model


class ShardedModel(LanguageModel):
    """A sharded model without a KV cache. Rank 0 calls its methods, the other ranks call `run_command`, and
    all call `loss`."""

    def shard(self, device: str, group: ProcessGroup, plain: Callable[[], LanguageModel]) -> None:
        """Keep a part of each weight on a device. `plain` creates a model with whole weights on the CPU."""
        self._group = group
        self._plain = plain
        mesh = init_device_mesh(device, (group.count,))
        for module in self.modules():
            if isinstance(module, Linear):
                module.saves_memory = True
        for module in (*self.model.layers, self):
            fully_shard(module, mesh=mesh)
        for method in ("loss", "_pass"):
            register_fsdp_forward_method(self, method)

    def run_command(self, command: str, *arguments: Any) -> None:
        """Execute a command of rank 0: a pass without gradients, or participating in reading or receiving
        weights."""
        if command == "forward":
            shape, in_float32 = arguments
            self.eval()
            ids = torch.zeros(shape, dtype=torch.int64, device=self.cos.device)
            self._forward_together(ids, in_float32=in_float32)
        elif command == "gather":
            self._gather(trainable=arguments[0])
        else:
            self._scatter(None, trainable=arguments[0])

    def hidden_states(self, ids: Tensor, caches: Sequence[LayerKVCache] | None = None) -> Tensor:
        if torch.is_grad_enabled():
            return super().hidden_states(ids)
        assert not caches, "rank 0 scores texts"
        if self.between_layers:
            self.between_layers()
        in_float32 = self.dtype == torch.float32
        self._group.broadcast_json(["forward", list(ids.shape), in_float32])
        return self._forward_together(ids, in_float32=in_float32)

    def _forward_together(self, ids: Tensor, *, in_float32: bool) -> Tensor:
        if in_float32:
            self._use_float32()
        # weights gathered in inference mode could not be used in training
        with torch.inference_mode(False), torch.no_grad():
            return self._pass(self._group.broadcast(ids.clone()))

    def _pass(self, ids: Tensor) -> Tensor:
        return super().hidden_states(ids)

    def _check_interruption(self) -> None:
        """Check before a pass, not between layers: the other processes would wait for the rest of the
        pass."""

    def _use_float32(self) -> None:
        """Switch to float32, as users of the file will."""
        if self.dtype != torch.float32:
            self.dtype = torch.float32
            self.cos = self.cos[:, :0].float()
            self.sin = self.sin[:, :0].float()

    def scoring_model(self, arrays: Mapping[str, Array]) -> LanguageModel:
        """Return this model with new weights: there is no memory for a second model, and training has
        ended."""
        self.load_arrays(arrays)
        self._use_float32()
        return self

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        whole = self._plain()
        whole.load_arrays(arrays)
        self._group.broadcast_json(["scatter", False])
        self._scatter(dict(whole.named_parameters()), trainable=False)

    def load_trainable(self, arrays: Mapping[str, Array]) -> None:
        self._group.broadcast_json(["scatter", True])
        self._scatter({name: torch.from_numpy(array) for name, array in arrays.items()}, trainable=True)

    def to_arrays(self) -> dict[str, Array]:
        whole = self._plain()
        self._group.broadcast_json(["gather", False])
        whole.load_state_dict(self._gather(trainable=False), assign=True)
        whole.logit_factor = self.logit_factor
        return whole.to_arrays()

    def trainable_arrays(self) -> dict[str, Array]:
        self._group.broadcast_json(["gather", True])
        return {name: weight.numpy() for name, weight in self._gather(trainable=True).items()}

    @torch.no_grad()
    def _scatter(self, weights: Mapping[str, Tensor] | None, *, trainable: bool) -> None:
        """Receive this process's part of the weights from rank 0."""
        for name, parameter in self._sharded(trainable=trainable):
            local = parameter.to_local()
            whole = local.new_empty(parameter.shape) if weights is None else weights[name].to(local.device)
            self._group.broadcast(whole)
            local.copy_(self._group.rows(whole))

    @torch.no_grad()
    def _gather(self, *, trainable: bool) -> dict[str, Tensor]:
        """Return the weights, on the CPU of rank 0."""
        weights = {}
        for name, parameter in self._sharded(trainable=trainable):
            whole = self._group.gather(parameter.to_local(), len(parameter))
            if self._group.rank == 0:
                weights[name] = whole.cpu()
        return weights

    def _sharded(self, *, trainable: bool) -> Iterator[tuple[str, DTensor]]:
        """Yield the parameters; this process holds a part of each."""
        assert isinstance(self, FSDPModule)
        self.reshard()  # an evaluation leaves the embeddings gathered
        for name, parameter in self.named_parameters():
            assert isinstance(parameter, DTensor)
            if parameter.requires_grad or not trainable:
                yield name, parameter
