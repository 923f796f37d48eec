"""The optimizer: parameter groups, update rules, schedules of learning rate and momentum.

With the recipe "muon", weight matrices inside the layers are updated by Muon; embeddings, the output head and
the gains of the norms by AdamW. The other recipes use AdamW for all trained parameters. The numbers are in
recipe.py.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llmcli.config import TrainConfig
from llmcli.models.runtime import Array
from llmcli.models.torch.transformer import LanguageModel, copied
from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.planning import recipe
from llmcli.training.step.induction_heads import InductionHeads
from llmcli.training.step.muon import Muon, own_part

# prefixes of names in the state
MUON = "muon."
ADAMW = "adamw."
ROUTER_SUFFIX = "mlp.gate.weight"  # routers of experts are updated by AdamW, like gains


def lr_schedule(progress: float) -> float:
    """Return the learning rate at `progress` (0 to 1 of the run) as a fraction of its peak."""
    if progress < recipe.WARMUP:
        return recipe.INITIAL_RATE + (1 - recipe.INITIAL_RATE) * progress / recipe.WARMUP
    if progress <= 1 - recipe.DECAY:
        return 1.0
    return recipe.FINAL_RATE + (1 - recipe.FINAL_RATE) * max(0.0, 1 - progress) / recipe.DECAY


def momentum(progress: float) -> float:
    """Return Muon's momentum at `progress`: it rises linearly in the first part of the run."""
    return recipe.MOMENTUM + recipe.MOMENTUM_RISE * min(1.0, progress / recipe.MOMENTUM_WARMUP)


class Optimizer:
    """Updates all trainable parameters of a model. All processes call the methods in the same order."""

    def __init__(self, model: LanguageModel, config: TrainConfig, group: ProcessGroup | None = None) -> None:
        self._config = config
        shape = model.config
        rates = recipe.learning_rates(config.recipe, shape.hidden_size, shape.tie_word_embeddings)
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
        dtype = getattr(torch, config.dtype)
        self._heads = InductionHeads(model) if config.induction and matrices else None
        factors = self._heads.rates if self._heads else {}
        self._muon = Muon(matrices, dtype, group, factors)
        self._groups = groups  # parameters updated by AdamW, by their peak learning rate
        self._group = group
        self._sharded = group is not None and group.is_sharded
        self._parameters = [parameter for same_rate in groups.values() for parameter in same_rate]
        self._moments: dict[nn.Parameter, dict[str, Tensor]] = {}  # AdamW's

    def step(self, progress: float) -> None:
        """Update every parameter with its gradient, then drop the gradients. `progress` is 0 to 1 of the
        run."""
        lr_scale = self._config.lr * lr_schedule(progress)
        with self._heads.following() if self._heads else nullcontext():
            self._adamw_step(lr_scale)
        self._muon.step(self._muon_lr * lr_scale, momentum(progress), self._config.weight_decay)

    @torch.no_grad()
    def _adamw_step(self, lr_scale: float) -> None:
        """Update the parameters that have a gradient by AdamW (arXiv:1711.05101), with their peak rate times
        `lr_scale`. Equivalent to torch.optim.AdamW, which takes a second to import torch's compiler."""
        if self._group and not self._sharded:
            _sum_gradients(self._parameters, self._group)
        beta1, beta2 = recipe.ADAMW_BETAS
        for peak, same_rate in self._groups.items():
            updated = [parameter for parameter in same_rate if parameter.grad is not None]
            for parameter in updated:
                if parameter not in self._moments:
                    own = own_part(parameter)
                    step = torch.zeros((), device=own.device)
                    moments = {"exp_avg": torch.zeros_like(own), "exp_avg_sq": torch.zeros_like(own)}
                    self._moments[parameter] = {"step": step, **moments}
            states = [self._moments[parameter] for parameter in updated]
            adamw(
                [own_part(p) for p in updated],
                [own_part(p.grad) for p in updated if p.grad is not None],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [s["step"] for s in states],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=peak * lr_scale,
                weight_decay=0.0,
                eps=recipe.ADAMW_EPSILON,
                maximize=False,
            )
            for parameter in updated:
                parameter.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole state by name, one array at a time."""
        for i, momenta in enumerate(self._muon.momenta()):
            yield f"{MUON}{i}", momenta
        for i, parameter in enumerate(self._parameters):
            for name, value in self._moments.get(parameter, {}).items():
                if self._sharded and self._group and value.ndim:
                    value = self._group.gather(value, len(parameter))
                yield f"{ADAMW}{i}.{name}", value

    def to_arrays(self) -> dict[str, Array]:
        """Copy the state by name."""
        return {name: copied(value) for name, value in self.state()}

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Restore the state that `to_arrays` returned. Raises KeyError if the momentum of matrices is
        missing."""
        for i in range(len(self._muon.matrices)):
            arrays[f"{MUON}{i}"]
        for name, array in arrays.items():
            self.load_array(name, array)

    def load_array(self, name: str, array: Array) -> None:
        value = torch.from_numpy(array)
        if name.startswith(MUON):
            self._muon.load_momenta(int(name.removeprefix(MUON)), value)
            return
        index, _, kind = name.removeprefix(ADAMW).partition(".")
        parameter = self._parameters[int(index)]
        if self._sharded and self._group and value.ndim:
            value = self._group.rows(value)
        moments = self._moments.setdefault(parameter, {})
        moments[kind] = value.to(own_part(parameter).device, copy=True)


def _kind(name: str, parameter: nn.Parameter) -> str:
    """Return a parameter's key in `learning_rates`, for recipes with several rates."""
    if name.endswith(("embed_tokens.weight", "embed_positions.weight")):
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    return "matrices" if parameter.ndim >= 2 and not name.endswith(ROUTER_SUFFIX) else "gains"


def _sum_gradients(parameters: Sequence[nn.Parameter], group: ProcessGroup) -> None:
    """Replace the gradients by their sums over all processes, in one message."""
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = group.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, values in zip(
        parameters, torch.split(summed, [p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = values.view_as(parameter)
