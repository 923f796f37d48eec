"""Bits per byte of the answers in conversations.

Each conversation is scored separately, as in a chat. Questions are context only; the tokens that end an
answer count, although they have no text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import Conversation
from llmcli.errors import LLMError
from llmcli.evaluation import evaluator
from llmcli.evaluation.evaluator import OnProgress, Score
from llmcli.models.runtime import Ints, Runtime


def spread(conversations: ConversationTokens, max_tokens: float = math.inf) -> list[int]:
    """Choose conversations with about `max_tokens` tokens in total, at least one, in an order in which any
    first N are evenly spread."""
    order = evaluator.spread_indices(len(conversations))
    ends = np.cumsum(conversations.lengths[order])
    return [int(i) for i in order[: max(1, int(np.searchsorted(ends, max_tokens, side="right")))]]


def conversation_windows(tokens: ConversationTokens) -> Ints:
    """Return the windows of `evaluate_windows`, one for each conversation."""
    return np.stack([tokens.starts[:-1], tokens.starts[:-1], tokens.starts[1:]], axis=1)


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
    tokens, truncated = ConversationTokens.encode(conversations, template).truncated(context + 1)
    if not len(tokens):
        raise LLMError("there is no answer to measure: no conversation has one within the context")
    lengths = template.tokenizer.byte_lengths
    batches = evaluator.evaluate_windows(
        tokens.ids, lengths, conversation_windows(tokens), model.score, loss_mask=tokens.loss_mask
    )
    total = evaluator.total_score(batches, len(tokens), on_progress)
    return AnswerScore(total, len(tokens), truncated, len(conversations) - len(tokens))
