"""The data of a run: what it is trained on, a batch for each step; the validation slice; the held-out data.

They are a text, conversations, or a text and then conversations. Where there are conversations, they alone are
evaluated.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.batches import Tokens
from llmcli.training.data.cache_fit import ValidationText
from llmcli.training.data.conversation_phase import ConversationPhase
from llmcli.training.data.conversations import PreparedConversations
from llmcli.training.data.plain_text import PlainText
from llmcli.training.data.position import Position
from llmcli.training.data.validation_slice import reserve_tokens
from llmcli.training.planning.batch_schedule import BatchSchedule
from llmcli.training.planning.plan import Plan


class RunData:
    """All data of a run. Which batch is next is a function of its Position."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        tokens: Tokens,
        held_out: NDArray[np.unsignedinteger],
        conversations: PreparedConversations | None = None,
        plain_text: PlainText | None = None,
    ) -> None:
        """`tokens` [N] and `held_out` [H] are texts; `plain_text` is scored after training on conversations."""
        settings = plan.train
        self.tokenizer, self.plain_text = tokenizer, plain_text
        text, windows = reserve_tokens(tokens, settings.calibration_tokens, settings.context)
        self.validation_text = ValidationText(tokens, windows, tokenizer.eos_id)
        self._held_out_text = held_out
        self._batches = BatchSchedule(text, settings, tokenizer)
        self.tokens_per_epoch = len(text)
        self.conversations: ConversationPhase | None = None
        if conversations and plan.conversations:
            self.conversations = ConversationPhase(conversations, plan.conversations, settings, tokenizer)
            self.tokens_per_epoch += self.conversations.tokens_per_epoch

    @property
    def validation(self) -> NDArray[np.int64] | ConversationTokens:
        """The validation slice: windows [B, T + 1] or conversations. It may be empty."""
        return self.conversations.validation if self.conversations else self.validation_text.windows

    @property
    def held_out(self) -> NDArray[np.unsignedinteger] | ConversationTokens:
        return self.conversations.held_out if self.conversations else self._held_out_text

    def validation_size(self) -> dict[str, int]:
        """Of the validation slice, for the record; empty if there is none."""
        data = self.validation
        if not len(data):
            return {}
        if isinstance(data, ConversationTokens):
            return {"conversations": len(data), "tokens": data.targets}
        return {"tokens": data.size}

    def next_batch(self, position: Position) -> tuple[NDArray[np.int64], torch.Tensor | None]:
        """(token ids [B, T + 1] of the next step, which of them are learned [B, T + 1], None for all). The run turns
        from text to conversations here, if it is time."""
        if self.conversations:
            self.conversations.begin_if_due(position)
            if batch := self.conversations.batch(position):
                return batch.ids, torch.from_numpy(batch.loss_mask)
        return self._batches.batch(position.step, position.stage_progress, position.token_split), None

    def has_planned_dropout(self, position: Position) -> bool:
        """Whether dropout is planned for this part of the run, and does not follow the clock."""
        return self.conversations is not None and self.conversations.has_planned_dropout(position)
