"""The optimizer: parameter groups, update rules, schedules of the learning rate and of the momentum.

Weight matrices inside the layers are updated by Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers"): the
momentum is replaced by the nearest orthogonal matrix, so that all its singular directions are updated equally.
Embeddings, the output head and the gains of the norms are updated by AdamW (arXiv:1711.05101). Learning rates and
schedules were measured: tests/benchmarks/LOG.md.

With several processes each sums and orthogonalizes its part of the matrices, and all get the result.

Recipes: "muon" is the above; "adamw" uses AdamW for all parameters. Fine-tuning uses AdamW for all parameters at the
low learning rates of "fine-tune", or for LoRA adapters alone ("lora").
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llmcli.config import TrainConfig, learning_rates
from llmcli.training.process_group import ProcessGroup

ROUTER_SUFFIX = "mlp.gate.weight"  # of routers of experts: matrices that AdamW updates, like gains
WARMUP = 0.01  # of the run: the learning rate rises linearly
DECAY = 0.6  # of the run, at its end: the learning rate falls linearly to FINAL_RATE
FINAL_RATE = 0.0  # as a fraction of the peak

# Coefficients of five iterations of x <- a x + (b A + c A A) x with A = x x', from "The Polar Express"
# (arXiv:2505.16932), section 4: they bring singular values in [0.001, 1] close to 1. In all but the last iteration x
# is divided by SAFETY first: otherwise bfloat16 rounding occasionally lifts a value above the interval, from where it
# diverges (measured: a largest singular value of 2,094 instead of 1.15).
SAFETY = 1.02
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def rate(progress: float) -> float:
    """The learning rate at `progress` (0 to 1 of the run) as a fraction of its peak.

    >>> [rate(0.0) < 0.2, rate(0.1), rate(0.4), round(rate(0.7), 3), rate(1.0)]
    [True, 1.0, 1.0, 0.5, 0.0]
    """
    if progress < WARMUP:
        return 0.1 + 0.9 * progress / WARMUP
    if progress <= 1 - DECAY:
        return 1.0
    return FINAL_RATE + (1 - FINAL_RATE) * max(0.0, 1 - progress) / DECAY


def momentum(progress: float) -> float:
    """Muon's momentum: rises linearly from 0.85 to 0.95 in the first tenth of the run."""
    return 0.85 + 0.10 * min(1.0, progress / 0.1)


def orthogonalize(x: Tensor) -> Tensor:
    """Approximately the nearest (semi-)orthogonal matrix of each x [..., m, n]: the large singular values become 0.8 to
    1.2."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    shape = x.shape
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)).reshape(-1, *shape[-2:]).contiguous()
    for i, (a, b, c) in enumerate(POLAR_EXPRESS):
        if i < len(POLAR_EXPRESS) - 1:
            a, b, c = a / SAFETY, b / SAFETY**3, c / SAFETY**5
        A = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)  # a x + (b A + c A A) x
    x = x.view(shape)
    return x.mT if tall else x


class Optimizer:
    """Updates all trainable parameters of a model; matrices of the same shape are updated together."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, width: int = 1, group: ProcessGroup | None = None
    ) -> None:
        """`width` is the hidden size, on which the learning rates of fine-tuning depend. Of several processes, all call
        the methods in the same order."""
        self._config, self._group = config, group
        self._dtype: torch.dtype = getattr(torch, config.dtype)  # of Muon's matrix products
        names = [name for name, _ in model.named_parameters()]
        rates = learning_rates(config.recipe, width, tied="lm_head.weight" not in names)
        matrices: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            kind = _kind(name, parameter) if "all" not in rates else "all"
            if kind == "matrices":
                matrices[parameter.shape].append(parameter)
            else:
                groups[rates[kind]].append(parameter)
        self._muon_lr = rates.get("matrices", 0.0)
        self._matrices = list(matrices.values())
        length = group.part_length if group else int
        self._momenta = [  # of the matrices of this process
            torch.zeros(length(len(same)), *same[0].shape, device=same[0].device) for same in self._matrices
        ]
        self._adamw = _AdamW(groups)

    def step(self, progress: float) -> None:
        """Update every parameter by its gradient, then drop the gradients. `progress` is 0 to 1 of the run."""
        scale = self._config.lr * rate(progress)
        if self._group:
            _sum_gradients(self._adamw.parameters, self._group)
        self._adamw.step(scale)
        self._muon(self._muon_lr * scale, momentum(progress))

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """A copy of its state by name."""
        state = {}
        for i, (same, buffer) in enumerate(zip(self._matrices, self._momenta, strict=True)):
            state[f"muon.{i}"] = self._group.gather(buffer, len(same)) if self._group else buffer
        for i, parameter in enumerate(self._adamw.parameters):
            for name, value in self._adamw.state.get(parameter, {}).items():
                state[f"adamw.{i}.{name}"] = value
        return {name: value.detach().to("cpu", torch.float32, copy=True).numpy() for name, value in state.items()}

    def load_arrays(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take the state that `to_arrays` returned."""
        for i, buffer in enumerate(self._momenta):
            stored = torch.from_numpy(arrays[f"muon.{i}"])
            buffer.copy_(self._group.part(stored) if self._group else stored)
        for i, parameter in enumerate(self._adamw.parameters):
            prefix = f"adamw.{i}."
            self._adamw.state[parameter] = {
                name.removeprefix(prefix): torch.from_numpy(value.copy()).to(parameter.device)
                for name, value in arrays.items()
                if name.startswith(prefix)
            }

    @torch.no_grad()
    def _muon(self, lr: float, beta: float) -> None:
        for same_shape, buffer in zip(self._matrices, self._momenta, strict=True):
            gradient = torch.stack([_take_gradient(parameter) for parameter in same_shape])
            if self._group:
                gradient = self._group.sum_part(gradient)
            buffer.lerp_(gradient, 1 - beta)
            update = orthogonalize(gradient.lerp_(buffer, beta).to(self._dtype)).float()  # Nesterov momentum
            if self._group:
                update = self._group.gather(update, len(same_shape))
            rows, columns = same_shape[0].shape[-2:]
            shrink = 1 - lr * self._config.weight_decay
            step = -lr * max(1.0, rows / columns) ** 0.5
            for parameter, direction in zip(same_shape, update.unbind(), strict=True):
                parameter.mul_(shrink).add_(direction, alpha=step)


class _AdamW:
    """What torch.optim.AdamW does. Making one of those imports torch's compiler, which takes a second."""

    def __init__(self, groups: Mapping[float, list[nn.Parameter]]) -> None:
        """`groups` are the parameters by their peak learning rate."""
        self._groups = groups
        self.parameters = [parameter for group in groups.values() for parameter in group]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}  # of those that have had a gradient

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update the parameters that have a gradient, with their peak learning rates times `scale`, and drop it."""
        for peak, group in self._groups.items():
            updated = [parameter for parameter in group if parameter.grad is not None]
            for parameter in updated:
                if parameter not in self.state:
                    self.state[parameter] = _fresh_state(parameter)
            states = [self.state[parameter] for parameter in updated]
            adamw(
                list(updated), [p.grad for p in updated if p.grad is not None], [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states], fused=True, amsgrad=False,
                beta1=0.9, beta2=0.99, lr=peak * scale, weight_decay=0.0, eps=1e-10, maximize=False,
            )  # fmt: skip
            for parameter in updated:
                parameter.grad = None


def _fresh_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _sum_gradients(parameters: Sequence[nn.Parameter], group: ProcessGroup) -> None:
    """Replace the gradients by their sums over all processes, which are sent together."""
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = group.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, values in zip(parameters, torch.split(summed, [p.numel() for p in parameters]), strict=True):
        parameter.grad = values.view_as(parameter)


def _kind(name: str, parameter: nn.Parameter) -> str:
    """The key of `learning_rates` for a parameter, where they differ."""
    if name.endswith("embed_tokens.weight"):
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    return "matrices" if parameter.ndim >= 2 and not name.endswith(ROUTER_SUFFIX) else "gains"


def _take_gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient, which is then dropped; zeros if there is none."""
    gradient = parameter.grad
    parameter.grad = None
    return torch.zeros_like(parameter) if gradient is None else gradient
