"""Which documents are nearly the same: versions of a file, or copies with small changes.

The beginning of each document is reduced to a sketch: the smallest hashes of all strings of SHINGLE_BYTES bytes in it
(bottom-k, Broder 1997, "On the resemblance and containment of documents"). The sketches of two documents tell what
share of such strings is in both. Bytes are compared, not words or lines, so it works for any language and file type.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.data.documents import Document

COMPARED_BYTES = 1 << 16  # of each document, from its beginning
SHINGLE_BYTES = 32  # a power of 2
SKETCH_SIZE = 64  # hashes: a share of .5 is estimated within .06 (one standard deviation)
SIMILARITY = 0.6  # Jaccard similarity from which on two documents are near-duplicates
NEIGHBOURS = 4  # documents with the same hash that are compared with one of them
_MIN_SHARED = SKETCH_SIZE // 4  # hashes, before two sketches are compared
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Sketch = NDArray[np.uint64]  # ascending, without repetition, [at most SKETCH_SIZE]


def near_duplicates(documents: Sequence[Document]) -> list[list[int]]:
    """The indices of documents in groups: near-duplicates, and those of near-duplicates, are in the same group."""
    sketches = [sketch(document.utf8(0, COMPARED_BYTES)) for document in documents]
    parents = list(range(len(documents)))
    for first, second in _candidates(sketches):
        a, b = _root(parents, first), _root(parents, second)
        if a != b and similarity(sketches[first], sketches[second]) >= SIMILARITY:
            parents[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(documents)):
        groups.setdefault(_root(parents, index), []).append(index)
    return list(groups.values())


def sketch(data: bytes) -> Sketch:
    """Of a text."""
    values = np.frombuffer(data.ljust(SHINGLE_BYTES, b"\0"), np.uint8).astype(np.uint64)
    factor, width = _FACTOR, 1
    with np.errstate(over="ignore"):
        while width < SHINGLE_BYTES:  # values[i] is a hash of the `width` bytes from i on
            values = values[:-width] * factor + values[width:]
            factor, width = factor * factor, 2 * width
        values ^= values >> np.uint64(29)
        values *= _FACTOR
        values ^= values >> np.uint64(32)
    smallest = np.partition(values, 4 * SKETCH_SIZE)[: 4 * SKETCH_SIZE] if len(values) > 4 * SKETCH_SIZE else values
    hashes = np.unique(smallest)
    if len(hashes) < SKETCH_SIZE:  # much of the text is repeated
        hashes = np.unique(values)
    return np.array(hashes[:SKETCH_SIZE])


def similarity(first: Sketch, second: Sketch) -> float:
    """The estimated Jaccard similarity of the texts of two sketches, 0 to 1."""
    union = np.union1d(first, second)[:SKETCH_SIZE]
    shared = np.intersect1d(first, second, assume_unique=True)
    return float(np.isin(union, shared, assume_unique=True).mean())


def _candidates(sketches: Sequence[Sketch]) -> Iterator[tuple[int, int]]:
    """Pairs of documents that share several hashes. Of many documents with the same hash each is paired with the next
    NEIGHBOURS only: where they share more, they meet at other hashes too."""
    hashes = np.concatenate([*sketches, np.empty(0, np.uint64)])
    owners = np.repeat(np.arange(len(sketches)), [len(one) for one in sketches])
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    pairs = [
        owners[:-step][same] * len(sketches) + owners[step:][same]
        for step in range(1, NEIGHBOURS + 1)
        for same in [hashes[:-step] == hashes[step:]]
    ]
    codes, counts = np.unique(np.concatenate(pairs), return_counts=True)
    least = np.array([min(_MIN_SHARED, len(one)) for one in sketches])
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        first, second = divmod(code, len(sketches))
        if count >= min(least[first], least[second]):
            yield first, second


def _root(parents: list[int], index: int) -> int:
    """The first document of a group, with shorter paths to it for the next time."""
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
