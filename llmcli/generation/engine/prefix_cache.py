"""Prefix caching: new prompts reuse the beginning of earlier requests' KV caches, such as a system prompt.
The least recently used caches are dropped when they exceed a size in bytes, or MAX_KEPT."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmcli.models.runtime import Ints, Runtime

MIN_SHARED = 4  # minimum shared tokens for which copying a cache pays off
MAX_KEPT = 256  # caches; every new prompt is compared with all of them


@dataclass(frozen=True, eq=False)
class Prefix:
    """A runtime of a model, and the tokens in its cache."""

    model: str
    runtime: Runtime
    ids: Ints
    bytes: int  # size of the cache


class PrefixCache:
    """Kept caches of all models."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: list[Prefix] = []  # least recently used first

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Total size of the kept caches."""
        return sum(prefix.bytes for prefix in self._kept)

    def keep(self, prefix: Prefix) -> None:
        """Keep a cache whose runtime is no longer in use. It replaces kept caches that are prefixes of it."""
        if prefix.bytes > self._max_bytes or not len(prefix.ids):
            return
        self._kept = [p for p in self._kept if p.model != prefix.model or _shared(p, prefix.ids) < len(p.ids)]
        self._kept.append(prefix)
        while self.bytes > self._max_bytes or len(self._kept) > MAX_KEPT:
            del self._kept[0]

    def take(self, model: str, ids: Sequence[int], live: Iterable[Prefix] = ()) -> tuple[Runtime, int] | None:
        """Return (runtime for a prompt, number of `ids` in its cache), from the kept or `live` cache with the
        longest shared prefix; None if the prefix is too short. A kept cache without other tokens is reused
        directly; other caches are copied."""
        prompt = np.array(ids, np.int64)
        known = [prefix for prefix in (*live, *self._kept) if prefix.model == model]
        lengths = [_shared(prefix, prompt) for prefix in known]
        length = max(lengths, default=0)
        if length < MIN_SHARED:
            return None
        best = known[lengths.index(length)]
        if best in self._kept:
            self._kept.remove(best)
            if length == len(best.ids):
                return best.runtime, length
            self._kept.append(best)  # now the most recently used
        return best.runtime.fork(length), length


def _shared(prefix: Prefix, ids: Ints) -> int:
    """Count the tokens that a cache shares with the beginning of a prompt."""
    length = min(len(prefix.ids), len(ids))
    differing = np.flatnonzero(prefix.ids[:length] != ids[:length])
    return int(differing[0]) if len(differing) else length
