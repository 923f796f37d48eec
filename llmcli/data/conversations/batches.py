"""Training batches of conversations: whole conversations packed into rows, with a loss mask.

A batch is a pure function of (conversations, seed, step), as in tokens/batches.py.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import Conversation
from llmcli.errors import prefixed


@dataclass(frozen=True)
class ConversationTokens:
    """The tokens of n conversations, concatenated."""

    ids: NDArray[np.unsignedinteger]  # [N]
    # [N]; False for the first token of each conversation, which is never a target
    loss_mask: NDArray[np.bool_]
    starts: NDArray[np.int64]  # [n + 1]: start of each conversation, and the end of the last
    texts: tuple[Conversation, ...] = field(default=(), repr=False)  # [n], not truncated; or empty

    @classmethod
    def encode(cls, conversations: Iterable[Conversation], template: ChatTemplate) -> "ConversationTokens":
        """Tokenize the conversations that have an answer to learn. Raises LLMError like
        `ChatTemplate.encode_conversation`."""
        answered = []
        for each in conversations:
            with prefixed(each.source):
                tokens = template.encode_conversation(each.messages)
            if any(tokens[1][1:]):
                answered.append((tokens, each))
        return cls.of((tokens for tokens, _ in answered), tuple(each for _, each in answered))

    @classmethod
    def of(
        cls,
        conversations: Iterable[tuple[Sequence[int], Sequence[bool]]],
        texts: tuple[Conversation, ...] = (),
    ) -> "ConversationTokens":
        """Join conversations, each (ids, loss mask)."""
        ids = [np.zeros(0, np.uint32)]
        masks = [np.zeros(0, bool)]
        for conversation_ids, loss_mask in conversations:
            ids.append(np.array(conversation_ids, np.uint32))
            masks.append(np.array(loss_mask, bool))
            masks[-1][0] = False
        starts = np.cumsum([len(tokens) for tokens in ids], dtype=np.int64)
        return cls(np.concatenate(ids), np.concatenate(masks), starts, texts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)  # [n]

    @property
    def targets(self) -> int:
        return int(self.loss_mask.sum())

    def span(self, index: int) -> slice:
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def answer_bytes(self, byte_lengths: NDArray[np.integer]) -> int:
        """Count the bytes of text in the tokens that count in the loss; `byte_lengths[i]` is the length of
        token i."""
        return int(byte_lengths[self.ids[self.loss_mask]].sum())

    def select(self, indices: Sequence[int]) -> "ConversationTokens":
        return self._slices(indices, [self.span(i) for i in indices])

    def truncated(self, max_tokens: int) -> tuple["ConversationTokens", int]:
        """Truncate to `max_tokens` tokens: after the last answer that fits, or else within the first answer.
        Conversations without a token in the loss are dropped. Returns (conversations, number of truncated
        ones)."""
        spans = [self.span(i) for i in range(len(self))]
        fitting = [self._truncated_span(span, max_tokens) for span in spans]
        kept = [i for i, span in enumerate(fitting) if span.stop > span.start]
        return self._slices(kept, [fitting[i] for i in kept]), sum(fitting[i] != spans[i] for i in kept)

    def _truncated_span(self, span: slice, max_tokens: int) -> slice:
        if span.stop - span.start <= max_tokens:
            return span
        mask = self.loss_mask[span.start : span.start + max_tokens + 1]
        answer_ends = np.flatnonzero(mask[:-1] & ~mask[1:]) + 1  # the position after each answer
        if len(answer_ends):
            return slice(span.start, span.start + int(answer_ends[-1]))
        return slice(span.start, span.start + (max_tokens if mask[:max_tokens].any() else 0))

    def _slices(self, indices: Sequence[int], slices: Sequence[slice]) -> "ConversationTokens":
        """Return the slices of the conversations at these indices."""
        starts = np.cumsum([0, *(span.stop - span.start for span in slices)], dtype=np.int64)

        def join(values: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([values[:0], *(values[span] for span in slices)])

        texts = tuple(self.texts[i] for i in indices) if self.texts else ()
        return ConversationTokens(join(self.ids), join(self.loss_mask), starts, texts)


class ConversationBatches:
    """Training batches of conversations as a pure function of (seed, step).

    An epoch visits every conversation once. Conversations are packed, in an order drawn from (seed, epoch),
    into rows of `context` + 1 tokens, padded with `padding`. The rows are visited in another random order.
    """

    def __init__(
        self, conversations: ConversationTokens, context: int, batch_size: int, seed: int, padding: int
    ) -> None:
        """Each conversation has at most `context` + 1 tokens."""
        if not len(conversations) or conversations.lengths.max() > context + 1:
            raise ValueError(f"no conversations, or one with more than {context + 1} tokens")
        self._conversations = conversations
        self._context = context
        self._batch_size = batch_size
        self._seed = seed
        self._padding = padding
        self._first_rows = [0]  # number of rows before each epoch visited so far
        self._recent: tuple[int, list[list[int]]] = -1, []  # the last packed epoch, and its rows

    @cached_property
    def rows(self) -> int:
        """Number of rows in the first epoch; other epochs have a few more or less."""
        return len(self._epoch(0))

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return (token ids, loss mask) [B, T + 1] of step 0, 1, ... Targets are ids[:, 1:] where
        loss_mask[:, 1:] is True. A step may span two epochs, or more if an epoch has few rows."""
        ids = np.full((self._batch_size, self._context + 1), self._padding, np.int64)
        loss_mask = np.zeros(ids.shape, bool)
        for row in range(self._batch_size):
            end = 0
            for index in self._visited(step * self._batch_size + row):
                span = self._conversations.span(index)
                begin = end
                end += span.stop - span.start
                ids[row, begin:end] = self._conversations.ids[span]
                loss_mask[row, begin:end] = self._conversations.loss_mask[span]
        return ids, loss_mask

    def _visited(self, visit: int) -> list[int]:
        """Return the conversations in the row of a visit; visits are numbered from the beginning of epoch
        0."""
        while self._first_rows[-1] <= visit:
            self._first_rows.append(self._first_rows[-1] + len(self._epoch(len(self._first_rows) - 1)))
        epoch = bisect.bisect_right(self._first_rows, visit) - 1
        return self._epoch(epoch)[visit - self._first_rows[epoch]]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if self._recent[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            order = rng.permutation(len(self._conversations)).tolist()
            rows = pack(self._conversations.lengths.tolist(), self._context + 1, order)
            self._recent = epoch, [rows[i] for i in rng.permutation(len(rows))]
        return self._recent[1]


def pack(lengths: Sequence[int], capacity: int, order: Iterable[int]) -> list[list[int]]:
    """Pack conversations into rows of at most `capacity` tokens by best fit: in the given order, each goes
    into the fullest row that has space for it. `lengths` are in tokens, at most `capacity` each.

    >>> pack([5, 4, 3, 6], 8, [0, 1, 2, 3])
    [[0, 2], [1], [3]]
    """
    rows: list[list[int]] = []
    # (tokens left, row), ascending; only rows with space for another conversation
    spaces: list[tuple[int, int]] = []
    shortest = min(lengths, default=0)
    for index in order:
        at = bisect.bisect_left(spaces, (lengths[index], -1))
        if at == len(spaces):
            rows.append([])
            space = capacity
            row = len(rows) - 1
        else:
            space, row = spaces.pop(at)
        rows[row].append(index)
        left = space - lengths[index]
        if left >= shortest:
            bisect.insort(spaces, (left, row))
    return rows
