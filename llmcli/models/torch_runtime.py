"""Runs a model with torch, on a GPU or a CPU, behind the same interface as the numpy runtime."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.transformer import Cache, LanguageModel, score


class TorchRuntime:
    """The graph in torch behind the interface of runtime.py's Runtime, for GPUs."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.config = checkpoint.config
        self.context = checkpoint.config.max_position_embeddings
        self.length = 0
        self._model = LanguageModel(checkpoint.config)
        self._model.load_arrays(checkpoint.tensors)
        self._model.to(device).eval()
        self._caches = [Cache() for _ in range(self.config.num_hidden_layers)]

    @property
    def parameters(self) -> int:
        return self.config.parameters

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Take in tokens, at least one; the logits [V] of what follows the last."""
        return self.logits(ids)[-1]

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Take in tokens; the logits [T, V] after each of them."""
        if self.length + len(ids) > self.context:
            raise LLMError(f"{self.length + len(ids)} tokens do not fit the context of {self.context}")
        block = torch.tensor([list(ids)], device=self._model.cos.device)
        self.length += len(ids)
        return self._model(block, self._caches)[0].float().cpu().numpy()

    def step(self, token: int) -> NDArray[np.float32]:
        """Take in one token; the logits [V] of the next."""
        return self.prefill((token,))

    def rewind(self, length: int = 0) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(length, self.length)
        for cache in self._caches:
            cache.rewind(self.length)

    def score(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        """How well windows ids [B, T + 1] are predicted, each from its own beginning; what was taken in stays."""
        if ids.shape[1] - 1 > self.context:
            raise LLMError(f"{ids.shape[1] - 1} tokens do not fit the context of {self.context}")
        return score(self._model, ids)
