"""Trainable embeddings of tokens that were appended to a vocabulary, while all other weights are frozen.

LoRA alone cannot teach a model the tokens of a chat template: nothing but their own rows of the embedding matrices
tells them from other tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmcli.config import EMBEDDING, HEAD


class TokenRows(nn.Module):
    """The rows of consecutive tokens, in place of those in the frozen matrices.

    B, T, C = batch, tokens, hidden size; V = vocabulary size.
    """

    def __init__(self, first: int, count: int, width: int, tied: bool) -> None:
        """`width` is the hidden size; `tied` is whether the embeddings are tied, so that one matrix has the rows."""
        super().__init__()
        self._first, self._end = first, first + count
        self.embedding = nn.Parameter(torch.zeros(count, width))
        self.head = None if tied else nn.Parameter(torch.zeros(count, width))

    def embed(self, x: Tensor, ids: Tensor) -> Tensor:
        """The embeddings x [B, T, C] of ids [B, T], with those of these tokens replaced."""
        is_own = (ids >= self._first) & (ids < self._end)
        rows = F.embedding((ids - self._first).clamp(0, len(self.embedding) - 1), self.embedding)
        return torch.where(is_own[..., None], rows, x)

    def merged(self, name: str, matrix: Tensor) -> Tensor:
        """A weight [V, C] with these rows in it; any other weight as it is."""
        rows = self._rows(name)
        return matrix if rows is None else torch.cat([matrix[: self._first], rows, matrix[self._end :]])

    def load(self, name: str, matrix: Tensor) -> None:
        """Copy these rows from a weight [V, C]."""
        rows = self._rows(name)
        if rows is not None:
            rows.copy_(matrix[self._first : self._end])

    def _rows(self, name: str) -> Tensor | None:
        if name == HEAD and self.head is not None:
            return self.head
        # of tied embeddings, the head is the same matrix
        return self.embedding if name == EMBEDDING or (name == HEAD and self.head is None) else None
