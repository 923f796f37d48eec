"""Corpus size, machine and budget -> a plan, by the rules in rules.py.

The caller measures how fast the machine trains. Where a number of steps or epochs ends the run nothing is measured, and
the same command gives the same plan.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from llmcli import units
from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.induction import supports_induction
from llmcli.training.planning import conversation_rules, memory_fit, plan_table, recipe, rules
from llmcli.training.planning.conversation_rules import ConversationSize, Phases
from llmcli.training.planning.cost_model import (
    CorpusSize,
    Estimate,
    Machine,
    Memory,
    choose_model,
    estimated_speed,
    memory_needed,
    planned_tokens,
)
from llmcli.training.planning.memory_fit import Fit
from llmcli.training.planning.model_shapes import candidates
from llmcli.training.planning.plan import (
    ConversationDecisions,
    ConversationSettings,
    Decision,
    Expected,
    ModelDecisions,
    Plan,
    Request,
    TrainDecisions,
)

MAX_SPEEDUP = 4.0  # over the estimate; a faster machine gets larger batches, which must fit into memory too


def make_plan(
    request: Request,
    *,
    train_tokens: int,
    vocab_size: int,
    eos_id: int,
    train_bytes: int | None = None,
    base: ModelConfig | None = None,
    machine: Machine | None = None,
    conversations: ConversationSize | None = None,
    seconds_spent: float = 0.0,
) -> Plan:
    """A plan for training on `train_tokens` tokens of text, of `train_bytes` bytes, and then on conversations if there
    are any; without text (0 tokens), on conversations alone. `base` is the model to fine-tune, if any; its shape is
    kept.

    The speed of `machine` is measured only where a time budget ends the run, of which `seconds_spent` are over. Raises
    LLMError when the corpus is too short, when no model fits into memory, or when the requests contradict each other.
    """
    text = CorpusSize(train_tokens, train_bytes or 3 * train_tokens)
    machine = machine or Machine(estimated_speed)
    conversation_rules.check_kl_weight(request, base, conversations_alone=bool(conversations) and not train_tokens)

    def candidates_for(data: CorpusSize, context: int, induction: bool) -> list[ModelConfig]:
        return [base] if base else candidates(request, data, context, vocab_size, eos_id, induction=induction)

    def plan(induction: bool) -> Plan:
        run = _Run(machine.memory, request, text, conversations, base, induction, seconds_spent)
        return _plan(run, candidates_for(run.data, run.context.value, induction), machine)

    if (
        not base
        and rules.induction_helps(request, text)
        and any(map(supports_induction, candidates_for(text, recipe.INDUCTION_CONTEXT, True)))
    ):
        with_induction = plan(True)
        if with_induction.train.induction:  # else the best model cannot hold the heads
            return with_induction
    return plan(False)


@dataclass(frozen=True)
class _Run:
    """A run as requested, and what follows before its model is known."""

    memory: Memory  # that is free for each process
    request: Request
    text: CorpusSize
    conversations: ConversationSize | None
    base: ModelConfig | None
    induction: bool  # whether initial weights get induction heads, where the model can hold them
    seconds_spent: float  # of the time budget, before the first step

    @cached_property
    def context(self) -> Decision[int]:
        if not self.text.tokens and self.conversations:
            return conversation_rules.context_length(self.request, self.conversations, self.base)
        context = rules.context_length(self.request, self.text, self.base, self.induction)
        if self.conversations is None or self.request.context is not None:
            return context
        wanted = conversation_rules.context_length(self.request, self.conversations, self.base)
        longest = rules.longest_context(self.text)
        return wanted if context.value < wanted.value <= longest else context

    @cached_property
    def packed(self) -> CorpusSize | None:
        """The rows of conversations, if there are any."""
        return self.conversations.packed(self.context.value) if self.conversations else None

    @cached_property
    def data(self) -> CorpusSize:
        """All that an epoch reads."""
        if self.packed is None:
            return self.text
        if not self.text.tokens:
            return self.packed
        return CorpusSize(self.text.tokens + self.packed.tokens, self.text.bytes + self.packed.bytes)

    @property
    def conversations_alone(self) -> bool:
        return self.conversations is not None and not self.text.tokens

    @property
    def phases(self) -> Phases | None:
        """Text and then conversations, if the run has both."""
        if self.packed is None or self.conversations_alone:
            return None
        return Phases(
            self.text,
            self.packed,
            rules.max_epochs(self.request, self.base),
            conversation_rules.max_epochs(self.request, self.packed, self.base),
        )

    @property
    def max_epochs(self) -> float:
        if self.conversations_alone:
            return conversation_rules.max_epochs(self.request, self.data, self.base)
        return self.phases.epochs if self.phases else rules.max_epochs(self.request, self.base)

    def epochs_of_models(self, teacher_share: float) -> float:
        """The limit of epochs for the whole run: doubled where it trains two models."""
        return self.max_epochs * (2 if teacher_share else 1)

    @property
    def budget(self) -> float | None:
        """The time budget in seconds, if there is one."""
        return rules.time_budget(self.request, self.max_epochs).value

    @cached_property
    def step_cost(self) -> float:
        """The time of a step, relative to that of its batch alone: the divergence from a base model takes time, too."""
        if self.base is None or not self.conversations_alone or self.request.kl_weight == 0:
            return 1.0
        is_sharded = self.sharding(self.base, self.settings(self.base, 0.0, 1)).value
        return 1.0 if is_sharded else 1 + recipe.DIVERGENCE_COST

    @property
    def batch_seconds(self) -> float | None:
        """The part of the time budget for the batches alone."""
        seconds = self.budget
        return rules.training_seconds(seconds, self.seconds_spent) / self.step_cost if seconds else seconds

    @property
    def min_tokens(self) -> float:
        """Tokens in which conversations are read CONVERSATION_MIN_EPOCHS times; 0 without any."""
        if self.packed is None:
            return 0.0
        share = self.phases.share(0.0).value if self.phases else 1.0
        return recipe.CONVERSATION_MIN_EPOCHS * self.packed.tokens / share

    def distillation(self, tokens: float) -> Decision[float]:
        """The part of a run for a teacher, where one model would be trained on `tokens`."""
        epochs, conversations = min(tokens / self.data.tokens, self.max_epochs), self.conversations is not None
        return rules.distillation(self.request, self.text, epochs, self.base, conversations=conversations)

    def decide(self, model: ModelConfig, tokens: float, batch_divisor: int) -> TrainDecisions:
        """How to train a model on `tokens` (0: not known yet), with the batch size divided by `batch_divisor`."""
        request, data, context = self.request, self.data, self.context.value
        alone = self.conversations_alone
        batches = conversation_rules.batches_per_epoch(request) if alone else 1
        distillation = self.distillation(tokens)
        most_epochs = self.epochs_of_models(distillation.value)
        if request.has_time_budget:  # from here on, of one model
            tokens = min(tokens * rules.token_shares(distillation.value)[1], self.max_epochs * data.tokens)
        batch_size = rules.batch_size(request, data, context, tokens, batch_divisor, batches)
        memorized = "the conversations" if alone else "the text and the conversations" if self.packed else "the text"
        steps = rules.steps(request, data, batch_size.value * context, most_epochs, memorized)
        if request.steps:
            tokens = float(request.steps * batch_size.value * context)
        epochs = tokens / data.tokens
        kind = rules.optimizer(request, self.base)
        no_text = Decision(0, "of the conversations")
        validation = no_text if self.conversations else rules.validation(data, tokens, context)
        return TrainDecisions(
            seconds=rules.time_budget(request, most_epochs),
            context=self.context,
            induction=rules.initialization(model, self.induction),
            batch_size=batch_size,
            steps=steps,
            dropout=conversation_rules.dropout(request, model, data.tokens, epochs, self.base)
            if alone
            else rules.dropout(request, model, data.tokens, epochs),
            bpe_dropout=conversation_rules.bpe_dropout() if alone else rules.bpe_dropout(model, data.tokens, epochs),
            validation=validation,
            calibration=conversation_rules.calibration()
            if self.conversations
            else rules.calibration(request, validation.value, epochs),
            weight_decay=rules.weight_decay(),
            recipe=kind,
            learning_rate=rules.learning_rate(request, kind.value),
            distillation=distillation,
            eval_tokens=rules.eval_tokens(tokens),
            conversations=self._decide_conversations(model, tokens),
        )

    def _decide_conversations(self, model: ModelConfig, tokens: float) -> ConversationDecisions | None:
        if self.packed is None or self.conversations is None:
            return None
        return conversation_rules.decisions(
            self.request, model, self.conversations, self.packed, self.phases, tokens, self.base
        )

    def sharding(self, model: ModelConfig, train: TrainConfig) -> Decision[bool]:
        return rules.sharding(self.request, model, train, self.memory)

    def settings(self, model: ModelConfig, tokens: float, batch_divisor: int) -> TrainConfig:
        return self.decide(model, tokens, batch_divisor).settings(self.request)

    def memory_needed(self, model: ModelConfig, batch_divisor: int) -> Memory:
        """With the largest batch that the run may have, and with a teacher if it may have one."""
        settings = self.settings(model, 0.0, batch_divisor)
        in_time = MAX_SPEEDUP * (self.budget or 0.0) * estimated_speed(model, settings)
        tokens = in_time or planned_tokens(settings)
        # the most that a single model sees; of two each sees less, and has smaller batches
        of_one = min(tokens, math.nextafter(recipe.DISTILLATION_EPOCHS * self.data.tokens, 0.0))
        needed = [self._memory_needed(model, count, batch_divisor) for count in {tokens, of_one}]
        return Memory(max(one.device for one in needed), max(one.host for one in needed))

    def _memory_needed(self, model: ModelConfig, tokens: float, batch_divisor: int) -> Memory:
        settings = self.settings(model, tokens, batch_divisor)
        sharded = self.sharding(model, settings).value
        return memory_needed(model, settings, self.request.processes, sharded=sharded)

    def decide_model(
        self, model: ModelConfig, train: TrainConfig, models: Sequence[ModelConfig], fitting: Fit
    ) -> ModelDecisions:
        """The reasons for the model chosen, of `models` and those `fitting` into memory."""
        request, base = self.request, self.base
        return ModelDecisions(
            size=rules.model_size(request, model, models, fitting, base),
            shape=rules.model_shape(request, model, base),
            experts=rules.experts(model, base),
            tied_embeddings=rules.tied_embeddings(request, model, base),
            sharded=self.sharding(model, train),
        )


def _plan(run: _Run, models: Sequence[ModelConfig], machine: Machine) -> Plan:
    options = "--batch-tokens or --context" if run.base else "--width, --batch-tokens or fewer --layers"
    fixed_batch = run.request.batch_tokens is not None
    fitting = memory_fit.fit(models, machine.memory, run.memory_needed, fixed_batch=fixed_batch, options=options)

    estimate = _choose(run, fitting, machine)
    training = run.decide(estimate.model, _tokens_in_time(estimate, run), fitting.batch_divisor)
    train = training.settings(run.request)
    architecture = run.decide_model(estimate.model, train, models, fitting)
    sharded = architecture.sharded.value
    if sharded:
        training = _without_divergence(training)
    most_epochs = run.epochs_of_models(train.teacher_share)
    if train.teacher_share:
        estimate = _of_two_models(estimate, run, most_epochs, train.teacher_share)
    estimate = replace(estimate, tokens_per_second=estimate.tokens_per_second / run.step_cost)
    tokens = rules.training_tokens(run.request, run.data, most_epochs, estimate, planned_tokens(train))
    warning = _too_few_steps(run, tokens.value / train.tokens_per_step)
    rows = plan_table.rows(run.request, architecture, training, tokens)
    expected = None
    if estimate.tokens_per_second:
        expected = Expected(estimate.tokens_per_second, tokens.value / run.data.tokens)
    return Plan(estimate.model, train, rows, warning, _conversation_settings(training), expected, sharded)


def _choose(run: _Run, fitting: Fit, machine: Machine) -> Estimate:
    """The model for the time of the run, or, where that is enough for two models, for the time that each has."""
    measured: dict[int, float] = {}

    def settings(model: ModelConfig, tokens: float) -> TrainConfig:
        return run.settings(model, tokens, fitting.batch_divisor)

    def choose(seconds: float | None) -> Estimate:
        return choose_model(
            fitting.models, seconds, run.data, settings, machine, run.max_epochs, measured, run.min_tokens
        )

    seconds = run.batch_seconds
    estimate = choose(seconds)
    teacher_share = run.distillation(_tokens_in_time(estimate, run)).value
    if not (seconds and teacher_share):
        return estimate
    of_two = choose(seconds * rules.token_shares(teacher_share)[1])
    still_enough = run.distillation(_tokens_in_time(of_two, run)).value  # not if that one was measured as slower
    return of_two if still_enough else estimate


def _tokens_in_time(estimate: Estimate, run: _Run) -> float:
    """The tokens that a model would be trained on in the time budget, if no limit of epochs ended the run; without a
    time budget those that it will be trained on."""
    if run.batch_seconds is None:
        return estimate.tokens
    return run.batch_seconds * estimate.tokens_per_second


def _of_two_models(estimate: Estimate, run: _Run, most_epochs: float, teacher_share: float) -> Estimate:
    """What a teacher and a student are expected to see together, in the time of one model."""
    share = sum(rules.token_shares(teacher_share))
    tokens = min(_tokens_in_time(estimate, run) * share, most_epochs * run.data.tokens)
    return Estimate(estimate.model, tokens, estimate.tokens_per_second * share)


def _without_divergence(training: TrainDecisions) -> TrainDecisions:
    """For sharded weights, with which the base model cannot generate text."""
    if training.conversations is None or not training.conversations.base_divergence.value:
        return training
    none = Decision(0.0, "not with sharded weights")
    return replace(training, conversations=replace(training.conversations, base_divergence=none))


def _conversation_settings(training: TrainDecisions) -> ConversationSettings | None:
    chosen = training.conversations
    if chosen is None:
        return None
    return ConversationSettings(
        chosen.share.value,
        chosen.dropout.value,
        base_divergence=chosen.base_divergence.value,
        validation=chosen.validation.value,
    )


def _too_few_steps(run: _Run, steps: float) -> str:
    """A warning where a time budget leaves fewer than MIN_STEPS steps, else ""."""
    seconds = run.budget
    if seconds is None or steps >= recipe.MIN_STEPS:
        return ""
    fitting = "less than one step fits" if steps < 1 else f"only about {steps:.0f} steps fit"
    training = rules.training_seconds(seconds, run.seconds_spent)
    missing = training * (recipe.MIN_STEPS / max(steps, 0.01) - 1)
    enough = units.duration(math.ceil(seconds + missing / recipe.SHARE_OF_REST)).replace(" ", "")
    smaller = "--context" if run.base else "--context, --width or --layers"
    return f"{fitting} in {units.duration(seconds)}; give --time {enough} or more, or a smaller {smaller}"
