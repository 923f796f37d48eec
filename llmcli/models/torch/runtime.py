"""Runs a model with torch, on a GPU or a CPU."""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.runtime import Array, Runtime, Scores, check_context, check_input
from llmcli.models.torch.devices import memory_errors
from llmcli.models.torch.scoring import score
from llmcli.models.torch.transformer import LanguageModel, LayerKVCache


class TorchRuntime(Runtime):
    """A checkpoint ready to run on a torch device."""

    @memory_errors()
    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        config = checkpoint.config
        super().__init__(config.max_position_embeddings, config.parameters, config.cache_bytes_per_token)
        self._model = LanguageModel(config).to(device).eval()
        self._model.load_arrays(checkpoint.tensors)  # one by one: the CPU never holds all of them
        self._model.fold_gains()  # layer by layer: the device never holds two copies of more than one of them
        if device != "cpu":  # give back what torch keeps for later tensors, for other programs
            (torch.cuda if device == "cuda" else torch.mps).empty_cache()
        self._caches = [LayerKVCache() for _ in range(config.num_hidden_layers)]

    def fork(self, length: int = 0) -> "TorchRuntime":
        forked = copy(self)
        forked._caches = [cache.fork(length) for cache in self._caches]
        return forked

    @property
    def length(self) -> int:
        return self._caches[0].length

    @property
    def cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches)

    def rewind(self, length: int = 0) -> None:
        for cache in self._caches:
            cache.rewind(length)

    def prefill(self, ids: Sequence[int]) -> Array:
        return self._process(ids, slice(-1, None))[0]

    def logits(self, ids: Sequence[int]) -> Array:
        return self._process(ids, slice(None))

    @memory_errors()
    @torch.inference_mode()
    def _process(self, ids: Sequence[int], wanted: slice) -> Array:
        """Process one token or more; return the logits [., V] after the `wanted` ones: all would take gigabytes."""
        check_input(ids, self.length, self.context)
        batch = torch.tensor([list(ids)], device=self._model.cos.device)
        hidden = self._model.hidden_states(batch, self._caches)[0, wanted]
        return self._model.logits(hidden).cpu().numpy()

    @memory_errors()
    def score(self, ids: NDArray[np.int64]) -> Scores:
        check_context(ids.shape[1] - 1, self.context)
        return score(self._model, ids)
