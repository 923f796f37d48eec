"""The KV cache: the keys and values of the tokens that a model has processed.

With a KV cache, only the new token passes through the network, not all tokens before it. A `KVCache` belongs
to one text. Attention for several texts at once needs their keys and values side by side, so `KVSlots` moves
the caches of texts that are processed together into one large cache. In torch, where layers are compiled one
by one, each layer has its own cache (LayerKVCache in torch/transformer.py).

B, T = texts, tokens; G = key-value heads; S = capacity in tokens; D = head size.
"""

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import TypeVar

import numpy as np

from llmcli.config import ModelConfig
from llmcli.models.runtime import Array, Doubles, Ints, Runtime

MIN_CAPACITY = 64  # tokens
MIN_SLOT_BYTES = 4 << 20  # pages are allocated lazily, whereas growing copies the whole cache


class KVCache:
    """Keys and values by layer, [B, G, S, D] each; the first `length` tokens are in use. Reallocation
    replaces `keys` and `values` by new lists."""

    def __init__(self, config: ModelConfig, *, batch: int = 1, capacity: int = 0) -> None:
        self.length = 0
        self.slot = -1  # index in KVSlots; -1: not in a slot
        self.limit = config.max_position_embeddings
        shape = batch, config.num_key_value_heads, capacity, config.head_dim
        self.keys = [np.zeros(shape, np.float32) for _ in range(config.num_hidden_layers)]
        self.values = [np.zeros(shape, np.float32) for _ in range(config.num_hidden_layers)]

    @property
    def capacity(self) -> int:
        """S"""
        return self.keys[0].shape[2]

    def extend(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Add the keys and values [T, G, D] of new tokens in a single text; return the keys and values of all
        tokens so far, [G, length + T, D]. The caller reserves space, and increases `length` after the last
        layer."""
        end = self.length + len(k)
        keys, values = self.keys[layer][0], self.values[layer][0]  # [G, S, D]
        keys[:, self.length : end] = k.swapaxes(0, 1)
        values[:, self.length : end] = v.swapaxes(0, 1)
        return keys[:, :end], values[:, :end]

    def fork(self, length: int = 0) -> "KVCache":
        forked = copy(self)
        forked.length = length
        forked.resize(length)
        return forked

    def reserve(self, length: int) -> None:
        """Make space for `length` tokens by doubling the capacity."""
        if length > self.capacity:
            self.resize(min(self.limit, max(length, 2 * self.capacity, MIN_CAPACITY)))

    def resize(self, capacity: int) -> None:
        """Move to newly allocated memory with a larger or smaller capacity, in tokens."""
        B, G, _, D = self.keys[0].shape
        keys, values = ([np.zeros((B, G, capacity, D), np.float32) for _ in self.keys] for _ in range(2))
        self.move(keys, values, -1)

    def move(self, keys: list[Array], values: list[Array], slot: int) -> None:
        for old, new in zip((*self.keys, *self.values), (*keys, *values), strict=True):
            new[:, :, : self.length] = old[:, :, : self.length]
        self.keys = keys
        self.values = values
        self.slot = slot

    def remove(self, positions: range, angles: Sequence[Doubles | None], adjacent: bool) -> None:
        """Remove the tokens at some positions. The tokens after them move to earlier positions: their keys
        are rotated back by `angles` [D/2] in each layer, or None. The pairs of a head that are rotated
        together are `adjacent`, or D/2 apart."""
        end = self.length - len(positions)
        for keys, values, angle in zip(self.keys, self.values, angles, strict=True):
            for array in (keys, values):
                array[:, :, positions.start : end] = array[:, :, positions.stop : self.length]
            if angle is not None:
                _rotate_back(keys[:, :, positions.start : end], angle, adjacent)
        self.length = end


def _rotate_back(keys: Array, angles: Doubles, adjacent: bool) -> None:
    if adjacent:
        keys.view(np.complex64)[...] *= np.exp(-1j * angles).astype(np.complex64)
        return
    first, second = np.split(keys, 2, axis=-1)
    cos = np.cos(angles).astype(np.float32)
    sin = np.sin(angles).astype(np.float32)
    rotated = first * cos + second * sin
    second[...] = second * cos - first * sin
    first[...] = rotated


class KVSlots:
    """Slots in one large cache for the caches of a runtime's forks. A cache moves into a slot when it is
    first processed together with others, and out of the slot when another cache takes it."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._cache = KVCache(config, batch=0)  # [slots, G, S, D]
        # the latest cache in each slot, which may have moved out
        self._caches: list[weakref.ref[KVCache] | None] = []
        self._parts: dict[int, KVCache] = {}  # the first B slots, by B

    def arrange(self, caches: Sequence[KVCache]) -> tuple[KVCache, list[int]]:
        """Move B caches into the first B slots, in any order, with space for another token. Returns (these
        slots as a cache of B texts, slot of each cache)."""
        B = len(caches)
        self._make_space(B, max(cache.length for cache in caches) + 1)
        occupants = self._occupants()
        missing = [cache for cache in caches if not 0 <= cache.slot < B]
        if missing or len(occupants) > B:  # the texts changed since the previous step
            for occupant in occupants.values():
                if occupant not in caches:
                    occupant.resize(occupant.length)
            occupants = self._occupants()
            free = [slot for slot in range(B) if slot not in occupants]
            for cache, slot in zip(missing, free, strict=True):
                self._move(cache, slot)
        if B not in self._parts:
            part = self._parts[B] = copy(self._cache)
            part.keys, part.values = ([array[:B] for array in arrays] for arrays in (part.keys, part.values))
        return self._parts[B], [cache.slot for cache in caches]

    def _occupants(self) -> dict[int, KVCache]:
        """Return the cache in each occupied slot."""
        caches = [(slot, reference()) for slot, reference in enumerate(self._caches) if reference is not None]
        return {slot: cache for slot, cache in caches if cache is not None and cache.slot == slot}

    def _move(self, cache: KVCache, slot: int) -> None:
        keys, values = (
            [array[slot : slot + 1] for array in part] for part in (self._cache.keys, self._cache.values)
        )
        cache.move(keys, values, slot)
        self._caches[slot] = weakref.ref(cache)

    def _make_space(self, count: int, length: int) -> None:
        """Make space for `count` slots of `length` tokens; both grow by doubling."""
        slots = len(self._caches)
        capacity = self._cache.capacity
        if count <= slots and length <= capacity:
            return
        if length > capacity:
            smallest = max(MIN_CAPACITY, MIN_SLOT_BYTES // self._config.cache_bytes_per_token)
            capacity = min(self._cache.limit, max(length, 2 * capacity, smallest))
        slots = slots if count <= slots else max(count, min(2 * slots, 16))
        occupants = self._occupants()
        self._cache = KVCache(self._config, batch=slots, capacity=capacity)
        self._caches = [None] * slots
        self._parts = {}
        for slot, occupant in occupants.items():
            self._move(occupant, slot)


_Self = TypeVar("_Self", bound="KVCacheRuntime")


class KVCacheRuntime(Runtime):
    """A runtime of one model, with a KVCache of the tokens processed so far."""

    # whether the pairs of a key that are rotated together are adjacent, not D/2 apart
    has_adjacent_pairs = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.max_position_embeddings, config.parameters, config.cache_bytes_per_token)
        self.config = config
        self.can_shift = not config.architecture.learned_positions
        self.cache = KVCache(config)
        self._slots = KVSlots(config)  # shared by all forks

    @property
    def length(self) -> int:
        return self.cache.length

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for array in (*self.cache.keys, *self.cache.values))

    def rewind(self, length: int = 0) -> None:
        self.cache.length = min(length, self.cache.length)

    def fork(self: _Self, length: int = 0) -> _Self:
        forked = copy(self)
        forked.cache = self.cache.fork(length)
        return forked

    def remove(self, positions: range) -> None:
        config = self.config
        angles = [
            len(positions) * np.array(config.rope_frequencies(config.is_sliding(layer)))
            if config.is_rotary(layer)
            else None
            for layer in range(config.num_hidden_layers)
        ]
        self.cache.remove(positions, angles, self.has_adjacent_pairs)

    @staticmethod
    def step_batch(runtimes: "Sequence[KVCacheRuntime]", tokens: Sequence[int]) -> Array:
        for runtime in runtimes:
            runtime.check_input((0,))
        cache, slots = runtimes[0]._slots.arrange([runtime.cache for runtime in runtimes])
        ids, past = np.zeros((2, len(runtimes)), np.int64)
        ids[slots] = tokens
        past[slots] = [runtime.length for runtime in runtimes]
        logits = runtimes[0]._step_slots(ids, past, cache)[slots]
        for runtime in runtimes:
            runtime.cache.length += 1
        return logits

    @abstractmethod
    def _step_slots(self, ids: Ints, past: Ints, cache: KVCache) -> Array:
        """Process tokens ids [B], each after past [B] tokens in `cache`; return the logits [B, V]."""
