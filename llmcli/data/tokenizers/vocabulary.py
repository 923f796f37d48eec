"""An index of the bytes of all tokens: tokens that begin with given bytes, and tokens that keep a text valid.

Three rules restrict the tokens that a model may generate. The text stays valid UTF-8: a token that breaks a
character only has a probability because training did not reduce it to zero. Byte values that do not occur in
the training text (if known) are not generated. Control tokens are generated only to end a text. Models
trained by other programs are not restricted.

V = size of the vocabulary.
"""

import codecs
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.words import begins_with_letter

Ids: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
_WORD_ENDS = {bytes([byte]) for byte in range(0x80) if not begins_with_letter(bytes([byte]))} - {b"'"}


def unfinished(data: bytes, errors: str = "strict") -> bytes | None:
    """Return the bytes of the unfinished character at the end of a text; None if the text is not UTF-8. With
    "ignore" as `errors`, the text may begin inside a character.

    >>> [unfinished(data) for data in (b"a", b"a\\xe3", "あ".encode(), b"\\x82", b"\\xed\\xa0")]
    [b'', b'\\xe3', b'', None, None]
    >>> unfinished("あ".encode()[1:], "ignore"), unfinished(b"\\x82\\xe3", "ignore")
    (b'', b'\\xe3')
    """
    try:
        rest = data[codecs.utf_8_decode(data, errors, False)[1] :]
    except UnicodeDecodeError:
        return None
    # half of a surrogate pair, of which the decoder would wait for the third byte
    return None if rest[:1] == b"\xed" and rest[1:] >= b"\xa0" else rest


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
        self._allowed: dict[bytes, Mask | None] = {}  # by the unfinished character
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

    def allowed(self, before: bytes = b"") -> Mask | None:
        """Return the mask [V] of the tokens that may be generated after an `unfinished` character; None if
        that is all or none of them."""
        if self._unrestricted:
            return None
        if before not in self._allowed:
            self._allowed[before] = self._allowed_after(before)
        return self._allowed[before]

    def _allowed_after(self, before: bytes) -> Mask | None:
        if before:
            continuing = [i for i in self._invalid if unfinished(before + self.token_bytes[i]) is not None]
            mask = np.zeros(len(self), bool)
            mask[continuing] = self._seen[continuing]
        else:
            mask = self._seen.copy()
            mask[self._invalid] = False
            if self._end_ids is not None:
                control_ids = {i for i, data in enumerate(self.token_bytes) if not data}
                mask[list(control_ids.difference(self._end_ids))] = False
        return mask if mask.any() and not mask.all() else None

    @cached_property
    def _seen(self) -> Mask:
        """Mask of the tokens whose bytes all occur in the training text, [V]."""
        is_seen = (len(data.translate(None, self._unseen)) == len(data) for data in self.token_bytes)
        return np.fromiter(is_seen, bool, len(self))

    @cached_property
    def _invalid(self) -> list[int]:
        """Tokens that no valid text begins with; they include all that continue a character."""
        return [i for i, data in enumerate(self.token_bytes) if unfinished(data) is None]

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
