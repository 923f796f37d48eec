"""The rules of the planner where a run trains on conversations: what differs from those for text in rules.py.

Constants that were measured have their source in tests/benchmarks/LOG.md, under the heading given.
"""

from dataclasses import dataclass
from functools import cached_property

from llmcli import units
from llmcli.config import ModelConfig
from llmcli.data.conversation_batches import pack
from llmcli.errors import usage
from llmcli.training import rules
from llmcli.training.cost_model import CorpusSize
from llmcli.training.plan import ConversationDecisions, Decision, Request

# Context length, in tokens
SHORTEST_CONTEXT, LONGEST_CONTEXT = 128, 1024  # from scratch
SHORTEST_FINE_TUNING_CONTEXT = 64  # rows of a batch; the model keeps its own context length

# Length of the run: epochs, or more where that would be fewer steps
EPOCHS, STEPS = 60.0, 1000
FINE_TUNING_EPOCHS, FINE_TUNING_STEPS = 3.0, 100
BATCHES_PER_EPOCH = 4  # at least, where that is at least one row

# "What fine-tuning on few conversations forgets": the divergence from the base model on text that it generates
DIVERGENCE_WEIGHT = 5.0  # in the loss
DIVERGENCE_TOKENS = 0.25  # tokens of that text in a step, as a part of those of the batch
DIVERGENCE_COST = 0.4  # the time they take, as a part of that of the batch

# "What is reported has chosen nothing"
VALIDATION_SHARE = 1 / 32  # of the training conversations are in the validation slice ...
MIN_VALIDATION = 32  # ... or none, if that would be fewer; at most as many as have `rules.eval_tokens` tokens

# The part of a run in which conversations follow text
SHARE, LARGEST_SHARE, SMALLEST_SHARE = 0.3, 0.8, 0.05


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
    limit = base.max_position_embeddings if base else LONGEST_CONTEXT
    if request.context is not None:
        if base and request.context > limit:
            raise usage(f"--context {request.context} is longer than the base model's {limit}")
        return Decision(request.context, request.context_reason)
    shortest = min(limit, SHORTEST_FINE_TUNING_CONTEXT if base else SHORTEST_CONTEXT)
    if base:
        limit = min(limit, LONGEST_CONTEXT)
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
    return 1 if request.batch_tokens else BATCHES_PER_EPOCH


def max_epochs(request: Request, data: CorpusSize, base: ModelConfig | None) -> float:
    """The number of epochs of conversations after which a run ends, unless the user fixes it.

    Few conversations need many epochs, since each is only one example.
    """
    epochs, steps = (FINE_TUNING_EPOCHS, FINE_TUNING_STEPS) if base else (EPOCHS, STEPS)
    smallest_batch = min(request.batch_tokens or rules.CPU_BATCH_TOKENS[0], data.tokens / batches_per_epoch(request))
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
        wanted, reason = SHARE, "text first, to learn the language; then to answer"
        if natural > SHARE:
            wanted, reason = min(natural, LARGEST_SHARE), "text first; in proportion to the amount of data"
        if not tokens:
            return Decision(round(wanted, 3), reason)
        least, most = 1 - self._most_text / tokens, self._most_conversations / tokens
        if most < wanted:
            limited = max(natural, SMALLEST_SHARE, most)
            few = f"text first; at most {units.epochs(self.conversation_epochs)} of few conversations"
            return Decision(round(min(limited, wanted), 3), few)
        if wanted < least:
            after = f"after {units.epochs(self.text_epochs)} of the text, more of which would only memorize it"
            return Decision(round(min(least, most), 3), after)
        return Decision(round(wanted, 3), reason)


def dropout(
    request: Request, model: ModelConfig, tokens: int, epochs: float, base: ModelConfig | None
) -> Decision[float]:
    """The rate in a run on conversations alone."""
    if base and request.dropout is None:
        return Decision(0.0, "the base model's layers would have to learn to do without each other first")
    return rules.dropout(request, model, tokens, epochs)


def base_divergence(*, has_text: bool, base: ModelConfig | None) -> Decision[float]:
    """The weight of the divergence from the base model in the loss. After text, it would undo what that text added."""
    if base and not has_text:
        return Decision(DIVERGENCE_WEIGHT, "on text that it generates; limits catastrophic forgetting")
    return Decision(0.0, "there is no base model" if base is None else "would undo what the text added")


def validation(size: ConversationSize, tokens: float) -> Decision[int]:
    """Training conversations in the validation slice; `tokens` is the number of training tokens."""
    most = rules.eval_tokens(tokens) * len(size.lengths) // sum(size.lengths)
    count = min(int(len(size.lengths) * VALIDATION_SHARE), most)
    if count < MIN_VALIDATION:
        return Decision(0, "there are too few conversations; the weights of the end are kept")
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
    divergence = base_divergence(has_text=phases is not None, base=base)
    return ConversationDecisions(part, dropout, divergence, validation(size, tokens))


def bpe_dropout() -> Decision[float]:
    """None: it would move the mask of the learned tokens."""
    return Decision(0.0, "not used with conversations")


def calibration() -> Decision[bool]:
    """None."""
    return Decision(False, "not used with conversations")
