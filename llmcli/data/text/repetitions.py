"""Passages of the training text that also occur in the held-out text, such as a chapter in another edition.

A string of LENGTH characters is taken from the held-out text every STRIDE characters, and searched for at all
positions of the training text. This finds every common passage of at least LENGTH + STRIDE - 1 characters,
and no passage shorter than LENGTH. Spaces, line ends, punctuation, case and accents are ignored, because they
differ between formats of the same text (an accented letter may be one character or two). A copy with errors
or edits consists of such passages and short pieces between them (MIN_BETWEEN), which are left out too.

A string that occurs in more than COPIES places of the training text is not a copy of held-out text but a
common phrase of such texts: a license, a form letter, a log. If there are more common strings than copies,
the text repeats itself, and nothing is left out.
"""

import itertools
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.corpus import Corpus, DocumentPart
from llmcli.data.text.near_duplicates import LEFT_OUT
from llmcli.data.text.string_hashes import string_hashes

LENGTH = 120  # about 150 characters of English prose with its spaces
STRIDE = 32  # about 40 characters
MAX_STRINGS = 1 << 20  # strings of the held-out text; in a longer one, they are further apart
COPIES = 8  # maximum number of copies in each version of a text
MAX_LEFT_OUT = 0.5  # share of the training text; if more of it repeats held-out text, none is left out
# shorter training text at the ends of a document, or between two passages, is left out with the passages (in
# bytes per character of the stride)
MIN_PIECE = 8
MIN_BETWEEN = 32  # 10 % of the 30-character strings remain of a copy with 1 % wrong characters; with 8, 28 %
_TABLE_BITS = 5  # slots per string, as a power of 2: few hash collisions
_NOT_COUNTED = ("Cc", "Cf", "Me", "Mn", "P", "Z")  # categories: controls, accents, punctuation, spaces
_LATER_JAMO = range(0x1160, 0x1200)  # vowels and final consonants of a decomposed Korean syllable
_IS_FIRST = bytes(byte & 0xC0 != 0x80 for byte in range(256))  # by byte: whether it begins a character


@dataclass(frozen=True)
class Repetitions:
    """The passages that the training text and the held-out text have in common."""

    training: Corpus  # training text without the passages of the held-out text
    left_out: int  # bytes of these passages
    known_share: float  # share of the held-out text (0 to 1) that still occurs in the training text


def find_repetitions(
    training: Corpus, held_out: Corpus, *, versions: int = 1, keeps_training: bool = False
) -> Repetitions:
    """Search the training text for passages of the held-out text, and leave them out unless `keeps_training`.
    The corpus has up to `versions` versions of a text."""
    strings = _Strings(held_out)
    if not len(strings.hashes):  # nothing to search for
        return Repetitions(training, 0, 0.0)
    counts = np.zeros(len(strings.hashes), np.int64)
    for part in training.contents:
        for hashes, _ in _blocks(part):
            np.add.at(counts, strings.find(hashes)[1], 1)
    is_common = counts > COPIES * versions
    is_copied = (counts > 0) & ~is_common
    common = strings.share(is_common)
    rest = training
    if strings.share(is_copied) > common and not keeps_training:
        pieces = (_without(part, strings, is_copied) for part in training.contents)
        rest = Corpus.of_parts(itertools.chain.from_iterable(pieces))
        if rest.text_bytes < (1 - MAX_LEFT_OUT) * training.text_bytes:
            rest = training
    known_share = strings.share(counts > 0) if rest is training else common
    return Repetitions(rest, training.text_bytes - rest.text_bytes, known_share)


def find_in_texts(
    held_out: Corpus, texts: Iterable[str], *, versions: int = 1, keeps_training: bool = False
) -> tuple[set[int], float]:
    """Like `find_repetitions`, for separate training texts such as conversations. Returns (indices of the
    texts to leave out, share of the held-out text that occurs in the others)."""
    strings = _Strings(held_out)
    nothing = np.empty(0, np.intp)
    strings_of_texts = [
        np.unique(strings.find(string_hashes(_compared(text), LENGTH))[1]) if len(text) >= LENGTH else nothing
        for text in texts
    ]
    counts = np.bincount(np.concatenate([nothing, *strings_of_texts]), minlength=len(strings.hashes))
    left_out = {
        index for index, inside in enumerate(strings_of_texts) if (counts[inside] <= COPIES * versions).any()
    }
    if keeps_training or len(left_out) > MAX_LEFT_OUT * len(strings_of_texts):
        left_out = set()
    others = [nothing, *(inside for index, inside in enumerate(strings_of_texts) if index not in left_out)]
    return left_out, strings.share(np.unique(np.concatenate(others)))


class _Strings:
    """The strings of a text, one every `stride` characters."""

    def __init__(self, text: Corpus) -> None:
        self.stride = stride = max(STRIDE, text.text_bytes // MAX_STRINGS)
        hashes = [np.empty(0, np.uint64)]
        for part in text.contents:
            first = 0
            for block, _ in _blocks(part):
                hashes.append(block[first::stride])
                first = (first - len(block)) % stride
        # ascending hashes, and how often each occurs in the text
        self.hashes, self.occurrences = np.unique(np.concatenate(hashes), return_counts=True)
        bits = len(self.hashes).bit_length() + _TABLE_BITS
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, bool)
        self._slots[self.hashes >> self._shift] = True

    def share(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> float:
        """Return the share of chosen strings (indices or a mask) in all occurrences."""
        return int(self.occurrences[chosen].sum()) / max(1, int(self.occurrences.sum()))

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return (positions in `hashes` [N] of strings of the text, index of the string at each)."""
        places = np.flatnonzero(self._slots[hashes >> self._shift])
        indices = np.minimum(np.searchsorted(self.hashes, hashes[places]), len(self.hashes) - 1)
        is_same = self.hashes[indices] == hashes[places]
        return places[is_same], indices[is_same]


def _without(part: DocumentPart, strings: _Strings, is_copied: NDArray[np.bool_]) -> Iterator[DocumentPart]:
    """Yield the pieces of a part between copied strings, except short pieces."""
    min_piece = MIN_PIECE * strings.stride
    start = part.start
    is_whole = True
    for hashes, positions in _blocks(part):
        places, indices = strings.find(hashes)
        places = places[is_copied[indices]]
        for first, end in zip(
            positions[places].tolist(), (positions[places + LENGTH - 1] + 1).tolist(), strict=True
        ):
            if first - start >= (min_piece if is_whole else MIN_BETWEEN * strings.stride):
                yield DocumentPart(part.document, start, first)
            start = end
            is_whole = False
    if is_whole or part.end - start >= min_piece:
        yield DocumentPart(part.document, start, part.end)


@cache
def _table() -> NDArray[np.uint32]:
    """Return the character that each code point is compared as: the first character of its decomposition
    without case, or 0 if it is ignored."""
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    for code in range(1 << 16):  # few letters with case or punctuation are above
        character = unicodedata.normalize("NFKD", chr(code))[0]
        forms = character.casefold(), character.lower(), character
        is_counted = not unicodedata.category(character).startswith(_NOT_COUNTED)
        table[code] = ord(next(form for form in forms if len(form) == 1)) if is_counted else 0
    table[[*LEFT_OUT, *_LATER_JAMO]] = 0
    return table


def _compared(text: str) -> NDArray[np.uint32]:
    """Return the code points [N] of a text that are compared."""
    characters = _table()[np.frombuffer(text.encode("utf-32-le"), "<u4")]
    return characters[characters != 0]


def _blocks(part: DocumentPart) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield, for successive blocks, (hashes [N] of the strings of LENGTH characters that start at each
    character, positions [N + LENGTH - 1] of these characters in the document)."""
    characters = np.empty(0, np.uint32)
    positions = np.empty(0, np.int64)
    start = part.start
    for piece in part.text():
        data = piece.encode("utf-8")
        read = _table()[np.frombuffer(piece.encode("utf-32-le"), "<u4")]
        is_counted = read != 0
        at = np.flatnonzero(np.frombuffer(data.translate(_IS_FIRST), bool))[is_counted]
        characters = np.concatenate([characters, read[is_counted]])
        positions = np.concatenate([positions, start + at])
        start += len(data)
        hashes = string_hashes(characters, LENGTH)
        if len(hashes):
            yield hashes, positions
            characters = characters[len(hashes) :]
            positions = positions[len(hashes) :]
