"""The rules of the planner where a run trains on conversations: what differs from those for text in rules.py.

The numbers, and where they come from, are in recipe.py.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from llmcli import units
from llmcli.config import ModelConfig
from llmcli.data.conversations.batches import pack
from llmcli.errors import usage
from llmcli.training.planning import recipe, rules
from llmcli.training.planning.cost_model import CorpusSize
from llmcli.training.planning.plan import REQUESTED, ConversationDecisions, Decision, Request


@dataclass(frozen=True)
class ConversationSize:
    """The size of the training conversations."""

    lengths: tuple[int, ...]  # tokens of each, with those of the chat template
    bytes: int  # of text in their messages

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    def packed(self, context: int) -> CorpusSize:
        """The rows of an epoch, padding included. Longer conversations are truncated."""
        most = context + 1  # a row has the token after the last input too
        rows = pack([min(length, most) for length in self.lengths], most, range(len(self.lengths)))
        return CorpusSize(context * len(rows), self.bytes)


def context_length(request: Request, size: ConversationSize, base: ModelConfig | None) -> Decision[int]:
    """In tokens: the inputs of a row."""
    limit = base.max_position_embeddings if base else recipe.CONVERSATION_LONGEST_CONTEXT
    if request.context is not None:
        if base and request.context > limit:
            raise usage(f"--context {request.context} is longer than the base model's {limit}")
        return Decision(request.context, request.context_reason)
    shortest = recipe.CONVERSATION_SHORTEST_CONTEXT
    if base:
        shortest = min(limit, recipe.CONVERSATION_SHORTEST_FINE_TUNING_CONTEXT)
        limit = min(limit, recipe.CONVERSATION_LONGEST_CONTEXT)
    whole = max(shortest, _power_of_two(size.longest - 1))
    if whole <= limit:
        reason = "long enough for the longest conversation" if whole > shortest else "long enough for several turns"
        return Decision(whole, reason)
    return Decision(limit, "the longest that is affordable; longer conversations are truncated")


def _power_of_two(count: int) -> int:
    """The smallest power of two that is not below a count.

    >>> [_power_of_two(count) for count in (1, 64, 65)]
    [1, 64, 128]
    """
    return 1 << max(0, count - 1).bit_length()


def batches_per_epoch(request: Request) -> int:
    """Into how many batches an epoch is divided, at least: a few dozen pairs are less than a usual batch."""
    return 1 if request.batch_tokens else recipe.CONVERSATION_BATCHES_PER_EPOCH


def max_epochs(request: Request, data: CorpusSize, base: ModelConfig | None) -> float:
    """The number of epochs of conversations after which a run ends, unless the user fixes it.

    Few conversations need many epochs, since each is only one example.
    """
    epochs, steps = recipe.CONVERSATION_EPOCHS, recipe.CONVERSATION_STEPS
    if base:
        epochs, steps = recipe.CONVERSATION_FINE_TUNING_EPOCHS, recipe.CONVERSATION_FINE_TUNING_STEPS
    smallest_batch = min(request.batch_tokens or recipe.CPU_BATCH_TOKENS[0], data.tokens / batches_per_epoch(request))
    return max(epochs, steps * smallest_batch / data.tokens)


@dataclass(frozen=True)
class Phases:
    """A run on text and then on conversations: the data, and how often it is worth while to read each of the two."""

    text: CorpusSize
    conversations: CorpusSize
    text_epochs: float  # at most
    conversation_epochs: float  # at most

    @property
    def epochs(self) -> float:
        """Of all data, at most."""
        return (self._most_text + self._most_conversations) / (self.text.tokens + self.conversations.tokens)

    @property
    def _most_text(self) -> float:
        return self.text_epochs * self.text.tokens

    @property
    def _most_conversations(self) -> float:
        return self.conversation_epochs * self.conversations.tokens

    def share(self, tokens: float) -> Decision[float]:
        """The part of a run of `tokens` training tokens (0: not known yet), at its end, in which conversations follow
        text."""
        natural = self.conversations.tokens / (self.text.tokens + self.conversations.tokens)
        wanted, reason = recipe.CONVERSATION_SHARE, "text first, to learn the language; then to answer"
        if natural > recipe.CONVERSATION_SHARE:
            wanted = min(natural, recipe.CONVERSATION_LARGEST_SHARE)
            reason = "text first; in proportion to the amount of data"
        if not tokens:
            return Decision(round(wanted, 3), reason)
        least, most = 1 - self._most_text / tokens, self._most_conversations / tokens
        if most < wanted:
            limited = max(natural, recipe.CONVERSATION_SMALLEST_SHARE, most)
            few = f"text first; at most {units.epochs(self.conversation_epochs)} of few conversations"
            return Decision(round(min(limited, wanted), 3), few)
        if wanted < least:
            after = f"after {units.epochs(self.text_epochs)} of the text; more would only make the model memorize it"
            return Decision(round(min(least, most), 3), after)
        return Decision(round(wanted, 3), reason)


def dropout(
    request: Request, model: ModelConfig, tokens: int, epochs: float, base: ModelConfig | None
) -> Decision[float]:
    """The rate in a run on conversations alone."""
    if base and request.dropout is None:
        return Decision(0.0, "the base model was trained without dropout")
    return rules.dropout(request, model, tokens, epochs)


def check_kl_weight(request: Request, base: ModelConfig | None, *, conversations_alone: bool) -> None:
    """Raise LLMError for an invalid weight, or where there is no divergence from a base model."""
    weight = request.kl_weight
    if weight is not None and not 0 <= weight < math.inf:
        raise usage(f"--kl-weight must be at least 0, found {weight:g}")
    if weight and not (base and conversations_alone):
        raise usage("--kl-weight is for fine-tuning on conversations alone, without plain text; leave it out")


def base_divergence(request: Request, *, has_text: bool, base: ModelConfig | None) -> Decision[float]:
    """The weight of the divergence from the base model in the loss. After text, it would undo what that text added."""
    if request.kl_weight is not None:
        return Decision(request.kl_weight, REQUESTED)
    if base and not has_text:
        reason = "from the base model, on text that it generates; limits catastrophic forgetting"
        return Decision(recipe.DIVERGENCE_WEIGHT, reason)
    return Decision(0.0, "there is no base model" if base is None else "would undo what the text added")


def validation(size: ConversationSize, tokens: float) -> Decision[int]:
    """Training conversations in the validation slice; `tokens` is the number of training tokens."""
    most = rules.eval_tokens(tokens) * len(size.lengths) // sum(size.lengths)
    count = min(int(len(size.lengths) * recipe.CONVERSATION_VALIDATION_SHARE), most)
    if count < recipe.CONVERSATION_MIN_VALIDATION:
        return Decision(0, "there are too few conversations; the final weights are kept")
    return Decision(count, "spread evenly, not trained on; the weights with the lowest loss of their answers are kept")


def decisions(
    request: Request,
    model: ModelConfig,
    size: ConversationSize,
    conversations: CorpusSize,
    phases: Phases | None,
    tokens: float,
    base: ModelConfig | None = None,
) -> ConversationDecisions:
    """How a run of `tokens` training tokens trains on conversations of this `size`, packed as `conversations`: in one
    of two `phases`, if there is text."""
    part = phases.share(tokens) if phases else Decision(1.0, "there is no plain text")
    epochs = part.value * tokens / conversations.tokens
    dropout = rules.dropout(request, model, conversations.tokens, epochs)
    divergence = base_divergence(request, has_text=phases is not None, base=base)
    return ConversationDecisions(part, dropout, divergence, validation(size, tokens))


def bpe_dropout() -> Decision[float]:
    """None: it would move the mask of the learned tokens."""
    return Decision(0.0, "not used with conversations")


def calibration() -> Decision[bool]:
    """None."""
    return Decision(False, "not used with conversations")
