"""The KV caches of runtimes that process tokens together, side by side in the same arrays.

An operator that attends for several texts at once needs their keys and values in the first slots of an array
[slots, G, capacity, D]. A runtime's cache moves into a slot when it is first processed together with others. When
others take its place, its cache moves out again.

G = key-value heads; D = head size.
"""

import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmcli.models.runtime import Array

MIN_CAPACITY = 64  # tokens of a slot
MIN_BYTES = 4 << 20  # of a slot; the system provides memory only for what is used, and growing copies all of it


class SlotRuntime(Protocol):
    """A runtime whose cache can be in a slot."""

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""

    @property
    def cache_arrays(self) -> list[Array]:
        """Keys, then values, of each layer: [1, G, capacity, D]."""

    def use_cache(self, arrays: list[Array]) -> None:
        """Use other arrays, which hold the same tokens."""


class CacheSlots:
    """Slots for forks of one runtime."""

    def __init__(self, layers: int, G: int, D: int) -> None:
        self.arrays = [np.zeros((0, G, 0, D), np.float32)] * (2 * layers)  # keys, then values, of each layer
        self._slots: list[tuple[weakref.ref[SlotRuntime], list[Array]] | None] = []  # (runtime, its arrays)

    def arrange(self, runtimes: Sequence[SlotRuntime], limit: int) -> list[int]:
        """Move the caches of runtimes into the first slots, in any order, with space for another token, at most
        `limit` in all. Returns their slots."""
        self._make_space(len(runtimes), max(runtime.length for runtime in runtimes) + 1, limit)
        occupants = [self.occupant(slot) for slot in range(len(self._slots))]
        slots = {id(occupant): slot for slot, occupant in enumerate(occupants) if occupant is not None}
        found = [slots.get(id(runtime), len(slots)) for runtime in runtimes]
        if len(slots) == len(runtimes) and max(found) < len(runtimes):  # as in the step before, mostly
            return found
        return self._rearrange(runtimes, occupants, slots)

    def _rearrange(
        self, runtimes: Sequence[SlotRuntime], occupants: list[SlotRuntime | None], slots: dict[int, int]
    ) -> list[int]:
        wanted = {id(runtime) for runtime in runtimes}
        for slot, occupant in enumerate(occupants):
            if occupant is not None and id(occupant) not in wanted:
                _use_copy(occupant)
                self._slots[slot] = None
        free = iter([slot for slot in range(len(runtimes)) if self.occupant(slot) is None])
        for runtime in runtimes:
            if slots.get(id(runtime), len(runtimes)) >= len(runtimes):
                self._move(runtime, slot := next(free))
                slots[id(runtime)] = slot
        return [slots[id(runtime)] for runtime in runtimes]

    def occupant(self, slot: int) -> SlotRuntime | None:
        """The runtime whose cache is in a slot; it may have moved out by itself, to a larger one."""
        if (entry := self._slots[slot]) is None:
            return None
        runtime = entry[0]()
        return runtime if runtime is not None and runtime.cache_arrays is entry[1] else None

    def _move(self, runtime: SlotRuntime, slot: int) -> None:
        arrays = [array[slot : slot + 1] for array in self.arrays]
        for old, new in zip(runtime.cache_arrays, arrays, strict=True):
            new[:, :, : runtime.length] = old[:, :, : runtime.length]
        self._slots = [
            None if entry and entry[0]() is runtime else entry for entry in self._slots
        ]  # it leaves its slot
        self._slots[slot] = weakref.ref(runtime), arrays
        runtime.use_cache(arrays)

    def _make_space(self, count: int, length: int, limit: int) -> None:
        """Have `count` slots or more for `length` tokens; both grow by doubling."""
        slots, G, capacity, D = self.arrays[0].shape
        if count <= slots and length <= capacity:
            return
        least = max(MIN_CAPACITY, MIN_BYTES // (len(self.arrays) * G * D * 4))
        capacity = capacity if length <= capacity else min(limit, max(length, 2 * capacity, least))
        slots = slots if count <= slots else max(count, min(2 * slots, 16))
        occupants = [self.occupant(slot) for slot in range(len(self._slots))]
        self.arrays = [np.zeros((slots, G, capacity, D), np.float32) for _ in self.arrays]
        self._slots = [None] * slots
        for slot, occupant in enumerate(occupants):
            if occupant is not None:
                self._move(occupant, slot)


def _use_copy(runtime: SlotRuntime) -> None:
    """Move a cache out of its slot, without the space that it does not use."""
    runtime.use_cache([array[:, :, : max(1, runtime.length)].copy() for array in runtime.cache_arrays])
