"""The planner's input: a request and the size of the data, and the decisions that do not depend on the model.

The data are text, conversations, or text followed by conversations.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from llmcli import units
from llmcli.config import MIN_VOCAB_SIZE, ModelConfig
from llmcli.data.conversations.batches import pack
from llmcli.errors import LLMError, usage
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import CorpusSize
from llmcli.training.planning.plan import REQUESTED, Decision, EpochSearch, PlanRequest


@dataclass(frozen=True)
class ConversationSize:
    """The size of the training conversations."""

    lengths: tuple[int, ...]  # tokens per conversation, including the chat template's
    bytes: int  # size of the messages' text

    def packed(self, context: int) -> CorpusSize:
        """Return the size of an epoch in rows, including padding. Longer conversations are truncated."""
        max_length = context + 1  # a row includes the last target
        rows = pack(
            [min(length, max_length) for length in self.lengths], max_length, range(len(self.lengths))
        )
        return CorpusSize(context * len(rows), self.bytes)


@dataclass(frozen=True)
class Task:
    """A requested run and the size of its data."""

    request: PlanRequest
    text: CorpusSize  # training text; 0 tokens if there are only conversations
    vocab_size: int
    eos_id: int
    base: ModelConfig | None = None  # the model to fine-tune
    conversations: ConversationSize | None = None
    seconds_spent: float = 0.0  # part of the time budget spent before the first step
    induction: bool = False  # whether initial weights get induction heads, if they fit the model
    has_few_words: bool = False  # whether each word of the text is one token
    search: EpochSearch | None = None  # if a first run finds the number of epochs

    @property
    def conversations_alone(self) -> bool:
        return self.conversations is not None and not self.text.tokens

    @property
    def trains_text_adapters(self) -> bool:
        """Whether the run trains LoRA adapters on text alone."""
        return self.request.lora > 0 and self.conversations is None

    @cached_property
    def context(self) -> Decision[int]:
        """Decide the context length in tokens. Raises LLMError if the text is too short for it."""
        # a window has one more token, the last target
        requested = self.request.context
        base = self.base
        longest = self.text.tokens - 1
        if not self.conversations_alone and longest < recipe.MIN_CONTEXT:
            smaller = f", or give `vocab_size` {MIN_VOCAB_SIZE} or `tokenizer` char if it is repetitive"
            raise LLMError(
                f"the corpus is too short: {self.text.tokens:,} training tokens ({self.text.bytes:,} bytes), "
                f"at least {recipe.MIN_CONTEXT + 1} are needed; add more text{'' if base else smaller}"
            )
        if requested is None:
            return self._default_context()
        if base and requested > base.max_position_embeddings:
            raise usage(
                f"`context` {requested} is longer than the base model's {base.max_position_embeddings}"
            )
        if not self.conversations_alone and requested > longest:
            shorter = (
                f" or give `context` {longest} or less" if self.request.context_reason == REQUESTED else ""
            )
            raise LLMError(
                f"the corpus is shorter than the context length: {longest + 1:,} training tokens, `context` "
                f"{requested} needs {requested + 1:,}; add more text{shorter}"
            )
        return Decision(requested, self.request.context_reason)

    def _default_context(self) -> Decision[int]:
        if self.conversations_alone:
            return self._conversation_context()
        quarter = max(recipe.MIN_CONTEXT, int(2 ** int(math.log2((self.text.tokens - 1) / 4))))
        context = self._text_context()
        if context.value > quarter:
            context = Decision(quarter, "a quarter of this short corpus")
        if self.conversations:
            decision = self._conversation_context()
            if context.value < decision.value < self.text.tokens:
                return decision
            if context.value < decision.value:
                longest = 1 << ((self.text.tokens - 1).bit_length() - 1)
                return Decision(longest, "the longest that fits the short text")
        return context

    def _text_context(self) -> Decision[int]:
        longest = self.base.max_position_embeddings if self.base else math.inf
        if self.base and longest >= 2 * recipe.FINE_TUNING_CONTEXT:
            is_small = self.trains_text_adapters and self.request.device == "cpu"
            length = recipe.CPU_LORA_CONTEXT if is_small else recipe.FINE_TUNING_CONTEXT
            return Decision(length, "long enough for fine-tuning; longer windows are slower")
        if self.induction:
            is_short = self.request.is_short(recipe.SHORT_INDUCTION_CORE_SECONDS)
            decision = Decision(
                recipe.SHORT_INDUCTION_CONTEXT if is_short else recipe.INDUCTION_CONTEXT,
                "long enough for induction heads to find earlier occurrences",
            )
        else:
            tokens = recipe.CONTEXT if self.text.tokens >= recipe.CONTEXT_TOKENS else recipe.SHORT_CONTEXT
            decision = Decision(tokens, "long enough for a corpus of this size")
        return (
            decision
            if decision.value <= longest
            else Decision(int(longest), "the longest that the base model supports")
        )

    def _conversation_context(self) -> Decision[int]:
        assert self.conversations
        shortest = recipe.CONVERSATION_SHORTEST_CONTEXT
        longest = recipe.CONVERSATION_LONGEST_CONTEXT
        if self.base:
            shortest = min(
                recipe.CONVERSATION_SHORTEST_FINE_TUNING_CONTEXT, self.base.max_position_embeddings
            )
            longest = min(longest, self.base.max_position_embeddings)
        inputs = max(self.conversations.lengths) - 1
        whole = max(shortest, 1 << max(0, inputs - 1).bit_length())  # a power of two
        if whole > longest:
            return Decision(longest, "the longest that is affordable; longer conversations are truncated")
        several = whole == shortest
        return Decision(
            whole, f"long enough for {'several turns' if several else 'the longest conversation'}"
        )

    @cached_property
    def packed(self) -> CorpusSize | None:
        """Return the size of the conversations in rows, if there are any."""
        return self.conversations.packed(self.context.value) if self.conversations else None

    @cached_property
    def data(self) -> CorpusSize:
        """Return the size of an epoch."""
        packed = self.packed or CorpusSize(0, 0)
        return CorpusSize(self.text.tokens + packed.tokens, self.text.bytes + packed.bytes)

    @property
    def max_epochs(self) -> float:
        """Decide the number of epochs after which a run ends, unless the user fixes it."""
        if self.packed is None:
            return self._text_epochs
        if self.conversations_alone:
            return self._conversation_epochs
        tokens = self._text_epochs * self.text.tokens + self._conversation_epochs * self.packed.tokens
        return tokens / self.data.tokens

    @property
    def _text_epochs(self) -> float:
        if self.search:
            return self.search.found or recipe.SEARCH_EPOCHS
        fine_tunes = self.base and self.request.optimizer != "muon"
        return recipe.FINE_TUNING_EPOCHS if fine_tunes else recipe.MAX_EPOCHS

    @property
    def _conversation_epochs(self) -> float:
        """Limit of epochs for conversations. Few conversations need many epochs, because each is only one
        example."""
        assert self.packed
        epochs = recipe.CONVERSATION_EPOCHS
        steps = recipe.CONVERSATION_STEPS
        if self.base:
            epochs = recipe.CONVERSATION_FINE_TUNING_EPOCHS
            steps = recipe.CONVERSATION_FINE_TUNING_STEPS
        tokens = self.packed.tokens
        requested = self.request.batch_tokens
        part_of_epoch = tokens / (1 if requested else recipe.CONVERSATION_BATCHES_PER_EPOCH)
        return max(epochs, steps * min(requested or recipe.CPU_BATCH_TOKENS[0], part_of_epoch) / tokens)

    def conversation_share(self, tokens: float) -> Decision[float]:
        """Decide the final share of a run of `tokens` training tokens (0: not known yet) on conversations."""
        if self.packed is None or self.conversations_alone:
            return Decision(1.0, "there is no plain text")
        natural = self.packed.tokens / self.data.tokens
        share = recipe.CONVERSATION_SHARE
        reason = "text first, to learn the language; then to answer"
        if natural > recipe.CONVERSATION_SHARE:
            share = min(natural, recipe.CONVERSATION_LARGEST_SHARE)
            reason = "text first; in proportion to the amount of data"
        if tokens:  # text and conversations have a limit of epochs
            min_share = 1 - self._text_epochs * self.text.tokens / tokens
            max_share = self._conversation_epochs * self.packed.tokens / tokens
            if max_share < share:
                share = min(max(natural, recipe.CONVERSATION_SMALLEST_SHARE, max_share), share)
                reason = f"text first; at most {units.epochs(self._conversation_epochs)} of few conversations"
            elif share < min_share:
                share = min(min_share, max_share)
                epochs = units.epochs(self._text_epochs)
                reason = f"after {epochs} of the text, the default limit"
        return Decision(round(share, 3), reason)
