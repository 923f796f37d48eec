"""The state of a training run, and its operations (step, evaluate, save, finish), which `trainer.train` calls.

A run from scratch, a fine-tuning run and a resumed run take the same path.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.config import SamplingConfig, TrainConfig, as_record
from llmcli.data.batches import Tokens
from llmcli.data.chat_template import with_chat_template
from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.cache_weights import CacheWeights
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.models.devices import is_out_of_memory
from llmcli.models.open_runtime import open_trained
from llmcli.models.transformer import LanguageModel
from llmcli.training import recipe
from llmcli.training.base_behaviour import BaseBehaviour
from llmcli.training.batch_schedule import BatchSchedule
from llmcli.training.cache_fit import ValidationText
from llmcli.training.calibration import Calibration
from llmcli.training.compute import Compute
from llmcli.training.conversation_phase import ConversationPhase
from llmcli.training.cost_model import micro_batches
from llmcli.training.data_parallel import Leader, all_threads
from llmcli.training.evaluation_schedule import EvaluationSchedule
from llmcli.training.events import Done, Evaluation, Event, Sample, State, Step
from llmcli.training.hardware import keep_freed_memory
from llmcli.training.history import History
from llmcli.training.initialization import compile_layers, eager_without_compiler, fresh_weights, new_model
from llmcli.training.interruption import CutShortError, stop_between_layers
from llmcli.training.optimizer import Optimizer, rate
from llmcli.training.plain_text import PlainText, PlainTextComparison
from llmcli.training.plan import Plan, Regularization
from llmcli.training.position import Position
from llmcli.training.prepare_conversations import PreparedConversations
from llmcli.training.record import FinalEvaluation, training_record
from llmcli.training.run_clock import RunClock
from llmcli.training.shares import share_gradients
from llmcli.training.thread_tuner import ThreadTuner
from llmcli.training.validation import HeldOutEvaluation, Validator
from llmcli.training.validation_slice import reserve_tokens

SAMPLE_TOKENS = 48
MAX_SAMPLING_PARAMETERS = 200_000_000  # larger models generate no samples during training: that would take too long
FIRST_EVALUATION_SHARE = 0.1  # of the run, at most, for the evaluation of the model that it starts from
FIRST_STEP_SECONDS = 10.0  # the first step may take this long ...
FIRST_STEP_SHARE = 0.25  # ... or this share of the run, if that is more
STEP_PATIENCE = 1.0  # seconds that a step or an evaluation may still take after Ctrl-C
FINAL_PATIENCE = 3.0  # seconds for each evaluation after Ctrl-C
# for each token of the validation slice, in tokens of an evaluation: of fitting the n-gram cache, and the temperature
CACHE_FIT_COST, CALIBRATION_COST = 4.0, 5.0
NO_MEMORY = "for which memory was too short"


class Run:
    """The weights, the optimizer, the position of the run, and the best weights so far."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        start: Checkpoint | None,
        tokens: Tokens,
        held_out: NDArray[np.unsignedinteger],
        sample_prompt: str | None,
        stop: Callable[[], bool],
        regularize: Callable[[float], Regularization] | None,
        tuner: ThreadTuner | None,
        schedule: EvaluationSchedule,
        compute: Compute,
        clock: Callable[[], float],
        conversations: PreparedConversations | None = None,
        plain_text: PlainText | None = None,
        leader: Leader | None = None,
    ) -> None:
        self._leader = leader
        self._plan, self._settings, self._tokenizer, self._start = plan, plan.train, tokenizer, start
        self._sample_prompt, self._stop, self._now = sample_prompt, stop, clock
        self._schedule, self._compute = schedule, compute
        settings, timed = plan.train, plan.train.seconds is not None
        torch.set_num_threads(settings.threads)
        keep_freed_memory()
        self._sharded = plan.sharded and leader is not None
        self.model = _initial_model(plan, start, tokenizer.vocab_size, leader)
        group = leader.group if leader else None
        self._optimizer = Optimizer(self.model, settings, plan.model.hidden_size, group, sharded=self._sharded)
        train_tokens, self.validation_windows = reserve_tokens(tokens, settings.calibration_tokens, settings.context)
        self._slice = ValidationText(tokens, self.validation_windows, tokenizer.eos_id)
        self._train_tokens = len(train_tokens)
        self._batches = BatchSchedule(train_tokens, settings, tokenizer)
        self._conversations: ConversationPhase | None = None
        self._plain_text: PlainTextComparison | None = None
        self._base_behaviour: BaseBehaviour | None = None
        if conversations and plan.conversations:
            self._conversations = ConversationPhase(conversations, plan.conversations, settings, tokenizer)
            self._train_tokens += self._conversations.tokens_per_epoch
            self._sample_prompt = self._conversations.question
            if plain_text or not self._sharded:  # a model with sharded weights cannot generate text
                self._plain_text = PlainTextComparison(plan.model, tokenizer, plain_text, start, settings)
            if weight := plan.conversations.base_divergence:
                self._base_behaviour = BaseBehaviour(self.model, tokenizer, settings, weight)
        self._is_compiled = compile_layers(self.model, settings)
        self._window = 0  # tokens in a window of the last step
        self._calibration = Calibration(self.model, self.validation_windows[: None if settings.calibrates else 0])
        self._validator = Validator(
            self.model,
            tokenizer,
            self._conversations.validation if self._conversations else self.validation_windows,
            self._compute,
        )
        self._held_out = HeldOutEvaluation(
            self.model, tokenizer, self._conversations.held_out if self._conversations else held_out, settings,
            models=2 if start else 1, compute=self._compute,
        )  # fmt: skip
        self._history = History()
        self.position = Position(dropout=settings.dropout, token_split=settings.token_split)
        self._best = self.model.to_arrays()
        self._best_adapters = self.model.trainable_arrays() if settings.lora_rank else None
        self._regularize = regularize if timed else None
        self._tuner = (tuner if timed else None) or ThreadTuner(1)
        self.problem = ""  # why the run cannot continue

    # ---- the clock

    def begin(self, started_at: float, reserve_seconds: float, resume_from: State | None) -> None:
        """Start the clock. A resumed run restores its state and continues where its clock stopped."""
        self._began, self._training_began = started_at, self._now()
        if resume_from:
            self._restore(resume_from)
        if self._leader and not self._sharded:
            self._leader.send_weights(self.model)
        if self._leader and resume_from:
            self._leader.send_optimizer(_with_prefix(resume_from.arrays, "optimizer."))
        seconds = self._settings.seconds
        training_began = self._training_began - self._began
        self._clock = None if seconds is None else RunClock(seconds, reserve_seconds, training_began)

    @property
    def is_over(self) -> bool:
        return self.position.progress >= 1

    @property
    def _elapsed(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._began

    @property
    def _step_tokens(self) -> int:
        return self._settings.batch_size * self._settings.context

    @property
    def _seen_tokens(self) -> int:
        return self.position.step * self._step_tokens

    def _progress(self) -> float:
        """Of the run, 0 to 1, by its steps or by the clock."""
        progress = self.position.step / self._settings.steps
        if self._clock:
            progress = max(progress, self._clock.progress(self._elapsed, self._final_cost()))
        return progress

    def _final_cost(self) -> float:
        """The cost of the evaluations after the last step, as a number of tokens of an evaluation during the run."""
        plain_text = self._plain_text.cost if self._plain_text else 0.0
        held_out = self._held_out.cost(self._seen_tokens)
        cache = CACHE_FIT_COST * self.validation_windows.size if self._has_cache else 0.0
        calibration = CALIBRATION_COST * self._calibration.tokens
        return held_out + self._validator.tokens + calibration + cache + plain_text

    def _adapt_regularization(self) -> None:
        """Adapt regularization to the number of epochs that the run will reach at its current speed."""
        position = self.position
        if (
            not self._clock
            or not self._regularize
            or (self._conversations and self._conversations.has_planned_dropout(position))
            or position.progress < position.regularized_progress + recipe.REGULARIZE_EVERY
        ):
            return
        position.regularized_progress = position.progress
        expected = self._clock.expected_tokens(self._elapsed, self._seen_tokens, self._final_cost())
        epochs = min(expected, self._settings.steps * self._step_tokens) / self._train_tokens
        current = Regularization(position.dropout, position.token_split)
        margin = 1 + recipe.EPOCHS_MARGIN
        nearby = [self._regularize(epochs / margin), self._regularize(epochs * margin)]
        if current in nearby:
            return
        chosen = self._regularize(epochs)
        position.dropout, position.token_split = chosen.dropout, chosen.bpe_dropout
        position.regularizations.append([position.step, round(epochs, 2), chosen.dropout, chosen.bpe_dropout])

    @contextlib.contextmanager
    def _interruptible(self, model: LanguageModel, patience: float, deadline: float = math.inf) -> Iterator[None]:
        """Inside, forward passes of `model` raise CutShortError once `stop` returns True and `patience` seconds are
        over, or at `deadline`, in seconds since the run began."""
        began = self._now()

        def should_stop() -> bool:
            now = self._now()
            return now - self._began > deadline or (now - began > patience and self._stop())

        with eager_without_compiler(self._settings), stop_between_layers(model, should_stop):
            yield

    # ---- steps

    def step(self) -> Step | None:
        """Take a step. None if it was not finished: `problem` says why, or the time is over."""
        position, window = self.position, self._window
        began = self._now()
        loss = self._gradients()
        if loss is None:
            self._give_up_step(began)
            return None
        self._optimizer.step(position.progress)
        value = loss.item()
        if not math.isfinite(value):
            self.problem = _divergence(position.step + 1, self._settings)
            return None
        position.step += 1
        seconds = self._now() - began
        if self._clock and self._is_compiled and self._window != window:  # then torch compiles
            self._clock.exclude(seconds)
        elif self._clock:
            self._clock.add_step(seconds, self._step_tokens)
            self._tuner.add_step(seconds, self._step_tokens)
        position.progress = self._progress()
        self._adapt_regularization()
        self._history.add_loss(value)
        return self._step_event(value)

    def _gradients(self) -> torch.Tensor | None:
        """Accumulate the gradients of the next step; its loss, or None if it was cut short."""
        position, model = self.position, self.model
        ids, learned = self._next_batch()
        gradients = self._compute.gradients
        if self._leader:
            share = self._leader.begin_step(model, position.step, position.progress, ids, learned)
            compute = partial(share_gradients, gradients, model, share)
        else:
            compute = partial(gradients, model, ids, micro_batches(self._plan.model, self._settings), learned)
        loss: torch.Tensor | None = None
        with contextlib.suppress(CutShortError), self._interruptible(model, STEP_PATIENCE, self._step_deadline()):
            computed = compute()
            if self._base_behaviour:
                model.dropout.set_rows(None)
                self._base_behaviour.add_gradients(position.step)
            loss = computed
        return self._leader.end_step(loss) if self._leader else loss

    def _next_batch(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(token ids [B, T + 1] of the next step, which of them are learned [B, T + 1], None for all), for which
        dropout is seeded as well."""
        position, settings = self.position, self._settings
        if self._conversations:
            self._conversations.begin_if_due(position)
        self.model.dropout.set_rate(position.dropout)
        self.model.dropout.seed(settings.seed, position.step)
        self.model.train()
        batch = self._conversations.batch(position) if self._conversations else None
        if batch:
            ids, learned = batch.ids, torch.from_numpy(batch.learned)
        else:
            ids, learned = self._batches.batch(position.step, position.progress, position.token_split), None
        if ids.shape[1] != self._window:
            self._window = ids.shape[1]
            self._tuner.new_shape()
        return torch.from_numpy(ids).to(settings.device), learned

    def _step_event(self, loss: float) -> Step:
        position, seen, now = self.position, self._seen_tokens, self._now()
        return Step(
            step=position.step,
            progress=min(1.0, position.progress),
            loss=loss,
            tokens=seen,
            epoch=seen / self._train_tokens,
            rate=rate(position.progress),
            seconds=now - self._began,
            tokens_per_second=seen / max(1e-9, now - self._training_began),
        )

    def _step_deadline(self) -> float:
        """When to give up a step, in seconds since the run began. The first may take longer than the run has left:
        a late model is better than none."""
        if not self._clock:
            return math.inf
        if self.position.step:
            return self._clock.deadline
        longest = max(FIRST_STEP_SECONDS, FIRST_STEP_SHARE * self._clock.seconds)
        return max(self._clock.deadline, self._elapsed + longest)

    def _give_up_step(self, began: float) -> None:
        """Drop the gradients of a step that was cut short; unless the user asked to stop, the run is over. Raises
        LLMError if not even the first step fits into the time limit."""
        self.model.zero_grad(set_to_none=True)
        if self._stop():
            return
        self.position.progress = 1.0
        if self._clock and not self.position.step:
            raise LLMError(
                f"no training step could be finished in --time {self._clock.seconds:g}s: reading and planning took "
                f"{began - self._began:,.0f} s, and one step takes more than {self._now() - began:,.0f} s here; give "
                "more time, or a smaller --context or model, or end other programs that run on this machine"
            )

    # ---- evaluations

    @property
    def is_evaluated(self) -> bool:
        """Whether the current weights were evaluated, or there is no validation slice."""
        return not self._validator.tokens or self.position.evaluated_step >= self.position.step

    def is_evaluation_due(self) -> bool:
        """Whether the schedule says so, or the run is over. Without a validation slice only a sample is due."""
        position, evaluated = self.position, self._validator.tokens or self._settings.eval_tokens
        trained = (position.step - position.evaluated_step) * self._step_tokens
        return self.is_over or self._schedule.is_due(
            trained, evaluated, position.progress - position.evaluated_progress
        )

    def evaluate(self, hurried: bool = False) -> Iterator[Event]:
        """Evaluate the current weights on the validation slice, keep them if they are the best so far, and generate a
        sample. Yields nothing if that was interrupted; without a slice the sample alone, unless `hurried`."""
        position = self.position
        weights = None
        if self._validator.tokens:
            measured = self._measure(FINAL_PATIENCE if hurried else STEP_PATIENCE)
            if measured is None:
                return
            bits, weights, factor = measured
            self._history.add_evaluation(position.step, bits)
            is_best = self._keep_if_best(bits, weights, factor)
            yield Evaluation(position.step, bits, is_best)
        elif hurried:
            return
        position.evaluated_step, position.evaluated_progress = position.step, position.progress
        if self._sample_prompt and self._plan.model.parameters <= MAX_SAMPLING_PARAMETERS:
            text = self._sample(weights or self.model.to_arrays(), self._sample_prompt)
            self._history.add_sample(position.step, text)
            yield Sample(position.step, self._sample_prompt, text)

    def _measure(self, patience: float) -> tuple[float, dict[str, NDArray[np.float32]], float] | None:
        """(bits per byte of the validation slice, the current weights, the factor on their logits); None if that was
        interrupted."""
        compiles = self._is_compiled and not self._validator.evaluated_tokens
        try:
            with self._all_threads(), self._interruptible(self.model, patience), self._calibration.applied() as factor:
                began = self._now()
                score = self._validator.evaluate(began + self._evaluation_seconds(), self._now)
                self._time_evaluation(self._now() - began, self._validator.evaluated_tokens, compiles)
                weights = self.model.to_arrays()
        except CutShortError:
            return None
        # as in the record, so that every display of it rounds the same number
        return round(score.bits_per_byte, 6), weights, factor

    def _sample(self, weights: dict[str, NDArray[np.float32]], prompt: str) -> str:
        """A continuation of the prompt; of conversations, the greedy answer to a held-out question."""
        device = "cpu" if self._sharded else self._settings.device  # which has no memory for the whole model
        runtime = open_trained(Checkpoint(self._plan.model, "", weights), device)
        if self._conversations:
            return self._conversations.answer(runtime, SAMPLE_TOKENS)
        pieces = generate(runtime, self._tokenizer, prompt, SamplingConfig(max_tokens=SAMPLE_TOKENS))
        return "".join(piece.text for piece in pieces)

    def _keep_if_best(self, bits: float, weights: dict[str, NDArray[np.float32]], factor: float) -> bool:
        """Keep the current weights if they are the best so far; returns whether they are. Of two equal evaluations the
        later wins: its learning rate was lower."""
        position = self.position
        margin = 1 + recipe.TIE_MARGIN
        is_best = math.isfinite(bits) and (position.best_bits is None or bits <= position.best_bits * margin)
        if is_best:
            self._best, position.best_step, position.best_factor = weights, position.step, factor
            self._best_adapters = self.model.trainable_arrays() if self._settings.lora_rank else None
            position.best_bits = bits if position.best_bits is None else min(bits, position.best_bits)
        return is_best

    def _evaluation_seconds(self) -> float:
        """Time limit of an evaluation. Only the first has one; later ones cover no more tokens than it did."""
        seconds = self._settings.seconds
        return math.inf if self.position.step or seconds is None else FIRST_EVALUATION_SHARE * seconds

    def _all_threads(self) -> AbstractContextManager[None]:
        """Inside, the threads of other processes on this machine, which wait, are used as well."""
        waiting = None if self._sharded or not self._leader else self._leader.group
        return all_threads(waiting, self._settings.threads)

    def _time_evaluation(self, seconds: float, tokens: int, compiles: bool) -> None:
        if self._clock and compiles:
            self._clock.exclude(seconds)
        elif self._clock:
            self._clock.add_evaluation(seconds, tokens)

    def has_long_final_evaluation(self) -> bool:
        """Whether the final evaluations take so long that the state of the run should be saved before them."""
        return 2 * self._plan.model.parameters * self._final_cost() > self._schedule.long_evaluation

    # ---- the state of a stopped run

    def state(self) -> State:
        """All that the following steps depend on."""
        optimizer = self._optimizer
        groups: dict[str, Mapping[str, NDArray[Any]]] = {
            "model.": self.model.trainable_arrays(),
            "best.": self._best,
            "optimizer.": self._leader.read_optimizer(optimizer) if self._leader else optimizer.to_arrays(),
        }
        if self._best_adapters is not None:
            groups["adapters."] = self._best_adapters
        arrays = {prefix + name: array for prefix, group in groups.items() for name, array in group.items()}
        now = self._now()
        return State(
            arrays | {"losses": self._history.losses()},
            as_record(self.position)
            | {
                "evaluations": self._history.evaluations(),
                "samples": self._history.samples(),
                "seconds": now - self._began,
                "trained_seconds": now - self._training_began,
            }
            | ({"processes": self._leader.group.count} if self._leader else {}),
        )

    def _restore(self, state: State) -> None:
        """Restore what `state` returned. Raises LLMError if it is of another run."""
        arrays, values = state.arrays, state.values
        try:
            self._best = _with_prefix(arrays, "best.")
            self.model.load_trainable(_with_prefix(arrays, "model."))
            self._best_adapters = _with_prefix(arrays, "adapters.") if self._settings.lora_rank else None
            self._optimizer.load_arrays(_with_prefix(arrays, "optimizer."))
            self._history = History(arrays["losses"].tolist(), values["evaluations"], values["samples"])
            known = [field.name for field in fields(Position)]
            if "conversations_from" not in values:  # written by a version that did not know conversations
                known.remove("conversations_from")
            self.position.restore({name: values[name] for name in known}, self._settings)
            self._began -= values["seconds"]
            self._training_began -= values["trained_seconds"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise LLMError(
                f"the state of the stopped run does not fit its plan ({error}); start over with --force"
            ) from error

    # ---- the end

    def finish(self, record: dict[str, Any], interrupted: bool) -> Done:
        """Evaluate the best weights as those who use the file will run them, and describe the run."""
        position = self.position
        if position.best_bits is None:
            self._keep_last_weights()
        trained_seconds = self._now() - self._training_began
        with self._all_threads():
            cache = self._fit_cache()
            final = self._final_evaluation_if_memory_allows(cache, hurried=interrupted or bool(self.problem))
        seconds = self._elapsed
        record = copy.deepcopy(record) | training_record(
            self._plan, position, self._history, final,
            train_tokens=self._train_tokens, validation=self._validation_size(), sample_prompt=self._sample_prompt,
            interrupted=interrupted, problem=self.problem, cache=cache,
        )  # fmt: skip
        if self._conversations:
            record["conversations"] |= self._conversations.record(position)
        if self._clock:
            tokens_per_second = round(self._seen_tokens / trained_seconds)
            record["clock"] = {"seconds": round(seconds, 2), "tokens_per_second": tokens_per_second}
            if expected := self._plan.expected:
                record["clock"] |= {
                    "planned_tokens_per_second": round(expected.tokens_per_second),
                    "planned_epochs": round(expected.epochs, 4),
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
            adapters=self._best_adapters,
        )

    def _validation_size(self) -> dict[str, int]:
        """Of the validation slice, for the record; empty if there is none."""
        if self._conversations:
            slice_ = self._conversations.validation
            return {"conversations": len(slice_), "tokens": slice_.targets} if len(slice_) else {}
        windows = self.validation_windows
        return {"tokens": windows.size} if len(windows) else {}

    def _keep_last_weights(self) -> None:
        """Without a validation slice, or in a run too short for an evaluation, the last weights are kept, calibrated if
        possible. Raises LLMError if they are NaN."""
        with eager_without_compiler(self._settings), self._calibration.applied() as self.position.best_factor:
            self._best, self.position.best_step = self.model.to_arrays(), self.position.step
        self._best_adapters = self.model.trainable_arrays() if self._settings.lora_rank else None
        if self.problem or not all(np.isfinite(array).all() for array in self._best.values()):
            raise LLMError(self.problem or _divergence(self.position.step, self._settings))

    @property
    def _has_cache(self) -> bool:
        """Whether the model gets an n-gram cache: not one of conversations, nor of too little text."""
        return not self._conversations and not self._sharded and self._slice.is_sufficient

    def _fit_cache(self) -> CacheWeights | None:
        """The weights of the n-gram cache for the weights that are kept; None also where the fit was interrupted, or
        memory is short."""
        if not self._has_cache:
            return None
        try:
            model = self.model.scoring_model(self._best)
            with self._interruptible(model, FINAL_PATIENCE):
                return self._slice.fit_cache(model)
        except CutShortError:
            return None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _final_evaluation_if_memory_allows(self, cache: CacheWeights | None, *, hurried: bool) -> FinalEvaluation:
        """It takes another model beside that of the run; without memory for that the weights must still be saved."""
        try:
            return self._final_evaluation(cache, hurried=hurried)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return FinalEvaluation(problem=NO_MEMORY)

    def _final_evaluation(self, cache: CacheWeights | None, *, hurried: bool) -> FinalEvaluation:
        """The scores of the best weights and of the base model, on the same part of the held-out data."""
        held_out = self._held_out
        plain_text = None if hurried or not self._plain_text else self._plain_text.scores(self._best, self.model)
        if not held_out.tokens:
            return FinalEvaluation(plain_text=plain_text)
        interruptible = partial(self._interruptible, patience=FINAL_PATIENCE)
        limit = self._final_limit(hurried)
        score = held_out.evaluate(
            self._best, self._seen_tokens, limit, self._now, interruptible, hurried=hurried, cache=cache
        )
        base_score = None
        if self._start and score:
            base_cache = CacheWeights.of_record(self._start.record)
            base_score = held_out.evaluate_base(self._start.tensors, interruptible, base_cache)
        return FinalEvaluation(score, base_score, held_out.context, held_out.expert_shares, plain_text)

    def _final_limit(self, hurried: bool) -> float:
        """When the evaluation of the best weights has to end, in time of the clock."""
        limit = math.inf
        if self._clock:
            left = max(0.0, self._clock.deadline - self._elapsed)
            limit = self._now() + (left / 2 if self._start else left)
        return min(limit, self._now() + FINAL_PATIENCE) if hurried else limit

    def _checkpoint(self, record: dict[str, Any]) -> Checkpoint:
        config, tokenizer, start = self._plan.model, self._tokenizer, self._start
        tokenizer_config = (
            start.tokenizer_config_json if start else tokenizer.to_config_json(config.max_position_embeddings)
        )
        if self._conversations and (template := self._conversations.template):
            tokenizer_config = with_chat_template(tokenizer_config, template)
        return Checkpoint(config, tokenizer.to_json(), self._best, record, tokenizer_config)


def _initial_model(plan: Plan, start: Checkpoint | None, vocab_size: int, leader: Leader | None) -> LanguageModel:
    """With the weights of `start`, or fresh ones. `vocab_size` is that of the tokenizer. Of several processes the
    others make one too."""
    settings, new_tokens = plan.train, _new_tokens(plan, vocab_size)
    if leader:
        leader.start(plan.model, settings, new_tokens, sharded=plan.sharded)
    model: LanguageModel
    if leader and plan.sharded:
        from llmcli.training.sharded_model import new_sharded_model  # its import takes time

        model = new_sharded_model(plan.model, settings, new_tokens, leader.group, leader.tell)
    else:
        model = new_model(plan.model, settings, new_tokens)
    model.load_arrays(start.tensors if start else fresh_weights(plan.model, settings.seed, settings.induction))
    return model


def _new_tokens(plan: Plan, vocab_size: int) -> range:
    """The tokens that a base model does not have."""
    return range(vocab_size - (plan.conversations.new_tokens if plan.conversations else 0), vocab_size)


def _divergence(step: int, settings: TrainConfig) -> str:
    lower = min(settings.lr / 4, 0.5)
    return f"the loss became NaN or infinite at step {step}; lower the learning rate: --lr-scale {lower:g} --force"


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
