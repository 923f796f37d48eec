"""A training run and its operations (step, evaluate, save the state, finish), which `trainer.train` calls.

A run from scratch, a fine-tuning run and a resumed run take the same path.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from llmcli.config import TrainConfig, as_record
from llmcli.data.conversations.chat_template import with_chat_template
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.loop.best_weights import BestWeights, CandidateEvaluator
from llmcli.training.loop.evaluation_schedule import EvaluationSchedule
from llmcli.training.loop.events import Done, Evaluation, Event, State, Step, TeacherTrained
from llmcli.training.loop.final_evaluation import FinalEvaluator
from llmcli.training.loop.history import History
from llmcli.training.loop.record import clock_record, training_record
from llmcli.training.loop.run_clock import RunClock
from llmcli.training.loop.run_timer import RunTimer
from llmcli.training.loop.sample_generator import SampleGenerator
from llmcli.training.loop.stepper import Stepper
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import Plan, Regularization
from llmcli.training.step import base_behaviour
from llmcli.training.step.compute import Compute
from llmcli.training.step.data_parallel import Leader
from llmcli.training.step.optimizer import rate
from llmcli.training.step.thread_tuner import ThreadTuner

SAVING_SECONDS_PER_MILLION = 0.12  # parameters, with the state of the optimizer, on a slow disk


class Run:
    """A run of training between its first step and its file."""

    def __init__(
        self,
        plan: Plan,
        start: Checkpoint | None,
        data: RunData,
        timer: RunTimer,
        *,
        sample_prompt: str | None,
        regularize: Callable[[float], Regularization] | None,
        tuner: ThreadTuner | None,
        schedule: EvaluationSchedule,
        compute: Compute,
        leader: Leader | None,
    ) -> None:
        """The arguments are those of `trainer.train`."""
        settings, timed = plan.train, plan.train.seconds is not None
        self._plan, self._settings, self._start, self._data, self._timer = plan, settings, start, data, timer
        self._schedule = schedule
        self._regularize = regularize if timed else None
        tuner = (tuner if timed else None) or ThreadTuner(1)
        self._stepper = stepper = Stepper(plan, start, data, timer, tuner, compute, leader)
        model, sharded, compiled = stepper.model, stepper.is_sharded, stepper.is_compiled
        self.position = Position(
            dropout=settings.dropout, token_split=settings.token_split, stage_end=settings.teacher_share or 1.0
        )
        self._history = History()
        self._best = BestWeights(model, self.position, settings)
        self._candidates = CandidateEvaluator(model, data, settings, timer, compute, is_compiled=compiled)
        self._samples = SampleGenerator(plan, data, sample_prompt, timer, sharded=sharded)
        self._final = FinalEvaluator(model, plan, start, data, timer, compute, sharded=sharded)
        self.problem = ""  # why the run cannot continue

    def begin(
        self,
        started_at: float,
        reserve_seconds: float,
        resume_from: State | None,
        on_progress: Callable[[float], None],
    ) -> None:
        """Prepare the steps and start the clock. A resumed run restores its state and continues where its clock
        stopped."""
        seconds = self._seconds_to_generate(started_at, reserve_seconds, resume_from)
        self._stepper.prepare(self._timer.now() + seconds, on_progress)
        self._timer.begin(started_at)
        if resume_from:
            self._restore(resume_from)
        self._stepper.send_state(_with_prefix(resume_from.arrays, "optimizer.") if resume_from else None)
        self._timer.start_clock(reserve_seconds)

    def _seconds_to_generate(self, started_at: float, reserve_seconds: float, resume_from: State | None) -> float:
        """At most, for text of the base model before the first step; no limit without a time budget."""
        budget = self._settings.seconds
        if budget is None:
            return math.inf
        earlier = resume_from.values.get("seconds") if resume_from else None
        earlier_seconds = earlier if isinstance(earlier, float) else 0.0  # else it will be refused
        spent = self._timer.now() - started_at + earlier_seconds
        return base_behaviour.seconds_to_generate(budget, budget - reserve_seconds - spent)

    def evaluate_start(self) -> Iterator[Event]:
        """Evaluate the weights that a run starts from: if training only makes them worse, it ends with them."""
        yield from self.evaluate()
        self._timer.begin_training()

    @property
    def is_new(self) -> bool:
        """Whether nothing was done yet, neither a step nor an evaluation."""
        return not (self.has_begun or self._history.evaluations() or self._history.samples())

    @property
    def has_begun(self) -> bool:
        """Whether a step was taken."""
        return self.position.step > 0

    @property
    def is_over(self) -> bool:
        return self.position.progress >= 1

    @property
    def _seen_tokens(self) -> int:
        return self.position.step * self._settings.tokens_per_step

    # ---- steps

    def step(self) -> Step | None:
        """Take a step. None if it was not finished: `problem` says why, or the time is over."""
        position, timer = self.position, self._timer
        began = timer.now()
        loss = self._stepper.step(position)
        if loss is None:
            self._give_up_step(began)
            return None
        if not math.isfinite(loss):
            self.problem = _divergence(position.step + 1, self._settings)
            return None
        position.step += 1
        self._stepper.count_seconds(timer.now() - began)
        position.progress = self._progress()
        self._adapt_regularization()
        self._history.add_loss(loss)
        return self._step_event(loss)

    def _progress(self) -> float:
        """Of the run, 0 to 1, by its steps or by the clock."""
        progress = self.position.step / self._settings.steps
        if clock := self._timer.clock:
            progress = max(progress, clock.progress(self._timer.elapsed, self._final_cost()))
        return progress

    def _final_cost(self) -> float:
        """The cost of the evaluations after the last step, as a number of tokens of an evaluation during the run."""
        return self._candidates.cost + self._final.cost(self._seen_tokens)

    def _adapt_regularization(self) -> None:
        """Adapt regularization to the number of epochs that the run will reach at its current speed."""
        position, clock = self.position, self._timer.clock
        if (
            not clock
            or not self._regularize
            or self.is_over
            or self._data.has_planned_dropout(position)
            or position.progress < position.regularized_progress + recipe.REGULARIZE_EVERY
            or not clock.pace  # no step has been measured yet, if the first compiled the layers
        ):
            return
        position.regularized_progress = position.progress
        epochs = self._expected_stage_tokens(clock) / self._data.tokens_per_epoch
        current = Regularization(position.dropout, position.token_split)
        margin = 1 + recipe.EPOCHS_MARGIN
        nearby = [self._regularize(epochs / margin), self._regularize(epochs * margin)]
        if current in nearby:
            return
        chosen = self._regularize(epochs)
        position.dropout, position.token_split = chosen.dropout, chosen.bpe_dropout
        position.regularizations.append([position.step, round(epochs, 2), chosen.dropout, chosen.bpe_dropout])

    def _expected_stage_tokens(self, clock: RunClock) -> float:
        """Tokens that the current stage will have trained on at its end, at the current speed. The run is not over."""
        position, seen = self.position, self._seen_tokens
        expected = clock.expected_tokens(self._timer.elapsed, seen, self._final_cost())
        left = max(0.0, min(expected, self._settings.steps * self._settings.tokens_per_step) - seen)
        in_stage = max(0.0, position.stage_end - position.progress) / (1 - position.progress)
        return position.stage_step * self._settings.tokens_per_step + in_stage * left

    def _step_event(self, loss: float) -> Step:
        position, seen = self.position, self._seen_tokens
        elapsed, trained = self._timer.read()
        return Step(
            step=position.step,
            progress=min(1.0, position.progress),
            loss=loss,
            tokens=seen,
            epoch=seen / self._data.tokens_per_epoch,
            rate=rate(position.stage_progress),
            seconds=elapsed,
            tokens_per_second=seen / max(1e-9, trained),
        )

    def _give_up_step(self, began: float) -> None:
        """After a step that was cut short the run is over, unless the user asked to stop. Raises LLMError if not even
        the first step fits into the time limit."""
        timer = self._timer
        if timer.stop():
            return
        self.position.progress = 1.0
        if timer.clock and not self.position.step:
            raise LLMError(
                f"no training step could be finished in --time {timer.clock.seconds:g}s: reading and planning took "
                f"{began - timer.began:,.0f} s, and one step takes more than {timer.now() - began:,.0f} s here; give "
                "more time, or a smaller --context or model, or end other programs that run on this machine"
            )

    # ---- distillation

    @property
    def is_student_due(self) -> bool:
        """Whether the teacher is trained and the student has not begun."""
        position = self.position
        return position.stage_end < 1 and position.progress >= position.stage_end

    def begin_student(self) -> Iterator[Event]:
        """Turn to the student, if the teacher is evaluated and that did not take all the time that was left."""
        position = self.position
        position.progress = max(position.progress, self._progress())
        if self.is_evaluated and not self.is_over:
            self._stepper.begin_student(self._best.weights)
            position.student_from, position.stage_start, position.stage_end = position.step, position.progress, 1.0
            yield TeacherTrained(position.step, position.best_bits or math.nan)

    # ---- evaluations

    @property
    def is_evaluated(self) -> bool:
        """Whether the current weights were evaluated, or there is no validation slice."""
        return not self._candidates.tokens or self.position.evaluated_step >= self.position.step

    def is_evaluation_due(self) -> bool:
        """Whether the current weights are to be evaluated: by the schedule, or because the run is over. Without a
        validation slice only a sample is due."""
        position, evaluated = self.position, self._candidates.tokens or self._settings.eval_tokens
        trained = (position.step - position.evaluated_step) * self._settings.tokens_per_step
        return trained > 0 and (
            self.is_over
            or self.is_student_due
            or self._schedule.is_due(trained, evaluated, position.progress - position.evaluated_progress)
        )

    def evaluate(self, hurried: bool = False) -> Iterator[Event]:
        """Evaluate the current weights on the validation slice, keep them if they are the best so far, and generate a
        sample. Yields nothing if that was interrupted; without a slice the sample alone, unless `hurried`."""
        position, candidate = self.position, None
        if self._candidates.tokens:
            with self._stepper.all_threads():
                candidate = self._candidates.evaluate(is_first=not position.step, hurried=hurried)
            if candidate is None:
                return
            self._history.add_evaluation(position.step, candidate.bits_per_byte)
            is_best = self._best.keep_if_best(candidate)
            yield Evaluation(position.step, candidate.bits_per_byte, is_best)
        elif hurried:
            return
        position.evaluated_step, position.evaluated_progress = position.step, position.progress
        if self._samples.is_wanted:
            weights = candidate.weights if candidate else self._stepper.model.to_arrays()
            sample = self._samples.generate(position.step, weights)
            self._history.add_sample(sample.step, sample.text)
            yield sample

    def has_long_final_evaluation(self) -> bool:
        """Whether the final evaluations take so long that the state of the run should be saved before them, if there is
        time for that."""
        left = self._timer.final_deadline() - self._timer.elapsed
        if SAVING_SECONDS_PER_MILLION * self._plan.model.parameters / 1e6 > left / 2:
            return False
        return 2 * self._plan.model.parameters * self._final_cost() > self._schedule.long_evaluation

    # ---- the state of a stopped run

    def state(self) -> State:
        """All that the following steps depend on."""
        groups: dict[str, Mapping[str, NDArray[Any]]] = {
            "model.": self._stepper.model.trainable_arrays(),
            "best.": self._best.weights,
            "optimizer.": self._stepper.optimizer_arrays(),
            "adapters.": self._best.adapters or {},
            "teacher.": self._stepper.teacher_arrays(),
        }
        arrays = {prefix + name: array for prefix, group in groups.items() for name, array in group.items()}
        return State(
            arrays | {"losses": self._history.losses()},
            as_record(self.position)
            | {"evaluations": self._history.evaluations(), "samples": self._history.samples()}
            | {"validation_units": self._candidates.units}
            | self._timer.values()
            | self._stepper.values(),
        )

    def _restore(self, state: State) -> None:
        """Restore what `state` returned. Raises LLMError if it is of another run."""
        arrays, values = state.arrays, state.values
        try:
            self._best.load(_with_prefix(arrays, "best."), _with_prefix(arrays, "adapters."))
            self._stepper.load(_with_prefix(arrays, "model."), _with_prefix(arrays, "optimizer."))
            if teacher := _with_prefix(arrays, "teacher."):
                self._stepper.set_teacher(teacher)
            self._history = History(arrays["losses"].tolist(), values["evaluations"], values["samples"])
            self.position.restore(values, self._settings)
            self._timer.resume(values)
            if units := values.get("validation_units"):  # older versions lack it
                self._candidates.keep_units(units)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise LLMError(
                f"the state of the stopped run does not fit its plan ({error}); start over with --force"
            ) from error

    # ---- the end

    def finish(self, record: dict[str, Any], *, interrupted: bool) -> Done:
        """Evaluate the best weights as those who use the file will run them, and describe the run in `record`."""
        position, timer = self.position, self._timer
        if position.best_bits is None:
            self._keep_last_weights()
        _, trained_seconds = timer.read()
        with self._stepper.all_threads():
            hurried = interrupted or bool(self.problem)
            final = self._final.evaluate(self._best.weights, self._seen_tokens, hurried=hurried)
        seconds = timer.elapsed
        record = copy.deepcopy(record) | training_record(
            self._plan, position, self._history, final,
            train_tokens=self._data.tokens_per_epoch, validation=self._data.validation_size(),
            sample_prompt=self._samples.prompt, interrupted=interrupted, problem=self.problem,
        )  # fmt: skip
        if self._data.conversations:
            record["conversations"] |= self._data.conversations.record(position)
            if self._stepper.base_tokens is not None:
                record["conversations"]["base_tokens"] = self._stepper.base_tokens
        if timer.clock:
            record["clock"] = clock_record(self._plan.expected, seconds, self._seen_tokens / trained_seconds)
        return Done(
            checkpoint=self._checkpoint(record),
            step=position.step,
            best_step=position.best_step,
            seconds=seconds,
            score=final.score,
            interrupted=interrupted,
            problem=self.problem,
            base_score=final.base_score,
            adapters=self._best.adapters,
        )

    def _keep_last_weights(self) -> None:
        """Without a validation slice, or in a run too short for an evaluation, the last weights are kept, calibrated if
        possible. Raises LLMError if they are NaN."""
        if self.problem:
            raise LLMError(self.problem)
        self._best.keep(self._candidates.calibrate())
        if not self._best.are_finite:
            raise LLMError(_divergence(self.position.step, self._settings))

    def _checkpoint(self, record: dict[str, Any]) -> Checkpoint:
        config, tokenizer, start = self._plan.model, self._data.tokenizer, self._start
        tokenizer_config = (
            start.tokenizer_config_json if start else tokenizer.to_config_json(config.max_position_embeddings)
        )
        if self._data.conversations and (template := self._data.conversations.template):
            tokenizer_config = with_chat_template(tokenizer_config, template)
        return Checkpoint(config, tokenizer.to_json(), self._best.weights, record, tokenizer_config)


def _divergence(step: int, settings: TrainConfig) -> str:
    lower = min(settings.lr / 4, 0.5)
    return f"the loss became NaN or infinite at step {step}; lower the learning rate: --lr-scale {lower:g} --force"


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
