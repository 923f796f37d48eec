"""Near-duplicate documents: versions of a file, copies with small changes, a log and its beginning.

The beginning of each document is reduced to a sketch: the smallest hashes of all its strings of SHINGLE_BYTES bytes
(bottom-k, Broder 1997, "On the resemblance and containment of documents"). Two documents are near-duplicates if one
contains most of the other's strings, which sketches detect for lengths that differ by a factor of up to about 8. The
ends of long documents are compared in the same way, since a list of changes grows at its beginning. Spaces, line ends
and ASCII punctuation are left out, because they differ between formats of one document.
"""

import string
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.documents import Document

COMPARED_BYTES = 1 << 16  # at the beginning and at the end of each document
SHINGLE_BYTES = 32  # a power of 2
SKETCH_SIZE = 64  # hashes
SHARED = 2 / 3  # least share of the strings of one near-duplicate that are in the other
MIN_SHARED = 8  # common hashes (fewer in smaller sketches) before two documents are compared
NEIGHBORS = 4  # a document is compared with this many others that have the same hash
MAX_STRINGS = 1 << 16  # strings of a text that are searched for in others, sampled from a longer text
_BLOCK_BYTES = 1 << 20  # searched at a time
_LEFT_OUT = (string.whitespace + string.punctuation).encode()
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Sketch = NDArray[np.uint64]  # ascending, without repetition, [at most SKETCH_SIZE]


def near_duplicates(documents: Sequence[Document]) -> list[list[int]]:
    """Group the indices of documents: near-duplicates are in the same group, directly or through others."""
    parents = list(range(len(documents)))

    def root(index: int) -> int:
        """Find the first document of a group, and shorten the paths to it."""
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    long = [index for index, document in enumerate(documents) if document.text_bytes > COMPARED_BYTES]
    starts = [sketch(document.utf8(0, COMPARED_BYTES)) for document in documents]
    ends = [sketch(documents[i].utf8(documents[i].text_bytes - COMPARED_BYTES, COMPARED_BYTES)) for i in long]
    for first, second in (*_similar(starts), *((long[i], long[j]) for i, j in _similar(ends))):
        a, b = root(first), root(second)
        parents[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(documents)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def first_repetitions(source: Document, start: int, others: Sequence[Document]) -> list[int]:
    """Return where each of `others` begins to repeat the text of `source` from `start` on, or its length. All repeated
    strings of SHINGLE_BYTES bytes count if that text has at most MAX_STRINGS bytes, else longer ones."""
    modulus = np.uint64(max(1, (source.text_bytes - start) // MAX_STRINGS))
    after = [values for _, values in _strings(source, start, source.text_bytes, modulus)]
    wanted = np.unique(np.concatenate([*after, np.empty(0, np.uint64)]))
    for _, values in _strings(source, 0, start, modulus):
        wanted = np.setdiff1d(wanted, values)
    return [
        next(
            (
                int(positions[repeated][0])
                for positions, values in _strings(other, 0, other.text_bytes, modulus)
                if (repeated := np.isin(values, wanted)).any()
            ),
            other.text_bytes,
        )
        for other in others
    ]


def _strings(
    document: Document, start: int, end: int, modulus: np.uint64
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Yield (positions, hashes) of the strings between two positions whose hashes are divisible by `modulus`."""
    for first in range(start, end - SHINGLE_BYTES + 1, _BLOCK_BYTES):
        values = _hashes(document.utf8(first, min(_BLOCK_BYTES + SHINGLE_BYTES - 1, end - first)))
        chosen = np.flatnonzero(values % modulus == 0)
        yield first + chosen, values[chosen]


def sketch(data: bytes) -> Sketch:
    values = _hashes(data.translate(None, _LEFT_OUT).ljust(SHINGLE_BYTES, b"\0"))
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
    """Find pairs of near-duplicates in linear time: documents with the same hash are compared with NEIGHBORS others."""
    hashes = np.concatenate([*sketches, np.empty(0, np.uint64)])
    owners = np.repeat(np.arange(len(sketches)), [len(sketch) for sketch in sketches])
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    pairs = []
    for step in range(1, NEIGHBORS + 1):
        same = hashes[:-step] == hashes[step:]
        pairs.append(owners[:-step][same] * len(sketches) + owners[step:][same])
    codes, counts = np.unique(np.concatenate(pairs), return_counts=True)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        first, second = divmod(code, len(sketches))
        left, right = sketches[first], sketches[second]
        if count < min(MIN_SHARED, len(left), len(right)):
            continue
        # a full sketch says nothing about hashes above its last
        limit = min((full[-1] for full in (left, right) if len(full) == SKETCH_SIZE), default=hashes[-1])
        known = min(np.searchsorted(left, limit, side="right"), np.searchsorted(right, limit, side="right"))
        if len(np.intersect1d(left, right, assume_unique=True)) >= SHARED * known:
            yield first, second
