"""Linear layers with optional low-rank adapters, and trainable rows of embeddings.

Weights stay float32 and are cast to the dtype of the activations for each product, or once if they are frozen
(`fold`). `reset_parameters` does nothing, because LanguageModel initializes or loads all weights, and drawing
a billion random numbers only to overwrite them would take seconds.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmcli.config import EMBEDDING, HEAD, LORA_SCALE
from llmcli.models.torch import kernels


class LowRankAdapter(nn.Module):
    """A trainable low-rank update of a frozen matrix (LoRA, arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        return F.linear(F.linear(x, self.lora_A.to(x.dtype)), (self.lora_B * LORA_SCALE).to(x.dtype))

    def merged(self) -> Tensor:
        """Return the update as one matrix [outputs, inputs]."""
        return LORA_SCALE * self.lora_B @ self.lora_A


class Linear(nn.Linear):
    """A matrix [outputs, inputs] with an optional adapter."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.adapter: LowRankAdapter | None = None
        self.folded: tuple[Tensor, Tensor | None] | None = None  # see `fold`
        self.saves_memory = False  # whether to recompute even on a CPU, where that is slower

    def recomputes(self, x: Tensor) -> bool:
        """Return whether the backward pass recomputes the cast copy of the weights."""
        return self.saves_memory or x.device.type != "cpu"

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        return stacked_linear(x, None, self)


class TokenRows(nn.Module):
    """Trainable embeddings of consecutive tokens, which replace their rows in the frozen matrices. Without
    them, LoRA could not learn the tokens appended for a chat template. B, T, C, V = batch, tokens, hidden
    size, vocabulary size."""

    def __init__(self, first: int, count: int, hidden_size: int, tied: bool) -> None:
        super().__init__()
        self._first = first
        self._end = first + count
        self.embedding = nn.Parameter(torch.zeros(count, hidden_size))
        self.head = None if tied else nn.Parameter(torch.zeros(count, hidden_size))

    def embed(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return the embeddings x [B, T, C] of ids [B, T] with the rows of these tokens replaced."""
        is_own = (ids >= self._first) & (ids < self._end)
        rows = F.embedding((ids - self._first).clamp(0, len(self.embedding) - 1), self.embedding)
        return torch.where(is_own[..., None], rows, x)

    def merged(self, name: str, matrix: Tensor) -> Tensor:
        """Return a weight [V, C] with these rows inserted; other weights unchanged."""
        rows = self._rows(name)
        return matrix if rows is None else torch.cat([matrix[: self._first], rows, matrix[self._end :]])

    def load(self, name: str, matrix: Tensor) -> None:
        """Copy these rows from a weight [V, C]; ignore other weights."""
        rows = self._rows(name)
        if rows is not None:
            rows.copy_(matrix[self._first : self._end])

    def _rows(self, name: str) -> Tensor | None:
        if name == HEAD and self.head is not None:
            return self.head
        return self.embedding if name in (EMBEDDING, HEAD) else None  # tied embeddings are one matrix


def stacked_linear(x: Tensor, gain: Tensor | None, *matrices: Linear) -> Tensor:
    """(x * gain) W^T, or x W^T, for several stacked matrices in one product: [..., inputs] -> [..., sum of
    outputs]."""
    if matrices[0].folded is not None:
        y = F.linear(x, *matrices[0].folded)
    else:
        biases: list[Tensor] = [matrix.bias for matrix in matrices if matrix.bias is not None]
        bias = torch.cat(biases).to(x.dtype) if biases else None
        weights = [matrix.weight for matrix in matrices]
        y = kernels.stacked_linear(x, gain, bias, weights, recompute=matrices[0].recomputes(x))
    adapters = [matrix.adapter for matrix in matrices if matrix.adapter is not None]
    if adapters:
        x = x if gain is None else x * gain.to(x.dtype)
        y = y + torch.cat([adapter(x) for adapter in adapters], dim=-1)
    return y


@torch.no_grad()
def fold(dtype: torch.dtype, gain: Tensor | None, *matrices: Linear) -> None:
    """Stack and fold matrices once, in `dtype`, instead of in every pass; the originals are dropped."""
    biases: list[Tensor] = [matrix.bias for matrix in matrices if matrix.bias is not None]
    weight = torch.cat([matrix.weight for matrix in matrices]) if len(matrices) > 1 else matrices[0].weight
    weight = (weight if gain is None else weight * gain).detach().to(dtype)
    matrices[0].folded = weight, torch.cat(biases).to(dtype) if biases else None
    for matrix in matrices:
        matrix.register_parameter("weight", None)
        matrix.register_parameter("bias", None)
