"""The engine of `llm serve` and batches: a thread that owns all models and their KV caches, and processes
many requests together.

The thread works in passes: a chunk of one prompt (chunked prefill), then one token of each text that is being
generated, batched through the linear layers of its model (continuous batching). A long prompt therefore
delays the other texts by one chunk per token, and a cancelled request is removed before the next token. A
text that is generated alone has drafts (drafts.py). Functions that analyze a model run in a separate thread,
one at a time, on a fork.

Requests may form a group, such as the texts of one HTTP request. Groups take turns in having a chunk of their
prompts processed. If there are more texts than `EngineLimits.concurrent`, the groups get equal numbers of
places, but no more than they need. A group of many texts therefore delays another group's first token by only
one chunk for each chunk of that prompt.

A text does not depend on other requests: each request has its own KV cache and random numbers. Only the last
bits of logits depend on the number of texts in a step and on the part of the prompt that was cached.

Requests are admitted while all keys and values that they may need fit `EngineLimits.live_bytes` (one is
always admitted). Caches grow by doubling, so up to twice as much may be allocated.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.engine.prefix_cache import PrefixCache
from llmcli.generation.engine.requests import (
    EngineLimits,
    GenerationRequest,
    OnEvent,
    UnavailableError,
    stopping,
)
from llmcli.generation.engine.sequence import GeneratedSequence
from llmcli.generation.generator import choose_together
from llmcli.models.runtime import Runtime

T = TypeVar("T")
PASS_SECONDS = 0.5  # how long `close` waits for the pass in progress
Opened = tuple[Runtime, Tokenizer]  # the runtime's cache stays empty, since it is only forked


class Engine:
    """Processes requests for any of several models. Its methods may be called from any thread.

    If the thread ends with an error, such as out of memory, all requests fail, and the next request restarts
    it.
    """

    def __init__(self, open_model: Callable[[str], Opened], limits: EngineLimits | None = None) -> None:
        """`open_model` is called with the served name, in a separate thread, when a model is first used; it
        may raise LLMError."""
        self._open_model = open_model
        self._limits = limits or EngineLimits()
        # guards _thread, failure, _is_changed, waiting, _is_closed, _models
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None  # None: not running
        self.failure: str | None = None  # the reason why the thread is not running
        self._is_changed = False  # there may be something to do
        self.waiting: list[GeneratedSequence] = []
        self._is_closed = False
        self._models: dict[str, Future[Opened]] = {}
        self._loading = threading.Lock()  # one model at a time
        self._analyzing = threading.Lock()  # one function at a time
        # requests in progress; only the engine's thread changes this and the following attributes
        self.active: list[GeneratedSequence] = []
        self.prefixes = PrefixCache(self._limits.prefix_bytes)

    # ---- from any thread

    def start(self) -> None:
        """Start the thread. If that fails, `failure` is the reason, and the next request tries again."""
        with suppress(LLMError), self._changed:
            self._ensure_running()

    def close(self) -> None:
        """Refuse new requests, fail the others, and end the thread. Does not wait for running functions and
        for models that are being loaded; their threads end with the process."""
        with self._changed:
            self._is_closed = True
            thread = self._thread
        self._wake()
        if thread is not None:
            thread.join(PASS_SECONDS)

    def submit(
        self, request: GenerationRequest, on_event: OnEvent, group: object = None
    ) -> GeneratedSequence:
        """Add a request to the queue. All requests of a `group` together take turns with other groups. Raises
        UnavailableError if too many requests are waiting, after `close`, and if the engine cannot run."""
        with self._changed:
            self._ensure_running()
            waiting = [sequence for sequence in (*self.waiting, *self.aside) if not sequence.is_cancelled]
            if len(waiting) >= self._limits.queue:
                message = f"{self._limits.queue} requests are waiting already; try again later"
                raise UnavailableError(message, "queue_full")
            sequence = GeneratedSequence(request, on_event, self._model(request.model), group)
            self.waiting.append(sequence)
        self._wake()
        return sequence

    def cancel(self, sequence: GeneratedSequence) -> None:
        """Stop a request before its next token. It may already have ended, and one more event may arrive."""
        sequence.is_cancelled = True
        self._wake()

    def pause(self, sequence: GeneratedSequence, is_paused: bool) -> None:
        """Pause a request before its next token, or resume it. A paused request keeps its cache but gives up
        its place."""
        sequence.is_paused = is_paused
        self._wake()

    def run(self, model: str, function: Callable[[Runtime], T]) -> "Future[T]":
        """Call a function in a separate thread, one at a time, with a runtime of the model whose cache is
        empty. Raises UnavailableError after `close`, and if the engine cannot run."""
        with self._changed:
            self._ensure_running()
            opened = self._model(model)
        return _call_in_thread(
            lambda: function(opened.result()[0].fork()), self._analyzing, name="analysis", after=opened
        )

    def _ensure_running(self) -> None:
        """Start the thread if it is not running. The caller holds `_changed`. Raises UnavailableError,
        for instance after `close`."""
        if self._is_closed:
            raise stopping()
        if self._thread is None:
            try:
                self._thread = _start_thread(self._run, "engine")
            except UnavailableError as error:
                self.failure = str(error)
                raise
            self.failure = None

    def _wake(self, *_: object) -> None:
        with self._changed:
            self._is_changed = True
            self._changed.notify()

    # ---- the engine's thread

    def _run(self) -> None:
        try:
            self._work()
            failure = stopping()
        except BaseException as error:  # requests must not wait for a thread that has ended
            reason = (
                "not enough memory"
                if isinstance(error, MemoryError)
                else "an internal error, which is in its log"
            )
            failure = UnavailableError(
                f"the server's engine ended: {reason}; the next request starts it again"
            )
            failure.__cause__ = error
        with self._changed:
            self._thread = None
            self.failure = str(failure)
            sequences = [*self.waiting, *self.active]
            self.waiting = []
            self.active = []
            self.prefixes = PrefixCache(self._limits.prefix_bytes)  # the caches in use may be incomplete
        for sequence in sequences:
            sequence.fail(failure)

    def _work(self) -> None:
        """Process requests until the engine is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_changed or self._placed)
                is_changed = self._is_changed
                self._is_changed = False
                if self._is_closed:
                    return
            self._drop_cancelled()
            if is_changed:
                self._admit()
                self._assign_places()
            self._prefill()
            self._step()
            self._remove_ended()

    @property
    def aside(self) -> list[GeneratedSequence]:
        """Return the requests in progress that have no place, in the order of their turns. They wait like
        requests in the queue."""
        return [sequence for sequence in self.active if sequence.is_aside]

    @property
    def _placed(self) -> list[GeneratedSequence]:
        """Return the requests in progress that are neither set aside nor, since the last turn, paused."""
        return [sequence for sequence in self.active if not (sequence.is_aside or sequence.is_paused)]

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled = [sequence for sequence in (*self.waiting, *self.active) if sequence.is_cancelled]
            self.waiting = [sequence for sequence in self.waiting if sequence not in cancelled]
        for sequence in cancelled:
            sequence.end()
        self._remove_ended()

    def _admit(self) -> None:
        """Start the next queued requests while there are places and memory. Requests for a model that is
        still being loaded are skipped."""
        with self._changed:
            waiting = [sequence for sequence in self.waiting if sequence.opened.done()]
        unpaused = [sequence for sequence in self.active if not sequence.is_paused]
        for sequence in _in_turn([*unpaused, *waiting])[: self._limits.concurrent]:
            if sequence not in waiting:
                continue
            try:
                if not sequence.max_bytes:
                    sequence.open()
                if not self._has_memory(sequence):
                    return
                self.active.append(sequence)
            except Exception as error:
                sequence.fail(error)
            with self._changed:
                self.waiting.remove(sequence)

    def _has_memory(self, sequence: GeneratedSequence) -> bool:
        """Return whether a request can begin. Paused requests fail if it needs their memory."""
        unpaused = [other for other in self.active if not other.is_paused]
        free = self._limits.live_bytes - sum(other.max_bytes for other in unpaused)
        if unpaused and sequence.max_bytes > free:
            return False
        paused = [other for other in self.active if other not in unpaused]
        while paused and sum(other.max_bytes for other in paused) + sequence.max_bytes > free:
            paused.pop(0).fail(
                UnavailableError("the answer was not read, and other requests needed its memory")
            )
        self._remove_ended()
        return True

    def _assign_places(self) -> None:
        """Set aside paused requests and requests beyond the number of places. They keep their caches."""
        unpaused = [sequence for sequence in self.active if not sequence.is_paused]
        placed = _in_turn(unpaused)[: self._limits.concurrent]
        for sequence in self.active:
            sequence.is_aside = sequence not in placed

    def _prefill(self) -> None:
        """Process a chunk of the first request that is not ready for a step; its group is then last in the
        order of turns."""
        sequence = next((sequence for sequence in self._placed if not sequence.waits_for_step), None)
        if sequence is not None:
            try:
                if sequence.runtime is None:
                    live = [prefix for other in self.active if (prefix := other.prefix())]
                    sequence.begin(self.prefixes, live)
                sequence.advance()
            except Exception as error:
                sequence.fail(error)
            self.active.sort(key=lambda other: other.group is sequence.group)

    def _step(self) -> None:
        """Process one token of each text that is being generated; texts of the same model are batched."""
        ready = [sequence for sequence in self._placed if sequence.waits_for_step]
        for name in dict.fromkeys(sequence.request.model for sequence in ready):
            sequences = [sequence for sequence in ready if sequence.request.model == name]
            if len(sequences) > 1 and self._step_together(sequences):
                continue
            for sequence in sequences:
                try:
                    sequence.step()
                except Exception as error:
                    sequence.fail(error)

    def _step_together(self, sequences: list[GeneratedSequence]) -> bool:
        """Process one token of each text at once. After an error, which one of the texts may have caused,
        nothing has changed, and the result is False."""
        runtimes = [sequence.live_runtime for sequence in sequences]
        lengths = [runtime.length for runtime in runtimes]
        try:
            logits = runtimes[0].step_batch(runtimes, [sequence.next_token for sequence in sequences])
            choices = choose_together([sequence.text for sequence in sequences], logits)
        except Exception:
            for runtime, length in zip(runtimes, lengths, strict=True):
                runtime.undo_step(length)
            return False
        for sequence, row, choice in zip(sequences, logits, choices, strict=True):
            try:
                sequence.finish_step(row, choice)
            except Exception as error:
                sequence.fail(error)
        return True

    def _remove_ended(self) -> None:
        """Remove finished requests, and keep their caches for later ones."""
        ended = [sequence for sequence in self.active if sequence.is_done]
        if not ended:
            return
        self.active = [sequence for sequence in self.active if not sequence.is_done]
        for sequence in ended:
            if prefix := sequence.prefix():
                self.prefixes.keep(prefix)
        with self._changed:
            self._is_changed = True  # there is now space for others

    # ---- models

    def _model(self, name: str) -> "Future[Opened]":
        """Return a model, which may still be loading. The caller holds `_changed`."""
        opened = self._models.get(name)
        if opened is None or (opened.done() and opened.exception()):  # after an error, it is loaded again
            opened = _call_in_thread(lambda: self._open_model(name), self._loading, name="load-model")
            opened.add_done_callback(self._wake)
            self._models[name] = opened
        return opened


def _in_turn(sequences: Iterable[GeneratedSequence]) -> list[GeneratedSequence]:
    """Order sequences by turns: the first of each group, then the second of each, and so on."""
    turns = Counter[object]()

    def turn(sequence: GeneratedSequence) -> int:
        turns[sequence.group] += 1
        return turns[sequence.group]

    return sorted(sequences, key=turn)


def _call_in_thread(
    function: Callable[[], T], lock: threading.Lock, *, name: str, after: "Future[Any] | None" = None
) -> "Future[T]":
    """Call a function in a separate thread, once the future `after` is done. Only one function with the same
    `lock` runs at a time. Raises UnavailableError if the system has no threads left."""
    future: Future[T] = Future()

    def work() -> None:
        if after is not None:
            after.exception()  # waits
        with lock:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # raised by the future's `result`
                    future.set_exception(error)

    _start_thread(work, name)
    return future


def _start_thread(function: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread. Raises UnavailableError if the system has none left."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise UnavailableError("the server could not start a thread; try again later") from error
    return thread
