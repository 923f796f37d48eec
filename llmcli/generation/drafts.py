"""Drafts of the next tokens, for speculative decoding (arXiv:2211.17192) without a second model: what
followed the last few tokens earlier in the text (arXiv:2304.04487).

A large model takes about as long for four tokens as for one, because it reads every weight once in either
case. So the model processes the last token of a text together with a draft, and the text keeps the tokens of
the draft that are also chosen from the model's own predictions. It is the same text as without a draft,
unless two tokens are equally likely up to the last bits of their logits (`Runtime.step_batch`).
"""

from collections.abc import Sequence

LONGEST = 4  # tokens that are compared; the longest match counts
SHORTEST = 2  # a single token is followed by something else too often: LOG.md, "Drafts"


class Drafts:
    """The tokens of a growing text, by the tokens before them."""

    def __init__(self) -> None:
        self._length = 0  # number of tokens of the text that are in `_next`
        # position after the last occurrence of some tokens before the end of the text
        self._next: dict[tuple[int, ...], int] = {}

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow the text `ids`: the n - 1 tokens that followed its last
        n tokens (2 to 4, as many as possible) where they occurred before. `ids` must extend the `ids` of the
        previous call.

        >>> Drafts().draft([1, 2, 3, 4, 1, 2, 3], 4)
        [4, 1]
        """
        if most <= 0:
            return []
        for end in range(max(self._length, SHORTEST), len(ids)):
            for start in range(max(0, end - LONGEST), end - SHORTEST + 1):
                self._next[tuple(ids[start:end])] = end
        self._length = len(ids)
        drafted: list[int] = []
        for length in range(LONGEST, SHORTEST - 1, -1):
            if (position := self._next.get(tuple(ids[-length:]))) is not None:
                for i in range(position, position + min(most, length - 1)):  # beyond the text: its own tokens
                    drafted.append(ids[i] if i < len(ids) else drafted[i - len(ids)])
                break
        return drafted
