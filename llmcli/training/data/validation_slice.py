"""The validation slice: a part of the training data, spread evenly over it, that a run is not trained on.

The weights that are kept are chosen by it, so that the held-out data, which measure them, have chosen nothing.
"""

import numpy as np
from numpy.typing import NDArray

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.conversations.split import held_out_indices
from llmcli.data.tokens.batches import Tokens, TokensWithoutSpans
from llmcli.training.planning import recipe


def reserve_tokens(tokens: Tokens, count: int, context: int) -> tuple[Tokens, NDArray[np.int64]]:
    """(training tokens, windows [B, T + 1] of about `count` tokens, T at most `context`).

    The windows are taken evenly from the whole text: its end alone may differ from the rest, such as by the names in a
    last chapter.
    """
    length = window_length(count, context)
    windows = count // (length + 1)
    if not windows:
        return tokens, np.empty((0, length + 1), np.int64)
    starts = window_starts(len(tokens), windows, length)
    reserved = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    return TokensWithoutSpans(tokens, starts, length + 1), reserved


def window_length(count: int, context: int) -> int:
    """The number of inputs in a window of a slice of `count` tokens.

    >>> window_length(5300, 1024), window_length(20_000, 1024), window_length(66, 32)
    (512, 1024, 32)
    """
    length = context
    while length // 2 >= recipe.SHORTEST_VALIDATION_WINDOW and count // (length + 1) < recipe.MIN_VALIDATION_WINDOWS:
        length //= 2
    return length


def window_starts(tokens: int, windows: int, length: int) -> NDArray[np.int64]:
    """Where the windows that `reserve_tokens` takes from a text of `tokens` tokens begin."""
    return ((np.arange(windows) + 0.5) / windows * (tokens - length - 1)).astype(np.int64)


def reserve_conversations(
    conversations: ConversationTokens, count: int
) -> tuple[ConversationTokens, ConversationTokens]:
    """(training conversations, about `count` others). One that is equal to a training conversation is in neither."""
    chosen = held_out_indices(len(conversations), count / len(conversations))
    reserved = set(chosen)
    kept = [i for i in range(len(conversations)) if i not in reserved]
    known = {conversations.ids[conversations.span(i)].tobytes() for i in kept}
    new = [i for i in chosen if conversations.ids[conversations.span(i)].tobytes() not in known]
    return conversations.select(kept), conversations.select(new)
