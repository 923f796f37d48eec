"""The state of a training run and the operations in its loop: the model, its optimizer and the position, in
one process or several.

In distillation a run trains two models of the same shape, one after the other (born-again networks,
arXiv:1805.04770): a teacher, then a student from fresh weights. The student's targets include the teacher's
predictions (arXiv:1503.02531, section 2). Each is a stage of the run, with its own learning-rate schedule.
"""

import copy
import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.config import TrainConfig, as_record
from llmcli.data.conversations.chat_template import with_chat_template
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import TrainingRecord
from llmcli.models.induction import with_stronger_copies
from llmcli.models.runtime import Ints
from llmcli.models.torch.transformer import LanguageModel, Teacher
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.loop.best_weights import BestWeights, Weights
from llmcli.training.loop.clock import STEP_PATIENCE, Clock
from llmcli.training.loop.events import Done, Event, Prediction, State, Step, TeacherTrained
from llmcli.training.loop.final_evaluation import FinalEvaluator
from llmcli.training.loop.previews import Previews
from llmcli.training.loop.record import clock_record, training_record
from llmcli.training.planning import recipe
from llmcli.training.step import base_divergence
from llmcli.training.step.base_divergence import BaseDivergence
from llmcli.training.step.data_parallel import Leader
from llmcli.training.step.hardware import keep_freed_memory, return_freed_memory
from llmcli.training.step.initialization import compile_layers, fold_frozen, fresh_weights, new_model
from llmcli.training.step.optimizer import Optimizer, lr_schedule
from llmcli.training.step.thread_tuner import ThreadTuner
from llmcli.training.step.training_step import Batch, training_step

STATE = ("model", "best", "optimizer", "adapters", "teacher")  # prefixes of the arrays of a State
STUDENT_SEED = 2_000_003  # added to the run's seed for the student's fresh weights
LONG_EVALUATION = 5e11  # FLOPs (a few seconds on a few cores); the state is saved before a longer evaluation
STATE_SECONDS_PER_MILLION = 0.12  # for saving a million parameters with the optimizer's state, on a slow disk


def is_worth_evaluating(trained: int, evaluated: float, progress: float, interval: float) -> bool:
    """Return whether to evaluate `evaluated` tokens (more with calibration, which takes longer), `trained`
    tokens and `progress` after the last evaluation; `interval` is the minimum progress."""
    return trained >= recipe.TRAINING_PER_EVALUATED * evaluated and progress >= interval


class Run:
    """A training run and the operations in its loop."""

    def __init__(
        self,
        data: RunData,
        clock: Clock,
        *,
        tuner: ThreadTuner | None = None,
        leader: Leader | None = None,
    ) -> None:
        """`tuner` chooses the number of threads from step to step, in a run with a time limit; `leader` is
        rank 0 of several processes, which compute each step together."""
        self.data = data
        self.clock = clock
        self._leader = leader
        self._plan = data.plan
        self._settings = data.plan.train
        self._tuner = tuner or ThreadTuner(1)
        torch.set_num_threads(self._settings.threads)
        # sets the number of threads; with too many while other programs run, steps are many times slower
        self._tuner.new_shape()
        return_freed_memory()  # used by planning
        keep_freed_memory()
        self._model = self._new_model()
        self._optimizer = self._new_optimizer()
        self._is_compiled = compile_layers(self._model, self._settings)
        self._window = 0  # window length in the last step
        self._base_divergence: BaseDivergence | None = None
        self.position = Position(
            dropout=self._settings.dropout,
            token_split=self._settings.token_split,
            stage_end=self._settings.teacher_share or 1.0,
        )
        self._losses = array("d")  # one per step, in nats per token
        self._best = BestWeights(self._model, data, clock, self.position, is_compiled=self._is_compiled)
        self._previews = Previews(data, clock)
        self._final = FinalEvaluator(self._model, data, clock)
        self.problem = ""  # the reason why the run cannot continue

    def _new_model(self) -> LanguageModel:
        plan = self._plan
        settings = self._settings
        base = self.data.base
        vocab_size = self.data.tokenizer.vocab_size
        added = plan.conversations.new_tokens if plan.conversations else 0
        new_tokens = range(vocab_size - added, vocab_size)  # missing in the base model
        if leader := self._leader:
            model = leader.new_model(plan.model, settings, new_tokens, sharded=plan.sharded)
        else:
            model = new_model(plan.model, settings, new_tokens)
        arrays = base.tensors if base else self._fresh_weights(settings.seed)
        model.load_arrays(arrays)
        if not leader:  # a leader first sends the weights to the other processes
            fold_frozen(model, settings, arrays)
        return model

    def _fresh_weights(self, seed: int) -> Weights:
        # not for conversations, because their answers are learned exactly: with similar embeddings, the model
        # takes longer to distinguish "sea" from "SEA"; nor for short texts, which gain nothing on average
        is_spelled = not self.data.conversations and self.data.tokens_per_epoch >= recipe.SPELLING_MIN_TOKENS
        tokens = self.data.tokenizer.token_bytes if is_spelled else ()
        return fresh_weights(self._plan.model, seed, self._settings.induction, tokens)

    def _new_optimizer(self) -> Optimizer:
        return Optimizer(self._model, self._settings, self._leader.group if self._leader else None)

    def begin(
        self, resume_from: State | None, on_progress: Callable[[float], None] = lambda share: None
    ) -> None:
        """Prepare the steps, restore the state of a stopped run, and start the clock. `on_progress` receives
        the progress of the base model's text generation. Raises LLMError if the state belongs to another
        run."""
        conversations = self._plan.conversations
        if conversations and conversations.base_divergence:
            self._generate_base_text(conversations.base_divergence, resume_from, on_progress)
        if resume_from:
            self._restore(resume_from)
        else:
            self.clock.start()
        if leader := self._leader:
            optimizer = _with_prefix(resume_from.arrays, "optimizer.") if resume_from else None
            leader.send_state(self._model, optimizer)

    def _generate_base_text(
        self, weight: float, resume_from: State | None, on_progress: Callable[[float], None]
    ) -> None:
        """Let the base model generate text for the divergence."""
        seconds = math.inf
        budget = self._settings.seconds
        if budget is not None:
            earlier = resume_from.values.get("seconds") if resume_from else None
            # values of other types are refused later
            spent = self.clock.elapsed + (earlier if isinstance(earlier, float) else 0.0)
            left = budget - self.clock.reserve - spent
            seconds = max(0.0, min(recipe.DIVERGENCE_TIME * budget, base_divergence.SHARE_OF_REST * left))
        with self.clock.interruptible(self._model, 0.0, self.clock.elapsed + seconds):
            self._base_divergence = base_divergence.generate(
                self._model, self.data.tokenizer, self._settings, weight, on_progress
            )

    @property
    def is_new(self) -> bool:
        """Return whether there has been neither a step nor an evaluation."""
        return not (self.has_begun or self.position.evaluations or self.position.samples)

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
        """Take a step; None if it was not finished, because of `problem` or because the time is up."""
        position, clock = self.position, self.clock
        began = clock.now()
        processor_began = clock.processor_time()
        ids, loss_mask = self.data.next_batch(position)
        has_new_shape = ids.shape[1] != self._window
        self._window = ids.shape[1]
        if has_new_shape:
            self._tuner.new_shape()
        loss = self._train_on(ids, loss_mask)
        if loss is None:
            self._give_up_step(began)
            return None
        if not math.isfinite(loss):
            self.problem = _divergence(position.step + 1, self._settings)
            return None
        position.step += 1
        seconds = clock.now() - began
        tokens = self._settings.tokens_per_step
        if has_new_shape and self._is_compiled:
            clock.exclude(seconds)
        else:
            clock.add_step(seconds, tokens, clock.processor_time() - processor_began)
            self._tuner.add_step(seconds, tokens)
        position.progress = self._progress()
        self._adapt_regularization()
        self._losses.append(loss)
        elapsed, trained = clock.elapsed_times()
        return Step(
            step=position.step,
            progress=min(1.0, position.progress),
            loss=loss,
            tokens=self._seen_tokens,
            epoch=self._seen_tokens / self.data.tokens_per_epoch,
            rate=lr_schedule(position.stage_progress),
            seconds=elapsed,
            tokens_per_second=self._seen_tokens / max(1e-9, trained),
        )

    def _train_on(self, ids: Ints, loss_mask: torch.Tensor | None) -> float | None:
        """Take a step on a batch; return its loss in nats per token, or None if it was cut short."""
        position, leader = self.position, self._leader
        on_device = torch.from_numpy(ids).to(self._settings.device)
        batch = Batch(position.step, position.stage_progress, position.dropout, on_device, loss_mask)
        if leader:
            leader.send_batch(batch)
        deadline = self.clock.step_deadline(first=not position.step)
        return training_step(
            self._model,
            self._optimizer,
            batch,
            self._settings,
            group=leader.group if leader else None,
            base_divergence=self._base_divergence,
            interruptible=self.clock.interruptible(self._model, STEP_PATIENCE, deadline),
        )

    @contextmanager
    def _all_threads(self) -> Iterator[None]:
        """In this context, also use the threads of the other, waiting processes on this machine."""
        leader, threads = self._leader, self._settings.threads
        if leader is None or self._plan.sharded:
            yield
            return
        torch.set_num_threads(threads * leader.group.processes.local_count)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _progress(self) -> float:
        """Return the progress of the run, 0 to 1, by its steps or by the clock."""
        in_time = self.clock.progress(self.clock.elapsed, self._final_cost())
        return max(self.position.step / self._settings.steps, in_time)

    def _final_cost(self) -> float:
        """Return the cost of the evaluations after the last step, as a number of tokens evaluated during the
        run."""
        return self._best.cost + self._final.cost(self._seen_tokens)

    def _adapt_regularization(self) -> None:
        """Adapt regularization to the number of epochs that the run will reach at its current speed."""
        position, regularization = self.position, self.data.regularization
        if (
            self._settings.seconds is None
            or self.is_over
            or self.data.has_planned_dropout(position)
            or position.progress < position.regularized_progress + recipe.REGULARIZE_EVERY
            or not self.clock.pace  # no step was measured yet; the first one may have compiled the layers
        ):
            return
        position.regularized_progress = position.progress
        epochs = self._expected_stage_tokens() / self.data.tokens_per_epoch
        current = (position.dropout, position.token_split)
        margin = 1 + recipe.EPOCHS_MARGIN
        if current in (regularization(epochs / margin), regularization(epochs * margin)):
            return
        position.dropout, position.token_split = regularization(epochs)
        position.regularizations.append(
            [position.step, round(epochs, 2), position.dropout, position.token_split]
        )

    def _expected_stage_tokens(self) -> float:
        """Estimate the tokens that the current stage trains on until its end, at the current speed."""
        position, seen = self.position, self._seen_tokens
        expected = self.clock.expected_tokens(self.clock.elapsed, seen, self._final_cost())
        left = max(0.0, min(expected, self._settings.steps * self._settings.tokens_per_step) - seen)
        in_stage = max(0.0, position.stage_end - position.progress) / (1 - position.progress)
        return position.stage_step * self._settings.tokens_per_step + in_stage * left

    def _give_up_step(self, began: float) -> None:
        """End the run, unless the user asked to stop. Raises LLMError if that was its first step."""
        clock = self.clock
        if clock.stop_requested():
            return
        self.position.progress = 1.0
        if not self.position.step:
            raise LLMError(
                f"no training step could be finished in `seconds` {clock.seconds:g}s: reading and planning "
                f"took {began - clock.began:,.0f} s, and one step takes more than {clock.now() - began:,.0f} "
                "s here; give more time, or a smaller `context` or model, "
                "or end other programs that run on this machine"
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
            self._set_teacher(self._best.weights)
            seed = self._settings.seed + STUDENT_SEED
            self._model.load_arrays(self._fresh_weights(seed))
            del self._optimizer  # its state must not stay in memory next to the new state
            self._optimizer = self._new_optimizer()
            position.student_from = position.step
            position.stage_start = position.progress
            position.stage_end = 1.0
            yield TeacherTrained(position.step, position.best_bits or math.nan)

    def _set_teacher(self, weights: Weights) -> None:
        model: LanguageModel = new_model(self._plan.model, self._settings).eval().requires_grad_(False)
        model.load_arrays(weights)
        self._model.teacher = Teacher(model, recipe.TEACHER_WEIGHT)

    @property
    def is_evaluated(self) -> bool:
        """Return whether the current weights were evaluated, or there is no validation slice."""
        return not len(self._best.windows) or self.position.evaluated_step >= self.position.step

    def is_evaluation_due(self) -> bool:
        """Return whether an evaluation is due; without a validation slice, it only generates a sample."""
        position = self.position
        evaluated = self._best.cost or self._settings.eval_tokens
        trained = (position.step - position.evaluated_step) * self._settings.tokens_per_step
        interval = recipe.SEARCH_INTERVAL if self._plan.searches else recipe.EVALUATION_INTERVAL
        return trained > 0 and (
            self.is_over
            or self.is_student_due
            or is_worth_evaluating(
                trained, evaluated, position.progress - position.evaluated_progress, interval
            )
        )

    def evaluate(self, hurried: bool = False) -> Iterator[Event]:
        """Evaluate the weights, keep the best, make previews. Yields nothing if interrupted."""
        position = self.position
        weights = None
        if len(self._best.windows):
            with self._all_threads():
                evaluated = self._best.evaluate(hurried=hurried)
            if evaluated is None:
                return
            evaluation, weights = evaluated
            position.evaluations.append((position.step, evaluation.bits_per_byte))
            yield evaluation
        elif hurried:
            return
        position.evaluated_step = position.step
        position.evaluated_progress = position.progress
        # with a time limit, previews of the base model would cost training steps
        if self._previews.are_wanted and (position.step or self._settings.seconds is None):
            for preview in self._previews.make(position.step, weights or self._model.to_arrays()):
                if isinstance(preview, Prediction):
                    position.predictions.append((preview.step, preview.next))
                else:
                    position.samples.append((preview.step, preview.text))
                yield preview

    def has_long_final_evaluation(self) -> bool:
        """Return whether the final evaluations take so long that the state should be saved first, if there is
        time."""
        left = self.clock.final_deadline() - self.clock.elapsed
        if STATE_SECONDS_PER_MILLION * self._plan.model.parameters / 1e6 > left / 2:
            return False
        return 2 * self._plan.model.parameters * self._final_cost() > LONG_EVALUATION

    def state(self) -> State:
        """Return everything that the following steps depend on."""
        leader = self._leader
        optimizer, teacher = self._optimizer, self._model.teacher
        groups: dict[str, Mapping[str, NDArray[Any]]] = {
            "model": self._model.trainable_arrays(),
            "best": self._best.weights,
            "optimizer": leader.read_optimizer(optimizer) if leader else optimizer.to_arrays(),
            "adapters": self._best.adapters or {},
            "teacher": teacher.model.to_arrays() if teacher else {},
        }
        arrays = {f"{kind}.{name}": array for kind, group in groups.items() for name, array in group.items()}
        return State(
            arrays | {"losses": np.array(self._losses)},
            copy.deepcopy(as_record(self.position))
            | {"validation_units": len(self._best.windows)}
            | self.clock.values()
            | ({"processes": leader.group.count} if leader else {}),
        )

    def _restore(self, state: State) -> None:
        """Restore a state. Raises LLMError if it belongs to another run."""
        values = state.values
        groups = {kind: _with_prefix(state.arrays, f"{kind}.") for kind in STATE}
        try:
            self._best.weights = groups["best"]
            self._best.adapters = groups["adapters"] if self._settings.lora_rank else None
            self._model.load_trainable(groups["model"])
            self._optimizer.load_arrays(groups["optimizer"])
            if groups["teacher"]:
                self._set_teacher(groups["teacher"])
            self._losses = array("d", state.arrays["losses"].tolist())
            self.position.restore(values, self._settings)
            self.clock.start(values)
            self._best.windows = self._best.windows[: values["validation_units"]]
        except (KeyError, LLMError, RuntimeError, TypeError, ValueError) as error:
            raise LLMError(
                f"the state of the stopped run does not fit its plan ({error}); "
                "start over with `overwrite=True`"
            ) from error

    def finish(self, *, interrupted: bool) -> Done:
        """Evaluate the best weights as users of the file will run them, and write the run's record."""
        position, clock = self.position, self.clock
        if position.best_bits is None:
            if self.problem:
                raise LLMError(self.problem)
            self._best.keep_last()
            if not all(np.isfinite(array).all() for array in self._best.weights.values()):
                raise LLMError(_divergence(position.step, self._settings))
        _, trained_seconds = clock.elapsed_times()
        weights = self._final_weights()
        with self._all_threads():
            hurried = interrupted or bool(self.problem)
            final = self._final.evaluate(weights, self._seen_tokens, hurried=hurried)
        seconds = clock.elapsed
        record = training_record(
            self.data,
            position,
            self._losses,
            final,
            interrupted=interrupted,
            problem=self.problem,
        )
        if (chosen := self._plan.conversations) and chosen.base_divergence:
            divergence = self._base_divergence
            added = {"base_tokens": divergence.ids[:, 1:].numel() if divergence else 0}
            record |= {"conversations": record.document["conversations"] | added}
        if self._settings.seconds is not None:
            record |= {
                "clock": clock_record(self._plan.expected, seconds, self._seen_tokens / trained_seconds)
            }
        return Done(
            checkpoint=self._checkpoint(weights, record),
            step=position.step,
            best_step=position.best_step,
            seconds=seconds,
            score=final.score,
            interrupted=interrupted,
            problem=self.problem,
            base_score=final.base_score,
            adapters=self._best.adapters,
        )

    def _final_weights(self) -> Weights:
        """Return the best weights; after training on text, with stronger copies from the context. The factor
        is not applied to the teacher or to the state of a stopped run, so that it applies only once."""
        if not self._settings.induction or self.data.conversations:
            return self._best.weights
        return with_stronger_copies(self._plan.model, self._best.weights, recipe.COPY_FACTOR)

    def _checkpoint(self, weights: Weights, record: TrainingRecord) -> Checkpoint:
        config = self._plan.model
        tokenizer = self.data.tokenizer
        base = self.data.base
        tokenizer_config = (
            base.tokenizer_config_json if base else tokenizer.to_config_json(config.max_position_embeddings)
        )
        if self.data.conversations and (template := self.data.conversations.template):
            tokenizer_config = with_chat_template(tokenizer_config, template)
        return Checkpoint(config, tokenizer.to_json(), weights, record, tokenizer_config)


def _divergence(step: int, settings: TrainConfig) -> str:
    lower = min(settings.lr / 4, 0.5)
    advice = f"lower the learning rate: `lr` {lower:g} `overwrite=True`"
    return f"the loss became NaN or infinite at step {step}; {advice}"


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
