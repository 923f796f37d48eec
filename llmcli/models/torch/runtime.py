"""Runs a model with torch, on a GPU or a CPU, and scores text.

B, T, N, V = batch, tokens, B * T, vocabulary size.
"""

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.runtime import Array, Ints, Runtime, Scores, check_context
from llmcli.models.torch.devices import memory_errors
from llmcli.models.torch.transformer import LanguageModel, LayerKVCache

LOGITS_AT_ONCE = 1 << 25  # logits of windows that are scored together
CACHED_TOKENS = 1 << 13  # total tokens in the copies of a cache that several texts continue
# logits in memory at once on a CPU: 32 MB, and up to four times that during calibration
CPU_BLOCK_LOGITS = 1 << 23
INVERSE_TEMPERATURES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # evenly spaced


class TorchRuntime(Runtime):
    """A checkpoint ready to run on a torch device."""

    @memory_errors()
    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        config = checkpoint.config
        super().__init__(config.max_position_embeddings, config.parameters, config.cache_bytes_per_token)
        self.can_shift = not config.architecture.learned_positions
        self._model = LanguageModel(config).to(device).eval()
        self._model.load_arrays(checkpoint.tensors)  # one by one: the CPU never holds all weights
        self._model.fold_gains()  # layer by layer: the device holds two copies of one layer at most
        if device != "cpu":  # return the memory that torch keeps for later tensors
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
        return sum(tensor.nbytes for cache in self._caches for tensor in cache.tensors)

    def rewind(self, length: int = 0) -> None:
        for cache in self._caches:
            cache.rewind(length)

    @torch.inference_mode()
    def remove(self, positions: range) -> None:
        self._model.remove_cached(positions, self._caches)

    def prefill(self, ids: Sequence[int]) -> Array:
        return self._process(ids, slice(-1, None))[0]

    def logits(self, ids: Sequence[int]) -> Array:
        return self._process(ids, slice(None))

    def continuation_logits(self, texts: Sequence[Sequence[int]]) -> Iterator[Array]:
        """See `Runtime`: batches of texts padded at their ends, each with a copy of the cache."""
        longest = max(map(len, texts))
        self.check_input(range(longest))
        together = max(1, CACHED_TOKENS // (self.length + longest))
        for first in range(0, len(texts), together):
            batch = texts[first : first + together]
            for ids, row in zip(batch, self._process_padded(batch), strict=True):
                yield self._logits(row[: len(ids)])

    @memory_errors()
    @torch.inference_mode()
    def _process_padded(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return the hidden states [B, T, C] of texts that continue the cache, which is unchanged."""
        device = self._model.cos.device
        batch = pad_sequence([torch.tensor(list(ids), device=device) for ids in texts], batch_first=True)
        return self._model.hidden_states(batch, [cache.repeated(len(texts)) for cache in self._caches])

    @memory_errors()
    @torch.inference_mode()
    def _logits(self, hidden: Tensor) -> Array:
        return self._model.logits(hidden).cpu().numpy()

    @memory_errors()
    @torch.inference_mode()
    def _process(self, ids: Sequence[int], span: slice) -> Array:
        """Process at least one token; return the logits [., V] after the tokens in `span` only, because the
        logits of all tokens would take gigabytes."""
        self.check_input(ids)
        batch = torch.tensor([list(ids)], device=self._model.cos.device)
        return self._logits(self._model.hidden_states(batch, self._caches)[0, span])

    @memory_errors()
    def score(self, ids: Ints) -> Scores:
        check_context(ids.shape[1] - 1, self.context)
        return score(self._model, ids)


@torch.inference_mode()
def score(model: LanguageModel, ids: Ints) -> Scores:
    """Compute token losses like `Runtime.score`. Dropout is off only if the model is in eval mode."""
    losses = []
    correct = []
    for logits, targets in _logits_and_targets(model, ids):
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        correct.append(logits.argmax(dim=-1) == targets)
    shape = (ids.shape[0], ids.shape[1] - 1)
    return torch.cat(losses).view(shape).cpu().numpy(), torch.cat(correct).view(shape).cpu().numpy()


@torch.inference_mode()
def fit_inverse_temperature(model: LanguageModel, ids: Ints, near: float = 1.0) -> tuple[float, float]:
    """Find the factor on all logits that minimizes the loss of windows ids [B, T + 1]: temperature scaling
    (arXiv:1706.04599, section 4.2). Returns (factor, loss in nats). The loss is convex in the factor, so the
    three factors around `near` are tried first, and others only if the best of them is at an end; the result
    is the minimum of the parabola through three points."""
    factors = INVERSE_TEMPERATURES
    losses = dict[int, float]()
    inner = range(1, len(factors) - 1)
    center = min(inner, key=lambda i: abs(factors[i] - near))
    while True:
        tried = range(center - 1, center + 2)
        new = [i for i in tried if i not in losses]
        losses |= zip(new, _scaled_losses(model, ids, [factors[i] for i in new]), strict=True)
        best = min(tried, key=losses.__getitem__)
        if best == center or best not in inner:
            break
        center = best
    below, at, above = (losses[i] for i in tried)
    # per step between factors
    slope = 0.5 * (above - below)
    curvature = max(below - 2 * at + above, 1e-9)
    step = factors[1] - factors[0]
    factor = min(max(factors[center] - step * (slope / curvature), factors[0]), factors[-1])
    offset = (factor - factors[center]) / step
    return factor, at + offset * slope + 0.5 * offset**2 * curvature


def _scaled_losses(model: LanguageModel, ids: Ints, factors: Sequence[float]) -> list[float]:
    """Return the total loss of windows in nats for each factor on the logits."""
    losses = torch.zeros(len(factors), dtype=torch.float64)
    for logits, targets in _logits_and_targets(model, ids):
        losses += torch.stack(
            [F.cross_entropy(logits * factor, targets, reduction="sum") for factor in factors]
        ).cpu()
    return losses.tolist()


def _logits_and_targets(model: LanguageModel, ids: Ints) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits [n, V] in float32, targets [n]) for blocks of windows ids [B, T + 1] in order."""
    windows = torch.from_numpy(ids).to(model.cos.device)
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    block = max(1, CPU_BLOCK_LOGITS // model.config.vocab_size) if windows.device.type == "cpu" else rows
    for batch in torch.split(windows, max(1, rows // (ids.shape[1] - 1))):
        hidden = model.hidden_states(batch[:, :-1]).flatten(0, 1)
        targets = batch[:, 1:].flatten()
        head = model.head()
        for hidden_block, targets_block in zip(
            torch.split(hidden, block), torch.split(targets, block), strict=True
        ):
            yield F.linear(hidden_block, head).float(), targets_block
