"""Corpus size, machine and budget -> a plan, by the rules in rules.py.

The caller measures how fast the machine trains. Where a number of steps or epochs ends the run nothing is measured, and
the same command gives the same plan.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli import units
from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.induction import supports_induction
from llmcli.training import memory_fit, plan_table, rules
from llmcli.training.cost_model import (
    CorpusSize,
    Machine,
    choose_model,
    estimated_speed,
    memory_needed,
    planned_tokens,
)
from llmcli.training.memory_fit import Fit
from llmcli.training.model_shapes import candidates
from llmcli.training.plan import Decision, ModelDecisions, Plan, Request, TrainDecisions

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
) -> Plan:
    """A plan for training on `train_tokens` tokens, of `train_bytes` bytes. `base` is the model to fine-tune, if any;
    its shape is kept.

    The speed of `machine` is measured only where a time budget ends the run. Raises LLMError when the corpus is too
    short, when no model fits into memory, or when the requests contradict each other.
    """
    text = CorpusSize(train_tokens, train_bytes or 3 * train_tokens)
    machine = machine or Machine(estimated_speed)

    def models(context: int, induction: bool) -> list[ModelConfig]:
        return [base] if base else candidates(request, text, context, vocab_size, eos_id, induction=induction)

    def plan(induction: bool) -> Plan:
        context = rules.context_length(request, text, base, induction)
        run = _Run(request, text, base, induction, rules.time_budget(request, base), context)
        return _plan(run, models(context.value, induction), machine)

    if (
        not base
        and rules.induction_helps(request, text)
        and any(map(supports_induction, models(rules.INDUCTION_CONTEXT, True)))
    ):
        with_induction = plan(True)
        if with_induction.train.induction:  # else the best model cannot hold the heads
            return with_induction
    return plan(False)


@dataclass(frozen=True)
class _Run:
    """A run whose budget and context are decided; all else depends on the model."""

    request: Request
    text: CorpusSize
    base: ModelConfig | None
    induction: bool  # whether initial weights get induction heads, where the model can hold them
    budget: Decision[float | None]
    context: Decision[int]

    @property
    def max_epochs(self) -> float:
        return rules.max_epochs(self.request, self.base)

    def decide(self, model: ModelConfig, tokens: float, batch_divisor: int) -> TrainDecisions:
        """How to train a model on `tokens` (0: not known yet), with the batch size divided by `batch_divisor`."""
        request, text, base, context = self.request, self.text, self.base, self.context.value
        batch_size = rules.batch_size(request, text, context, tokens, batch_divisor)
        steps = rules.steps(request, text, batch_size.value * context, base)
        if request.steps:
            tokens = float(request.steps * batch_size.value * context)
        epochs = tokens / text.tokens
        recipe = rules.optimizer(request, base)
        return TrainDecisions(
            seconds=self.budget,
            context=self.context,
            induction=rules.initialization(model, self.induction),
            batch_size=batch_size,
            steps=steps,
            dropout=rules.dropout(request, model, text.tokens, epochs),
            bpe_dropout=rules.bpe_dropout(model, text.tokens, epochs),
            calibration=rules.calibration(request, text, context, epochs),
            weight_decay=rules.weight_decay(),
            recipe=recipe,
            learning_rate=rules.learning_rate(request, recipe.value),
            eval_tokens=rules.eval_tokens(tokens),
        )

    def settings(self, model: ModelConfig, tokens: float, batch_divisor: int) -> TrainConfig:
        return self.decide(model, tokens, batch_divisor).settings(self.request)

    def memory_needed(self, model: ModelConfig, batch_divisor: int) -> float:
        """Bytes, with the largest batch that the run may have."""
        settings = self.settings(model, 0.0, batch_divisor)
        in_time = MAX_SPEEDUP * (self.budget.value or 0.0) * estimated_speed(model, settings)
        tokens = min(in_time, self.max_epochs * self.text.tokens) or planned_tokens(settings)
        return memory_needed(model, self.settings(model, tokens, batch_divisor))

    def decide_model(self, model: ModelConfig, models: Sequence[ModelConfig], fitting: Fit) -> ModelDecisions:
        """The reasons for the model chosen, of `models` and those `fitting` into memory."""
        request, base = self.request, self.base
        return ModelDecisions(
            size=rules.model_size(request, model, models, fitting, base),
            shape=rules.model_shape(request, model, base),
            experts=rules.experts(model, base),
            tied_embeddings=rules.tied_embeddings(request, model, base),
        )


def _plan(run: _Run, models: Sequence[ModelConfig], machine: Machine) -> Plan:
    options = "--batch-tokens or --context" if run.base else "--width, --batch-tokens or fewer --layers"
    fixed_batch = run.request.batch_tokens is not None
    fitting = memory_fit.fit(models, machine.memory, run.memory_needed, fixed_batch=fixed_batch, options=options)

    def settings(model: ModelConfig, tokens: float) -> TrainConfig:
        return run.settings(model, tokens, fitting.batch_divisor)

    estimate = choose_model(fitting.models, run.budget.value, run.text, settings, machine, run.max_epochs)
    training = run.decide(estimate.model, estimate.tokens, fitting.batch_divisor)
    architecture = run.decide_model(estimate.model, models, fitting)
    train = training.settings(run.request)
    tokens = rules.training_tokens(run.request, run.text, run.base, estimate, planned_tokens(train))
    warning = _too_few_steps(run, tokens.value / (train.batch_size * train.context))
    return Plan(estimate.model, train, plan_table.rows(run.request, architecture, training, tokens), warning)


def _too_few_steps(run: _Run, steps: float) -> str:
    """A warning where a time budget leaves fewer than MIN_STEPS steps, else ""."""
    seconds = run.budget.value
    if seconds is None or steps >= rules.MIN_STEPS:
        return ""
    fitting = "less than one step fits" if steps < 1 else f"only about {steps:.0f} steps fit"
    enough = units.duration(math.ceil(seconds * rules.MIN_STEPS / max(steps, 0.01))).replace(" ", "")
    smaller = "--context" if run.base else "--context, --width or --layers"
    return f"{fitting} in {units.duration(seconds)}; give --time {enough} or more, or a smaller {smaller}"
