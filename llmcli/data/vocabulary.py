"""The bytes of all tokens, indexed: which tokens begin with given bytes, and which keep the text valid.

Two rules say what a model may write. The text stays valid UTF-8: training text is, so a token that breaks a character
can only come from probability that training did not take away. And where it is known which bytes the training text
has, no other byte is written. An imported model, of whose text nothing is known, writes what it writes elsewhere.

V = tokens in the vocabulary.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmcli.data.characters import begins_with_letter

START = 0  # the state between two characters
INVALID = -1
# states inside a character: (lowest and highest byte that may come, the state after it); Unicode, table 3-7
_INSIDE = {
    1: (0x80, 0xBF, START), 2: (0x80, 0xBF, 1), 3: (0x80, 0xBF, 2), 4: (0xA0, 0xBF, 1), 5: (0x80, 0x9F, 1),
    6: (0x90, 0xBF, 2), 7: (0x80, 0x8F, 2),
}  # fmt: skip
_FIRST = [(0x00, 0x7F, START), (0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xED, 0xED, 5), (0xE1, 0xEF, 2), (0xF0, 0xF0, 6),
          (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)]  # fmt: skip


_ASCII_LETTERS = np.array([byte < 0x80 and begins_with_letter(bytes([byte])) for byte in range(256)])


def state_between(data: bytes) -> int:
    """The state of UTF-8 at the end of bytes that may begin inside a character.

    >>> [state_between(data) for data in ("あ".encode()[1:], b"\\x82\\xe3", b"")]
    [0, 2, 0]
    """
    starts = [i for i, byte in enumerate(data[-4:]) if byte & 0xC0 != 0x80]
    return max(START, state_after(data[-4:][starts[-1] :])) if starts else START


def state_after(data: bytes, state: int = START) -> int:
    """The state of UTF-8 after some bytes: START between characters, INVALID where they can't be UTF-8.

    >>> [state_after(data) for data in (b"a", b"\\xe3", "あ".encode(), b"\\x82", b"\\xed\\xa0")]
    [0, 2, 0, -1, -1]
    """
    for byte in data:
        rules = _FIRST if state == START else [_INSIDE[state]]
        state = next((then for low, high, then in rules if low <= byte <= high), INVALID)
        if state == INVALID:
            break
    return state


class Vocabulary:
    """The bytes of each token, b"" for control tokens; `seen_bytes` are those of the training text, None: unknown.

    With `unrestricted` any token may be written.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], seen_bytes: bytes | None = None, *, unrestricted: bool = False
    ) -> None:
        self.token_bytes, self._unrestricted = token_bytes, unrestricted
        self._unseen = b"" if seen_bytes is None else bytes(set(range(256)) - set(seen_bytes))

    def __len__(self) -> int:
        return len(self.token_bytes)

    def within(self, data: bytes) -> list[int]:
        """The tokens that `data` begins with, all of it included."""
        return [i for end in range(1, min(len(data), self._longest) + 1) for i in self._ids.get(data[:end], ())]

    def beyond(self, data: bytes) -> NDArray[np.int64]:
        """The tokens that begin with `data` and go on."""
        order, sorted_bytes = self._sorted
        rest = data.rstrip(b"\xff")  # after all that begins with `data` comes what has its last byte raised by one
        end = bisect_left(sorted_bytes, rest[:-1] + bytes([rest[-1] + 1])) if rest else len(order)
        return order[bisect_right(sorted_bytes, data) : end]

    def letters_after(self, tokens: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
        """Which of some tokens, each longer than `size` bytes, go on with a letter after these."""
        if not len(tokens):
            return np.zeros(0, bool)
        joined, starts = self._joined
        first = joined[starts[tokens] + size]
        found = _ASCII_LETTERS[first]
        for i in np.flatnonzero(first >= 0x80).tolist():
            found[i] = begins_with_letter(self.token_bytes[tokens[i]][size:])
        return found

    def find(self, data: bytes) -> int | None:
        """A token of these very bytes."""
        return next(iter(self._ids.get(data, ())), None)

    def allowed(self, state: int) -> NDArray[np.bool_] | None:
        """[V]: the tokens that may come next. None where all may, or none could."""
        if self._unrestricted:
            return None
        if state not in self._allowed:
            self._allowed[state] = self._allowed_after(state)
        return self._allowed[state]

    def state_after(self, token: int, state: int) -> int:
        """The state after a token; bytes that are no UTF-8 are taken for a character."""
        if self._unrestricted or (state == START and token not in self._incomplete):
            return START
        return max(START, state_after(self.token_bytes[token], state))

    @cached_property
    def begins_with_letter(self) -> NDArray[np.bool_]:
        """[V]: the tokens that, right after a letter, go on with its word."""
        return np.fromiter(map(begins_with_letter, self.token_bytes), bool, len(self))

    @cached_property
    def _allowed(self) -> dict[int, NDArray[np.bool_] | None]:
        return {}

    def _allowed_after(self, state: int) -> NDArray[np.bool_] | None:
        found = np.zeros(len(self), bool)
        if state == START:
            found[:] = True
            found[[i for i, then in self._incomplete.items() if then == INVALID]] = False
        else:
            found[[i for i in self._continuing if state_after(self.token_bytes[i], state) != INVALID]] = True
        if self._unseen:
            found[[i for i, data in enumerate(self.token_bytes) if self._has_unseen(data)]] = False
        return found if found.any() and not found.all() else None

    def _has_unseen(self, data: bytes) -> bool:
        return bool(self._unseen) and len(data.translate(None, self._unseen)) != len(data)

    @cached_property
    def _incomplete(self) -> dict[int, int]:
        """The tokens that are no whole characters: the state after each, at the beginning of a character."""
        return {
            i: state for i, data in enumerate(self.token_bytes) if not data.isascii() and (state := state_after(data))
        }

    @cached_property
    def _continuing(self) -> list[int]:
        """The tokens that go on inside a character."""
        return [i for i, data in enumerate(self.token_bytes) if data and 0x80 <= data[0] <= 0xBF]

    @cached_property
    def _ids(self) -> dict[bytes, list[int]]:
        found = defaultdict(list)
        for i, data in enumerate(self.token_bytes):
            if data:
                found[data].append(i)
        return dict(found)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], list[bytes]]:
        """(tokens in the order of their bytes, these bytes)"""
        order = sorted((i for i, data in enumerate(self.token_bytes) if data), key=self.token_bytes.__getitem__)
        return np.array(order, np.int64), [self.token_bytes[i] for i in order]

    @cached_property
    def _joined(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """(the bytes of all tokens one after the other, where each begins)"""
        ends = np.cumsum([len(data) for data in self.token_bytes])
        return np.frombuffer(b"".join(self.token_bytes), np.uint8), np.concatenate([[0], ends[:-1]])

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)
