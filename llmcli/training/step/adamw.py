"""AdamW (arXiv:1711.05101), of whole parameters or of the part of each that a process holds."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.planning import recipe


class AdamW:
    """What torch.optim.AdamW does. Making one of those imports torch's compiler, which takes a second."""

    def __init__(
        self, groups: Mapping[float, list[nn.Parameter]], group: ProcessGroup | None = None, *, sharded: bool = False
    ) -> None:
        """`groups` are the parameters by their peak learning rate. Of several processes, `group`, each has whole
        parameters, whose gradients are still to be summed, or with `sharded` a part of the rows of each."""
        self._groups, self._group, self._sharded = groups, group, sharded
        self._parameters = [parameter for same_rate in groups.values() for parameter in same_rate]
        self._state: dict[nn.Parameter, dict[str, Tensor]] = {}  # of those that have had a gradient

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update the parameters that have a gradient, with their peak learning rates times `scale`, and drop it."""
        if self._group and not self._sharded:
            _sum_gradients(self._parameters, self._group)
        beta1, beta2 = recipe.ADAMW_BETAS
        for peak, same_rate in self._groups.items():
            updated = [parameter for parameter in same_rate if parameter.grad is not None]
            for parameter in updated:
                if parameter not in self._state:
                    self._state[parameter] = _fresh_state(own_part(parameter))
            states = [self._state[parameter] for parameter in updated]
            adamw(
                [own_part(p) for p in updated], [own_part(p.grad) for p in updated if p.grad is not None],
                [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states],
                fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=peak * scale, weight_decay=0.0,
                eps=recipe.ADAMW_EPSILON, maximize=False,
            )  # fmt: skip
            for parameter in updated:
                parameter.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Its state, whole, by name."""
        for i, parameter in enumerate(self._parameters):
            for name, value in self._state.get(parameter, {}).items():
                if self._sharded and self._group and value.ndim:
                    value = self._group.gather_rows(value, len(parameter))
                yield f"{i}.{name}", value

    def load(self, name: str, value: Tensor) -> None:
        """Take a part of what `state` yielded."""
        index, _, name = name.partition(".")
        parameter = self._parameters[int(index)]
        own = own_part(parameter)
        if self._sharded and self._group and value.ndim:
            value = self._group.rows(value)
        self._state.setdefault(parameter, {})[name] = value.to(own.device, copy=True)


def own_part(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor that this process has; all of any other."""
    to_local = getattr(tensor, "to_local", None)  # of a DTensor, whose import takes time
    return to_local() if to_local else tensor


def _fresh_state(parameter: Tensor) -> dict[str, Tensor]:
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
