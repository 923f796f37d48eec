"""The planner: makes a plan for a task and a machine, by the rules in rules.py.

The caller provides the function that measures the training speed. If a number of steps or epochs ends the
run, nothing is measured, and the same command results in the same plan.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmcli import units
from llmcli.config import ModelConfig, TrainConfig
from llmcli.errors import LLMError
from llmcli.models.induction import supports_induction
from llmcli.training.planning import plan_table, recipe, rules
from llmcli.training.planning.cost_model import (
    Estimate,
    Machine,
    Memory,
    choose_model,
    estimated_speed,
    layer_parameters,
    memory_needed,
    shortage,
)
from llmcli.training.planning.model_shapes import candidates
from llmcli.training.planning.plan import ConversationSettings, Decision, EpochSearch, Expected, Plan
from llmcli.training.planning.task import Task

MAX_BATCH_DIVISOR = 64  # largest reduction of the batch; if no model fits even then, planning fails
MAX_SPEEDUP = (
    4.0  # over the estimated speed: faster machines get larger batches, which must also fit into memory
)


def make_plan(task: Task, machine: Machine | None = None) -> Plan:
    """Plan a run. The speed of `machine` is measured only if the run has a time budget. Raises LLMError if
    the corpus is too short, no model fits into memory, or settings contradict each other."""
    rules.check_kl_weight(task)
    machine = machine or Machine(estimated_speed)
    if rules.induction_helps(task):
        with_heads = replace(task, induction=True)
        if any(map(supports_induction, candidates(with_heads, task.text))):
            plan = _Planner(with_heads, machine).plan()
            if plan.train.induction:  # otherwise, the best model is too small for the heads
                return plan
    return _Planner(task, machine).plan()


@dataclass(frozen=True)
class _Planner:
    task: Task
    machine: Machine
    batch_divisor: int = 1  # reduces the batch, to save memory

    def plan(self) -> Plan:
        task = self.task
        models = candidates(task, task.data)
        planner, fitting = self._fit(models)
        estimate = planner._choose(fitting)
        in_time = planner._tokens_in_time(estimate)
        if rules.searches_epochs(task, in_time):
            task = replace(task, search=EpochSearch())
            estimate = replace(estimate, tokens=min(in_time, task.max_epochs * task.data.tokens))
        return replace(planner, task=task)._complete(models, fitting, estimate)

    def _complete(self, models: list[ModelConfig], fitting: list[ModelConfig], estimate: Estimate) -> Plan:
        """Make the plan for the model chosen from `models` and those `fitting` into memory."""
        task = self.task
        request = self.task.request
        model = estimate.model
        train, conversations, reasons = self._decide(model, self._tokens_in_time(estimate))
        sharded = rules.sharding(request, model, train, self.machine.memory)
        if sharded.value and conversations:  # a sharded base model cannot generate text
            conversations = replace(conversations, base_divergence=0.0)
        max_epochs = self._max_epochs(train.teacher_share)
        if train.teacher_share:  # tokens of teacher and student together, in the time of one model
            share = sum(rules.token_shares(train.teacher_share))
            seen = min(self._tokens_in_time(estimate) * share, max_epochs * task.data.tokens)
            estimate = Estimate(model, seen, estimate.tokens_per_second * share)
        estimate = replace(estimate, tokens_per_second=estimate.tokens_per_second / self._step_cost)
        tokens = rules.training_tokens(task, max_epochs, estimate, train)
        reasons |= rules.model_reasons(task, model, models, fitting)
        reasons |= {"sharded": sharded.reason, "tokens": tokens.reason}
        plan = Plan(
            model=model,
            train=train,
            rows=(),
            warning=self._too_few_steps(tokens.value / train.tokens_per_step),
            conversations=conversations,
            expected=Expected(estimate.tokens_per_second, tokens.value / task.data.tokens)
            if estimate.tokens_per_second
            else None,
            search=task.search,
            sharded=sharded.value,
        )
        return replace(plan, rows=plan_table.rows(task, plan, tokens.value, reasons))

    # ---- training settings

    def _decide(
        self, model: ModelConfig, tokens: float
    ) -> tuple[TrainConfig, ConversationSettings | None, dict[str, str]]:
        """Decide how to train a model on `tokens` (0: not known yet). Returns the settings and the reasons by
        field name, which has the prefix "conversations." for settings of conversations."""
        task, request = self.task, self.task.request
        data = task.data.tokens
        distillation = rules.distillation(task, tokens)
        max_epochs = self._max_epochs(distillation.value)
        if request.has_time_budget:  # from here on, `tokens` counts one model's
            tokens = min(tokens * rules.token_shares(distillation.value)[1], task.max_epochs * data)
        batch_size = rules.batch_size(task, tokens, self.batch_divisor)
        tokens_per_step = batch_size.value * task.context.value
        if request.steps:
            tokens = float(request.steps * tokens_per_step)
        epochs = tokens / data
        kind = rules.optimizer(task)
        validation = rules.validation(task, tokens)
        decided: dict[str, Decision[Any]] = {
            "seconds": rules.time_budget(task, max_epochs),
            "context": task.context,
            "induction": Decision(
                task.induction and supports_induction(model), "they emerge too slowly in short runs"
            ),
            "batch_size": batch_size,
            "steps": rules.steps(task, tokens_per_step, max_epochs),
            "dropout": rules.dropout(task, model, data, epochs),
            "token_split": rules.bpe_dropout(task, model, data, epochs),
            "calibration_tokens": validation,
            "calibrates": rules.calibration(task, validation.value, epochs),
            "recipe": kind,
            "lr": rules.learning_rate(task, kind.value),
            "teacher_share": distillation,
        }
        train = TrainConfig(
            **{name: decision.value for name, decision in decided.items()},
            lora_rank=request.lora,
            eval_tokens=rules.eval_tokens(tokens),
            seed=request.seed,
            device=request.device,
            dtype=request.dtype,
            threads=request.threads,
        )
        reasons = {name: decision.reason for name, decision in decided.items()}
        reasons["weight_decay"] = "higher values did not help at any epoch count"
        if task.packed is None or task.conversations is None:
            return train, None, reasons
        share = task.conversation_share(tokens)
        chosen: dict[str, Decision[Any]] = {
            "share": share,
            "dropout": rules.dropout(
                task, model, task.packed.tokens, share.value * tokens / task.packed.tokens
            ),
            "base_divergence": rules.base_divergence(task),
            "validation": rules.conversation_validation(task.conversations.lengths, tokens),
        }
        conversations = ConversationSettings(**{name: decision.value for name, decision in chosen.items()})
        reasons |= {f"conversations.{name}": decision.reason for name, decision in chosen.items()}
        return train, conversations, reasons

    def _settings(self, model: ModelConfig, tokens: float = 0.0) -> TrainConfig:
        return self._decide(model, tokens)[0]

    def _max_epochs(self, teacher_share: float) -> float:
        """Return the limit of epochs for the whole run, doubled if it trains two models."""
        return self.task.max_epochs * (2 if teacher_share else 1)

    # ---- memory

    def _fit(self, models: list[ModelConfig]) -> tuple["_Planner", list[ModelConfig]]:
        """Return (this planner with a batch that is small enough for one of the models, those that fit into
        memory)."""
        task, free = self.task, self.machine.memory
        problems = [shortage(self._memory_needed(model), free) for model in models]
        fitting = [model for model, problem in zip(models, problems, strict=True) if not problem]
        if fitting:
            return self, fitting
        if task.request.batch_tokens or self.batch_divisor >= MAX_BATCH_DIVISOR:
            options = (
                "`batch_tokens` or `context`" if task.base else "`width`, `batch_tokens` or fewer `layers`"
            )
            raise LLMError(
                f"training {models[0].parameters:,} parameters {problems[0]}; give a smaller {options}"
            )
        return replace(self, batch_divisor=2 * self.batch_divisor)._fit(models)

    def _memory_needed(self, model: ModelConfig) -> Memory:
        """Estimate the memory for the largest batch that the run may have, and for a teacher if there may be
        one."""
        settings = self._settings(model)
        in_time = MAX_SPEEDUP * (self.task.request.budget or 0.0) * estimated_speed(model, settings)
        tokens = in_time or float(settings.steps * settings.tokens_per_step)
        # maximum for a single model; with two models, each sees fewer tokens and has smaller batches
        single_model_tokens = min(
            tokens, math.nextafter(recipe.DISTILLATION_EPOCHS * self.task.data.tokens, 0.0)
        )
        needed = []
        for count in {tokens, single_model_tokens}:
            settings = self._settings(model, count)
            sharded = rules.sharding(self.task.request, model, settings, self.machine.memory).value
            needed.append(memory_needed(model, settings, self.task.request.processes, sharded=sharded))
        return Memory(max(memory.device for memory in needed), max(memory.host for memory in needed))

    # ---- time

    @property
    def _has_divergence(self) -> bool:
        """Return whether steps also limit the divergence from a base model, on text that the base model
        generates before the first step."""
        base, request = self.task.base, self.task.request
        if base is None or not self.task.conversations_alone or request.kl_weight == 0:
            return False
        settings = replace(self, batch_divisor=1)._settings(base)
        return not rules.sharding(request, base, settings, self.machine.memory).value

    @property
    def _step_cost(self) -> float:
        """Return the time of a step relative to its batch."""
        return 1 + recipe.DIVERGENCE_COST if self._has_divergence else 1.0

    @property
    def _batch_seconds(self) -> float | None:
        """Return the part of the time budget for the batches alone."""
        seconds = self.task.request.budget
        if seconds is None:
            return None
        share = 1 - recipe.DIVERGENCE_TIME if self._has_divergence else 1.0
        return share * rules.training_seconds(seconds, self.task.seconds_spent) / self._step_cost

    def _choose(self, models: list[ModelConfig]) -> Estimate:
        """Choose the model for the time of the run or, with distillation, for the time of each of the two
        models."""
        task = self.task
        seconds = self._batch_seconds
        if seconds is None:
            first = self._settings(models[0])
            tokens = float(first.steps * first.tokens_per_step)
            trainable = [
                model for model in models if layer_parameters(model) <= tokens / recipe.TOKENS_PER_PARAMETER
            ]
            return Estimate((trainable or models[:1])[-1], tokens)
        min_tokens = 0.0  # enough for CONVERSATION_MIN_EPOCHS
        if task.packed:
            min_tokens = (
                recipe.CONVERSATION_MIN_EPOCHS * task.packed.tokens / task.conversation_share(0.0).value
            )
        choose = partial(
            choose_model,
            models,
            data=task.data,
            settings=self._settings,
            machine=self.machine,
            max_epochs=task.max_epochs,
            measured={},
            min_tokens=min_tokens,
        )
        estimate = choose(seconds)
        # a smaller model, for the time that each of two has, is at most about twice as fast
        if not rules.distillation(task, 2 * seconds * estimate.tokens_per_second).value:
            return estimate
        for_two_models = choose(seconds * rules.token_shares(recipe.TEACHER_SHARE)[1])
        in_time = seconds * for_two_models.tokens_per_second
        return for_two_models if rules.distillation(task, in_time).value else estimate

    def _tokens_in_time(self, estimate: Estimate) -> float:
        """Return the tokens of the time budget, without the limit of epochs, or of the fixed number of
        steps."""
        seconds = self._batch_seconds
        return estimate.tokens if seconds is None else seconds * estimate.tokens_per_second

    def _too_few_steps(self, steps: float) -> str:
        """Return a warning if a time budget leaves too few of the planned steps, otherwise ""."""
        seconds, spent = self.task.request.budget, self.task.seconds_spent
        if seconds is None:
            return ""
        enough_steps = rules.min_steps(self.task)
        planned, left = rules.training_seconds(seconds, spent), rules.seconds_left(seconds, spent)
        step_seconds = planned / max(steps, 0.01)
        if min(planned, left) >= enough_steps * step_seconds:
            return ""
        needed = rules.budget_for(enough_steps * step_seconds, spent)
        advice = f"give `seconds` {units.duration(math.ceil(needed)).replace(' ', '')} or more"
        if left < planned:
            return f"reading and planning take most of {units.duration(seconds)}; {advice}"
        of_all = f"of {enough_steps} steps"
        fitting = f"less than one {of_all} fits" if steps < 1 else f"only about {steps:.0f} {of_all} fit"
        smaller = "`context`" if self.task.base else "`context`, `width` or `layers`"
        return f"{fitting} in {units.duration(seconds)}; {advice}, or a smaller {smaller}"
