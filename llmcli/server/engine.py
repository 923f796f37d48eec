"""The engine of `llm serve`: one thread that owns all models and their KV caches, and processes many requests together.

Requests wait in a queue until there is space for them. The thread works in passes: a chunk of one prompt that is not
processed yet, and then one token of each text that is being generated, stacked through the linear layers of its model.
So a long prompt delays the other texts by a chunk per token, not by the whole prompt, and a cancelled request is gone
before the next token.

Functions that analyze a model run in a thread of their own, one at a time, on a fork: they slow down the texts that are
being generated, but do not stop them.

A text does not depend on what else runs: each request has its own KV cache and its own random numbers. Only the last
bits of logits can differ, with the number of texts in a step and with the part of the prompt that was cached.

Memory of keys and values: requests are admitted while all that they can need fits `Limits.live_bytes` (one is always
admitted), and `Limits.prefix_bytes` are kept of earlier ones. A cache grows by doubling, so that up to twice as much
may be allocated for those in progress.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.choice_batch import choose_together
from llmcli.generation.generator import Choice
from llmcli.models.batch import step_batch
from llmcli.models.runtime import Array, Runtime
from llmcli.server.prefixes import Prefix, PrefixCache
from llmcli.server.requests import Limits, OnEvent, QueueFullError, Request, StoppingError
from llmcli.server.sequence import Counts, Sequence

T = TypeVar("T")
PASS_SECONDS = 0.5  # that the end waits for the pass in progress
OpenModel = Callable[[str], tuple[Runtime, Tokenizer]]  # by the name that it is served under; raises LLMError


@dataclass(frozen=True)
class Stats:
    """The state of the engine."""

    active: int  # requests in progress
    waiting: int
    loaded: tuple[str, ...]  # names of the models
    prefixes: int  # caches kept of earlier requests
    prefix_bytes: int
    counts: Counts


@dataclass(frozen=True)
class _Model:
    runtime: Runtime  # with an empty cache: it is only forked
    tokenizer: Tokenizer


@dataclass(frozen=True, eq=False)
class _Job(Generic[T]):
    model: str
    function: Callable[[Runtime], T]
    future: "Future[T]"


class Ticket:
    """A request that the engine accepted."""

    def __init__(self, sequence: Sequence, wake: Callable[[], None]) -> None:
        self._sequence, self._wake = sequence, wake

    def cancel(self) -> None:
        """Stop the request before its next token. It may have ended already, and an event may be under way."""
        self._sequence.cancelled = True
        self._wake()


class Engine:
    """Processes requests for any of several models. Its methods may be called from any thread."""

    def __init__(self, open_model: OpenModel, limits: Limits | None = None) -> None:
        """`open_model` is called at the first use of a model, in a thread of its own."""
        self._open_model, self._limits = open_model, limits or Limits()
        self._changed = threading.Condition()  # guards the next five
        self._is_changed = False  # there may be something to do
        self._waiting: list[Sequence] = []
        self._jobs: list[_Job[Any]] = []
        self._drain_until: float | None = None  # a time; set when the engine is closed
        self._job_is_running = False
        self._active: list[Sequence] = []  # this and all that follows is changed by the engine's thread alone
        self._models: dict[str, Future[_Model]] = {}
        self._prefixes = PrefixCache(self._limits.prefix_bytes)
        self._counts = Counts()
        self._loading = threading.Lock()  # one model at a time
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ---- from any thread

    def start(self) -> None:
        self._thread.start()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, and end: those in progress have `drain_seconds` to finish, then they fail. A function
        that `run` was given, and a model that is being loaded, are not waited for: their threads end with the process.
        """
        with self._changed:
            self._drain_until = time.monotonic() + drain_seconds
        self._wake()
        self._thread.join(drain_seconds + PASS_SECONDS)

    def submit(self, request: Request, on_event: OnEvent) -> Ticket:
        """Add a request to the queue. Raises QueueFullError when too many wait, and StoppingError after `close`."""
        sequence = Sequence(request, on_event, self._counts)
        with self._changed:
            self._check_open()
            if len(self._waiting) >= self._limits.queue:
                raise QueueFullError(f"{self._limits.queue} requests are waiting already; try again later")
            self._waiting.append(sequence)
            self._counts.requests += 1
        self._wake()
        return Ticket(sequence, self._wake)

    def run(self, model: str, function: Callable[[Runtime], T]) -> "Future[T]":
        """Call a function in another thread, with a runtime of the model that has an empty cache, after all functions
        that were given before. Raises StoppingError after `close`."""
        job = _Job(model, function, Future())
        with self._changed:
            self._check_open()
            self._jobs.append(job)
        self._wake()
        return job.future

    def stats(self) -> Stats:
        return Stats(
            active=len(self._active),
            waiting=len(self._waiting),
            loaded=tuple(name for name, model in list(self._models.items()) if model.done() and not model.exception()),
            prefixes=len(self._prefixes),
            prefix_bytes=self._prefixes.bytes,
            counts=replace(self._counts),
        )

    def _check_open(self) -> None:
        if self._drain_until is not None:
            raise StoppingError()

    def _wake(self, *_: object) -> None:
        with self._changed:
            self._is_changed = True
            self._changed.notify()

    # ---- the engine's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_changed or self._active)
                self._is_changed = False
                drain_until = self._drain_until
            self._drop_cancelled()
            if drain_until is not None:
                self._drain(drain_until)
                if not self._active:
                    return
            self._start_job()
            self._admit()
            self._prefill()
            self._step()
            self._remove_ended()

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled = [s for s in self._waiting if s.cancelled]
            self._waiting = [s for s in self._waiting if not s.cancelled]
        for sequence in (*cancelled, *(s for s in self._active if s.cancelled)):
            sequence.cancel()
        self._remove_ended()

    def _drain(self, until: float) -> None:
        """Fail what has not begun and, after the time `until`, all else."""
        with self._changed:
            waiting, jobs, self._waiting, self._jobs = self._waiting, self._jobs, [], []
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(StoppingError())
        late = self._active if time.monotonic() >= until else []
        for sequence in (*waiting, *late):
            sequence.fail(StoppingError())
        self._remove_ended()

    def _start_job(self) -> None:
        """Start the first job whose model is loaded, unless one is running."""
        for job in list(self._jobs):
            if self._job_is_running:
                return
            try:
                if (model := self._model(job.model)) is None:
                    continue
                function = partial(job.function, model.runtime.fork())
            except Exception as error:  # it belongs to whoever waits for the result
                function = partial(_fail, error)
            with self._changed:
                self._jobs.remove(job)
            self._job_is_running = True
            threading.Thread(target=self._run_job, args=(function, job.future), name="analysis", daemon=True).start()

    def _run_job(self, function: Callable[[], T], future: "Future[T]") -> None:
        """In a thread of its own."""
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except Exception as error:  # as above
                future.set_exception(error)
        self._job_is_running = False
        self._wake()  # there may be another

    def _admit(self) -> None:
        """Move requests from the queue to those in progress: in their order, as many as there is space for. Requests
        for a model that is being loaded are passed over."""
        for sequence in list(self._waiting):
            try:
                if (model := self._model(sequence.request.model)) is None:
                    continue
                if not sequence.is_open:
                    context = min(model.runtime.context, self._limits.context or model.runtime.context)
                    sequence.open(model.tokenizer, context, model.runtime.cache_bytes_per_token)
                if not self._has_space(sequence):
                    return
                self._active.append(sequence)
            except Exception as error:
                sequence.fail(_as_llm_error(error))
            with self._changed:
                self._waiting.remove(sequence)

    def _has_space(self, sequence: Sequence) -> bool:
        reserved = sum(other.max_bytes for other in self._active)
        return not self._active or (
            len(self._active) < self._limits.concurrent and reserved + sequence.max_bytes <= self._limits.live_bytes
        )

    def _prefill(self) -> None:
        """Process a chunk of the first request that is not ready for a step."""
        for sequence in self._active:
            if not sequence.waits_for_step:
                try:
                    if sequence.runtime is None:
                        self._begin(sequence)
                    sequence.advance()
                except Exception as error:
                    sequence.fail(_as_llm_error(error))
                return

    def _begin(self, sequence: Sequence) -> None:
        """Give a request its runtime, whose cache has as much of the prompt as possible."""
        name = sequence.request.model
        live = [prefix for other in self._active if (prefix := _prefix(other))]
        shared = self._prefixes.take(name, sequence.shareable_ids, live)
        runtime, cached = shared or (self._models[name].result().runtime.fork(), 0)
        runtime.rewind(cached)  # what an earlier request wrote is a part of this prompt
        sequence.begin(runtime, cached)

    def _step(self) -> None:
        """Process one token of each text that is being generated, those of a model together."""
        ready = [sequence for sequence in self._active if sequence.waits_for_step]
        for name in dict.fromkeys(sequence.request.model for sequence in ready):
            self._step_model([sequence for sequence in ready if sequence.request.model == name])

    def _step_model(self, sequences: list[Sequence]) -> None:
        rows: list[Array | None] = [None] * len(sequences)
        choices: list[Choice | None] = [None] * len(sequences)
        runtimes = [sequence.live_runtime for sequence in sequences]
        lengths = [runtime.length for runtime in runtimes]
        try:
            logits = step_batch(runtimes, [sequence.next_token for sequence in sequences])
            choices, rows[:] = choose_together([sequence.text for sequence in sequences], logits), logits
        except Exception:  # of one of them, perhaps: each is processed alone below
            for runtime, length in zip(runtimes, lengths, strict=True):
                runtime.rewind(length)
        for sequence, row, choice in zip(sequences, rows, choices, strict=True):
            try:
                sequence.step_done(sequence.live_runtime.step(sequence.next_token) if row is None else row, choice)
            except Exception as error:
                sequence.fail(_as_llm_error(error))

    def _remove_ended(self) -> None:
        """Remove requests that ended, and keep their caches for later ones."""
        ended = [sequence for sequence in self._active if sequence.is_done]
        if not ended:
            return
        self._active = [sequence for sequence in self._active if not sequence.is_done]
        for sequence in ended:
            if (prefix := _prefix(sequence)) and not sequence.has_failed:
                self._prefixes.keep(prefix)
        with self._changed:
            self._is_changed = True  # there is space for others

    def _load(self, name: str, future: "Future[_Model]") -> None:
        """In a thread of its own."""
        with self._loading:
            try:
                future.set_result(_Model(*self._open_model(name)))
            except BaseException as error:  # it belongs to whoever asks for the model
                future.set_exception(error)

    def _model(self, name: str) -> _Model | None:
        """A model; None while it is being loaded. Raises the error with which loading failed; the next call tries
        again."""
        if name not in self._models:
            self._models[name] = Future()
            self._models[name].add_done_callback(self._wake)
            threading.Thread(target=self._load, args=(name, self._models[name]), name="load-model", daemon=True).start()
        future = self._models[name]
        if not future.done():
            return None
        if future.exception():
            del self._models[name]
        return future.result()


def _fail(error: Exception) -> NoReturn:
    raise error


def _prefix(sequence: Sequence) -> Prefix | None:
    runtime = sequence.runtime
    return Prefix(sequence.request.model, runtime, sequence.held_ids, runtime.cache_bytes) if runtime else None


def _as_llm_error(error: Exception) -> LLMError:
    """The error for a client; one that is not meant for users becomes its cause."""
    if isinstance(error, LLMError):
        return error
    unexpected = LLMError(
        "not enough memory" if isinstance(error, MemoryError) else f"internal error: {type(error).__name__}: {error}"
    )
    unexpected.__cause__ = error
    return unexpected
