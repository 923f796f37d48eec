"""The part of a run that trains on conversations: all of it, or its end, after plain text."""

from collections.abc import Callable
from typing import Any

from llmcli.config import TrainConfig
from llmcli.data.conversations.batches import ConversationBatches, ConversationTokens, MaskedBatch
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.models.runtime import Runtime
from llmcli.training.data.conversations import PreparedConversations
from llmcli.training.data.held_out_questions import greedy_answer, longest_answer, questions
from llmcli.training.data.position import Position
from llmcli.training.data.validation_slice import reserve_conversations
from llmcli.training.planning.plan import ConversationSettings


class ConversationPhase:
    """When it begins, and the batches of its steps. Where a run stands in it is in its Position."""

    def __init__(
        self,
        conversations: PreparedConversations,
        chosen: ConversationSettings,
        settings: TrainConfig,
        tokenizer: Tokenizer,
    ) -> None:
        self._conversations, self._chosen, self._settings = conversations, chosen, settings
        self._tokenizer = tokenizer
        training, self.validation = reserve_conversations(conversations.training, chosen.validation)
        self._batches = ConversationBatches(
            training, settings.context, settings.batch_size, settings.seed, tokenizer.eos_id
        )
        self._question = next(questions(conversations))

    @property
    def held_out(self) -> ConversationTokens:
        return self._conversations.held_out

    @property
    def template(self) -> str | None:
        """The chat template to store with the model; None if its base has one."""
        return self._conversations.stored_template

    @property
    def tokens_per_epoch(self) -> int:
        """Padding included."""
        return self._batches.rows * self._settings.context

    def begin_if_due(self, position: Position) -> None:
        """Turn from text to conversations, if it is time: a function of the progress."""
        if position.conversations_from is not None:
            return
        begin = 1 - self._chosen.share
        if self._settings.seconds is None:  # even a run of few steps has one on conversations
            begin = min(begin, (self._settings.steps - 1) / self._settings.steps)
        if position.progress >= begin:
            position.conversations_from = position.step
            if self._chosen.share < 1:
                position.dropout = self._chosen.dropout

    def has_planned_dropout(self, position: Position) -> bool:
        """Whether the run has turned from text to conversations, for which dropout is planned and does not follow the
        clock."""
        return self._chosen.share < 1 and position.conversations_from is not None

    def batch(self, position: Position) -> MaskedBatch | None:
        """The batch of the next step; None as long as it is of text."""
        if position.conversations_from is None:
            return None
        return self._batches.batch(position.step - position.conversations_from)

    # ---- samples

    @property
    def question(self) -> str:
        """A held-out question, which the samples answer."""
        return self._question.text

    def answer(self, runtime: Runtime, most: int, is_over: Callable[[], bool] = lambda: False) -> str:
        """The greedy answer of a model to the question, of at most `most` tokens, until `is_over` returns True."""
        most = min(most, longest_answer(self._conversations))
        stop_ids = self._conversations.template.stop_ids
        ids = greedy_answer(runtime, self._tokenizer, self._question.ids, stop_ids, most, is_over)
        return self._tokenizer.decode(ids)

    # ---- the record

    def record(self, position: Position) -> dict[str, Any]:
        """When a run turned to the conversations, and how often it read them."""
        began = position.step if position.conversations_from is None else position.conversations_from
        tokens = (position.step - began) * self._settings.tokens_per_step
        return {"from_step": began, "epochs": round(tokens / self.tokens_per_epoch, 4)}
