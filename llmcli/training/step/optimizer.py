"""The optimizer: parameter groups, update rules, schedules of the learning rate and of the momentum.

Weight matrices inside the layers are updated by Muon; embeddings, the output head and the gains of the norms by AdamW.
Learning rates and schedules, and where they come from, are in recipe.py.

Recipes: "muon" is the above; "adamw" uses AdamW for all parameters. Fine-tuning uses AdamW for all parameters at the
low learning rates of "fine-tune", or for LoRA adapters alone ("lora").
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmcli.config import TrainConfig
from llmcli.models.torch.transformer import copied
from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.planning import recipe
from llmcli.training.step.adamw import AdamW
from llmcli.training.step.muon import Muon, WholeMuon

MUON, ADAMW = "muon.", "adamw."  # prefixes of the names in the state
ROUTER_SUFFIX = "mlp.gate.weight"  # of routers of experts: matrices that AdamW updates, like gains


def rate(progress: float) -> float:
    """The learning rate at `progress` (0 to 1 of the run) as a fraction of its peak.

    >>> [rate(0.0) < 0.2, rate(0.1), rate(0.4), round(rate(0.7), 3), rate(1.0)]
    [True, 1.0, 1.0, 0.5, 0.0]
    """
    if progress < recipe.WARMUP:
        return recipe.INITIAL_RATE + (1 - recipe.INITIAL_RATE) * progress / recipe.WARMUP
    if progress <= 1 - recipe.DECAY:
        return 1.0
    return recipe.FINAL_RATE + (1 - recipe.FINAL_RATE) * max(0.0, 1 - progress) / recipe.DECAY


def momentum(progress: float) -> float:
    """Muon's momentum at `progress`: it rises linearly in the first part of the run.

    >>> [round(momentum(progress), 3) for progress in (0.0, 0.05, 0.1, 1.0)]
    [0.85, 0.9, 0.95, 0.95]
    """
    return recipe.MOMENTUM + recipe.MOMENTUM_RISE * min(1.0, progress / recipe.MOMENTUM_WARMUP)


class Optimizer:
    """Updates all trainable parameters of a model."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        width: int = 1,
        group: ProcessGroup | None = None,
        *,
        sharded: bool = False,
    ) -> None:
        """`width` is the hidden size, on which the learning rates of fine-tuning depend. Of several processes, all call
        the methods in the same order; with `sharded` each has a part of the parameters, and of the state."""
        self._config = config
        names = [name for name, _ in model.named_parameters()]
        rates = recipe.learning_rates(config.recipe, width, tied="lm_head.weight" not in names)
        matrices: list[nn.Parameter] = []
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            kind = _kind(name, parameter) if "all" not in rates else "all"
            if kind == "matrices":
                matrices.append(parameter)
            else:
                groups[rates[kind]].append(parameter)
        self._muon_lr = rates.get("matrices", 0.0)
        self._muon = _muon(matrices, getattr(torch, config.dtype), group, sharded=sharded)
        self._adamw = AdamW(groups, group, sharded=sharded)

    def step(self, progress: float) -> None:
        """Update every parameter by its gradient, then drop the gradients. `progress` is 0 to 1 of the run."""
        scale = self._config.lr * rate(progress)
        self._adamw.step(scale)
        self._muon.step(self._muon_lr * scale, momentum(progress), self._config.weight_decay)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """A copy of its state by name."""
        return {name: copied(value) for name, value in self.state()}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Its state by name, one after another."""
        for i, momenta in enumerate(self._muon.momenta()):
            yield f"{MUON}{i}", momenta
        for name, value in self._adamw.state():
            yield ADAMW + name, value

    def load_arrays(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take the state that `to_arrays` returned. Raises KeyError where the momentum of matrices is missing."""
        for i in range(self._muon.shapes):
            arrays[f"{MUON}{i}"]
        for name, array in arrays.items():
            self.load_array(name, array)

    def load_array(self, name: str, array: NDArray[np.float32]) -> None:
        """Take a part of the state that `to_arrays` returned."""
        value = torch.from_numpy(array)
        if name.startswith(MUON):
            self._muon.load_momenta(int(name.removeprefix(MUON)), value)
        else:
            self._adamw.load(name.removeprefix(ADAMW), value)


def _muon(matrices: Sequence[nn.Parameter], dtype: torch.dtype, group: ProcessGroup | None, *, sharded: bool) -> Muon:
    if group and sharded:
        from llmcli.training.step.sharded_muon import ShardedMuon

        return ShardedMuon(matrices, dtype, group)
    return WholeMuon(matrices, dtype, group)


def _kind(name: str, parameter: nn.Parameter) -> str:
    """The key of `learning_rates` for a parameter, where they differ."""
    if name.endswith("embed_tokens.weight"):
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    return "matrices" if parameter.ndim >= 2 and not name.endswith(ROUTER_SUFFIX) else "gains"
