"""Bits per byte of the answers in conversations.

Each conversation is scored separately, as in a chat. Questions are context only; the tokens that end an
answer count, although they have no text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import Conversation
from llmcli.errors import LLMError
from llmcli.evaluation import evaluator
from llmcli.evaluation.evaluator import OnProgress, Score, ScoreWindows
from llmcli.models.runtime import Ints, Runtime, padded_batches


def spread(conversations: ConversationTokens, max_tokens: float = math.inf) -> list[int]:
    """Choose conversations with about `max_tokens` tokens in total, at least one, in an order in which any
    first N are evenly spread."""
    order = evaluator.spread_indices(len(conversations))
    ends = np.cumsum(conversations.lengths[order])
    return [int(i) for i in order[: max(1, int(np.searchsorted(ends, max_tokens, side="right")))]]


def evaluate_answers(
    tokens: ConversationTokens,
    indices: Sequence[int],
    byte_lengths: Ints,
    score: ScoreWindows,
    batch_tokens: int,
) -> Iterator[tuple[Sequence[int], Score]]:
    """Like `evaluate_windows`, for the answers in conversations."""
    for batch in padded_batches(tokens.lengths, indices, batch_tokens):
        spans = [tokens.span(index) for index in batch]
        ids = evaluator.padded([tokens.ids[span] for span in spans], np.int64)
        loss_mask = evaluator.padded([tokens.loss_mask[span] for span in spans], bool)
        losses, correct, *_ = score(ids)
        counted = loss_mask[:, 1:]
        targets = ids[:, 1:][counted]
        nats = float(losses[counted].sum(dtype=np.float64))
        yield batch, Score(nats, len(targets), int(byte_lengths[targets].sum()), int(correct[counted].sum()))


@dataclass(frozen=True)
class AnswerScore:
    """A model's score on the answers in conversations."""

    score: Score
    conversations: int  # measured
    truncated: int  # conversations cut to the context
    left_out: int  # conversations without an answer within the context


def measure_answers(
    conversations: Sequence[Conversation],
    model: Runtime,
    template: ChatTemplate,
    context: int,
    on_progress: OnProgress,
) -> AnswerScore:
    """Score the answers, each conversation in its own context. Raises LLMError if there are no answers, and
    for NaN logits."""
    encoded = (template.encode_conversation(conversation.messages) for conversation in conversations)
    whole = ConversationTokens.of((ids, mask) for ids, mask in encoded if any(mask[1:]))
    tokens, kept, truncated = whole.truncated(context + 1)
    if not kept:
        raise LLMError("there is no answer to measure: no conversation has one within the context")
    lengths = template.tokenizer.byte_lengths
    batches = evaluate_answers(tokens, range(len(tokens)), lengths, model.score, evaluator.BATCH_TOKENS)
    total = evaluator.total_score(batches, len(tokens), on_progress)
    return AnswerScore(total, len(tokens), truncated, len(conversations) - len(tokens))
