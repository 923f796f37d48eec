"""The loop of a training run, as a generator of events. It never prints and never writes a file.

All randomness (the order of the data, dropout, fresh weights) is a function of (seed, step). New, fine-tuning
and resumed runs take the same path.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import TrainConfig, as_record
from llmcli.data.conversations.chat_template import with_chat_template
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.data.position import Position
from llmcli.training.loop.best_weights import BestWeights, CandidateEvaluator
from llmcli.training.loop.clock import Clock, TimeBudget
from llmcli.training.loop.events import Done, Evaluation, Event, State, Step, TeacherTrained
from llmcli.training.loop.final_evaluation import FinalEvaluator
from llmcli.training.loop.job import Job, is_evaluation_due
from llmcli.training.loop.probe import Probe
from llmcli.training.loop.record import History, clock_record, training_record
from llmcli.training.loop.sample_generator import SampleGenerator
from llmcli.training.loop.stepper import Stepper
from llmcli.training.planning import recipe
from llmcli.training.step import base_divergence
from llmcli.training.step.optimizer import lr_schedule

STATE = ("model", "best", "optimizer", "adapters", "teacher")  # prefixes of the arrays of a State
LONG_EVALUATION = 5e11  # FLOPs (a few seconds on a few cores); the state is saved before a longer evaluation
SAVING_SECONDS_PER_MILLION = 0.12  # per million parameters with the optimizer's state, on a slow disk


def train(job: Job, clock: Clock, resume_from: State | None = None) -> Iterator[Event]:
    """Train from the weights of the job's `start`, or from fresh weights. The last event is Done.

    When the clock's `stop` returns True, the run ends early with the best weights so far. When the job's
    `save_due` returns True, and before long evaluations, a State is yielded, from which `resume_from` leads
    to the same weights.

    Raises LLMError if the loss becomes NaN or infinite before the first evaluation (later, the run ends with
    the best weights so far), if it is stopped before its first step, or if `resume_from` belongs to another
    run.
    """
    stop = clock.stop
    run = Run(job, clock)
    run.begin(resume_from)
    del resume_from  # its copy of the weights and optimizer must not stay in memory
    stopped = stop()
    if job.start and run.is_new and not stopped:
        yield from run.evaluate()  # if training only makes these weights worse, the run ends with them
        clock.begin_steps()
        stopped = stop()
    while True:
        if run.is_evaluation_due() and not stopped:
            yield from run.evaluate()
            stopped = stop()
        if run.problem or (run.is_over and not stopped):
            break
        # save before an evaluation that only an interrupted run makes: a resumed run must not depend on it
        if stopped or (run.has_begun and job.save_due()):
            yield run.state()
        if stopped:
            break
        if run.is_student_due:
            yield from run.begin_student()
        else:
            if step := run.step():
                yield step
            stopped = stop()
        if run.is_over and run.has_long_final_evaluation():
            yield run.state()  # a failure in the following evaluations loses no steps
    if not (run.has_begun or run.problem):
        raise LLMError("stopped before the first training step was finished; no model was written")
    if stopped and not (run.is_evaluated or run.problem):
        yield from run.evaluate(hurried=True)
    yield run.finish(interrupted=stopped and not run.problem)


class Run:
    """A training run and the operations in its loop."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self._job = job
        self._clock = clock
        self._plan = job.plan
        self._data = job.data
        self._settings = job.plan.train
        settings, self._stepper = self._settings, Stepper(job, clock)
        model = self._stepper.model
        self.position = Position(
            dropout=settings.dropout,
            token_split=settings.token_split,
            stage_end=settings.teacher_share or 1.0,
        )
        self._history = History()
        self._best = BestWeights(model, self.position, has_adapters=settings.lora_rank > 0)
        self._candidates = CandidateEvaluator(model, job, clock, is_compiled=self._stepper.is_compiled)
        self._samples = SampleGenerator(job, clock)
        self._probe = Probe(job, clock)
        self._final = FinalEvaluator(model, job, clock)
        self.problem = ""  # the reason why the run cannot continue

    def begin(self, resume_from: State | None) -> None:
        """Prepare the steps, restore the state of a stopped run, and start the clock."""
        self._stepper.prepare(self._seconds_to_generate(resume_from))
        if resume_from:
            self._restore(resume_from)
        else:
            self._clock.start()
        if leader := self._job.leader:
            optimizer = _with_prefix(resume_from.arrays, "optimizer.") if resume_from else None
            leader.send_state(self._stepper.model, optimizer)

    def _seconds_to_generate(self, resume_from: State | None) -> float:
        """Return the maximum seconds for the base model's text before the first step."""
        if (budget := self._settings.seconds) is None:
            return math.inf
        earlier = resume_from.values.get("seconds") if resume_from else None
        # other values will be refused
        spent = self._clock.elapsed + (earlier if isinstance(earlier, float) else 0.0)
        return base_divergence.seconds_to_generate(budget, budget - self._clock.reserve - spent)

    @property
    def is_new(self) -> bool:
        """Return whether there was neither a step nor an evaluation."""
        return not (self.has_begun or self._history.evaluations or self._history.samples)

    @property
    def has_begun(self) -> bool:
        return self.position.step > 0

    @property
    def is_over(self) -> bool:
        return self.position.progress >= 1

    @property
    def _seen_tokens(self) -> int:
        return self.position.step * self._settings.tokens_per_step

    def step(self) -> Step | None:
        """Take a step; None if it was not finished: `problem` has the reason, or the time is up."""
        position, clock = self.position, self._clock
        began, processor_began = clock.now(), clock.processor_time()
        loss = self._stepper.step(position)
        if loss is None:
            self._give_up_step(began)
            return None
        if not math.isfinite(loss):
            self.problem = _divergence(position.step + 1, self._settings)
            return None
        position.step += 1
        self._stepper.count_seconds(clock.now() - began, clock.processor_time() - processor_began)
        position.progress = self._progress()
        self._adapt_regularization()
        self._history.losses.append(loss)
        elapsed, trained = clock.read()
        return Step(
            step=position.step,
            progress=min(1.0, position.progress),
            loss=loss,
            tokens=self._seen_tokens,
            epoch=self._seen_tokens / self._data.tokens_per_epoch,
            rate=lr_schedule(position.stage_progress),
            seconds=elapsed,
            tokens_per_second=self._seen_tokens / max(1e-9, trained),
        )

    def _progress(self) -> float:
        """Return the progress of the run, 0 to 1, by its steps or by the clock."""
        progress = self.position.step / self._settings.steps
        if budget := self._clock.budget:
            progress = max(progress, budget.progress(self._clock.elapsed, self._final_cost()))
        return progress

    def _final_cost(self) -> float:
        """Return the cost of the evaluations after the last step, as a number of tokens evaluated during the
        run."""
        return self._candidates.cost + self._final.cost(self._seen_tokens)

    def _adapt_regularization(self) -> None:
        """Adapt regularization to the number of epochs that the run will reach at its current speed."""
        position, budget, regularize = self.position, self._clock.budget, self._job.regularize
        if (
            not budget
            or not regularize
            or self.is_over
            or self._data.has_planned_dropout(position)
            or position.progress < position.regularized_progress + recipe.REGULARIZE_EVERY
            or not budget.pace  # no step was measured yet: the first one may compile the layers
        ):
            return
        position.regularized_progress = position.progress
        epochs = self._expected_stage_tokens(budget) / self._data.tokens_per_epoch
        current, margin = (position.dropout, position.token_split), 1 + recipe.EPOCHS_MARGIN
        if current in (regularize(epochs / margin), regularize(epochs * margin)):
            return
        position.dropout, position.token_split = regularize(epochs)
        position.regularizations.append(
            [position.step, round(epochs, 2), position.dropout, position.token_split]
        )

    def _expected_stage_tokens(self, budget: TimeBudget) -> float:
        """Estimate the tokens that the current stage will have trained on at its end, at the current
        speed."""
        position, seen = self.position, self._seen_tokens
        expected = budget.expected_tokens(self._clock.elapsed, seen, self._final_cost())
        left = max(0.0, min(expected, self._settings.steps * self._settings.tokens_per_step) - seen)
        in_stage = max(0.0, position.stage_end - position.progress) / (1 - position.progress)
        return position.stage_step * self._settings.tokens_per_step + in_stage * left

    def _give_up_step(self, began: float) -> None:
        """End the run, unless the user asked to stop. Raises LLMError if that was its first step."""
        clock = self._clock
        if clock.stop():
            return
        self.position.progress = 1.0
        if clock.budget and not self.position.step:
            raise LLMError(
                f"no training step could be finished in `seconds` {clock.budget.seconds:g}s: reading and planning took "
                f"{began - clock.began:,.0f} s, and one step takes more than {clock.now() - began:,.0f} s here; give "
                "more time, or a smaller `context` or model, or end other programs that run on this machine"
            )

    @property
    def is_student_due(self) -> bool:
        """Return whether the teacher is trained and the student has not begun."""
        position = self.position
        return position.stage_end < 1 and position.progress >= position.stage_end

    def begin_student(self) -> Iterator[Event]:
        """Start the student if the teacher was evaluated and there is time left."""
        position = self.position
        position.progress = max(position.progress, self._progress())
        if self.is_evaluated and not self.is_over:
            self._stepper.begin_student(self._best.weights)
            position.student_from, position.stage_start, position.stage_end = (
                position.step,
                position.progress,
                1.0,
            )
            yield TeacherTrained(position.step, position.best_bits or math.nan)

    @property
    def is_evaluated(self) -> bool:
        """Return whether the current weights were evaluated, or there is no validation slice."""
        return not self._candidates.validator.tokens or self.position.evaluated_step >= self.position.step

    def is_evaluation_due(self) -> bool:
        """Return whether an evaluation is due; without a validation slice, it only generates a sample."""
        position, evaluated = self.position, self._candidates.validator.tokens or self._settings.eval_tokens
        trained = (position.step - position.evaluated_step) * self._settings.tokens_per_step
        interval = recipe.SEARCH_INTERVAL if self._plan.searches else recipe.EVALUATION_INTERVAL
        return trained > 0 and (
            self.is_over
            or self.is_student_due
            or is_evaluation_due(
                trained, evaluated, position.progress - position.evaluated_progress, interval
            )
        )

    def evaluate(self, hurried: bool = False) -> Iterator[Event]:
        """Evaluate the weights, keep the best, make a prediction and a sample. Yields nothing if
        interrupted."""
        position, candidate = self.position, None
        if self._candidates.validator.tokens:
            with self._stepper.all_threads():
                candidate = self._candidates.evaluate(is_first=not position.step, hurried=hurried)
            if candidate is None:
                return
            self._history.evaluations.append((position.step, candidate.bits_per_byte))
            is_best = self._best.keep_if_best(candidate)
            yield Evaluation(position.step, candidate.bits_per_byte, is_best)
        elif hurried:
            return
        position.evaluated_step, position.evaluated_progress = position.step, position.progress
        if not (self._probe.is_wanted or self._samples.is_wanted):
            return
        weights = candidate.weights if candidate else self._stepper.model.to_arrays()
        if self._probe.is_wanted and (prediction := self._probe.predict(position.step, weights)):
            self._history.predictions.append((prediction.step, prediction.next))
            yield prediction
        if self._samples.is_wanted:
            sample = self._samples.generate(position.step, weights)
            self._history.samples.append((sample.step, sample.text))
            yield sample

    def has_long_final_evaluation(self) -> bool:
        """Return whether the final evaluations take so long that the state should be saved first, if there is
        time."""
        left = self._clock.final_deadline() - self._clock.elapsed
        if SAVING_SECONDS_PER_MILLION * self._plan.model.parameters / 1e6 > left / 2:
            return False
        return 2 * self._plan.model.parameters * self._final_cost() > LONG_EVALUATION

    def state(self) -> State:
        """Return everything that the following steps depend on."""
        history, leader = self._history, self._job.leader
        groups = self._stepper.arrays() | {"best": self._best.weights, "adapters": self._best.adapters or {}}
        arrays = {f"{kind}.{name}": array for kind in STATE for name, array in groups[kind].items()}
        return State(
            arrays | {"losses": np.array(history.losses, np.float64)},
            as_record(self.position)
            | {"evaluations": list(history.evaluations), "samples": list(history.samples)}
            | {"predictions": list(history.predictions)}
            | {"validation_units": self._candidates.validator.units}
            | self._clock.values()
            | ({"processes": leader.group.count} if leader else {}),
        )

    def _restore(self, state: State) -> None:
        """Restore a state. Raises LLMError if it belongs to another run."""
        values = state.values
        groups = {kind: _with_prefix(state.arrays, f"{kind}.") for kind in STATE}
        try:
            self._best.weights = groups["best"]
            self._best.adapters = groups["adapters"] if self._settings.lora_rank else None
            self._stepper.load(groups)
            predictions = values.get("predictions", ())  # older versions lack them
            losses = state.arrays["losses"].tolist()
            self._history = History(losses, values["evaluations"], values["samples"], predictions)
            self.position.restore(values, self._settings)
            self._clock.start(values)
            if units := values.get("validation_units"):  # older versions lack it
                self._candidates.validator.keep_units(units)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise LLMError(
                f"the state of the stopped run does not fit its plan ({error}); start over with `overwrite=True`"
            ) from error

    def finish(self, *, interrupted: bool) -> Done:
        """Evaluate the best weights as users of the file will run them, and write the run's record."""
        position, clock = self.position, self._clock
        if position.best_bits is None:
            self._keep_last_weights()
        _, trained_seconds = clock.read()
        with self._stepper.all_threads():
            hurried = interrupted or bool(self.problem)
            final = self._final.evaluate(self._best.weights, self._seen_tokens, hurried=hurried)
        seconds = clock.elapsed
        record = training_record(
            self._job,
            position,
            self._history,
            final,
            sample_prompt=self._samples.prompt,
            probe=self._probe.prompt,
            interrupted=interrupted,
            problem=self.problem,
        )
        if (tokens := self._stepper.base_tokens) is not None:
            record |= {"conversations": record.document["conversations"] | {"base_tokens": tokens}}
        if clock.budget:
            record |= {
                "clock": clock_record(self._plan.expected, seconds, self._seen_tokens / trained_seconds)
            }
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
        """If no weights were evaluated, keep the last ones, calibrated if possible. Raises LLMError if they
        are NaN."""
        if self.problem:
            raise LLMError(self.problem)
        self._best.keep(self._candidates.calibrate())
        if not all(np.isfinite(array).all() for array in self._best.weights.values()):
            raise LLMError(_divergence(self.position.step, self._settings))

    def _checkpoint(self, record: TrainingRecord) -> Checkpoint:
        config, tokenizer, start = self._plan.model, self._data.tokenizer, self._job.start
        tokenizer_config = (
            start.tokenizer_config_json if start else tokenizer.to_config_json(config.max_position_embeddings)
        )
        if self._data.conversations and (template := self._data.conversations.template):
            tokenizer_config = with_chat_template(tokenizer_config, template)
        return Checkpoint(config, tokenizer.to_json(), self._best.weights, record, tokenizer_config)


def _divergence(step: int, settings: TrainConfig) -> str:
    lower = min(settings.lr / 4, 0.5)
    return f"the loss became NaN or infinite at step {step}; lower the learning rate: `lr` {lower:g} `overwrite=True`"


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
