"""Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers"): the momentum of a weight matrix is
replaced by the nearest orthogonal matrix, so that all its singular directions are updated equally.

L matrices of the same shape [m, n] are updated together, or L stacks of E experts' matrices, [E, m, n].
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.planning import recipe


def orthogonalize(x: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix of each x [..., m, n]: large singular values become 0.8 to
    1.2."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    shape = x.shape
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)).reshape(-1, *shape[-2:]).contiguous()
    for a, b, c in recipe.polar_coefficients():
        A = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)  # a x + (b A + c A A) x
    x = x.view(shape)
    return x.mT if tall else x


def _same_shapes(matrices: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
    for matrix in matrices:
        groups[matrix.shape].append(matrix)
    return list(groups.values())


def _nesterov(gradient: Tensor, buffer: Tensor, momentum: float) -> Tensor:
    """Compute the Nesterov momentum of a gradient, in place; updates the momentum `buffer`."""
    buffer.lerp_(gradient, 1 - momentum)
    return gradient.lerp_(buffer, momentum)


def _update(
    own: Tensor,
    direction: Tensor,
    shape: Sequence[int],
    lr: float,
    weight_decay: float,
    factor: Tensor | float,
) -> None:
    """Update this process's rows of a matrix of `shape` [..., m, n], and change `direction` in place. `lr` is
    the rate for square matrices; `factor` is one for all of a matrix or for each of its rows or columns."""
    rows, columns = shape[-2:]
    rate = lr * math.sqrt(max(1.0, rows / columns))
    own.mul_(1 - lr * weight_decay * factor).add_(direction.mul_(factor), alpha=-rate)


class WholeMuon:
    """Updates whole weight matrices with their gradients, and drops the gradients. With several processes,
    each process sums and orthogonalizes a part of the matrices of a shape, and all receive the results."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        dtype: torch.dtype,
        group: ProcessGroup | None = None,
        factors: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        """`dtype` is the data type of the matrix products; `factors` are those of the learning rate for the
        rows [m, 1] or columns [1, n] of some matrices."""
        self._factors = factors or {}
        self.matrices = _same_shapes(matrices)
        self._dtype = dtype
        self._group = group
        length = group.part_length if group else int
        self._momenta = [  # momenta of this process's matrices
            torch.zeros(length(len(same)), *same[0].shape, device=same[0].device) for same in self.matrices
        ]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        for same_shape, buffer in zip(self.matrices, self._momenta, strict=True):
            gradient = torch.stack([_take_gradient(matrix) for matrix in same_shape])
            if self._group:
                gradient = self._group.sum_part(gradient)
            directions = orthogonalize(_nesterov(gradient, buffer, momentum).to(self._dtype))
            if self._group:
                directions = self._group.gather(directions, len(same_shape))
            for matrix, direction in zip(same_shape, directions.float().unbind(), strict=True):
                _update(matrix, direction, matrix.shape, lr, weight_decay, self._factors.get(matrix, 1.0))

    def momenta(self) -> Iterator[Tensor]:
        """Yield the momenta [L, m, n] of all matrices of a shape, for each shape."""
        for same, buffer in zip(self.matrices, self._momenta, strict=True):
            yield self._group.gather(buffer, len(same)) if self._group else buffer

    def load_momenta(self, i: int, momenta: Tensor) -> None:
        """Restore the momenta that `momenta` yielded for shape i."""
        own = self._group.rows(momenta) if self._group else momenta
        self._momenta[i][: len(own)] = own


class ShardedMuon:
    """Like WholeMuon, but each process holds only some rows of the weights and their momenta.

    For orthogonalization, each process receives the parts of some matrices from all others, and returns the
    results. Stacks of experts' matrices are sharded by expert, so each matrix is whole.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        dtype: torch.dtype,
        group: ProcessGroup,
        factors: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        """`dtype` is the data type of the matrix products and of matrices that are sent; `factors` as in
        WholeMuon."""
        self._factors = {
            matrix: group.rows(factor) if len(factor) > 1 else factor
            for matrix, factor in (factors or {}).items()
        }
        self.matrices = _same_shapes(matrices)
        self._dtype = dtype
        self._group = group
        self._momenta = [[torch.zeros_like(own_part(matrix)) for matrix in same] for same in self.matrices]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        first = 0  # process that gets the first matrix; the processes take turns across all shapes
        for same_shape, buffers in zip(self.matrices, self._momenta, strict=True):
            shape = same_shape[0].shape
            smoothed = [
                _nesterov(own_part(_take_gradient(matrix)), buffer, momentum).to(self._dtype)
                for matrix, buffer in zip(same_shape, buffers, strict=True)
            ]
            if len(shape) > 2:
                directions = [orthogonalize(own) if len(own) else own for own in smoothed]
            else:
                directions = self._orthogonalize_dealt(smoothed, shape[0], first)
            for matrix, direction in zip(same_shape, directions, strict=True):
                factor = self._factors.get(matrix, 1.0)
                _update(own_part(matrix), direction.float(), shape, lr, weight_decay, factor)
            first = (first + len(same_shape)) % self._group.count

    def _orthogonalize_dealt(self, parts: Sequence[Tensor], rows: int, first: int) -> list[Tensor]:
        """Given this process's rows of some matrices [m, n], return the same rows of the orthogonalized
        matrices."""
        group = self._group
        dealt = [
            [i for i in range(len(parts)) if (first + i) % group.count == rank] for rank in range(group.count)
        ]
        heights = [len(group.rows_of(rank, rows)) for rank in range(group.count)]
        own = dealt[group.rank]
        height = heights[group.rank]
        columns = parts[0].shape[1]
        sent = [torch.cat([parts[0][:0], *(parts[i] for i in indices)]) for indices in dealt]
        received = group.exchange(sent, [height * len(own) for height in heights])
        whole = torch.cat(
            [part.view(len(own), height, columns) for part, height in zip(received, heights, strict=True)], 1
        )
        directions = orthogonalize(whole) if own else whole
        returned = [part.reshape(-1, columns) for part in torch.split(directions, heights, 1)]
        orthogonalized = group.exchange(returned, [height * len(indices) for indices in dealt])
        in_order = {
            i: direction
            for indices, part in zip(dealt, orthogonalized, strict=True)
            for i, direction in zip(indices, part.view(len(indices), height, columns), strict=True)
        }
        return [in_order[i] for i in range(len(parts))]

    def momenta(self) -> Iterator[Tensor]:
        for same, buffers in zip(self.matrices, self._momenta, strict=True):
            rows = len(same[0])
            yield torch.stack([self._group.gather(buffer, rows).cpu() for buffer in buffers])

    def load_momenta(self, i: int, momenta: Tensor) -> None:
        for buffer, whole in zip(self._momenta[i], momenta, strict=True):
            buffer.copy_(self._group.rows(whole))


def _take_gradient(parameter: nn.Parameter) -> Tensor:
    """Return and drop the gradient; zeros if there is none."""
    gradient = parameter.grad
    parameter.grad = None
    return torch.zeros_like(parameter) if gradient is None else gradient


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's rows of a sharded tensor; all rows of any other tensor."""
    to_local = getattr(tensor, "to_local", None)  # only a DTensor, which is slow to import, has it
    return to_local() if to_local else tensor
