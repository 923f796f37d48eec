"""Correction of a plan: a run starts over with a model of another size if its first steps run at a different
speed than measured, because other programs were busy during the measurement or have started since."""

import math
import statistics
from collections import deque
from collections.abc import Callable

from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.data.prepare import Prepared
from llmcli.training.loop.events import Event, Restarted, Step
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import (
    CorpusSize,
    Machine,
    Memory,
    Speed,
    estimated_speed,
    expected_loss,
    loss_size,
)
from llmcli.training.planning.plan import Plan
from llmcli.training.planning.rules import token_shares, training_seconds
from llmcli.training.step.throughput import Throughput

WARM_UP_STEPS = 3  # slower than later steps
WINDOW_STEPS = 4  # minimum per window: the thread tuner may use another number of threads in three

Measure = Callable[[ModelConfig, TrainConfig, float], Throughput]


class MeasuredSpeeds:
    """Measures the speed of shapes for the planner, and keeps the fastest of several measurements."""

    def __init__(self, measure: Measure, gain: float = 1.0) -> None:
        """`gain` is the speedup from using several processes."""
        self._measure = measure
        self._gain = gain
        self._measured: dict[
            tuple[int, int, int], tuple[Throughput, float]
        ] = {}  # speed, ratio to the estimate

    def __call__(self, model: ModelConfig, settings: TrainConfig, seconds: float) -> float:
        key, measured = _shape(model, settings), self._measure(model, settings, seconds)
        if key not in self._measured or measured.mean > self._measured[key][0].mean:
            self._measured[key] = measured, measured.mean / estimated_speed(model, settings)
        return self._gain * measured.mean

    def at_start(self, model: ModelConfig, settings: TrainConfig) -> float | None:
        """Return the measured tokens per second in the first steps, if known."""
        measured = self._measured.get(_shape(model, settings))
        return measured and measured[0].at_start

    def scaled(self, factor: float) -> Speed:
        """Return the speeds, measured or estimated, on a machine that is `factor` times as fast."""

        def speed(model: ModelConfig, settings: TrainConfig, seconds: float) -> float:
            if measured := self._measured.get(_shape(model, settings)):
                return factor * measured[0].mean
            ratio = statistics.median(ratio for _, ratio in self._measured.values())
            return factor * ratio * estimated_speed(model, settings)

        return speed


def _shape(model: ModelConfig, settings: TrainConfig) -> tuple[int, int, int]:
    return model.num_hidden_layers, model.hidden_size, settings.context


def _models(plan: Plan) -> tuple[int, int, bool]:
    """Return the shape of the model, and whether there are two (teacher and student)."""
    return plan.model.num_hidden_layers, plan.model.hidden_size, plan.train.teacher_share > 0


def _loss(plan: Plan, tokens: float, data: CorpusSize) -> float:
    """Return the expected loss after `tokens`; with two models, the second sees only part of these."""
    shares = token_shares(plan.train.teacher_share)
    return expected_loss(loss_size(plan.model), tokens * shares[1] / sum(shares), data)


class Correction:
    """Compares the speed of a run with a time limit with its plan, until CORRECTION_UNTIL."""

    def __init__(self, prepared: Prepared, speeds: MeasuredSpeeds, memory: Memory) -> None:
        self._prepared = prepared
        self._speeds = speeds
        self._memory = memory
        plan = prepared.plan
        self._planned = speeds.at_start(plan.model, plan.train)
        self._budget = plan.train.seconds or 0.0
        self._window_seconds = max(recipe.CORRECTION_SECONDS, recipe.CORRECTION_SHARE * self._budget)
        self._windows: deque[float] = deque(maxlen=2)  # tokens per second in each
        self._seconds = 0.0
        self._tokens = 0
        self._steps = 0  # totals of the incomplete window
        self._last: Step | None = None  # the previous step, if nothing else has taken time since

    def restart(self, event: Event) -> Restarted | None:
        """Return the plan to restart with after this event; None if there is no better one."""
        if not isinstance(event, Step):  # an evaluation or saving takes time until the next step
            self._last = None
            return None
        factor = self._factor(event)
        plan = factor and self._better_plan(factor, event)
        return (
            Restarted(event.step, event.seconds, factor, self._prepared.plan, plan)
            if factor and plan
            else None
        )

    def _factor(self, step: Step) -> float | None:
        """Return the speed of the run relative to its plan, once it is known and off by CORRECTION_FACTOR."""
        last, self._last = self._last, step
        if (
            not self._planned
            or step.progress > recipe.CORRECTION_UNTIL
            or last is None
            or last.step < WARM_UP_STEPS
        ):
            return None
        self._seconds += step.seconds - last.seconds
        self._tokens += step.tokens - last.tokens
        self._steps += 1
        if self._seconds < self._window_seconds or self._steps < WINDOW_STEPS:
            return None
        self._windows.append(self._tokens / self._seconds)
        self._seconds = 0.0
        self._tokens = 0
        self._steps = 0
        return agreed_factor([speed / self._planned for speed in self._windows])

    def _better_plan(self, factor: float, step: Step) -> Plan | None:
        """Return the plan for `factor` times the measured speed, if its model differs and starting over is
        worth it."""
        current, plan_again = self._prepared.plan, self._prepared.plan_again
        assert plan_again and current.expected
        machine = Machine(self._speeds.scaled(factor), self._memory)
        plan = plan_again(machine, step.seconds + recipe.RESTART_SECONDS)
        if plan.expected is None or _models(plan) == _models(current):
            return None
        left = training_seconds(self._budget, step.seconds)
        continued = step.tokens + left * factor * current.expected.tokens_per_second
        data = self._data(current)
        restarted = plan.expected.epochs * data.tokens
        if self._is_too_short(current, continued) and not self._is_too_short(plan, restarted):
            return plan
        loss, better = _loss(current, continued, data), _loss(plan, restarted, data)
        return plan if (1 + recipe.CORRECTION_GAIN) * better < loss else None

    def _data(self, plan: Plan) -> CorpusSize:
        """Return the size of an epoch."""
        tokens, read_bytes = len(self._prepared.tokens), self._prepared.record.read_bytes
        if encoded := self._prepared.encoded:
            packed = encoded.size.packed(plan.train.context)
            return CorpusSize(tokens + packed.tokens, read_bytes + packed.bytes)
        return CorpusSize(tokens, read_bytes)

    def _is_too_short(self, plan: Plan, tokens: float) -> bool:
        """Return whether a run of `tokens` tokens reads its conversations, if any, for too few epochs."""
        if plan.conversations is None or self._prepared.encoded is None:
            return False
        packed = self._prepared.encoded.size.packed(plan.train.context).tokens
        return plan.conversations.share * tokens < recipe.CONVERSATION_MIN_EPOCHS * packed


def agreed_factor(factors: list[float]) -> float | None:
    """Return the speed of a run relative to its plan: the smaller deviation of two windows with the same
    direction.

    >>> agreed_factor([0.4, 0.5]), agreed_factor([1.9, 1.5]), agreed_factor([0.4, 1.5]), agreed_factor([0.9, 0.2])
    (0.5, 1.5, None, None)
    """
    if len(factors) < 2 or (factors[0] < 1) != (factors[1] < 1):
        return None
    factor = min(factors, key=lambda factor: abs(math.log(factor)))
    return factor if abs(math.log(factor)) >= math.log(recipe.CORRECTION_FACTOR) else None
