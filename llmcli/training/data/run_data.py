"""What a run reads: its plan, training batches, validation slice, held-out data, and the model to start from.

The training data are text, conversations, or text followed by conversations; in the last case, only the
conversations are evaluated.

On text, a new model starts with short windows, many per batch, and ends with the full context length
(sequence-length warm-up), which lowers the loss for a given number of tokens; short windows are also faster
per token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.config import TrainConfig
from llmcli.data.conversations.batches import ConversationBatches, ConversationTokens
from llmcli.data.conversations.messages import Message
from llmcli.data.conversations.split import held_out_indices
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.batches import Batches, split_merges
from llmcli.generation.token_healing import Prompt
from llmcli.models.runtime import Ints, Runtime
from llmcli.training.data.cache_fit import reserve_tokens
from llmcli.training.data.conversations import PreparedConversations
from llmcli.training.data.held_out_questions import greedy_answer, longest_answer, questions
from llmcli.training.data.plain_text import find_plain_text
from llmcli.training.data.position import Position
from llmcli.training.data.prepare import Prepared
from llmcli.training.planning import recipe, rules
from llmcli.training.planning.plan import ConversationSettings


class RunData:
    """Everything that a run reads and does not change. The next batch is a function of the run's Position."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        sample_prompt: str | None = None,
        probe: str | None = None,
    ) -> None:
        """The previews of a run on text continue `sample_prompt` and predict the word after `probe`, a prompt
        or question; for None, they are about a held-out question if there are any."""
        self.plan = plan = prepared.plan
        settings = plan.train
        conversations = prepared.conversations
        self.record = prepared.record  # the part about the corpus; loop/record.py adds the rest
        # (dropout, BPE-dropout) by the number of epochs, which the run estimates
        size = len(prepared.tokens)
        if chats := prepared.task.conversations:
            size += chats.packed(settings.context).tokens
        self.regularization = partial(rules.regularization, prepared.task, plan.model, size)
        self.base = prepared.inputs.base  # the weights to start from; None: fresh ones
        self.plain_text = find_plain_text(prepared)  # scored after training on conversations
        self._probe = probe
        self.tokenizer = tokenizer = prepared.tokenizer
        text, self.validation_text = reserve_tokens(
            prepared.tokens,
            settings.calibration_tokens,
            settings.context,
            tokenizer.eos_id,
            at_end=plan.searches,
        )
        self._batches = Batches(text, settings.context, settings.batch_size, settings.seed)
        self.tokens_per_epoch = len(text)
        self.conversations: ConversationPhase | None = None
        # validation slice (windows [B, T + 1] or conversations, possibly empty) and held-out data
        self.validation: Ints | ConversationTokens = self.validation_text.windows
        self.held_out: NDArray[np.unsignedinteger] | ConversationTokens = prepared.held_out
        if conversations and plan.conversations:
            self.conversations = ConversationPhase(conversations, plan.conversations, settings, tokenizer)
            self.validation = self.conversations.validation
            self.held_out = conversations.held_out
            self.tokens_per_epoch += self.conversations.tokens_per_epoch
        question = self.conversations.question if self.conversations else ""
        self.sample_prompt = question or sample_prompt
        self.probe = probe or question

    def probe_prompt(self) -> Prompt:
        """Return the tokens of the probe: of a text, or of a question with the messages before it."""
        if self.conversations:
            return Prompt(list(self.conversations.prompt(self._probe)))
        return Prompt.of(self.probe, self.tokenizer)

    def validation_size(self) -> dict[str, int]:
        """Return the size of the validation slice for the record; {} if there is none."""
        data = self.validation
        if not len(data):
            return {}
        if isinstance(data, ConversationTokens):
            return {"conversations": len(data), "tokens": data.targets}
        return {"tokens": data.size}

    def next_batch(self, position: Position) -> tuple[Ints, torch.Tensor | None]:
        """Return (token ids [B, T + 1] of the next step, loss mask or None); switches from text to
        conversations."""
        if self.conversations and (batch := self.conversations.next_batch(position)):
            ids, loss_mask = batch
            return ids, torch.from_numpy(loss_mask)
        progress = position.stage_progress
        settings = self.plan.train
        length = window_length(progress, settings)
        ids = self._batches.batch(position.step, length)
        if position.token_split and progress < recipe.BPE_DROPOUT_UNTIL:
            ids = split_merges(
                ids,
                self.tokenizer.merge_pairs,
                position.token_split,
                [settings.seed, position.step, length],
                keeps_repetitions=settings.induction,
            )
        return ids, None

    def has_planned_dropout(self, position: Position) -> bool:
        """Return whether the run has switched from text to conversations; their dropout rate is in the
        plan."""
        phase = self.conversations
        return phase is not None and phase.follows_text and position.conversations_from is not None


def window_length(progress: float, settings: TrainConfig) -> int:
    """Return the tokens per window at `progress` (0 to 1 of the run), a divisor of the context length.

    Fine-tuning uses the full context length throughout: the model already attends over long distances.

    >>> settings = TrainConfig(steps=1, context=256)
    >>> [window_length(progress, settings) for progress in (0.0, 0.3, 0.5)]
    [64, 128, 256]
    """
    context = settings.context
    if settings.is_fine_tuning:
        return context
    warmup = recipe.LENGTH_WARMUP_WITH_INDUCTION if settings.induction else recipe.LENGTH_WARMUP
    divisor = next((divisor for until, divisor in warmup if progress < until), 1)
    shortest = max(min(context, recipe.SHORTEST_WINDOW), context // divisor)
    return next(length for length in range(shortest, context + 1) if context % length == 0)


class ConversationPhase:
    """The part of a run that trains on conversations: all of the run, or its end. Its state is in the
    Position."""

    def __init__(
        self,
        conversations: PreparedConversations,
        chosen: ConversationSettings,
        train: TrainConfig,
        tokenizer: Tokenizer,
    ) -> None:
        self._conversations = conversations
        self._chosen = chosen
        self._settings = train
        self._tokenizer = tokenizer
        # chat template to store with the model; None if the base model has one
        self.template = None if conversations.divided.inputs.template else conversations.template.source
        self.follows_text = chosen.share < 1
        training, self.validation = reserve_conversations(conversations.training, chosen.validation)
        self._batches = ConversationBatches(
            training, train.context, train.batch_size, train.seed, tokenizer.eos_id
        )
        self.tokens_per_epoch = self._batches.rows * train.context  # including padding
        self._question = next(questions(conversations))
        self.question = self._question.text  # a held-out question, which the samples answer

    def next_batch(self, position: Position) -> tuple[Ints, NDArray[np.bool_]] | None:
        """Return (token ids, loss mask) of the next step; None until the progress of the run reaches the
        conversations."""
        if position.conversations_from is None:
            begin = 1 - self._chosen.share
            if self._settings.seconds is None:  # even a short run takes a step on conversations
                begin = min(begin, (self._settings.steps - 1) / self._settings.steps)
            if position.progress < begin:
                return None
            position.conversations_from = position.step
            if self.follows_text:
                position.dropout = self._chosen.dropout
        return self._batches.batch(position.step - position.conversations_from)

    def prompt(self, question: str | None) -> Sequence[int]:
        """Encode a question as a prompt; None: the held-out question, with the messages before it."""
        if question is None:
            return self._question.ids
        messages = [Message("user", question)]
        return self._conversations.template.encode(messages, add_generation_prompt=True)

    def answer(self, runtime: Runtime, max_tokens: int, is_over: Callable[[], bool] = lambda: False) -> str:
        """Return a model's greedy answer to the held-out question, of at most `max_tokens` tokens; stops
        early once `is_over` returns True."""
        max_tokens = min(max_tokens, longest_answer(self._conversations))
        stop_ids = self._conversations.template.stop_ids
        ids = greedy_answer(runtime, self._tokenizer, self._question.ids, stop_ids, max_tokens, is_over)
        return self._tokenizer.decode(ids)

    def record(self, position: Position) -> dict[str, Any]:
        """Return the step at which a run switched to conversations, and its epochs on them."""
        began = position.step if position.conversations_from is None else position.conversations_from
        tokens = (position.step - began) * self._settings.tokens_per_step
        return {"from_step": began, "epochs": round(tokens / self.tokens_per_epoch, 4)}


def reserve_conversations(
    conversations: ConversationTokens, count: int
) -> tuple[ConversationTokens, ConversationTokens]:
    """Return (training conversations, about `count` for validation). Duplicates of training conversations are
    dropped from the latter."""
    chosen = held_out_indices(len(conversations), count / len(conversations))
    reserved = set(chosen)
    kept = [i for i in range(len(conversations)) if i not in reserved]
    known = {conversations.ids[conversations.span(i)].tobytes() for i in kept}
    new = [i for i in chosen if conversations.ids[conversations.span(i)].tobytes() not in known]
    return conversations.select(kept), conversations.select(new)
