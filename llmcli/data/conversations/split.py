"""The split of conversations into training and validation: deterministic, so that `llm eval` can repeat it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.data.conversations.messages import Conversation

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class ConversationSplit:
    """Conversations for training and for validation."""

    training: list[Conversation]
    held_out: list[Conversation]
    duplicates: int  # conversations not held out because `training` has the same ones


def split(conversations: Sequence[Conversation], share: float) -> ConversationSplit:
    """Hold out a share of the conversations, but none that also occurs in the training part."""
    chosen = set(held_out_indices(len(conversations), share))
    training = [conversation for i, conversation in enumerate(conversations) if i not in chosen]
    return without_duplicates(training, [conversations[i] for i in sorted(chosen)])


def without_duplicates(training: list[Conversation], held_out: Sequence[Conversation]) -> ConversationSplit:
    known = {conversation.messages for conversation in training}
    new = [conversation for conversation in held_out if conversation.messages not in known]
    return ConversationSplit(training, new, len(held_out) - len(new))


def held_out_indices(count: int, share: float) -> list[int]:
    """Return indices of about `share` of `count` conversations, ascending: one from each of equally long stretches.

    The position in the stretch varies in steps of the golden ratio, because files often repeat a pattern, such as
    alternating directions of translation.

    >>> held_out_indices(30, 0.1), held_out_indices(4, 0.1)
    ([6, 12, 28], [])
    """
    return [index for index in range(count) if is_held_out(index, count, share)]


def is_held_out(index: int, count: int, share: float) -> bool:
    if share > 0.5:
        return not is_held_out(index, count, 1 - share)
    stretches = round(count * share)
    first = index * stretches // count  # its stretch or, by rounding, the previous one
    chosen = (int((i + (i + 1) * GOLDEN % 1.0) * count / stretches) for i in (first, first + 1) if i < stretches)
    return index in chosen
