"""Near-duplicates among documents: versions of a file, copies with small changes, a log and its beginning.

The beginning of each document is reduced to a sketch: the smallest hashes of all strings of SHINGLE_BYTES bytes in it
(bottom-k, Broder 1997, "On the resemblance and containment of documents"). Two documents are near-duplicates if one
contains most strings of the other. Sketches show that up to a ratio of about 8 of their lengths. Bytes are compared,
not words or lines, so it works for any language and file type.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.documents import Document

COMPARED_BYTES = 1 << 16  # of each document, from its beginning
SHINGLE_BYTES = 32  # a power of 2
SKETCH_SIZE = 64  # hashes
SHARED = 2 / 3  # of the strings of one of two near-duplicates that are in the other, at least
MIN_SHARED = 8  # hashes, if the sketches have as many, before two are compared
NEIGHBORS = 4  # documents with the same hash that are compared with one of them
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Sketch = NDArray[np.uint64]  # ascending, without repetition, [at most SKETCH_SIZE]


def near_duplicates(documents: Sequence[Document]) -> list[list[int]]:
    """The indices of documents in groups: near-duplicates are in the same group, directly or through others."""
    parents = list(range(len(documents)))

    def root(index: int) -> int:
        """The first document of a group, with shorter paths to it for the next time."""
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for first, second in _similar([sketch(document.utf8(0, COMPARED_BYTES)) for document in documents]):
        a, b = root(first), root(second)
        parents[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(documents)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def sketch(data: bytes) -> Sketch:
    values = _hashes(data.ljust(SHINGLE_BYTES, b"\0"))
    smallest = np.partition(values, 4 * SKETCH_SIZE)[: 4 * SKETCH_SIZE] if len(values) > 4 * SKETCH_SIZE else values
    hashes = np.unique(smallest)
    if len(hashes) < SKETCH_SIZE:  # much of the text is repeated
        hashes = np.unique(values)
    return np.array(hashes[:SKETCH_SIZE])


def _hashes(data: bytes) -> NDArray[np.uint64]:
    values = np.frombuffer(data, np.uint8).astype(np.uint64)
    factor, width = _FACTOR, 1
    with np.errstate(over="ignore"):
        while width < SHINGLE_BYTES:  # values[i] is a hash of the `width` bytes from i on
            values = values[:-width] * factor + values[width:]
            factor, width = factor * factor, 2 * width
        values ^= values >> np.uint64(29)
        values *= _FACTOR
        values ^= values >> np.uint64(32)
    return values


def _similar(sketches: Sequence[Sketch]) -> Iterator[tuple[int, int]]:
    """Pairs of near-duplicates. Each of many documents with the same hash is compared with the next NEIGHBORS only:
    this finds families in linear time, and common headers join nothing."""
    hashes = np.concatenate([*sketches, np.empty(0, np.uint64)])
    owners = np.repeat(np.arange(len(sketches)), [len(one) for one in sketches])
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    pairs = []
    for step in range(1, NEIGHBORS + 1):
        same = hashes[:-step] == hashes[step:]
        pairs.append(owners[:-step][same] * len(sketches) + owners[step:][same])
    codes, counts = np.unique(np.concatenate(pairs), return_counts=True)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        first, second = divmod(code, len(sketches))
        one, other = sketches[first], sketches[second]
        if count < min(MIN_SHARED, len(one), len(other)):
            continue
        # larger hashes than the last of a full sketch are unknown
        limit = min((full[-1] for full in (one, other) if len(full) == SKETCH_SIZE), default=hashes[-1])
        known = min(np.searchsorted(one, limit, side="right"), np.searchsorted(other, limit, side="right"))
        if len(np.intersect1d(one, other, assume_unique=True)) >= SHARED * known:
            yield first, second
