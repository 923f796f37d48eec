"""Runs a model with torch, on a GPU or a CPU; runtime.py describes the interface."""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.runtime import Array, Scores, check_context, check_input
from llmcli.models.torch.devices import memory_errors, return_freed_memory
from llmcli.models.torch.scoring import score
from llmcli.models.torch.transformer import KeyValueCache, LanguageModel


class TorchRuntime:
    """A checkpoint ready to run on a torch device."""

    @memory_errors()
    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.config = checkpoint.config
        self.context = checkpoint.config.max_position_embeddings
        self.length = 0
        self._model = LanguageModel(checkpoint.config).to(device).eval()
        self._model.load_arrays(checkpoint.tensors)  # one by one: the CPU never holds all of them
        self._model.fold_gains()  # layer by layer: the device never holds two copies of more than one of them
        return_freed_memory(device)
        self._caches = [KeyValueCache() for _ in range(self.config.num_hidden_layers)]

    def fork(self, length: int = 0) -> "TorchRuntime":
        """A runtime of the same weights, whose own KV cache begins with the first `length` tokens of this one's."""
        forked = copy(self)
        forked._caches = [cache.first(length) for cache in self._caches]
        forked.length = length
        return forked

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory that a token takes in the KV cache."""
        return self.config.cache_bytes_per_token

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache."""
        return sum(cache.nbytes for cache in self._caches)

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return self.config.parameters

    def prefill(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [V] of the next one."""
        logits: Array = self._process(ids, slice(-1, None))[0]
        return logits

    def step(self, token: int) -> Array:
        """Process one token; return the logits [V] of the next one."""
        return self.prefill((token,))

    def logits(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [T, V] after each of them."""
        return self._process(ids, slice(None))

    @memory_errors()
    @torch.inference_mode()
    def _process(self, ids: Sequence[int], wanted: slice) -> Array:
        """Process one token or more; return the logits [., V] after those that are wanted: those of a long prompt take
        gigabytes."""
        check_input(ids, self.length, self.context)
        batch = torch.tensor([list(ids)], device=self._model.cos.device)
        self.length += len(ids)
        hidden = self._model.hidden_states(batch, self._caches)[0, wanted]
        logits: Array = self._model.logits(hidden).cpu().numpy()
        return logits

    def rewind(self, length: int = 0) -> None:
        """Drop all but the first `length` tokens from the cache."""
        self.length = min(length, self.length)
        for cache in self._caches:
            cache.rewind(self.length)

    @memory_errors()
    def score(self, ids: NDArray[np.int64]) -> Scores:
        """The loss of each of ids[:, 1:] in windows ids [B, T + 1], each window independently. The cache is unchanged.

        Returns (losses in nats [B, T], whether the target was the most likely token [B, T]).
        """
        check_context(ids.shape[1] - 1, self.context)
        return score(self._model, ids)
