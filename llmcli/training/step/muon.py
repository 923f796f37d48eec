"""Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers"): the momentum of a weight matrix is
replaced by the nearest orthogonal matrix, so that all its singular directions are updated equally.

L matrices of the same shape [m, n] are updated together, or L stacks of E experts' matrices, [E, m, n].
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

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


class Muon:
    """Updates weight matrices with their gradients, and drops the gradients. With several processes, each
    orthogonalizes a part of the matrices, and all receive the results. They hold whole weights, and their
    gradients are summed here, or each holds only some rows of the weights and of their summed gradients.
    Stacks of experts' matrices are sharded by expert, so each matrix is whole."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        dtype: torch.dtype,
        group: ProcessGroup | None = None,
        factors: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        """`dtype` is the data type of the matrix products and of matrices that are sent; `factors` are those
        of the learning rate for the rows [m, 1] or columns [1, n] of some matrices."""
        self._dtype = dtype
        sharded = group is not None and group.is_sharded
        self._replicas = None if sharded else group  # processes that hold whole weights
        self._shards = group if sharded else None  # processes that hold some rows of the weights
        self._factors = {
            matrix: self._shards.rows(factor) if self._shards and len(factor) > 1 else factor
            for matrix, factor in (factors or {}).items()
        }
        same_shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            same_shapes[matrix.shape].append(matrix)
        self.matrices = list(same_shapes.values())
        self._momenta: list[Tensor] = []  # of this process's matrices, or of its rows of all matrices
        for same in self.matrices:
            own = own_part(same[0].detach())
            count = self._replicas.part_length(len(same)) if self._replicas else len(same)
            self._momenta.append(own.new_zeros(count, *own.shape))

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Take a step; `lr` is the learning rate for square matrices."""
        first = 0  # process that gets the first matrix; the processes take turns across all shapes
        for same_shape, buffer in zip(self.matrices, self._momenta, strict=True):
            shape = same_shape[0].shape
            gradient = torch.stack([own_part(_take_gradient(matrix)) for matrix in same_shape])
            if self._replicas:
                gradient = self._replicas.sum_part(gradient)
            buffer.lerp_(gradient, 1 - momentum)
            directions = gradient.lerp_(buffer, momentum).to(self._dtype)  # Nesterov momentum
            if self._shards and len(shape) == 2:
                directions = _orthogonalize_dealt(directions, shape[0], first, self._shards)
                first = (first + len(same_shape)) % self._shards.count
            elif directions.numel():
                directions = orthogonalize(directions)
            if self._replicas:
                directions = self._replicas.gather(directions, len(same_shape))
            rate = lr * math.sqrt(max(1.0, shape[-2] / shape[-1]))
            for matrix, direction in zip(same_shape, directions.float().unbind(), strict=True):
                factor = self._factors.get(matrix, 1.0)
                own = own_part(matrix).mul_(1 - lr * weight_decay * factor)
                own.add_(direction.mul_(factor), alpha=-rate)

    def momenta(self) -> Iterator[Tensor]:
        """Yield the momenta [L, m, n] of all matrices of a shape, for each shape."""
        for same, buffer in zip(self.matrices, self._momenta, strict=True):
            if self._shards:
                yield torch.stack([self._shards.gather(own, len(same[0])).cpu() for own in buffer])
            else:
                yield self._replicas.gather(buffer, len(same)) if self._replicas else buffer

    def load_momenta(self, i: int, momenta: Tensor) -> None:
        """Restore the momenta that `momenta` yielded for shape i."""
        if self._shards:
            momenta = torch.stack([self._shards.rows(matrix) for matrix in momenta])
        elif self._replicas:
            momenta = self._replicas.rows(momenta)
        self._momenta[i][: len(momenta)] = momenta


def _orthogonalize_dealt(parts: Tensor, rows: int, first: int, group: ProcessGroup) -> Tensor:
    """Given this process's rows [L, ., n] of matrices [m, n] with m `rows`, return the same rows of the
    orthogonalized matrices: each process receives all rows of some matrices, and returns the results. Process
    `first` gets the first matrix."""
    dealt = [slice((rank - first) % group.count, None, group.count) for rank in range(group.count)]
    heights = [len(group.rows_of(rank, rows)) for rank in range(group.count)]
    own, height, columns = parts[dealt[group.rank]].shape
    received = group.exchange(
        [parts[indices].flatten(0, 1) for indices in dealt], [height * own for height in heights]
    )
    whole = torch.cat(
        [part.view(own, height, columns) for part, height in zip(received, heights, strict=True)], 1
    )
    directions = orthogonalize(whole) if own else whole
    received = group.exchange(
        [part.flatten(0, 1) for part in torch.split(directions, heights, 1)],
        [height * len(parts[indices]) for indices in dealt],
    )
    result = torch.empty_like(parts)
    for indices, part in zip(dealt, received, strict=True):
        result[indices] = part.view_as(result[indices])
    return result


def _take_gradient(parameter: nn.Parameter) -> Tensor:
    """Return and drop the gradient; zeros if there is none."""
    gradient = parameter.grad
    parameter.grad = None
    return torch.zeros_like(parameter) if gradient is None else gradient


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's rows of a sharded tensor; all rows of any other tensor."""
    to_local = getattr(tensor, "to_local", None)  # only a DTensor, which is slow to import, has it
    return to_local() if to_local else tensor
