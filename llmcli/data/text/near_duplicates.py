"""Near-duplicate documents, such as versions of a file, copies with small changes, or a log and its
beginning.

The beginning of each document is reduced to a sketch: the smallest hashes of all its strings of SHINGLE_BYTES
bytes (bottom-k, Broder 1997, "On the resemblance and containment of documents"). Two documents are
near-duplicates if one contains most of the other's strings, which sketches detect up to a length ratio of
about 8. The ends of long documents are compared in the same way, since change logs grow at the beginning.
Spaces, line ends and ASCII punctuation are ignored, because they differ between formats of the same document.
"""

import string
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.decoding import Document
from llmcli.data.text.string_hashes import string_hashes

COMPARED_BYTES = 1 << 16  # at the beginning and at the end of each document
SHINGLE_BYTES = 32
SKETCH_SIZE = 64  # hashes
SHARED = 2 / 3  # minimum share of one document's strings that the other contains
MIN_SHARED = 8  # hashes that two documents must share to be compared (fewer for smaller sketches)
NEIGHBORS = 4  # a document is compared with this many others that have the same hash
LEFT_OUT = (string.whitespace + string.punctuation).encode()
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Sketch = NDArray[np.uint64]  # ascending, without repetition, [at most SKETCH_SIZE]


def near_duplicates(documents: Sequence[Document]) -> list[list[int]]:
    """Group the indices of documents: near-duplicates are in the same group, directly or through others."""
    long = [index for index, document in enumerate(documents) if document.text_bytes > COMPARED_BYTES]
    starts = [sketch(document.utf8(0, COMPARED_BYTES)) for document in documents]
    ends = [sketch(documents[i].utf8(documents[i].text_bytes - COMPARED_BYTES, COMPARED_BYTES)) for i in long]
    group_of = {index: [index] for index in range(len(documents))}
    for first, second in (*_similar(starts), *((long[i], long[j]) for i, j in _similar(ends))):
        small, large = sorted((group_of[first], group_of[second]), key=len)
        if small is not large:
            large += small
            group_of |= dict.fromkeys(small, large)
    return sorted(map(sorted, {group[0]: group for group in group_of.values()}.values()))


def largest_group(documents: Sequence[Document]) -> int:
    """Return the size of the largest group of near-duplicates, such as versions of one text; 1 if there are
    none."""
    return max(map(len, near_duplicates(documents)), default=1)


def sketch(data: bytes) -> Sketch:
    text = data.translate(None, LEFT_OUT).ljust(SHINGLE_BYTES, b"\0")
    values = string_hashes(np.frombuffer(text, np.uint8), SHINGLE_BYTES)
    values ^= values >> np.uint64(29)
    values *= _FACTOR
    values ^= values >> np.uint64(32)
    smallest = (
        np.partition(values, 4 * SKETCH_SIZE)[: 4 * SKETCH_SIZE] if len(values) > 4 * SKETCH_SIZE else values
    )
    hashes = np.unique(smallest)
    if len(hashes) < SKETCH_SIZE:  # the text repeats itself
        hashes = np.unique(values)
    return np.array(hashes[:SKETCH_SIZE])


def _similar(sketches: Sequence[Sketch]) -> Iterator[tuple[int, int]]:
    """Find pairs of near-duplicates in linear time: documents with the same hash are compared with NEIGHBORS
    others."""
    hashes = np.concatenate([*sketches, np.empty(0, np.uint64)])
    owners = np.repeat(np.arange(len(sketches)), [len(sketch) for sketch in sketches])
    order = np.lexsort((owners, hashes))
    hashes = hashes[order]
    owners = owners[order]
    pairs = []
    for step in range(1, NEIGHBORS + 1):
        same = hashes[:-step] == hashes[step:]
        pairs.append(owners[:-step][same] * len(sketches) + owners[step:][same])
    codes, counts = np.unique(np.concatenate(pairs), return_counts=True)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        first, second = divmod(code, len(sketches))
        left = sketches[first]
        right = sketches[second]
        if count < min(MIN_SHARED, len(left), len(right)):
            continue
        # a full sketch says nothing about hashes above its largest one
        limit = min((full[-1] for full in (left, right) if len(full) == SKETCH_SIZE), default=hashes[-1])
        known = min(np.searchsorted(left, limit, side="right"), np.searchsorted(right, limit, side="right"))
        if len(np.intersect1d(left, right, assume_unique=True)) >= SHARED * known:
            yield first, second
