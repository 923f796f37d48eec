"""Muon for weights of which each of N processes holds a part of the rows.

Matrices must be whole to be orthogonalized: they are dealt out, so that each process gets the parts of some of them
from all others, and returns the results. Stacks of experts' matrices are sharded by expert, so that each is whole.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from llmcli.training.distributed.process_group import ProcessGroup
from llmcli.training.step.adamw import own_part
from llmcli.training.step.muon import nesterov, orthogonalize, same_shapes, update


class ShardedMuon:
    """Its momenta are sharded like the matrices."""

    def __init__(self, matrices: Iterable[nn.Parameter], dtype: torch.dtype, group: ProcessGroup) -> None:
        """`dtype` is that of the matrix products, and of what is sent."""
        self._matrices, self._dtype, self._group = same_shapes(matrices), dtype, group
        self._momenta = [[torch.zeros_like(own_part(matrix)) for matrix in same] for same in self._matrices]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        first = 0  # the process that gets the first matrix: they take turns over all shapes
        for same_shape, buffers in zip(self._matrices, self._momenta, strict=True):
            shape = same_shape[0].shape
            smoothed = [
                _smoothed(matrix, buffer, momentum).to(self._dtype)
                for matrix, buffer in zip(same_shape, buffers, strict=True)
            ]
            if len(shape) > 2:
                directions = [orthogonalize(own) if len(own) else own for own in smoothed]
            else:
                directions = self._orthogonalize_dealt(smoothed, shape[0], first)
            for matrix, direction in zip(same_shape, directions, strict=True):
                update(own_part(matrix), direction.float(), shape, lr, weight_decay)
            first = (first + len(same_shape)) % self._group.count

    def _orthogonalize_dealt(self, parts: Sequence[Tensor], rows: int, first: int) -> list[Tensor]:
        """The rows that are here of some matrices [m, n] -> the same rows of the orthogonalized matrices."""
        group = self._group
        dealt = [[i for i in range(len(parts)) if (first + i) % group.count == rank] for rank in range(group.count)]
        heights = [len(group.rows_of(rank, rows)) for rank in range(group.count)]
        own = dealt[group.rank]
        sent = [torch.cat([parts[0][:0], *(parts[i] for i in indices)]) for indices in dealt]
        received = group.exchange(sent, [height * len(own) for height in heights])
        columns = parts[0].shape[1]
        whole = torch.cat(
            [rows_.view(len(own), height, columns) for rows_, height in zip(received, heights, strict=True)], 1
        )
        directions = orthogonalize(whole) if own else whole
        returned = [part.reshape(-1, columns) for part in torch.split(directions, heights, 1)]
        height = heights[group.rank]
        found = group.exchange(returned, [height * len(indices) for indices in dealt])
        in_order = {
            i: direction
            for indices, directions_ in zip(dealt, found, strict=True)
            for i, direction in zip(indices, directions_.view(len(indices), height, columns), strict=True)
        }
        return [in_order[i] for i in range(len(parts))]

    @property
    def shapes(self) -> int:
        return len(self._matrices)

    def momenta(self) -> Iterator[Tensor]:
        for same, buffers in zip(self._matrices, self._momenta, strict=True):
            rows = len(same[0])
            yield torch.stack([self._group.gather_rows(buffer, rows).cpu() for buffer in buffers])

    def load_momenta(self, i: int, momenta: Tensor) -> None:
        for buffer, whole in zip(self._momenta[i], momenta, strict=True):
            buffer.copy_(self._group.rows(whole))


def _smoothed(matrix: nn.Parameter, buffer: Tensor, momentum: float) -> Tensor:
    """Nesterov momentum of the gradient, which is dropped; `buffer` is updated."""
    gradient = torch.zeros_like(buffer) if matrix.grad is None else own_part(matrix.grad)
    matrix.grad = None
    return nesterov(gradient, buffer, momentum)
