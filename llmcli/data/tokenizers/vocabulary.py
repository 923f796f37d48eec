"""An index of the bytes of all tokens: tokens that begin with given bytes, and tokens that keep a text valid.

Three rules restrict the tokens that a model may generate. The text stays valid UTF-8: a token that breaks a
character only has a probability because training did not reduce it to zero. Byte values that do not occur in
the training text (if known) are not generated. Control tokens are generated only to end a text. Models
trained by other programs are not restricted.

V = size of the vocabulary.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.words import begins_with_letter

Ids: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
# States of a UTF-8 decoder (Unicode, table 3-7). START is between two characters, the others are inside a
# character.
START = 0
INVALID = -1
_INSIDE = {  # state -> (lowest and highest byte that may follow, next state)
    1: (0x80, 0xBF, START),
    2: (0x80, 0xBF, 1),
    3: (0x80, 0xBF, 2),
    4: (0xA0, 0xBF, 1),
    5: (0x80, 0x9F, 1),
    6: (0x90, 0xBF, 2),
    7: (0x80, 0x8F, 2),
}
_FIRST = [
    (0x00, 0x7F, START),
    (0xC2, 0xDF, 1),
    (0xE0, 0xE0, 4),
    (0xED, 0xED, 5),
    (0xE1, 0xEF, 2),
    (0xF0, 0xF0, 6),
    (0xF1, 0xF3, 3),
    (0xF4, 0xF4, 7),
]
_WORD_ENDS = {bytes([byte]) for byte in range(0x80) if not begins_with_letter(bytes([byte]))} - {b"'"}


def state_between(data: bytes) -> int:
    """Return the decoder state after bytes of valid UTF-8 that may begin inside a character.

    >>> [state_between(data) for data in ("あ".encode()[1:], b"\\x82\\xe3", b"")]
    [0, 2, 0]
    """
    starts = [i for i, byte in enumerate(data[-4:]) if byte & 0xC0 != 0x80]
    return max(START, state_after(data[-4:][starts[-1] :])) if starts else START


def state_after(data: bytes, state: int = START) -> int:
    """Return the decoder state after more bytes; INVALID if they are not valid UTF-8.

    >>> [state_after(data) for data in (b"a", b"\\xe3", "あ".encode(), b"\\x82", b"\\xed\\xa0")]
    [0, 2, 0, -1, -1]
    """
    for byte in data:
        rules = _FIRST if state == START else [_INSIDE[state]]
        state = next((next_state for low, high, next_state in rules if low <= byte <= high), INVALID)
        if state == INVALID:
            break
    return state


class Vocabulary:
    """The bytes of each token, b"" for control tokens."""

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        seen_bytes: bytes | None = None,
        end_ids: Collection[int] | None = None,
        *,
        unrestricted: bool = False,
    ) -> None:
        """`seen_bytes` occur in the training text (None: unknown); `end_ids` end a text; with `unrestricted`,
        all tokens may be generated."""
        self.token_bytes = token_bytes
        self._unrestricted = unrestricted
        self._end_ids = end_ids
        self._allowed: dict[int, Mask | None] = {}  # state -> mask
        self._unseen = b"" if seen_bytes is None else bytes(set(range(256)) - set(seen_bytes))

    def __len__(self) -> int:
        return len(self.token_bytes)

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.token_bytes[token] for token in ids)

    def find(self, data: bytes) -> int | None:
        return next(iter(self._tokens_of(data)), None)

    def prefixes_of(self, data: bytes) -> list[int]:
        """Return the tokens whose bytes are a prefix of `data`, including all of `data`."""
        return [i for end in range(1, min(len(data), self._longest) + 1) for i in self._tokens_of(data[:end])]

    def spell(self, data: bytes) -> list[int]:
        """Return tokens that spell `data`, the longest possible from left to right."""
        ids: list[int] = []
        while data:
            ids.append(max(self.prefixes_of(data), key=lambda token: len(self.token_bytes[token])))
            data = data[len(self.token_bytes[ids[-1]]) :]
        return ids

    def extensions_of(self, data: bytes) -> Ids:
        order, sorted_bytes = self._sorted
        # everything that begins with `data` sorts before `stem` with its last byte plus one
        stem = data.rstrip(b"\xff")
        end = bisect_left(sorted_bytes, stem[:-1] + bytes([stem[-1] + 1])) if stem else len(order)
        return order[bisect_right(sorted_bytes, data) : end]

    @cached_property
    def begins_with_letter(self) -> Mask:
        """Mask of the tokens that continue a word after a letter, [V]."""
        return np.fromiter(map(begins_with_letter, self.token_bytes), bool, len(self))

    @cached_property
    def only_letters(self) -> Mask:
        """Mask of the tokens that consist of ASCII letters, digits and underscores, [V]."""
        only_letters = (data.replace(b"_", b"a").isalnum() for data in self.token_bytes)
        return np.fromiter(only_letters, bool, len(self))

    @cached_property
    def ends_words(self) -> Mask:
        """Mask of the tokens that begin with an ASCII character that ends a word after a letter, [V]."""
        return np.fromiter((data[:1] in _WORD_ENDS for data in self.token_bytes), bool, len(self))

    def allowed(self, state: int) -> Mask | None:
        """Return the mask [V] of the tokens that may be generated in a state; None if that is all or none of
        them."""
        if self._unrestricted:
            return None
        if state not in self._allowed:
            self._allowed[state] = self._allowed_after(state)
        return self._allowed[state]

    def state_after(self, token: int, state: int) -> int:
        """Return the state after a token; invalid UTF-8 counts as a complete character."""
        if self._unrestricted or (state == START and token not in self._incomplete):
            return START
        return max(START, state_after(self.token_bytes[token], state))

    def _allowed_after(self, state: int) -> Mask | None:
        mask = np.zeros(len(self), bool)
        if state == START:
            mask[:] = True
            mask[[i for i, next_state in self._incomplete.items() if next_state == INVALID]] = False
            if self._end_ids is not None:
                mask[
                    [i for i, data in enumerate(self.token_bytes) if not data and i not in self._end_ids]
                ] = False
        else:
            inside = (i for i, data in enumerate(self.token_bytes) if b"\x80" <= data[:1] <= b"\xbf")
            mask[[i for i in inside if state_after(self.token_bytes[i], state) != INVALID]] = True
        if self._unseen:
            is_seen = (len(data.translate(None, self._unseen)) == len(data) for data in self.token_bytes)
            mask &= np.fromiter(is_seen, bool, len(self))
        return mask if mask.any() and not mask.all() else None

    @cached_property
    def _incomplete(self) -> dict[int, int]:
        """Tokens that are not whole characters, and the state after each (beginning in START)."""
        states = {}
        for i, data in enumerate(self.token_bytes):
            try:
                data.decode()  # faster than `state_after`
            except UnicodeDecodeError:
                states[i] = state_after(data)
        return states

    def _tokens_of(self, data: bytes) -> list[int]:
        order, sorted_bytes = self._sorted
        first = bisect_left(sorted_bytes, data)
        tokens: list[int] = order[first : bisect_right(sorted_bytes, data, first)].tolist()
        return tokens

    @cached_property
    def _sorted(self) -> tuple[Ids, list[bytes]]:
        """Tokens sorted by their bytes, and these bytes."""
        order = sorted(
            (i for i, data in enumerate(self.token_bytes) if data), key=self.token_bytes.__getitem__
        )
        return np.array(order, np.int64), [self.token_bytes[i] for i in order]

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.token_bytes), default=0)
