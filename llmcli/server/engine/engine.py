"""The engine of `llm serve`: one thread that owns all models and their KV caches, and processes many requests together.

Requests wait in a queue until there is space for them. The thread works in passes: a chunk of one prompt that is not
processed yet, and then one token of each text that is being generated, stacked through the linear layers of its model.
So a long prompt delays the other texts by a chunk per token, not by the whole prompt, and a cancelled request is gone
before the next token.

Functions that analyze a model run in a thread of their own, one at a time, on a fork: they slow down the texts that are
being generated, but do not stop them.

A text does not depend on what else runs: each request has its own KV cache and its own random numbers. Only the last
bits of logits can differ, with the number of texts in a step and with the part of the prompt that was cached.

A text whose reader does not keep up is set aside: it keeps its cache, but takes no place among the texts in progress.

The thread may end by an error, such as a lack of memory. Then all requests fail at once, and the next one starts
another thread.

Memory of keys and values: requests are admitted while all that they can need fits `Limits.live_bytes` (one is always
admitted), and `Limits.prefix_bytes` are kept of earlier ones. A cache grows by doubling, so that up to twice as much
may be allocated for those in progress.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.generator import Choice, choose_together
from llmcli.models.ngram_runtime import undo_step
from llmcli.models.runtime import Array, Runtime, step_batch
from llmcli.server.engine.prefix_cache import Prefix, PrefixCache
from llmcli.server.engine.requests import Limits, OnEvent, QueueFullError, Request, StoppingError, UnavailableError
from llmcli.server.engine.sequence import Counts, Sequence

T = TypeVar("T")
PASS_SECONDS = 0.5  # that the end waits for the pass in progress
OpenModel = Callable[[str], tuple[Runtime, Tokenizer]]  # by the name that it is served under; raises LLMError


@dataclass(frozen=True)
class Stats:
    """The state of the engine."""

    active: int  # requests in progress, with those that are set aside
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

    def pause(self) -> None:
        """Set the request aside before its next token, so that others have its place."""
        self._sequence.is_paused = True
        self._wake()

    def resume(self) -> None:
        self._sequence.is_paused = False
        self._wake()


class Engine:
    """Processes requests for any of several models. Its methods may be called from any thread."""

    def __init__(self, open_model: OpenModel, limits: Limits | None = None) -> None:
        """`open_model` is called at the first use of a model, in a thread of its own."""
        self._open_model, self._limits = open_model, limits or Limits()
        self._changed = threading.Condition()  # guards the next seven
        self._thread: threading.Thread | None = None  # None: it is not running
        self._failure: str | None = None  # why it is not
        self._is_changed = False  # there may be something to do
        self._waiting: list[Sequence] = []
        self._jobs: list[_Job[Any]] = []
        self._drain_until: float | None = None  # a time; set when the engine is closed
        self._job_is_running = False
        self._active: list[Sequence] = []  # this and all that follows is changed by the engine's thread alone
        self._aside: list[Sequence] = []  # in progress, but paused
        self._models: dict[str, Future[_Model]] = {}
        self._prefixes = PrefixCache(self._limits.prefix_bytes)
        self._counts = Counts()
        self._loading = threading.Lock()  # one model at a time

    # ---- from any thread

    def start(self) -> None:
        """Start the thread. Where that fails, `failure` says why, and the next request tries again."""
        with suppress(UnavailableError), self._changed:
            self._ensure_running()

    @property
    def failure(self) -> str | None:
        """Why the thread is not running; None while it is."""
        return self._failure

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, and end: those in progress have `drain_seconds` to finish, then they fail. A function
        that `run` was given, and a model that is being loaded, are not waited for: their threads end with the process.
        """
        with self._changed:
            self._drain_until = time.monotonic() + drain_seconds
            thread = self._thread
        self._wake()
        if thread is not None:
            thread.join(drain_seconds + PASS_SECONDS)

    def submit(self, request: Request, on_event: OnEvent) -> Ticket:
        """Add a request to the queue. Raises QueueFullError when too many wait, StoppingError after `close`, and
        UnavailableError if the engine cannot run."""
        sequence = Sequence(request, on_event, self._counts)
        with self._changed:
            self._check_open()
            if len(self._waiting) >= self._limits.queue:
                raise QueueFullError(f"{self._limits.queue} requests are waiting already; try again later")
            self._ensure_running()
            self._waiting.append(sequence)
            self._counts.requests += 1
        self._wake()
        return Ticket(sequence, self._wake)

    def run(self, model: str, function: Callable[[Runtime], T]) -> "Future[T]":
        """Call a function in another thread, with a runtime of the model that has an empty cache, after all functions
        that were given before. Raises StoppingError after `close`, and UnavailableError if the engine cannot run."""
        job = _Job(model, function, Future())
        with self._changed:
            self._check_open()
            self._ensure_running()
            self._jobs.append(job)
        self._wake()
        return job.future

    def stats(self) -> Stats:
        return Stats(
            active=len(self._active) + len(self._aside),
            waiting=len(self._waiting),
            loaded=tuple(name for name, model in list(self._models.items()) if model.done() and not model.exception()),
            prefixes=len(self._prefixes),
            prefix_bytes=self._prefixes.bytes,
            counts=replace(self._counts),
        )

    def _ensure_running(self) -> None:
        """Start the thread if it is not running; `_changed` is held."""
        if self._thread is None:
            try:
                self._thread = _start_thread(self._run, name="engine")
            except UnavailableError as error:
                self._failure = str(error)
                raise
            self._failure = None

    def _check_open(self) -> None:
        if self._drain_until is not None:
            raise StoppingError()

    def _wake(self, *_: object) -> None:
        with self._changed:
            self._is_changed = True
            self._changed.notify()

    # ---- the engine's thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # nothing may wait for a thread that has ended
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Fail all requests. What they were processing may be incomplete, so no cache is kept."""
        reason = "not enough memory" if isinstance(error, MemoryError) else "an internal error, which is in its log"
        failure = UnavailableError(f"the server's engine ended: {reason}; the next request starts it again")
        failure.__cause__ = error
        with self._changed:
            self._thread, self._failure = None, str(failure)
            sequences, jobs = [*self._waiting, *self._active, *self._aside], self._jobs
            self._waiting, self._active, self._aside, self._jobs = [], [], [], []
            self._prefixes = PrefixCache(self._limits.prefix_bytes)
        for sequence in sequences:
            with suppress(Exception):
                sequence.fail(failure)
        _fail_jobs(jobs, failure)

    def _work(self) -> None:
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
            else:
                self._set_aside()
            self._start_job()
            self._admit()
            self._prefill()
            self._step()
            self._remove_ended()

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled = [s for s in self._waiting if s.cancelled]
            self._waiting = [s for s in self._waiting if not s.cancelled]
        for sequence in (*cancelled, *(s for s in (*self._active, *self._aside) if s.cancelled)):
            sequence.cancel()
        self._remove_ended()

    def _drain(self, until: float) -> None:
        """Fail what has not begun and, after the time `until`, all else."""
        with self._changed:
            waiting, jobs, self._waiting, self._jobs = self._waiting, self._jobs, [], []
        _fail_jobs(jobs, StoppingError())
        self._active, self._aside = [*self._active, *self._aside], []
        late = self._active if time.monotonic() >= until else []
        for sequence in (*waiting, *late):
            sequence.fail(StoppingError())
        self._remove_ended()

    def _set_aside(self) -> None:
        """Set paused requests aside, and take those back that are not paused any more, while there are places."""
        paused = [sequence for sequence in self._active if sequence.is_paused]
        if not paused and not self._aside:
            return
        self._active = [sequence for sequence in self._active if sequence not in paused]
        places = self._limits.concurrent - len(self._active)
        resumed = [sequence for sequence in self._aside if not sequence.is_paused][: max(0, places)]
        self._active += resumed
        self._aside = [sequence for sequence in self._aside if sequence not in resumed] + paused

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
            try:
                _start_thread(self._run_job, function, job.future, name="analysis")
            except UnavailableError as error:
                self._job_is_running = False
                _fail_jobs([job], error)

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
        """Whether a request can begin. Those that are set aside give up their memory for it, and fail."""
        free = self._limits.live_bytes - sum(other.max_bytes for other in self._active)
        if self._active and (len(self._active) >= self._limits.concurrent or sequence.max_bytes > free):
            return False
        while self._aside and sum(other.max_bytes for other in self._aside) + sequence.max_bytes > free:
            self._aside.pop(0).fail(UnavailableError("the answer was not read, and its memory was needed for others"))
        return True

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
        live = [prefix for other in (*self._active, *self._aside) if (prefix := _prefix(other))]
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
                undo_step(runtime, length)
        for sequence, row, choice in zip(sequences, rows, choices, strict=True):
            try:
                sequence.step_done(sequence.live_runtime.step(sequence.next_token) if row is None else row, choice)
            except Exception as error:
                sequence.fail(_as_llm_error(error))

    def _remove_ended(self) -> None:
        """Remove requests that ended, and keep their caches for later ones."""
        ended = [sequence for sequence in (*self._active, *self._aside) if sequence.is_done]
        if not ended:
            return
        self._active = [sequence for sequence in self._active if not sequence.is_done]
        self._aside = [sequence for sequence in self._aside if not sequence.is_done]
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
            future: Future[_Model] = Future()
            _start_thread(self._load, name, future, name="load-model")
            self._models[name] = future  # not before: a future that no thread completes would stay for ever
            future.add_done_callback(self._wake)
        future = self._models[name]
        if not future.done():
            return None
        if future.exception():
            del self._models[name]
        return future.result()


def _start_thread(function: Callable[..., None], *arguments: Any, name: str) -> threading.Thread:
    """Raises UnavailableError where the system has no thread left."""
    thread = threading.Thread(target=function, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise UnavailableError("the server could not start a thread; try again later") from error
    return thread


def _fail_jobs(jobs: list[_Job[Any]], error: Exception) -> None:
    for job in jobs:
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)


def _fail(error: Exception) -> NoReturn:
    raise error


def _prefix(sequence: Sequence) -> Prefix | None:
    runtime = sequence.runtime
    if runtime is None:
        return None
    return Prefix(sequence.request.model, runtime, np.array(sequence.held_ids, np.int64), runtime.cache_bytes)


def _as_llm_error(error: Exception) -> LLMError:
    """The error for a client; one that is not meant for users becomes its cause."""
    if isinstance(error, LLMError):
        return error
    if isinstance(error, MemoryError):
        unexpected: LLMError = UnavailableError("the server has not enough memory for this request; try a shorter one")
    else:
        unexpected = LLMError(f"internal error: {type(error).__name__}: {error}")
    unexpected.__cause__ = error
    return unexpected
