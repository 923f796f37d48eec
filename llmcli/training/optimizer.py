"""How weights move: parameter groups, update rules, schedules.

Matrices inside the layers move by Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers"): the momentum is
replaced by the nearest orthogonal matrix, so that every direction learns at the same pace. Embeddings, the head
and the gains of the norms move by AdamW (arXiv:1711.05101). Rates and schedules were measured:
tests/benchmarks/LOG.md.

Recipes: "muon" is that; "adamw" moves everything by AdamW. A model that goes on from another moves by AdamW at the
small rates of "fine-tune", or in its adapters alone by "lora".
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmcli.config import TrainConfig, learning_rates

ROUTER = "mlp.gate.weight"  # what ends the name of a matrix that moves like a gain
WARMUP = 0.01  # of the run
DECAY = 0.6  # the last part of the run, in which the rate falls linearly to LAST
LAST = 0.0

# Coefficients of five iterations of x <- a x + (b A + c A A) x with A = x x', from "The Polar Express"
# (arXiv:2505.16932), section 4; they bring singular values from [0.001, 1] close to 1. All but the last are made for
# values SAFETY times as large as they are: without that, bfloat16 rounding now and then lifts one above the interval,
# from where it explodes (measured: a largest value of 2,094 instead of 1.15).
SAFETY = 1.02
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def rate(progress: float) -> float:
    """The learning rate at `progress` (0 to 1 of the run) as a share of the highest.

    >>> [rate(0.0) < 0.2, rate(0.1), rate(0.4), round(rate(0.7), 3), rate(1.0)]
    [True, 1.0, 1.0, 0.5, 0.0]
    """
    if progress < WARMUP:
        return 0.1 + 0.9 * progress / WARMUP
    if progress <= 1 - DECAY:
        return 1.0
    return LAST + (1 - LAST) * max(0.0, 1 - progress) / DECAY


def momentum(progress: float) -> float:
    """Muon's momentum: 0.85 at first, 0.95 from a tenth of the run on."""
    return 0.85 + 0.10 * min(1.0, progress / 0.1)


def orthogonalize(x: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrix of each x [..., m, n]: its large singular values become 0.8 to 1.2."""
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
    """One step for all parameters of a model that learn; matrices of the same shape move together."""

    def __init__(self, model: nn.Module, config: TrainConfig, width: int = 1) -> None:
        self._config = config
        self._dtype = getattr(torch, config.dtype)  # of Muon's products
        matrices: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        tied = not any(name == "lm_head.weight" for name, _ in model.named_parameters())
        rates = learning_rates(config.recipe, width, tied)
        self._muon_lr = rates.get("matrices", 0.0)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "all" in rates:
                groups[rates["all"]].append(parameter)
            elif name.endswith("embed_tokens.weight"):
                groups[rates["embedding"]].append(parameter)
            elif name == "lm_head.weight":
                groups[rates["head"]].append(parameter)
            elif parameter.ndim >= 2 and not name.endswith(ROUTER):
                matrices[parameter.shape].append(parameter)
            else:
                groups[rates["gains"]].append(parameter)
        self._matrices = list(matrices.values())
        self._momenta = [torch.zeros(len(same), *same[0].shape, device=same[0].device) for same in self._matrices]
        self._adamw = torch.optim.AdamW(
            [{"params": params, "lr": lr, "base": lr} for lr, params in groups.items()],
            betas=(0.9, 0.99),
            eps=1e-10,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, progress: float) -> None:
        """Move every parameter by its gradient, which is then dropped."""
        scale = self._config.lr * rate(progress)
        for group in self._adamw.param_groups:
            group["lr"] = group["base"] * scale
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._muon(self._muon_lr * scale, momentum(progress))

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """A copy of what it remembers, by name."""
        found = {f"muon.{i}": buffer for i, buffer in enumerate(self._momenta)}
        for i, parameter in enumerate(self._adamw_parameters()):
            for name, value in self._adamw.state[parameter].items():
                found[f"adamw.{i}.{name}"] = value
        return {name: value.detach().to("cpu", torch.float32, copy=True).numpy() for name, value in found.items()}

    def load_arrays(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Remember what `to_arrays` gave."""
        for i, buffer in enumerate(self._momenta):
            buffer.copy_(torch.from_numpy(arrays[f"muon.{i}"]))
        for i, parameter in enumerate(self._adamw_parameters()):
            start = f"adamw.{i}."
            self._adamw.state[parameter] = {
                name.removeprefix(start): torch.from_numpy(value.copy()).to(parameter.device)
                for name, value in arrays.items()
                if name.startswith(start)
            }

    def _adamw_parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self._adamw.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def _muon(self, lr: float, beta: float) -> None:
        for same, buffer in zip(self._matrices, self._momenta, strict=True):
            gradient = torch.stack([_take_gradient(parameter) for parameter in same])
            buffer.lerp_(gradient, 1 - beta)
            update = orthogonalize(gradient.lerp_(buffer, beta).to(self._dtype)).float()  # Nesterov
            rows, columns = same[0].shape[-2:]
            shrink = 1 - lr * self._config.weight_decay
            step = -lr * max(1.0, rows / columns) ** 0.5
            for parameter, direction in zip(same, update.unbind(), strict=True):
                parameter.mul_(shrink).add_(direction, alpha=step)


def _take_gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    parameter.grad = None
    return torch.zeros_like(parameter) if gradient is None else gradient
