"""Plan -> steps. A generator that yields what happened; it never prints and never writes a file.

Everything random is a function of (seed, step): data order, dropout, fresh weights. A fresh model and one to go on
from take the same path: both are a checkpoint.
"""

import contextlib
import copy
import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray

import llmcli
from llmcli.checkpoint import Checkpoint
from llmcli.config import ModelConfig, SamplingConfig, TrainConfig, as_record
from llmcli.corpus import Batches
from llmcli.errors import LLMError
from llmcli.evaluator import Figures, evaluate
from llmcli.forecast import parts
from llmcli.generator import generate
from llmcli.induction import with_induction
from llmcli.model import LanguageModel, score, sharpness
from llmcli.optimizer import Optimizer, rate
from llmcli.planner import Plan
from llmcli.resume import State
from llmcli.runtime import Runtime
from llmcli.tokenizer import Tokenizer

EVAL_SHARE = 24  # tokens trained on for each held-out one that is looked at on the way, at least
FINAL_EVAL_TOKENS = 65_536  # held-out tokens measured at the end, if a long enough run can afford them ...
FINAL_EVAL_SHARE = 16  # ... or one for so many trained on, if that is more
EXACT_COST = 2.2  # seconds that a look in float32 takes for one in bfloat16
EVAL_EVERY = 0.05  # of the run, at least
ALIKE = 0.002  # held-out figures that differ by less say nothing
CURVE_POINTS = 300
SAMPLE_TOKENS = 48
SAMPLED = 20_000_000  # parameters up to which a run's samples are kept in its record: they are quick to make
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
    figures: Figures | None  # on the held-out text
    interrupted: bool
    problem: str = ""  # why the run could not go on, if it could not
    before: Figures | None = None  # on the same text, of the model that the run went on from
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


def measured_speed(config: ModelConfig, settings: TrainConfig, seconds: float) -> float:
    """Tokens a second in training, by a few real steps on made-up text that take about so many seconds."""
    _prepare_process(settings)
    model = _fresh_model(config, settings)
    model.initialize(torch.Generator().manual_seed(0))
    optimizer = Optimizer(model, settings, config.hidden_size)
    rng = np.random.default_rng(0)
    shortest = _context_at(0.0, settings)
    times: list[float] = []  # seconds for a token
    began = time.perf_counter()
    # the first steps are slower than the rest; the longest and the shortest windows of a run take turns
    while len(times) < 2 or time.perf_counter() - began < (seconds if len(times) >= 4 else LONGEST_MEASURED):
        context = settings.context if len(times) % 2 else shortest
        size = (max(1, settings.batch_size * settings.context // context), context + 1)
        start = time.perf_counter()
        model.train()
        ids = torch.from_numpy(rng.integers(config.vocab_size, size=size)).to(settings.device)
        _loss_and_gradients(model, ids, parts(config, settings))
        optimizer.step(0.5)
        if settings.device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / (size[0] * context))
    late = times[2:] if len(times) >= 4 else times[-2:]
    return 2 / float(np.median(late[::2]) + np.median(late[1::2]))


def _loss_and_gradients(model: LanguageModel, ids: torch.Tensor, parts: int) -> torch.Tensor:
    """The loss of a batch of windows, which goes through the graph in parts; its gradients are left in the model."""
    total = torch.zeros((), device=ids.device)
    for part in ids.chunk(parts):
        loss = model.loss(part) * (len(part) / len(ids))
        loss.backward()
        total += loss.detach()
    return total


def _prepare_process(settings: TrainConfig) -> None:
    torch.set_num_threads(settings.threads)
    _keep_memory()


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Have the C library keep freed memory: giving it back after each step and touching it again in the next costs
    a twentieth of a step (5,000 page faults). What is larger than 32 MB still comes and goes."""
    if platform.libc_ver()[0] == "glibc":
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
    return max(min(context, SHORTEST_RAMP), context // divisor)


def train(
    plan: Plan,
    tokenizer: Tokenizer,
    start: Checkpoint | None,
    tokens: NDArray[np.unsignedinteger],
    held_out: NDArray[np.unsignedinteger],
    record: dict[str, Any],
    *,
    sample_prompt: str | None = None,
    began: float | None = None,
    spare: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[], bool] = lambda: False,
    go_on: State | None = None,
) -> Iterator[Event]:
    """Train on `tokens` by the plan, from `start` or from fresh weights; `record` is what to say of the corpus.

    `began` is the time.monotonic() from which the plan's seconds count, `spare` are those of them that the caller
    needs afterwards. `stop` is asked after every step; when it says yes the run ends early with what there is.
    `save` is asked too; when it says yes, and at an early end, a State is yielded, with which as `go_on` another call
    goes on to the very same weights. When the loss is no longer a number the run ends with the best weights so far,
    or, if there are none yet, in an LLMError.
    """
    config, settings = plan.model, plan.train
    began = time.monotonic() if began is None else began
    _prepare_process(settings)
    model = _fresh_model(config, settings)
    model.load_arrays(start.tensors if start else fresh_weights(config, settings.seed, settings.induction))
    optimizer = Optimizer(model, settings, config.hidden_size)
    _compile(model, settings)
    context = settings.context
    tokens, aside = _set_aside(tokens, settings.calibration_tokens, context)
    batches = _Source(tokens, settings, tokenizer)
    calibration = _Calibration(model, aside)
    measure = _Measure(model, tokenizer, held_out, settings, start)
    curve = _Curve()
    best, at, interrupted, problem = model.to_arrays(), _Position(), False, ""
    best_adapters = model.learned_arrays() if settings.lora_rank else None
    step_tokens = settings.batch_size * context
    first_step = time.monotonic()
    if go_on:
        try:
            best = _under(go_on.arrays, "best.")
            model.load_learned(_under(go_on.arrays, "model."))
            best_adapters = _under(go_on.arrays, "adapters.") if settings.lora_rank else None
            optimizer.load_arrays(_under(go_on.arrays, "optimizer."))
            curve = _Curve(go_on.arrays["losses"].tolist(), go_on.figures["evaluations"], go_on.figures["samples"])
            at = _Position(**{field.name: go_on.figures[field.name] for field in fields(_Position)})
            at.check(settings)
            began, first_step = began - go_on.figures["seconds"], first_step - go_on.figures["trained_seconds"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise LLMError(
                f"the stopped run left other values than its plan has ({error}); begin anew with --force"
            ) from error

    def look() -> Iterator[Event]:
        """At the held-out text; the best weights so far are kept."""
        nonlocal best, best_adapters
        with calibration.applied() as factor:
            bits = round(measure.now().bits_per_byte, 6)  # as the record has it: whoever shows it rounds once
            weights = model.to_arrays()
        at.evaluated_step, at.evaluated_progress = at.step, at.progress
        curve.add_evaluation(at.step, bits)
        # of two alike the later is better: its steps were smaller
        is_best = math.isfinite(bits) and (at.best_bits is None or bits <= at.best_bits * (1 + ALIKE))
        if is_best:
            best, at.best_step, at.best_factor = weights, at.step, factor
            best_adapters = model.learned_arrays() if settings.lora_rank else None
            at.best_bits = bits if at.best_bits is None else min(bits, at.best_bits)
        yield Evaluation(at.step, bits, is_best)
        if sample_prompt:
            text = _sample(config, weights, tokenizer, sample_prompt)
            curve.add_sample(at.step, text)
            yield Sample(at.step, sample_prompt, text)

    def state() -> State:
        """All that the next step depends on."""
        arrays = {"model.": model.learned_arrays(), "best.": best, "optimizer.": optimizer.to_arrays()}
        arrays |= {"adapters.": best_adapters} if best_adapters is not None else {}
        now = time.monotonic()
        return State(
            {start + name: array for start, part in arrays.items() for name, array in part.items()}
            | {"losses": curve.losses()},
            as_record(at)
            | {
                "evaluations": curve.evaluations(),
                "samples": curve.samples(),
                "seconds": now - began,
                "trained_seconds": now - first_step,
            },
        )

    if start and len(held_out) and not go_on:
        yield from look()  # a run that only makes it worse ends with what it began with
    now = time.monotonic()
    while at.progress < 1 and not interrupted:
        model.dropout.seed(settings.seed, at.step)
        model.train()
        ids = torch.from_numpy(batches.batch(at.step, at.progress)).to(settings.device)
        loss = _loss_and_gradients(model, ids, parts(config, settings))
        optimizer.step(at.progress)
        value = loss.item()
        if not math.isfinite(value):
            problem = _exploded(at.step + 1, settings)
            break
        at.step += 1
        now = time.monotonic()
        at.progress = at.step / settings.steps
        if settings.seconds is not None:
            left = settings.seconds - spare - (now - began) - measure.seconds_at_end(at.step * step_tokens)
            left -= calibration.seconds
            at.progress = max(at.progress, 1 - max(0.0, left) / (max(0.0, left) + now - first_step))
        interrupted = stop()
        curve.add(value)
        seen = at.step * step_tokens
        yield Step(
            at.step, min(1.0, at.progress), value, seen, seen / len(tokens), rate(at.progress), now - began,
            seen / max(1e-9, now - first_step),
        )  # fmt: skip
        due = (at.step - at.evaluated_step) * step_tokens >= EVAL_SHARE * measure.tokens
        due = due and at.progress - at.evaluated_progress >= EVAL_EVERY
        due = bool(len(held_out)) and (due or at.progress >= 1)
        if due:
            yield from look()
        if at.progress < 1 and (save() or interrupted):  # before a look that a run without an end here would not have
            yield state()
        if interrupted and not due and len(held_out):
            yield from look()
    if at.best_bits is None:
        with calibration.applied() as at.best_factor:
            best, at.best_step = model.to_arrays(), at.step
        if problem or not all(np.isfinite(array).all() for array in best.values()):
            raise LLMError(problem or _exploded(at.step, settings))
    figures = before = None
    if len(held_out):
        hurried = interrupted or bool(problem)
        before = measure.at_end(start.tensors, at.step * step_tokens, hurried) if start else None
        figures = measure.at_end(best, at.step * step_tokens, hurried)
    seconds = time.monotonic() - began
    record = copy.deepcopy(record) | {
        "versions": versions(),
        "plan": [as_record(choice) for choice in plan.choices],
        "train": as_record(settings),
        "steps": at.step,
        "best_step": at.best_step,
        "tokens": at.step * step_tokens,
        "epochs": round(at.step * step_tokens / len(tokens), 4),
        "interrupted": interrupted,
        **({"problem": problem} if problem else {}),
        "bits_per_byte": figures and round(figures.bits_per_byte, 6),
        **({"bits_per_byte_before": round(before.bits_per_byte, 6)} if before else {}),
        "sharpness": at.best_factor,
        **({"expert_shares": measure.expert_shares} if measure.expert_shares else {}),
        "held_out_measured": figures and {"tokens": figures.tokens, "bytes": figures.bytes},
        "curve": curve.thinned(),
        **({"samples": {"prompt": sample_prompt, "texts": curve.samples()}} if config.parameters <= SAMPLED else {}),
    }  # fmt: skip
    if settings.seconds is not None:
        record["clock"] = {
            "seconds": round(seconds, 2),
            "tokens_per_second": round(at.step * step_tokens / (now - first_step)),
        }
    told = start.tokenizer_config_json if start else tokenizer.to_config_json(config.max_position_embeddings)
    checkpoint = Checkpoint(config, tokenizer.to_json(), best, record, told)
    yield Done(checkpoint, at.step, at.best_step, seconds, figures, interrupted, problem, before, best_adapters)


def _exploded(step: int, settings: TrainConfig) -> str:
    lower = min(settings.lr / 4, 0.5)
    return f"the loss is no longer a number at step {step}; lower the learning rate: --lr {lower:g} --force"


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

    def check(self, settings: TrainConfig) -> None:
        """Raises ValueError or TypeError where no run could stand."""
        right = (
            all(type(step) is int for step in (self.step, self.best_step, self.evaluated_step))
            and 0 <= self.best_step <= self.step <= settings.steps
            and 0 <= self.evaluated_step <= self.step
            and 0 <= self.evaluated_progress <= self.progress < math.inf
            and 0 < self.best_factor < math.inf
            and 0 <= (self.best_bits or 0.0) < math.inf
        )
        if not right:
            raise ValueError(str(self))


def _under(arrays: Mapping[str, NDArray[Any]], start: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


class _Source:
    """Batches of the same number of tokens, in windows that grow; near the end every token is whole."""

    def __init__(self, tokens: NDArray[np.unsignedinteger], settings: TrainConfig, tokenizer: Tokenizer) -> None:
        self._tokens, self._settings = tokens, settings
        self._parts = np.array(tokenizer.parts) if settings.token_split else None

    def batch(self, step: int, progress: float) -> NDArray[np.int64]:
        """ids [B, T + 1]"""
        settings = self._settings
        context = _context_at(progress, settings)
        split = settings.token_split if progress < SPLIT_UNTIL else 0.0
        rows = settings.batch_size * settings.context // context
        return Batches(self._tokens, context, rows, settings.seed, split, self._parts).batch(step)


def _set_aside(
    tokens: NDArray[np.unsignedinteger], count: int, context: int
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """(what is learned from, windows [B, context + 1] of about `count` tokens that are not), taken evenly from the
    text: its end alone may hold what the rest does not, the names of a last chapter."""
    windows = count // (context + 1)
    if not windows:
        return tokens, np.empty((0, context + 1), np.int64)
    starts = ((np.arange(windows) + 0.5) / windows * (len(tokens) - context - 1)).astype(np.int64)
    places = starts[:, None] + np.arange(context + 1)
    return np.delete(tokens, places.ravel()), tokens[places].astype(np.int64)


class _Calibration:
    """How sure the model is, set right: what it saw often it predicts more surely than new text of the kind bears.
    On text that it does not learn from, one factor on all logits is found, which goes into the last norm's gain."""

    def __init__(self, model: LanguageModel, ids: NDArray[np.int64]) -> None:
        self._model, self._ids = model, ids
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


class _Measure:
    """Looks at the held-out text with the model as it is."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        held_out: NDArray[Any],
        settings: TrainConfig,
        start: Checkpoint | None = None,
    ) -> None:
        self._model, self._looks = model, 2 if start else 1
        self._ids = np.concatenate([[tokenizer.start_id], held_out]).astype(np.int64)
        self._lengths = np.array([len(data) for data in tokenizer.token_bytes])
        self._context = settings.context
        self._seconds_per_token = 0.0
        self.tokens = min(settings.eval_tokens, len(held_out))
        self.expert_shares: list[list[float]] = []  # of the held-out tokens, at the end: [layers][experts]

    def now(self) -> Figures:
        began = time.monotonic()
        figures = self._evaluate(self._model, self.tokens, self._context)
        self._seconds_per_token = (time.monotonic() - began) / max(1, figures.tokens)
        return figures

    def at_end(self, weights: Mapping[str, NDArray[np.float32]], trained: int, hurried: bool) -> Figures:
        """Of the weights that a file holds, with products in float32 and all the context that the model has room for,
        as those who use the file have them."""
        exact = LanguageModel(self._model.config).to(self._model.cos.device)
        exact.load_arrays(weights)
        context = self._model.config.max_position_embeddings
        figures = self._evaluate(exact, self.tokens if hurried else self._final_tokens(trained), context)
        self.expert_shares = exact.expert_shares()
        return figures

    def seconds_at_end(self, trained: int) -> float:
        """What `now` and `at_end` will take together when the run ends, as far as known."""
        exact = 1 if self._model.dtype is torch.float32 else EXACT_COST
        return (self._looks * exact * self._final_tokens(trained) + self.tokens) * self._seconds_per_token

    def _final_tokens(self, trained: int) -> int:
        affordable = max(min(FINAL_EVAL_TOKENS, trained // 6), trained // FINAL_EVAL_SHARE)
        return min(max(affordable, self.tokens), len(self._ids))

    def _evaluate(self, model: LanguageModel, most_tokens: int, context: int) -> Figures:
        model.eval()
        return evaluate(self._ids, self._lengths, context, partial(score, model), most_tokens=most_tokens)


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
    runtime = Runtime(Checkpoint(config, "", weights))
    pieces = generate(runtime, tokenizer, prompt, SamplingConfig(max_tokens=SAMPLE_TOKENS))
    return "".join(piece.text for piece in pieces)
