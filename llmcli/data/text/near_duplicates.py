"""Near-duplicates among documents: versions of a file, or copies with small changes.

The beginning of each document is reduced to a sketch: the smallest hashes of all strings of SHINGLE_BYTES bytes in it
(bottom-k, Broder 1997, "On the resemblance and containment of documents"). The sketches of two documents tell what
share of such strings is in both. Bytes are compared, not words or lines, so it works for any language and file type.

A document is also a version of the ones that begin with all of it, however much longer they are (a log that grows).
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.documents import Document

COMPARED_BYTES = 1 << 16  # of each document, from its beginning
SHINGLE_BYTES = 32  # a power of 2
SKETCH_SIZE = 64  # hashes: a share of .5 is estimated within .06 (one standard deviation)
SIMILARITY = 0.6  # Jaccard similarity from which on two documents are near-duplicates
NEIGHBOURS = 4  # documents with the same hash that are compared with one of them
MAX_CONTINUATIONS = 2  # of a document: where more begin with it, it is a common header
SEARCHED_STEP = 16  # bytes between the strings that `Passages` searches for
_BLOCK_BYTES = 1 << 20
_MIN_SHARED = SKETCH_SIZE // 4  # hashes, before two sketches are compared
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Sketch = NDArray[np.uint64]  # ascending, without repetition, [at most SKETCH_SIZE]


def near_duplicates(documents: Sequence[Document]) -> list[list[int]]:
    """The indices of documents in groups: near-duplicates are in the same group, directly or through others."""
    sketches = [np.empty(0, np.uint64)] * len(documents)
    beginnings = _Beginnings()
    for index in sorted(range(len(documents)), key=lambda index: documents[index].text_bytes):
        data = documents[index].utf8(0, COMPARED_BYTES)
        sketches[index] = sketch(data)
        beginnings.add(index, data)
    parents = list(range(len(documents)))
    for first, second in beginnings.pairs():
        _join(parents, first, second)
    for first, second in _candidates(sketches):
        a, b = _root(parents, first), _root(parents, second)
        if a != b and similarity(sketches[first], sketches[second]) >= SIMILARITY:
            _join(parents, a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(documents)):
        groups.setdefault(_root(parents, index), []).append(index)
    return list(groups.values())


def sketch(data: bytes) -> Sketch:
    values = _hashes(data.ljust(SHINGLE_BYTES, b"\0"))
    smallest = np.partition(values, 4 * SKETCH_SIZE)[: 4 * SKETCH_SIZE] if len(values) > 4 * SKETCH_SIZE else values
    hashes = np.unique(smallest)
    if len(hashes) < SKETCH_SIZE:  # much of the text is repeated
        hashes = np.unique(values)
    return np.array(hashes[:SKETCH_SIZE])


def _hashes(data: bytes) -> NDArray[np.uint64]:
    """The hash of each string of SHINGLE_BYTES bytes, by its position."""
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


def similarity(first: Sketch, second: Sketch) -> float:
    """The estimated Jaccard similarity of the texts of two sketches, 0 to 1."""
    union = np.union1d(first, second)[:SKETCH_SIZE]
    shared = np.intersect1d(first, second, assume_unique=True)
    return float(np.isin(union, shared, assume_unique=True).mean())


def _candidates(sketches: Sequence[Sketch]) -> Iterator[tuple[int, int]]:
    """Pairs of documents that share several hashes. Each of many documents with the same hash is paired with the next
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


class _Beginnings:
    """Finds the documents that others begin with. They are added in order of size."""

    _FILTER_SHIFT = np.uint64(42)  # the filter has an entry for each value of the highest 22 bits of a hash

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], int] = {}  # (length, hash) of a whole document -> its index
        self._longest: dict[int, int] = {}  # the longest known document that a document begins with
        self._is_length = np.zeros(COMPARED_BYTES + 1, bool)
        self._filter = np.zeros(1 << 22, bool)
        with np.errstate(over="ignore"):
            self._powers = np.cumprod(np.full(COMPARED_BYTES + 4, _FACTOR))

    def add(self, index: int, data: bytes) -> None:
        """`data` are the first COMPARED_BYTES of a document."""
        if len(data) < SHINGLE_BYTES:
            return
        values = np.frombuffer(data, np.uint8).astype(np.uint64) + np.uint64(1)
        with np.errstate(over="ignore"):
            hashes = np.cumsum(values * self._powers[: len(data)])[:COMPARED_BYTES]  # of each beginning
        buckets = hashes >> self._FILTER_SHIFT
        ends = np.flatnonzero(self._is_length[1 : len(hashes) + 1] & self._filter[buckets]) + 1
        for end in ends[::-1].tolist():
            if (known := self._known.get((end, int(hashes[end - 1])))) is not None:
                self._longest[index] = known
                break
        if len(data) < COMPARED_BYTES:
            self._known[len(data), int(hashes[-1])] = index
            self._is_length[len(data)] = self._filter[buckets[-1]] = True

    def pairs(self) -> Iterator[tuple[int, int]]:
        """A document, and the longest one that it begins with, unless that is a common header."""
        continuations = Counter(self._longest.values())
        return (
            (first, second) for first, second in self._longest.items() if continuations[second] <= MAX_CONTINUATIONS
        )


class Passages:
    """Strings of a text that are searched for in others: each passage of SHINGLE_BYTES + SEARCHED_STEP - 1 bytes
    contains one."""

    def __init__(self, text: Document, start: int) -> None:
        """Strings of the end of a text, from `start` on, which do not occur before."""
        wanted = [hashes[::SEARCHED_STEP] for _, hashes in _blocks(text, start)]
        self._hashes = np.unique(np.concatenate([*wanted, np.empty(0, np.uint64)]))
        for _, hashes in _blocks(text, 0, start):
            self._hashes = self._hashes[~np.isin(self._hashes, hashes)]

    def first_in(self, text: Document) -> int:
        """Where the first one is in a text; the size of the text if it has none."""
        for first, hashes in _blocks(text, 0):
            matches = np.flatnonzero(np.isin(hashes, self._hashes))
            if len(matches):
                return first + int(matches[0])
        return text.text_bytes


def _blocks(text: Document, start: int, end: int | None = None) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """The hashes of all strings of SHINGLE_BYTES bytes between two positions, with the position of the first."""
    end = text.text_bytes if end is None else end
    for first in range(start, end - SHINGLE_BYTES + 1, _BLOCK_BYTES):
        data = text.utf8(first, min(end - first, _BLOCK_BYTES + SHINGLE_BYTES - 1))
        if len(data) >= SHINGLE_BYTES:
            yield first, _hashes(data)


def _join(parents: list[int], first: int, second: int) -> None:
    a, b = _root(parents, first), _root(parents, second)
    parents[max(a, b)] = min(a, b)


def _root(parents: list[int], index: int) -> int:
    """The first document of a group, with shorter paths to it for the next time."""
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
