"""The split of conversations into training and validation. It is deterministic, so that `llm eval` can repeat
it."""

import hashlib
import math
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llmcli.data.conversations.messages import Conversation, learned_answers

GOLDEN = (math.sqrt(5) - 1) / 2
# text without sentence punctuation; other characters, such as operators, may distinguish two questions
_COMPARED = re.compile(r"""[^\s.,;:!?…'"‘’“”«»¿¡、。，！？：；「」『』]+""")


@dataclass(frozen=True)
class ConversationSplit:
    """Conversations for training and for validation."""

    training: list[Conversation]
    held_out: list[Conversation]
    # indices of conversations that are not held out because training ones have their answers
    repeated: list[int]


def split(conversations: Sequence[Conversation], share: float) -> ConversationSplit:
    """Hold out a share of the conversations, except those whose answers occur in training conversations: they
    are trained on too."""
    chosen = held_out_indices(len(conversations), share)
    repeated: list[int] = []
    while True:
        divided = divide(conversations, chosen)
        if not divided.repeated:
            return replace(divided, repeated=sorted(repeated))
        repeated += divided.repeated
        chosen = sorted(set(chosen).difference(repeated))


def divide(conversations: Sequence[Conversation], chosen: Sequence[int]) -> ConversationSplit:
    """Hold out the `chosen` conversations (ascending indices), except those whose answers occur in training
    conversations."""
    indices = set(chosen)
    training = [conversation for i, conversation in enumerate(conversations) if i not in indices]
    known = answers(training)
    repeated = [i for i in chosen if is_known(conversations[i], known)]
    held_out = [conversations[i] for i in sorted(indices.difference(repeated))]
    return ConversationSplit(training, held_out, repeated)


def answers(conversations: Iterable[Conversation]) -> set[bytes]:
    """Return a hash of each learned answer together with the message before it."""
    return {digest for conversation in conversations for digest, _ in _answers(conversation)}


def is_known(conversation: Conversation, known: Container[bytes]) -> bool:
    """Return whether at least half of the text of the learned answers is in `known`, a set returned by
    `answers`."""
    sizes = [(size, digest in known) for digest, size in _answers(conversation)]
    return 2 * sum(size for size, is_in in sizes if is_in) >= sum(size for size, _ in sizes) > 0


def answer_hash(question: str, answer: str) -> bytes:
    """Hash an answer and the message before it, ignoring white space, case and punctuation, unless a text
    consists of punctuation."""
    compared = (" ".join(_COMPARED.findall(text.casefold())) or text for text in (question, answer))
    return hashlib.sha256("\n".join(compared).encode("utf-8", "surrogatepass")).digest()


def _answers(conversation: Conversation) -> Iterator[tuple[bytes, int]]:
    """Yield (hash, length) of each learned answer."""
    messages = conversation.messages
    for i in learned_answers(messages):
        before = messages[i - 1].content if i else ""
        yield answer_hash(before, messages[i].content), len(messages[i].content)


def held_out_indices(count: int, share: float) -> list[int]:
    """Return indices of about `share` of `count` conversations, ascending: one from each of equally long
    stretches.

    The position within a stretch varies in steps of the golden ratio, because files often repeat a pattern,
    such as alternating directions of translation.

    >>> held_out_indices(30, 0.1), held_out_indices(4, 0.1)
    ([6, 12, 28], [])
    """
    if share > 0.5:
        return sorted(set(range(count)).difference(held_out_indices(count, 1 - share)))
    stretches = round(count * share)
    return [_chosen_in(i, stretches, count) for i in range(stretches)]


def is_held_out(index: int, count: int, share: float) -> bool:
    """Return whether an index is one of `held_out_indices`, without listing them: a damaged record may have
    any count."""
    if share > 0.5:
        return not is_held_out(index, count, 1 - share)
    stretches = round(count * share)
    first = index * stretches // count  # its stretch or, by rounding, the previous one
    return any(_chosen_in(i, stretches, count) == index for i in (first, first + 1) if i < stretches)


def _chosen_in(i: int, stretches: int, count: int) -> int:
    """Return the index that is held out in stretch i of `count` indices."""
    return int((i + (i + 1) * GOLDEN % 1.0) * count / stretches)
