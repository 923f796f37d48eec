"""Near-duplicates among documents: versions of a file, or copies with small changes.

The beginning of each document is reduced to a sketch: the smallest hashes of all strings of SHINGLE_BYTES bytes in it
(bottom-k, Broder 1997, "On the resemblance and containment of documents"). Documents whose sketches share most hashes
are near-duplicates. Bytes are compared, not words or lines, so it works for any language and file type.

A document is also a near-duplicate of one that continues it, however much longer that is (a log that grows).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.documents import Document

COMPARED_BYTES = 1 << 16  # of each document, from its beginning
SHINGLE_BYTES = 32  # a power of 2
SKETCH_SIZE = 64  # hashes
SHARED = 2 / 3  # of the hashes of a sketch, from which on two documents are near-duplicates
NEIGHBORS = 4  # documents with the same hash that are compared with one of them
MAX_CONTINUATIONS = 2  # of a document: where more begin with it, it is a common header
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# lengths in bytes at which beginnings are compared, each a fifth more than the one before
_LENGTHS = [int(SHINGLE_BYTES * 1.2**i) for i in range(42)]

Sketch = NDArray[np.uint64]  # ascending, without repetition, [at most SKETCH_SIZE]


def near_duplicates(documents: Sequence[Document]) -> list[list[int]]:
    """The indices of documents in groups: near-duplicates are in the same group, directly or through others."""
    sketches = [np.empty(0, np.uint64)] * len(documents)
    whole: dict[bytes, int] = {}  # hash of (nearly) all of a document -> its index
    continued: dict[int, int] = {}  # document -> the longest one that it begins with
    for index in sorted(range(len(documents)), key=lambda index: documents[index].text_bytes):
        data = documents[index].utf8(0, COMPARED_BYTES)
        sketches[index] = sketch(data)
        beginnings = _beginnings(data)
        longest = next(filter(whole.__contains__, reversed(beginnings)), None)
        if longest is not None:
            continued[index] = whole[longest]
        whole.update(dict.fromkeys(beginnings[-1:], index))
    parents = list(range(len(documents)))
    continuations = Counter(continued.values())
    pairs = [(first, second) for first, second in continued.items() if continuations[second] <= MAX_CONTINUATIONS]
    for first, second in [*pairs, *_similar(sketches)]:
        a, b = _root(parents, first), _root(parents, second)
        parents[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(documents)):
        groups.setdefault(_root(parents, index), []).append(index)
    return list(groups.values())


def _root(parents: list[int], index: int) -> int:
    """The first document of a group, with shorter paths to it for the next time."""
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _beginnings(data: bytes) -> list[bytes]:
    """The hashes of the beginnings of each of _LENGTHS, the last of which is nearly all of `data`."""
    digest, hashes, start = hashlib.blake2b(digest_size=16), [], 0
    for length in _LENGTHS:
        if length > len(data):
            break
        digest.update(data[start:length])
        hashes.append(digest.digest())
        start = length
    return hashes


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


def _similar(sketches: Sequence[Sketch]) -> Iterator[tuple[int, int]]:
    """Pairs of documents that share most hashes. Each of many documents with the same hash is paired with the next
    NEIGHBORS only: this finds families in linear time, and common headers join nothing."""
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
        if count >= SHARED * max(len(sketches[first]), len(sketches[second])):
            yield first, second
