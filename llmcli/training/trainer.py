"""Plan -> steps. A generator that yields what happened; it never prints and never writes a file.

Everything random is a function of (seed, step): data order, dropout, fresh weights. A fresh model and one to go on
from take the same path: both are a checkpoint.
"""

import contextlib
import copy
import ctypes
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray

import llmcli
from llmcli.config import EVALUATION_CONTEXT, ModelConfig, SamplingConfig, TrainConfig, as_record
from llmcli.data.batches import Batches, Preceded, Tokens, Without
from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation.evaluator import Score, Window, evaluate_windows, select_windows, spread_order
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.models.induction import with_induction
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.transformer import LanguageModel, score, sharpness
from llmcli.training.cost_model import micro_batches
from llmcli.training.hardware import fastest_threads
from llmcli.training.optimizer import Optimizer, rate
from llmcli.training.plan import Plan, Regularization
from llmcli.training.resume import State
from llmcli.training.run_clock import RunClock
from llmcli.training.thread_tuner import ThreadTuner, thread_counts

EVAL_SHARE = 24  # tokens trained on for each held-out one that is looked at on the way, at least
FINAL_EVAL_TOKENS = 65_536  # held-out tokens measured at the end, if a long enough run can afford them ...
FINAL_EVAL_SHARE = 16  # ... or one for so many trained on, if that is more
FINAL_EVAL_MORE = 3  # times as many where the clock leaves time for them
EXACT_COST = 2.2  # seconds that a look in float32 takes for one in bfloat16
EVAL_EVERY = 0.05  # of the run, at least
ALIKE = 0.002  # held-out figures that differ by less say nothing
CURVE_POINTS = 300
SAMPLE_TOKENS = 48
SAMPLED = 20_000_000  # parameters up to which a run's samples are kept in its record: they are quick to make ...
LARGEST_SAMPLED = 200_000_000  # ... and up to which samples are generated at all
EVALUATED_AT_ONCE, EVALUATED_WORK = 4096, 1e11  # tokens at most, and parameters x tokens, between looks at the clock
LONG_EVALUATION = 5e11  # operations: some seconds on a few cores
FIRST_LOOK_SHARE = 0.1  # of the run at most, for the evaluation of the model that it goes on from
FIRST_STEP_SECONDS, FIRST_STEP_SHARE = 10.0, 0.25  # that the first step has at least: seconds, and share of the run
STEP_PATIENCE = 1.0  # seconds that a step or an evaluation may go on after Ctrl-C
HURRIED_SECONDS = 3.0  # for each of the evaluations that an interrupted run ends with
REGULARIZE_EVERY = 0.02  # of the run
EPOCHS_MARGIN = 0.05  # by which the expected number of epochs must lie beyond a threshold of regularization
RAMP = ((0.2, 4), (0.5, 2))  # up to this progress windows are that much shorter ...
COPYING_RAMP = ((0.5, 2),)  # ... where weights can copy from the start: short windows have little to copy from
SHORTEST_RAMP = 16  # tokens
LONGEST_MEASURED = 4.0  # seconds after which two steps have to do to tell the speed
COMPILE_FROM = 120.0  # seconds of a run
SPLIT_UNTIL = 0.8  # of the run: up to there tokens are taken apart, if at all


@dataclass(frozen=True)
class Step:
    """One step of training was taken."""

    step: int  # from 1
    progress: float  # 0 to 1 of the run
    loss: float  # nats per token, of this batch
    tokens: int  # seen so far
    epoch: float
    rate: float  # share of the highest learning rate
    seconds: float  # since training began
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """The held-out text was looked at, in part; the best weights so far are kept."""

    step: int
    bits_per_byte: float
    best: bool


@dataclass(frozen=True)
class Sample:
    """What the model now makes of a fixed prompt."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Done:
    """The run has ended; `checkpoint` holds the best weights and the record."""

    checkpoint: Checkpoint
    step: int
    best_step: int
    seconds: float
    figures: Score | None  # on the held-out text
    interrupted: bool
    problem: str = ""  # why the run could not go on, if it could not
    before: Score | None = None  # on the same text, of the model that the run went on from
    adapters: Mapping[str, NDArray[np.float32]] | None = None  # the best, by name, if adapters were learned


Event = Step | Evaluation | Sample | State | Done


def versions() -> dict[str, str]:
    """Of what the bytes of a run depend on."""
    return {
        "llmcli": llmcli.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }


def fresh_weights(config: ModelConfig, seed: int, induction: bool = False) -> dict[str, NDArray[np.float32]]:
    """The tensors of step 0; with the circuit of induction.py in them, if asked."""
    model = LanguageModel(config)
    model.initialize(torch.Generator().manual_seed(seed))
    weights = model.to_arrays()
    return with_induction(config, weights, seed) if induction else weights


def measured_speed(
    config: ModelConfig, settings: TrainConfig, seconds: float, tuner: ThreadTuner | None = None
) -> float:
    """Tokens per second in training, by a few real steps on random tokens that take about so many seconds.

    A `tuner` may change the number of threads between the steps; the speed is that of its choice.
    """
    _prepare_process(settings)
    model = _fresh_model(config, settings)
    model.initialize(torch.Generator().manual_seed(0))
    model.train()
    optimizer = Optimizer(model, settings, config.hidden_size)
    rng = np.random.default_rng(0)
    tuner = tuner or ThreadTuner(1)
    tuner.new_shape()
    contexts = (_context_at(0.0, settings), settings.context)  # the shortest and the longest windows take turns
    paces: list[tuple[int, int, float]] = []  # (context, threads, seconds per token)
    longest = min(LONGEST_MEASURED, max(0.5, 10 * seconds))
    began = time.perf_counter()
    # the first steps are slower than the rest
    while len(paces) < 2 or (
        time.perf_counter() - began < (seconds if len(paces) >= 4 and not tuner.trying else longest)
    ):
        context = contexts[len(paces) % 2]
        size = (max(1, settings.batch_size * settings.context // context), context + 1)
        ids = torch.from_numpy(rng.integers(config.vocab_size, size=size)).to(settings.device)
        threads, tokens = tuner.threads, size[0] * context
        pace = _measured_pace(model, optimizer, ids, settings, time.perf_counter() - began)
        paces.append((context, threads, pace))
        tuner.add_step(pace * tokens, tokens)
        if pace * tokens > longest:
            break
    chosen = [(context, pace) for context, threads, pace in paces if threads == tuner.threads] or [
        (context, pace) for context, _, pace in paces
    ]
    late = chosen[2:] if len(chosen) >= 4 else chosen[-2:]
    medians = [float(np.median([pace for c, pace in late if c == context])) for context in {c for c, _ in late}]
    return len(medians) / sum(medians)


def _measured_pace(
    model: LanguageModel, optimizer: Optimizer, ids: torch.Tensor, settings: TrainConfig, spent: float
) -> float:
    """Seconds per token of a step; of one that would take longer than LONGEST_MEASURED only a part is run."""
    began = time.perf_counter()
    done = 0
    for part in ids.chunk(micro_batches(model.config, settings)):
        _loss_and_gradients(model, part, 1)
        done += part.shape[0] * (part.shape[1] - 1)
        if spent + time.perf_counter() - began > LONGEST_MEASURED:
            break
    _synchronize(settings.device)
    forward_backward = time.perf_counter() - began
    optimizer.step(0.5)
    _synchronize(settings.device)
    moved = time.perf_counter() - began - forward_backward
    return forward_backward / done + moved / (ids.shape[0] * (ids.shape[1] - 1))


def _synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _loss_and_gradients(
    model: LanguageModel, ids: torch.Tensor, parts: int, check: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """The loss of a batch of windows, which goes through the graph in micro-batches; its gradients are left in the
    model. `check` is called between them and may raise."""
    total = torch.zeros((), device=ids.device)
    for part in ids.chunk(parts):
        check()
        loss = model.loss(part) * (len(part) / len(ids))
        loss.backward()
        total += loss.detach()
    return total


def thread_tuner(threads: int) -> ThreadTuner:
    """One that sets the threads of torch, at most so many; it begins with as many as are fastest now."""
    return ThreadTuner(threads, torch.set_num_threads, fastest_threads(thread_counts(threads)))


def _prepare_process(settings: TrainConfig) -> None:
    torch.set_num_threads(settings.threads)
    _keep_memory()


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Have the C library keep freed memory: giving it back after each step and touching it again in the next costs
    a twentieth of a step (5,000 page faults). What is larger than 32 MB still comes and goes."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, the largest that is allowed
        library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _fresh_model(config: ModelConfig, settings: TrainConfig) -> LanguageModel:
    model = LanguageModel(config, settings.dropout, getattr(torch, settings.dtype)).to(settings.device)
    if settings.lora_rank:
        model.adapt(settings.lora_rank, torch.Generator().manual_seed(settings.seed))
    return model


def _compile(model: LanguageModel, settings: TrainConfig) -> None:
    """On a GPU each layer becomes a few kernels, if the run is long enough to pay for making them and a compiler is
    there; else it runs as it is. On a processor the gain measured was 0 to 5 % for 26 s of compiling: left out."""
    if settings.device != "cuda" or (settings.seconds is not None and settings.seconds < COMPILE_FROM):
        return
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True  # without a compiler the layer runs as it is
    for layer in model.model.layers:
        layer.compile()


def _context_at(progress: float, settings: TrainConfig) -> int:
    """A run begins with short windows, many to a batch, and ends with long ones: measured to learn more from the same
    number of tokens, at more of them a second. A model that goes on from another knows how to look back already."""
    context = settings.context
    if settings.recipe in ("fine-tune", "lora"):
        return context
    ramp = COPYING_RAMP if settings.induction else RAMP
    divisor = next((divisor for until, divisor in ramp if progress < until), 1)
    shortest = max(min(context, SHORTEST_RAMP), context // divisor)
    return next(length for length in range(shortest, context + 1) if context % length == 0)  # whole blocks of windows


def train(
    plan: Plan,
    tokenizer: Tokenizer,
    start: Checkpoint | None,
    tokens: Tokens,
    held_out: NDArray[np.unsignedinteger],
    record: dict[str, Any],
    *,
    sample_prompt: str | None = None,
    began: float | None = None,
    spare: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[], bool] = lambda: False,
    go_on: State | None = None,
    regularize: Callable[[float], Regularization] | None = None,
    tuner: ThreadTuner | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Train on `tokens` by the plan, from `start` or from fresh weights; `record` is what to say of the corpus.

    `began` is the time of the clock `now` from which the plan's seconds count, `spare` are those of them that the
    caller needs afterwards. `stop` is asked after every step, and within one that takes long; when it says yes the run
    ends early with what there is. `save` is asked too; when it says yes, and before evaluations that may take long, a
    State is yielded, with which as `go_on` another call goes on to the very same weights. When the loss is no longer a
    number the run ends with the best weights so far, or, if there are none yet, in an LLMError.

    Where a clock ends the run, `regularize` (epochs -> dropout and BPE-dropout) is asked again as the number of epochs
    that the run will see becomes clear, and `tuner` chooses the number of threads from step to step.
    """
    run = _Run(plan, tokenizer, start, tokens, held_out, sample_prompt, stop, regularize, tuner, now)
    run.begin(now() if began is None else began, spare, go_on)
    at = run.at
    if start and len(held_out) and not go_on:
        yield from run.evaluate()  # a run that only makes it worse ends with what it began with
    interrupted = False
    while at.progress < 1 and not interrupted and not run.problem:
        step = run.step()
        if step:
            yield step
        interrupted = stop() and not run.problem
        due = bool(step) and run.evaluation_due()
        if due:
            yield from run.evaluate()
        if at.progress < 1 and (save() or interrupted):  # before a look that a run without an end here would not have
            yield run.state()
        if interrupted and not due and len(held_out):
            yield from run.evaluate(hurried=True)
    if interrupted and not at.step:
        raise LLMError("stopped before the first training step was finished; no model was written")
    if at.progress >= 1 and run.end_takes_long():
        yield run.state()  # so that nothing is lost with the evaluations at the end
    if at.progress >= 1 and at.evaluated_step < at.step and len(held_out):
        yield from run.evaluate(hurried=interrupted)  # the last step was cut short, or the run was killed just here
    yield run.finish(record, interrupted)


class _CutShortError(Exception):
    """Raised inside a step or an evaluation that takes too long."""


class _Run:
    """A run between two steps: the weights, the optimizer, where it stands, and the best weights so far."""

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
        now: Callable[[], float],
    ) -> None:
        self._plan, self._tokenizer, self._start, self._sample_prompt = plan, tokenizer, start, sample_prompt
        self._stop, self._now = stop, now
        settings = plan.train
        _prepare_process(settings)
        self.model = _fresh_model(plan.model, settings)
        fresh = None if start else fresh_weights(plan.model, settings.seed, settings.induction)
        self.model.load_arrays(start.tensors if start else fresh or {})
        self._optimizer = Optimizer(self.model, settings, plan.model.hidden_size)
        _compile(self.model, settings)
        learned, aside = _set_aside(tokens, settings.calibration_tokens, settings.context)
        self._tokens = len(learned)
        self._source = _Source(learned, settings, tokenizer)
        self._calibration = _Calibration(self.model, aside)
        self._measure = _Measure(self.model, tokenizer, held_out, settings, start)
        self._curve = _Curve()
        self.at = _Position(dropout=settings.dropout, token_split=settings.token_split)
        self._best = self.model.to_arrays()
        self._best_adapters = self.model.learned_arrays() if settings.lora_rank else None
        timed = settings.seconds is not None
        self._regularize = regularize if timed else None
        self._tuner = (tuner if timed else None) or ThreadTuner(1)
        self._context = 0  # of the last step
        self.problem = ""

    # ---- the clock

    def begin(self, began: float, spare: float, go_on: State | None) -> None:
        """Start the clock, or go on from a stopped run."""
        self._began, self._first_step = began, self._now()
        if go_on:
            self._restore(go_on)
        seconds = self._plan.train.seconds
        started = self._first_step - self._began
        self._clock = None if seconds is None else RunClock(seconds, spare, started)

    @property
    def _elapsed(self) -> float:
        return self._now() - self._began

    def _progress(self) -> float:
        """0 to 1 of the run, by its steps or by the clock."""
        progress = self.at.step / self._plan.train.steps
        if self._clock:
            progress = max(progress, self._clock.progress(self._elapsed, self._tokens_at_end()))
        return progress

    def _tokens_at_end(self) -> float:
        """The evaluations at the end, as so many tokens evaluated with the products of training."""
        return self._measure.tokens_at_end(self.at.step * self._step_tokens) + self._calibration.tokens

    @property
    def _step_tokens(self) -> int:
        return self._plan.train.batch_size * self._plan.train.context

    def _follow_clock(self) -> None:
        """Regularize for the number of epochs that the run will see at its present speed."""
        at = self.at
        if not self._clock or not self._regularize or at.progress < at.regularized_progress + REGULARIZE_EVERY:
            return
        at.regularized_progress = at.progress
        seen = at.step * self._step_tokens
        expected = self._clock.expected_tokens(self._elapsed, seen, self._tokens_at_end())
        epochs = min(expected, self._plan.train.steps * self._step_tokens) / self._tokens
        present = Regularization(at.dropout, at.token_split)
        if present in (self._regularize(epochs / (1 + EPOCHS_MARGIN)), self._regularize(epochs * (1 + EPOCHS_MARGIN))):
            return
        wanted = self._regularize(epochs)
        at.dropout, at.token_split = wanted.dropout, wanted.token_split
        at.regularizations.append([at.step, round(epochs, 2), wanted.dropout, wanted.token_split])

    @contextlib.contextmanager
    def _interruptible(self, model: LanguageModel, patience: float, deadline: float = math.inf) -> Iterator[None]:
        """Inside, the model raises _CutShortError between two layers: when `stop` says yes and `patience` seconds are
        over, or at the `deadline`, in seconds since the run began."""
        began = self._now()

        def check() -> None:
            now = self._now()
            if now - self._began > deadline or (now - began > patience and self._stop()):
                raise _CutShortError

        model.between_layers = check
        try:
            yield
        finally:
            model.between_layers = None

    # ---- steps

    def step(self) -> Step | None:
        """Take a step. None when it could not be finished: `problem` says why, or the time is over."""
        at, settings = self.at, self._plan.train
        began = self._now()
        self.model.dropout.set_rate(at.dropout)
        self.model.dropout.seed(settings.seed, at.step)
        self.model.train()
        block = self._source.batch(at.step, at.progress, at.token_split)
        if block.shape[1] != self._context:
            self._context = block.shape[1]
            self._tuner.new_shape()
        ids = torch.from_numpy(block).to(settings.device)
        try:
            with self._interruptible(self.model, STEP_PATIENCE, self._step_deadline()):
                loss = _loss_and_gradients(self.model, ids, micro_batches(self._plan.model, settings))
        except _CutShortError:
            self._cut_step(began)
            return None
        self._optimizer.step(at.progress)
        value = loss.item()
        if not math.isfinite(value):
            self.problem = _exploded(at.step + 1, settings)
            return None
        at.step += 1
        seconds = self._now() - began
        if self._clock:
            self._clock.add_step(seconds, self._step_tokens)
            self._tuner.add_step(seconds, self._step_tokens)
        at.progress = self._progress()
        self._follow_clock()
        self._curve.add(value)
        seen, now = at.step * self._step_tokens, self._now()
        return Step(
            at.step, min(1.0, at.progress), value, seen, seen / self._tokens, rate(at.progress), now - self._began,
            seen / max(1e-9, now - self._first_step),
        )  # fmt: skip

    def _step_deadline(self) -> float:
        """When a step is given up, in seconds since the run began. The first has time whatever came before it: a run
        that ends late with a model is better than one without."""
        if not self._clock:
            return math.inf
        least = self._elapsed + max(FIRST_STEP_SECONDS, FIRST_STEP_SHARE * self._clock.seconds)
        return self._clock.deadline if self.at.step else max(self._clock.deadline, least)

    def _cut_step(self, began: float) -> None:
        """A step was given up: drop its gradients. Raises LLMError if it was the first of a run without an end."""
        self.model.zero_grad(set_to_none=True)
        if self._stop():
            return
        self.at.progress = 1.0
        if self._clock and not self.at.step:
            raise LLMError(
                f"no training step could be finished in --time {self._clock.seconds:g}s: reading and planning took "
                f"{began - self._began:,.0f} s, and one step takes more than {self._now() - began:,.0f} s here; give "
                "more time, or a smaller --context or model, or end what else is running on this machine"
            )

    # ---- evaluations

    def evaluation_due(self) -> bool:
        """Whether so much has been trained since the last one that another costs little, or the run is over."""
        at = self.at
        if not self._measure.tokens:
            return False
        trained = (at.step - at.evaluated_step) * self._step_tokens
        apart = trained >= EVAL_SHARE * self._measure.tokens and at.progress - at.evaluated_progress >= EVAL_EVERY
        return apart or at.progress >= 1

    def evaluate(self, hurried: bool = False) -> Iterator[Event]:
        """Measure the held-out text; the best weights so far are kept. A measurement that is cut short says nothing."""
        at = self.at
        patience = HURRIED_SECONDS if hurried else STEP_PATIENCE
        try:
            with self._interruptible(self.model, patience), self._calibration.applied() as factor:
                self._time_evaluation(self._calibration.seconds, self._calibration.tokens)
                began, limit = self._now(), self._first_look_limit()
                figures = self._measure.now(began + limit, self._now)
                self._time_evaluation(self._now() - began, figures.tokens)
                weights = self.model.to_arrays()
        except _CutShortError:
            return
        bits = round(figures.bits_per_byte, 6)  # as the record has it: whoever shows it rounds once
        at.evaluated_step, at.evaluated_progress = at.step, at.progress
        self._curve.add_evaluation(at.step, bits)
        # of two alike the later is better: its steps were smaller
        is_best = math.isfinite(bits) and (at.best_bits is None or bits <= at.best_bits * (1 + ALIKE))
        if is_best:
            self._best, at.best_step, at.best_factor = weights, at.step, factor
            self._best_adapters = self.model.learned_arrays() if self._plan.train.lora_rank else None
            at.best_bits = bits if at.best_bits is None else min(bits, at.best_bits)
        yield Evaluation(at.step, bits, is_best)
        if self._sample_prompt and self._plan.model.parameters <= LARGEST_SAMPLED:
            text = _sample(self._plan.model, weights, self._tokenizer, self._sample_prompt)
            self._curve.add_sample(at.step, text)
            yield Sample(at.step, self._sample_prompt, text)

    def _first_look_limit(self) -> float:
        """Seconds for the evaluation before the first step: a share of the run. The later ones are as long."""
        seconds = self._plan.train.seconds
        return math.inf if self.at.step or seconds is None else FIRST_LOOK_SHARE * seconds

    def _time_evaluation(self, seconds: float, tokens: int) -> None:
        if self._clock:
            self._clock.add_evaluation(seconds, tokens)

    def end_takes_long(self) -> bool:
        """Whether the evaluations at the end take more than a few seconds, so that the state should be kept first."""
        return 2 * self._plan.model.parameters * self._tokens_at_end() > LONG_EVALUATION

    # ---- the state of a stopped run

    def state(self) -> State:
        """All that the next step depends on."""
        arrays = {"model.": self.model.learned_arrays(), "best.": self._best, "optimizer.": self._optimizer.to_arrays()}
        arrays |= {"adapters.": self._best_adapters} if self._best_adapters is not None else {}
        now = self._now()
        return State(
            {start + name: array for start, part in arrays.items() for name, array in part.items()}
            | {"losses": self._curve.losses()},
            as_record(self.at)
            | {
                "evaluations": self._curve.evaluations(),
                "samples": self._curve.samples(),
                "seconds": now - self._began,
                "trained_seconds": now - self._first_step,
            },
        )

    def _restore(self, state: State) -> None:
        """Take what `state` gave. Raises LLMError when it is of another run."""
        arrays, figures = state.arrays, state.figures
        try:
            self._best = _under(arrays, "best.")
            self.model.load_learned(_under(arrays, "model."))
            self._best_adapters = _under(arrays, "adapters.") if self._plan.train.lora_rank else None
            self._optimizer.load_arrays(_under(arrays, "optimizer."))
            self._curve = _Curve(arrays["losses"].tolist(), figures["evaluations"], figures["samples"])
            self.at.restore({field.name: figures[field.name] for field in fields(_Position)}, self._plan.train)
            self._began -= figures["seconds"]
            self._first_step -= figures["trained_seconds"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise LLMError(
                f"the stopped run left other values than its plan has ({error}); begin anew with --force"
            ) from error

    # ---- the end

    def finish(self, record: dict[str, Any], interrupted: bool) -> Done:
        """Measure the best weights as those who use the file have them; what came of the run."""
        at = self.at
        if at.best_bits is None:
            with self._calibration.applied() as at.best_factor:
                self._best, at.best_step = self.model.to_arrays(), at.step
            if self.problem or not all(np.isfinite(array).all() for array in self._best.values()):
                raise LLMError(self.problem or _exploded(at.step, self._plan.train))
        now = self._now()
        figures, before = self._final_figures(interrupted or bool(self.problem))
        seconds = self._elapsed
        record = copy.deepcopy(record) | self._record(interrupted, figures, before)
        if self._clock:
            record["clock"] = {
                "seconds": round(seconds, 2),
                "tokens_per_second": round(at.step * self._step_tokens / (now - self._first_step)),
            }
        config, tokenizer, start = self._plan.model, self._tokenizer, self._start
        told = start.tokenizer_config_json if start else tokenizer.to_config_json(config.max_position_embeddings)
        checkpoint = Checkpoint(config, tokenizer.to_json(), self._best, record, told)
        return Done(
            checkpoint, at.step, at.best_step, seconds, figures, interrupted, self.problem, before, self._best_adapters
        )

    def _final_figures(self, hurried: bool) -> tuple[Score | None, Score | None]:
        """(of the best weights, of the weights that the run went on from) on the same part of the held-out text."""
        if not self._measure.tokens:
            return None, None
        trained, limit = self.at.step * self._step_tokens, math.inf
        if self._clock:
            left = max(0.0, self._clock.deadline - self._elapsed)
            limit = self._now() + (left / 2 if self._start else left)
        if hurried:
            limit = min(limit, self._now() + HURRIED_SECONDS)
        measure, watch = self._measure, partial(self._interruptible, patience=HURRIED_SECONDS)
        figures = measure.at_end(self._best, trained, limit, self._now, watch, hurried=hurried)
        if not self._start or figures is None:
            return figures, None
        return figures, measure.again_at_end(self._start.tensors, watch)

    def _record(self, interrupted: bool, figures: Score | None, before: Score | None) -> dict[str, Any]:
        """What to say of the run in the file."""
        at, settings, tokens = self.at, self._plan.train, self.at.step * self._step_tokens
        measured = figures and {"tokens": figures.tokens, "bytes": figures.bytes}
        if measured and self._measure.final_context < self._plan.model.max_position_embeddings:
            measured["context"] = self._measure.final_context
        samples = {"prompt": self._sample_prompt, "texts": self._curve.samples()}
        return {
            "versions": versions(),
            "plan": [as_record(row) for row in self._plan.rows],
            "train": as_record(settings),
            "steps": at.step,
            "best_step": at.best_step,
            "tokens": tokens,
            "epochs": round(tokens / self._tokens, 4),
            "interrupted": interrupted,
            **({"problem": self.problem} if self.problem else {}),
            **({"regularization": at.regularizations} if at.regularizations else {}),
            "bits_per_byte": figures and round(figures.bits_per_byte, 6),
            **({"bits_per_byte_before": round(before.bits_per_byte, 6)} if before else {}),
            "sharpness": at.best_factor,
            **({"expert_shares": self._measure.expert_shares} if self._measure.expert_shares else {}),
            "held_out_measured": measured,
            "curve": self._curve.thinned(),
            **({"samples": samples} if self._plan.model.parameters <= SAMPLED else {}),
        }


def _exploded(step: int, settings: TrainConfig) -> str:
    lower = min(settings.lr / 4, 0.5)
    return f"the loss is no longer a number at step {step}; lower the learning rate: --lr-scale {lower:g} --force"


@dataclass
class _Position:
    """Where a run stands."""

    step: int = 0
    progress: float = 0.0  # 0 to 1 of the run
    evaluated_step: int = 0  # the last look at the held-out text
    evaluated_progress: float = 0.0
    best_step: int = 0
    best_bits: float | None = None  # per byte of held-out text; None before the first look
    best_factor: float = 1.0  # on the logits, of the best weights
    dropout: float = 0.0
    token_split: float = 0.0  # BPE-dropout
    regularized_progress: float = 0.0  # when these two were last chosen
    regularizations: list[list[float]] = field(default_factory=list)  # (step, epochs, dropout, BPE-dropout) of changes

    def restore(self, figures: Mapping[str, Any], settings: TrainConfig) -> None:
        """Take the fields of a stopped run. Raises ValueError or TypeError where no run could stand."""
        for name, value in figures.items():
            setattr(self, name, value)
        self._check(settings)

    def _check(self, settings: TrainConfig) -> None:
        right = (
            all(type(step) is int for step in (self.step, self.best_step, self.evaluated_step))
            and 0 <= self.best_step <= self.step <= settings.steps
            and 0 <= self.evaluated_step <= self.step
            and 0 <= self.evaluated_progress <= self.progress < math.inf
            and 0 < self.best_factor < math.inf
            and 0 <= (self.best_bits or 0.0) < math.inf
            and 0 <= self.dropout < 1
            and 0 <= self.token_split <= 1
            and 0 <= self.regularized_progress < math.inf
            and isinstance(self.regularizations, list)
        )
        if not right:
            raise ValueError(str(self))


def _under(arrays: Mapping[str, NDArray[Any]], start: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


class _Source:
    """Batches of the same number of tokens, in windows that grow; near the end every token is whole."""

    def __init__(self, tokens: Tokens, settings: TrainConfig, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._batches = Batches(tokens, settings.context, settings.batch_size, settings.seed)

    def batch(self, step: int, progress: float, token_split: float | None = None) -> NDArray[np.int64]:
        """ids [rows, window + 1]; with another share of BPE-dropout than the settings have, if given."""
        split = self._settings.token_split if token_split is None else token_split
        split = split if progress < SPLIT_UNTIL else 0.0
        if split and self._batches.parts is None:
            self._batches = replace(self._batches, parts=np.array(self._tokenizer.parts))
        return self._batches.batch(step, _context_at(progress, self._settings), split)


def _set_aside(tokens: Tokens, count: int, context: int) -> tuple[Tokens, NDArray[np.int64]]:
    """(what is learned from, windows [B, context + 1] of about `count` tokens that are not), taken evenly from the
    text: its end alone may hold what the rest does not, the names of a last chapter."""
    windows = count // (context + 1)
    if not windows:
        return tokens, np.empty((0, context + 1), np.int64)
    starts = ((np.arange(windows) + 0.5) / windows * (len(tokens) - context - 1)).astype(np.int64)
    aside = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return Without(tokens, starts, context + 1), aside


class _Calibration:
    """How sure the model is, set right: what it saw often it predicts more surely than new text of the kind bears.
    On text that it does not learn from, one factor on all logits is found, which goes into the last norm's gain."""

    def __init__(self, model: LanguageModel, ids: NDArray[np.int64]) -> None:
        self._model, self._ids = model, ids
        self.tokens = ids.size
        self.seconds = 0.0  # that it took the last time

    @contextlib.contextmanager
    def applied(self) -> Iterator[float]:
        """Inside, the model is as it should be used; the factor."""
        if not len(self._ids):
            yield 1.0
            return
        began = time.monotonic()
        self._model.eval()
        factor = round(sharpness(self._model, self._ids), 4)
        gain = self._model.model.norm.weight
        before = gain.detach().clone()
        with torch.no_grad():
            gain.mul_(factor)
        self.seconds = time.monotonic() - began
        try:
            yield factor
        finally:
            with torch.no_grad():
                gain.copy_(before)


Watch = Callable[[LanguageModel], contextlib.AbstractContextManager[None]]


class _Measure:
    """Evaluates the held-out text."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        held_out: NDArray[np.unsignedinteger],
        settings: TrainConfig,
        start: Checkpoint | None = None,
    ) -> None:
        self._model, self._models_at_end = model, 2 if start else 1
        self._ids = Preceded(tokenizer.start_id, held_out)
        self._lengths = np.array([len(data) for data in tokenizer.token_bytes])
        self._timed, self._context = settings.seconds is not None, settings.context
        self.tokens = min(settings.eval_tokens, len(held_out))
        self._windows = self._select(settings.context, self.tokens)
        self.final_context = min(model.config.max_position_embeddings, max(EVALUATION_CONTEXT, settings.context))
        self._final_windows: Sequence[Window] = ()
        self.expert_shares: list[list[float]] = []  # of the held-out tokens, at the end: [layers][experts]

    def now(self, limit: float = math.inf, clock: Callable[[], float] = time.monotonic) -> Score:
        """Of the model as it is. If one was cut short at `limit`, a time of `clock`, the later ones are as short."""
        figures, windows = self._evaluate(self._model, self._windows, limit, clock)
        if len(windows) < len(self._windows):
            self._windows, self.tokens = windows, figures.tokens
        return figures

    def at_end(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        trained: int,
        limit: float,
        clock: Callable[[], float],
        watch: Watch,
        *,
        hurried: bool,
    ) -> Score | None:
        """Of the weights that a file holds, with products in float32 and the context that those who use the file have
        (EVALUATION_CONTEXT at most; that of training if `hurried`), on as much as `limit` allows. None if `watch` cut
        the first windows short."""
        tokens = self.tokens if hurried else self._final_tokens(trained)
        if hurried:
            self.final_context = self._context
        elif self._timed:  # until `limit`, so that a run ends neither late nor early
            tokens = min(FINAL_EVAL_MORE * tokens, len(self._ids))
        self._final_windows = self._select(self.final_context, tokens)
        exact = self._exact(weights)
        with watch(exact):
            figures, self._final_windows = self._evaluate(exact, self._final_windows, limit, clock, or_less=True)
        self.expert_shares = exact.expert_shares()
        return figures if self._final_windows else None

    def again_at_end(self, weights: Mapping[str, NDArray[np.float32]], watch: Watch) -> Score | None:
        """Of other weights, on the same windows. None if `watch` cut that short."""
        exact = self._exact(weights)
        with watch(exact):
            figures, windows = self._evaluate(exact, self._final_windows, or_less=True)
        return figures if len(windows) == len(self._final_windows) else None

    def tokens_at_end(self, trained: int) -> float:
        """What `now` and `at_end` will cost together when the run ends, in tokens of `now`."""
        exact = 1 if self._model.dtype is torch.float32 else EXACT_COST
        return self._models_at_end * exact * self._final_tokens(trained) + self.tokens

    def _final_tokens(self, trained: int) -> int:
        affordable = max(min(FINAL_EVAL_TOKENS, trained // 6), trained // FINAL_EVAL_SHARE)
        return min(max(affordable, self.tokens), len(self._ids))

    def _select(self, context: int, most_tokens: int) -> Sequence[Window]:
        """Windows spread over the text; where a clock may cut them short, the first of them are spread as well."""
        windows = select_windows(len(self._ids), context, most_tokens)
        return spread_order(windows) if self._timed else windows

    def _exact(self, weights: Mapping[str, NDArray[np.float32]]) -> LanguageModel:
        exact = LanguageModel(self._model.config).to(self._model.cos.device)
        exact.load_arrays(weights)
        return exact

    def _evaluate(
        self,
        model: LanguageModel,
        windows: Sequence[Window],
        limit: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        *,
        or_less: bool = False,
    ) -> tuple[Score, Sequence[Window]]:
        """The figures of the windows, of the first few at least, until `limit`; and which windows these are. With
        `or_less` being cut short is no error."""
        model.eval()
        total, done = Score(0.0, 0, 0), 0
        batch_tokens = int(min(EVALUATED_AT_ONCE, EVALUATED_WORK / model.config.parameters))
        batches = evaluate_windows(self._ids, self._lengths, windows, partial(score, model), batch_tokens=batch_tokens)
        try:
            for some, figures in batches:
                total, done = total + figures, done + len(some)
                if clock() > limit:
                    break
        except _CutShortError:
            if not or_less:
                raise
        return total, windows if done == len(windows) else [windows[i] for i in range(done)]


class _Curve:
    """The losses of a run, thinned to a few hundred points as it grows, and what the model said on the way."""

    def __init__(
        self,
        losses: Sequence[float] = (),
        evaluations: Sequence[Sequence[Any]] = (),
        samples: Sequence[Sequence[Any]] = (),
    ) -> None:
        self._losses = list(losses)
        self._samples: list[tuple[int, str]] = [(step, text) for step, text in samples]
        self._evaluations: list[tuple[int, float]] = [(step, bits) for step, bits in evaluations]

    def losses(self) -> NDArray[np.float64]:
        return np.array(self._losses, np.float64)

    def evaluations(self) -> list[tuple[int, float]]:
        return list(self._evaluations)

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    def samples(self) -> list[tuple[int, str]]:
        """(step, text), in order."""
        return list(self._samples)

    def add_sample(self, step: int, text: str) -> None:
        self._samples.append((step, text))

    def add_evaluation(self, step: int, bits_per_byte: float) -> None:
        self._evaluations.append((step, bits_per_byte))

    def thinned(self) -> dict[str, list[Any]]:
        """Means of equal runs of steps, at most CURVE_POINTS of them; each stands at its last step."""
        width = math.ceil(len(self._losses) / CURVE_POINTS)
        ends = range(width, len(self._losses) + width, width) if width else ()
        return {
            "step": [min(end, len(self._losses)) for end in ends],
            "loss": [round(float(np.mean(self._losses[end - width : end])), 4) for end in ends],
            "eval_step": [step for step, _ in self._evaluations],
            "eval_bits_per_byte": [bits for _, bits in self._evaluations],
        }


def _sample(config: ModelConfig, weights: dict[str, NDArray[np.float32]], tokenizer: Tokenizer, prompt: str) -> str:
    runtime = NumpyRuntime(Checkpoint(config, "", weights))
    pieces = generate(runtime, tokenizer, prompt, SamplingConfig(max_tokens=SAMPLE_TOKENS))
    return "".join(piece.text for piece in pieces)
