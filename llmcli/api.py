"""The Python API: load and query a model, or train one. The command line calls the same functions.

Nothing here prints. Invalid values, files and models raise `llmcli.LLMError`; an unknown option raises
TypeError.
"""

from __future__ import annotations

import operator
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict, TypeVar, overload

from llmcli.config import (
    ANSWER_TOKENS,
    DEFAULT_MODEL,
    DEVICES,
    DTYPES,
    QUANTIZATIONS,
    Grammar,
    SamplingConfig,
    require,
)
from llmcli.errors import LLMError, OnNote, brief, missing_package, prefixed, require_torch, usage
from llmcli.notebook import Ranking
from llmcli.signals import stop_requests

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from llmcli.analysis.comparison import Comparison
    from llmcli.analysis.explain import Explanation
    from llmcli.data.conversations.messages import Message
    from llmcli.data.conversations.record_kinds import ReadOptions
    from llmcli.data.sources import Sources
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.evaluation.evaluator import Score
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.generation.chat import Assistant
    from llmcli.generation.choices import ScoredText
    from llmcli.generation.engine.requests import GenerationRequest
    from llmcli.generation.generator import Piece
    from llmcli.generation.known_answers import AnswerFinder, KnownAnswer
    from llmcli.models.runtime import Runtime
    from llmcli.training.data.inputs import Inputs
    from llmcli.training.files.output import Output
    from llmcli.training.loop.events import RunEvent
    from llmcli.training.planning.plan import PlanRequest
    from llmcli.training.session import Result


T = TypeVar("T")
CONSTRAINTS = ("schema", "regex", "grammar")


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingConfig`, and constraints on the text."""

    max_tokens: int
    temperature: float  # 0: always the most likely token
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    logit_bias: Mapping[int, float]  # token -> bias added to its logit
    schema: Mapping[str, Any]  # the text is JSON that fits this JSON schema
    regex: str  # the text matches this regular expression
    grammar: str  # the text fits this grammar, in llguidance's Lark notation or GBNF
    seed: int | None  # None: random, so each call generates a different text
    stop: str | Sequence[str]


class ReadingOptions(TypedDict, total=False):
    """How to read the files of a corpus; by default, their content decides."""

    speakers: tuple[str, str] | None  # names of the user and the assistant in text with turns
    pairs: bool  # read two-column tables as prompts and answers
    column: str | None  # the text column in tables, JSON and Parquet, or two columns, "question,answer"
    template: str | None  # columns joined to a text, "{title}\n{body}"
    plain: bool  # read everything as text
    encoding: str | None  # encoding of text other than UTF-8
    strip_boilerplate: bool  # remove lines that many documents repeat


class PlanOptions(TypedDict, total=False):
    """Fields of `PlanRequest`. Values that are left out are chosen for the text, the time budget and this
    machine."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    context: int
    tie: bool
    vocab_size: int
    batch_tokens: int
    dropout: float
    lr: float  # multiplier of the recipe's learning rates
    optimizer: str
    experts: int
    active: int
    lora: int
    kl_weight: float
    probe: str
    seed: int


class TrainOptions(ReadingOptions, PlanOptions, total=False):
    """The options of `train` besides its parameters."""


class Model:
    """A language model, ready to run; returned by `llmcli.load`.

    Each call has its own key-value cache, so calls made while a stream is being consumed, or from other
    threads, do not affect each other's results.
    """

    def __init__(self, source: Checkpoint | Ensemble, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self._source = source
        self.runtime = runtime
        # the assistant of the last chat; the next chat may reuse its KV cache. Empty while it answers
        self._assistants: list[Assistant] = []
        self.tokenizer = tokenizer
        self._finder: AnswerFinder | None = None
        # one batch at a time: the texts of a batch share memory of the runtime
        self._decoding = threading.Lock()

    def __repr__(self) -> str:
        name = f" {self.path}" if self.path else ""
        return f"<llmcli.Model{name}: {self.parameters:,} parameters, context {self.context}>"

    @property
    def path(self) -> Path | None:
        """The file or directory that the model was loaded from."""
        return self._source.shared.path

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self._source.parameters

    @property
    def context(self) -> int:
        """Context length: the number of tokens the model sees at once."""
        return self.runtime.context

    @property
    def record(self) -> dict[str, Any]:
        """How the model was trained, as `llm inspect --json` shows it: corpus, plan, loss curve, bits per
        byte."""
        return self._source.shared.record.to_json()

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self.tokenizer.encode(_text(text, "text"))

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; incomplete UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode(_token_ids(ids))

    def generate(self, prompt: str, *, literal: bool = False, **options: Unpack[SamplingOptions]) -> str:
        r"""Continue a prompt; returns the new text only.

        The defaults are `SamplingConfig`'s, except for the seed, which is random. literal=True keeps the
        tokenization of the prompt fixed; see `llm generate --help`. With `schema`, `regex` or `grammar`, the
        text matches that constraint, unless max_tokens cuts it off (see the finish reason of `pieces`). An
        empty prompt begins a text. Raises LLMError for an invalid value.

            model.generate("The train leaves at", regex=r" \d\d:\d\d")
        """
        return "".join(self.stream(prompt, literal=literal, **options))

    def stream(
        self, prompt: str, *, literal: bool = False, **options: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """Like `generate`, piece by piece as the model generates. A piece never ends inside a character."""
        return (piece.text for piece in self.pieces(prompt, literal=literal, **options))

    def pieces(
        self, prompt: str, *, literal: bool = False, **options: Unpack[SamplingOptions]
    ) -> Iterator[Piece]:
        """Like `stream`, with token id, natural log probability and finish reason of each piece."""
        from llmcli.generation.generator import generate

        prompt = _text(prompt, "prompt")
        literal = _flag(literal, "literal")
        sampling = _sampling(options)
        return generate(self.runtime.fork(), self.tokenizer, prompt, sampling, literal=literal)

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Unpack[SamplingOptions]) -> str:
        """Answer a conversation: messages {"role": ..., "content": ...} with the roles "system", "user" and
        "assistant", ending with a user message. max_tokens is 1000 by default.

        Continuing a conversation is faster than starting one, since its keys and values stay cached. If a
        conversation does not fit the context, the oldest turns are left out. Raises LLMError for a model
        without a chat template, messages that the template does not accept, or an invalid value.

            model.chat([{"role": "user", "content": "What is the capital of France?"}])
        """
        return "".join(self.stream_chat(messages, **options))

    def stream_chat(
        self, messages: Sequence[Mapping[str, str]], **options: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """Like `chat`, piece by piece as the model generates. A piece never ends inside a character."""
        options.setdefault("max_tokens", ANSWER_TOKENS)
        return self._answer(_messages(messages), _sampling(options))

    def _answer(self, messages: list[Message], sampling: SamplingConfig) -> Iterator[str]:
        from llmcli.generation.generator import Piece

        with self._assistant() as assistant:
            for event in assistant.answer(messages, sampling):
                if isinstance(event, Piece):
                    yield event.text

    @contextmanager
    def _assistant(self) -> Iterator[Assistant]:
        """Yield the assistant of the last chat, or a new assistant while that one is busy."""
        from llmcli.generation.chat import open_assistant

        try:
            assistant = self._assistants.pop()
        except IndexError:
            assistant = open_assistant(self._source, self.runtime.fork(), self.tokenizer)
        try:
            yield assistant
        finally:
            self._assistants = [assistant]

    def generate_batch(
        self, prompts: Sequence[str], *, literal: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[str]:
        """Continue many prompts, decoded together, which is faster than calling `generate` for each. The
        texts are in the order of the prompts; their seeds are `seed` and the following numbers."""
        from llmcli.generation.batch import continuation_request

        texts = _texts(prompts, "prompts")
        literal = _flag(literal, "literal")
        return self._decode_batch(
            texts,
            lambda text, sampling: continuation_request(text, self.tokenizer, sampling, literal=literal),
            _sampling(options),
        )

    def chat_batch(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], **options: Unpack[SamplingOptions]
    ) -> list[str]:
        """Answer many conversations, decoded together like the prompts of `generate_batch`."""
        from llmcli.generation.batch import answer_request
        from llmcli.generation.chat import open_assistant

        options.setdefault("max_tokens", ANSWER_TOKENS)
        read = [_messages(messages) for messages in _items(conversations, "conversations")]
        assistant = open_assistant(self._source, self.runtime, self.tokenizer)
        return self._decode_batch(
            read, lambda messages, sampling: answer_request(messages, assistant, sampling), _sampling(options)
        )

    def _decode_batch(
        self,
        items: Sequence[T],
        request: Callable[[T, SamplingConfig], GenerationRequest],
        sampling: SamplingConfig,
    ) -> list[str]:
        """Decode requests together. Raises LLMError for the first invalid item; before decoding, if its
        request is invalid."""
        from llmcli.generation.batch import decode_batch

        requests = []
        texts = []
        for number, item in enumerate(items):
            with prefixed(f"number {number + 1:,}"):
                requests.append(request(item, replace(sampling, seed=sampling.seed + number)))
        with self._decoding, closing(decode_batch(self.runtime, self.tokenizer, requests)) as results:
            for number, result in enumerate(results):
                if result.error is not None:
                    raise LLMError(f"number {number + 1:,}: {result.error}") from result.error
                texts.append(result.text)
        return texts

    def next_words(self, prompt: str, count: int = 10) -> list[tuple[str, float]]:
        """Return the `count` most likely next words with their probabilities, most likely first."""
        from llmcli.generation.next_words import next_words

        require(isinstance(count, SupportsIndex) and count >= 1, "count", "an integer, at least 1", count)
        words = next_words(self.runtime.fork(), self.tokenizer, _text(prompt, "prompt")).words[:count]
        return Ranking((word.text, word.probability) for word in words)

    def choose(
        self, prompt: str | Sequence[Mapping[str, str]], choices: Sequence[str]
    ) -> list[tuple[str, float]]:
        """Return the choices, most likely first, with the probabilities that `score` gives them, normalized
        to sum to 1.

        `prompt` is a conversation as for `chat`, and each choice is a whole answer; or it is a text, which
        each choice continues: begin a choice with a space if it begins a word. Raises LLMError for fewer than
        two choices, and for a choice that is empty, repeated, or longer than the context.

            model.choose([{"role": "user", "content": "The food was okay."}], ["positive", "negative"])
        """
        from llmcli.generation.choices import check_choices, ranked

        check_choices(texts := _texts(choices, "choices"))
        return Ranking(
            (choice.text, probability) for choice, probability in ranked(self._score(prompt, texts))
        )

    def _score(self, prompt: str | Sequence[Mapping[str, str]], texts: Sequence[str]) -> list[ScoredText]:
        from llmcli.generation.choices import score_continuations
        from llmcli.generation.token_healing import Prompt

        if isinstance(prompt, str):
            beginning = Prompt.of(_text(prompt, "prompt"), self.tokenizer)
            scored = score_continuations(self.runtime.fork(), self.tokenizer, beginning, texts)
            return [*chain.from_iterable(scored)]
        messages = _messages(prompt)
        with self._assistant() as assistant:
            return assistant.score(messages, texts)

    def known_answer(self, prompt: str | Sequence[Mapping[str, str]]) -> KnownAnswer:
        """Answer a question, or a conversation as for `chat`, with one of the answers that the file stores
        (trained with `known_answers`). Returns `.text`, `.confidence` (0 to 1) and `.is_known`, which is
        False if the confidence is below the minimum that was fitted at the end of training. Raises LLMError
        for a model without known answers.
        """
        from llmcli.data.conversations.messages import Message
        from llmcli.generation.known_answers import AnswerFinder, open_known_answers

        messages = (
            [Message("user", _text(prompt, "prompt"))] if isinstance(prompt, str) else _messages(prompt)
        )
        if messages and not messages[-1].content.strip():
            raise usage("the question is empty; give a text to answer")
        self._finder = self._finder or AnswerFinder(open_known_answers(self._source))
        with self._assistant() as assistant:
            return self._finder.find(assistant, messages)

    @overload
    def score(self, text: str) -> Score: ...

    @overload
    def score(self, text: str, *, prompt: str | Sequence[Mapping[str, str]]) -> ScoredText: ...

    def score(
        self, text: str, *, prompt: str | Sequence[Mapping[str, str]] | None = None
    ) -> Score | ScoredText:
        """Score the model on a text: `.network_bits_per_byte` (the network alone), `.adapting_bits_per_byte`
        (with the n-gram cache; None without one), `.bits_per_byte` (with the cache if the model has one),
        `.perplexity` (of `.bits_per_byte`), `.accuracy` (of the network alone), `.tokens`.

        With `prompt`, score the text as an answer or a continuation, as `choose` does: `.logprob` (natural),
        `.probability`, `.bits_per_byte`, `.tokens`.

        Raises LLMError for an empty text, and for a text that the tokenizer changes, since bits per byte
        would be wrong.
        """
        from llmcli.evaluation.evaluator import evaluation_context, measure, trained_context

        if text == "":
            raise usage("the text is empty; give a text to score")
        if prompt is not None:
            return self._score(prompt, [_text(text, "text")])[0]
        context = evaluation_context(self.runtime.context, trained=trained_context(self._source.records))
        return measure("the text", [_text(text, "text")], self.runtime, self.tokenizer, context=context)

    @overload
    def explain(self, prompt: str, *, literal: bool = False) -> Explanation: ...

    @overload
    def explain(
        self, prompt: str, *, without: Sequence[str], compare: str | None = None, literal: bool = False
    ) -> Comparison: ...

    @overload
    def explain(
        self, prompt: str, *, compare: str, without: Sequence[str] = (), literal: bool = False
    ) -> Comparison: ...

    def explain(
        self, prompt: str, *, without: Sequence[str] = (), compare: str | None = None, literal: bool = False
    ) -> Explanation | Comparison:
        """Return the model's activations on a prompt: tokens, attention, the prediction after each layer, the
        contribution of each head.

        `without` switches layers ("2") and heads ("2.3": head 3 of layer 2) off, counted from 1: the result
        compares the predictions before and after (`.first`, `.second`, `.kl_divergence`, `.next_tokens(5)`,
        `.next_words(5)`). With another prompt in `compare`, `.second` is the prediction after that prompt,
        and the parts are switched off for both prompts.

        Raises LLMError for a model that does not run in numpy (a GPU, quantized weights), for an ensemble,
        and for parts that the model does not have.
        """
        from llmcli.analysis import comparison, explain
        from llmcli.generation.token_healing import Prompt
        from llmcli.models.ngram_runtime import network_of
        from llmcli.models.numpy_runtime import NumpyRuntime

        runtime = self.runtime.fork()
        network = network_of(runtime)
        if not isinstance(network, NumpyRuntime):
            raise LLMError(
                "explain needs a single model on the CPU with unquantized weights: "
                'llmcli.load("model.safetensors")'
            )
        encode = partial(Prompt.of, tokenizer=self.tokenizer, literal=_flag(literal, "literal"))
        encoded = encode(_text(prompt, "prompt"))
        without = _texts(without, "without")
        if compare is None and not without:
            return explain.explain(network, self.tokenizer, encoded, predictor=runtime)
        other = None if compare is None else encode(_text(compare, "compare"))
        return comparison.compare(
            network, self.tokenizer, encoded, other=other, without=without, predictor=runtime
        )


def load(
    model: str | Path,
    *,
    device: str = "cpu",
    quantize: str | None = None,
    cache: bool = True,
    on_note: OnNote = lambda note: None,
) -> Model:
    """Load a model: a .safetensors file of llmcli, a .gguf, a Hugging Face directory, or hf:OWNER/NAME on the
    hub.

    `device` is "cpu" (numpy), or "cuda", "mps" or "auto" (torch). `quantize` is None, "int8" or "int4".
    `cache=False` turns off the model's n-gram cache, if it has one. `on_note` receives notes for the user,
    for instance about a missing backend. Raises LLMError for a file that is missing or damaged, or that does
    not run here.
    """
    from llmcli.formats.huggingface.names import local_path
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.models.open_runtime import open_runtime

    _check_choice("device", device, DEVICES)
    if quantize not in (None, *QUANTIZATIONS):
        raise usage(f"quantize must be None, {' or '.join(QUANTIZATIONS)}, found {brief(quantize)}")
    if quantize is not None and device != "cpu":
        raise usage('quantized weights run on the CPU; leave out device, or give device="cpu"')
    source = load_any(local_path(_path(model, "model"), on_note))
    try:
        runtime = open_runtime(source, device, quantize, on_note, cache=_flag(cache, "cache"))
    except ImportError as error:
        raise missing_package(error) or error from error
    return Model(source, runtime, open_tokenizer(source))


def train(
    corpus: str | Path | Sequence[str | Path] | None = None,
    output: str | Path = DEFAULT_MODEL,
    *,
    text: str | Iterable[str] | None = None,
    conversations: Iterable[Sequence[Mapping[str, str]] | Mapping[str, Any]] | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    val: str | float | None = None,
    base: str | Path | None = None,
    like: str | Path | None = None,
    tokenizer: str = "bpe",
    known_answers: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    on_note: OnNote = lambda note: None,
    **options: Unpack[TrainOptions],
) -> Iterator[RunEvent | Result]:
    """Train a model on text or conversations and save it. Yields events; the last one is the `Result`.

    `corpus` is one or more files, directories or glob patterns. Alternatively, `text` is one or more
    documents in memory, such as a list or the column of a data frame, and `conversations` is a list of
    conversations as for `Model.chat`, or of records such as {"prompt": ..., "completion": ...}.

    `val` is a validation file or the fraction to hold out, `base` a model to fine-tune, `like` a model whose
    tokenizer to use. `known_answers` stores the questions and answers in the file, for `Model.known_answer`.
    An existing file at `output` is replaced only with `overwrite`. The options are `ReadingOptions` and
    `PlanOptions`. In the main thread, Ctrl-C ends the run and saves the model, a second one interrupts it;
    the same call resumes a stopped run, and closing the iterator early discards it. Raises LLMError.
    """
    require_torch()
    _check_names(options, [*(train.__kwdefaults__ or ()), *TrainOptions.__annotations__])
    from llmcli.training.data.inputs import load_inputs
    from llmcli.training.files.output import claim_output

    reading = _reading(options)
    if val is not None and not isinstance(val, str | Real):
        val = str(_path(val, "val"))
    request = _request(
        options, seconds=seconds, steps=steps, epochs=epochs, device=device, dtype=dtype, threads=threads
    )
    sources = _corpus(corpus, text, conversations, reading)
    base_path = None if base is None else _path(base, "base")
    like_path = None if like is None else _path(like, "like")
    tokenizer = _text(tokenizer, "tokenizer")
    claimed = claim_output(
        _path(output, "output"),
        force=_flag(overwrite, "overwrite"),
        model=base_path or like_path,
        on_note=on_note,
        on_warning=on_note,
    )
    load = partial(
        load_inputs, sources, val, base_path, like_path, tokenizer, reading=reading, on_note=on_note
    )
    known_answers = _flag(known_answers, "known_answers")
    return _train(request, claimed, load, fixed_threads=threads is not None, known_answers=known_answers)


def _request(
    options: TrainOptions, *, device: str, dtype: str, threads: int | None, **limits: Any
) -> PlanRequest:
    """Return the request for the planner: the `PlanOptions` among the options, and the limits of the run."""
    from llmcli.config import cpu_cores
    from llmcli.training.planning.plan import PlanRequest

    _check_choice("device", device, DEVICES)
    _check_choice("dtype", dtype, DTYPES)
    values: dict[str, Any] = {
        name: value for name, value in options.items() if name in PlanOptions.__annotations__
    }
    return PlanRequest(
        **values, **limits, device=device, dtype=dtype, threads=cpu_cores() if threads is None else threads
    )


def _reading(options: ReadingOptions) -> ReadOptions:
    """Return the `ReadingOptions` among the options. Raises LLMError."""
    from llmcli.data.conversations.record_kinds import ReadOptions

    values: dict[str, Any] = {
        name: None if (value := options.get(name)) is None else _text(value, name)
        for name in ("column", "template", "encoding")
    }
    values |= {
        name: _flag(options.get(name, False), name) for name in ("pairs", "plain", "strip_boilerplate")
    }
    speakers = options.get("speakers")
    if speakers is not None and not (
        isinstance(speakers, tuple | list) and [*map(type, speakers)] == [str, str]
    ):
        raise TypeError(f'speakers must be two names, as in ("User", "Assistant"), found {brief(speakers)}')
    return ReadOptions.of_options(speakers=speakers, **values)


def _corpus(corpus: object, text: object, conversations: object, reading: ReadOptions) -> list[str] | Sources:
    """Return the names of files, or the documents and conversations in memory. Raises LLMError."""
    from llmcli.data.sources import sources_in_memory

    in_memory = {"text": [text] if isinstance(text, str) else text, "conversations": conversations}
    in_memory = {name: value for name, value in in_memory.items() if value is not None}
    if (corpus is None) is not bool(in_memory):
        raise usage("give either corpus (names of files), or text and conversations (in memory)")
    if corpus is not None:
        return [str(file) for file in _paths(corpus)]
    if reading.is_for_files:
        raise usage(
            "speakers, pairs, column, template, plain and encoding are for files; leave them out for text "
            "and conversations in memory"
        )
    lists = {name: _items(values, name) for name, values in in_memory.items()}
    if empty := [name for name, values in lists.items() if not values]:
        raise usage(f"{empty[0]} is an empty list")
    texts = [_text(value, f"text {number}") for number, value in enumerate(lists.get("text", ()), 1)]
    try:
        return sources_in_memory(texts, lists.get("conversations", ()), reading)
    except TypeError as error:  # raised by json
        raise TypeError(f"conversations must be lists of messages, or records of str: {error}") from error


def _train(
    request: PlanRequest,
    claimed: AbstractContextManager[Output],
    load: Callable[..., Inputs],
    *,
    fixed_threads: bool,
    known_answers: bool,
) -> Iterator[RunEvent | Result]:
    """Implement `train` with checked arguments."""
    started = time.monotonic()
    with claimed as place:
        inputs = load(output=place.path, seconds=request.budget)
        from llmcli.training import session  # imports torch: report errors in the text first
        from llmcli.training.loop.events import Step

        planned = session.plan_run(
            request, inputs, place, fixed_threads=fixed_threads, started=started, known_answers=known_answers
        )
        for note in inputs.notes:
            place.on_note(note)
        planned.check_space()
        has_stepped = threading.Event()  # so that there are weights to save
        signals: list[int] = []
        with closing(session.run(planned, signals=signals)) as events:
            while True:
                # only in the main thread, and not between two events, where the caller's code runs
                is_main = threading.current_thread() is threading.main_thread()
                with stop_requests(has_stepped.is_set, received=signals) if is_main else nullcontext():
                    event = next(events, None)
                if event is None:
                    return
                if isinstance(event, Step):
                    has_stepped.set()
                yield event


# ---- arguments: a caller without a type checker gets a clear message, not an error from inside the package


def _text(value: object, name: str) -> str:
    """Return a str argument. Raises TypeError for anything else, LLMError for text that is not Unicode."""
    from llmcli.data.tokenizers.tokenizer import check_unicode

    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, found {brief(value)}")
    check_unicode(value)
    return value


def _messages(records: Sequence[Mapping[str, str]]) -> list[Message]:
    """Return the messages of a conversation. Raises LLMError."""
    from llmcli.generation.chat import messages_from

    messages = messages_from(records)
    for message in messages:
        _text(message.content, "content")
    return messages


def _flag(value: object, name: str) -> bool:
    """Return a bool argument. Truthy values are errors: overwrite="no" would replace a file."""
    if type(value).__name__ not in ("bool", "bool_"):  # "bool_" in numpy before version 2
        raise TypeError(f"{name} must be True or False, found {brief(value)}")
    return bool(value)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in (*choices, "auto"):
        raise usage(f"{name} must be {', '.join(choices)} or auto, found {brief(value)}")


def _check_names(options: Mapping[str, object], known: Sequence[str]) -> None:
    if unknown := options.keys() - known:
        raise TypeError(f"unknown option {min(unknown)!r}; the options are {', '.join(known)}")


def _items(values: object, name: str) -> list[Any]:
    """Return a list argument. Raises TypeError for a single text, a dict or an open file."""
    if (
        not isinstance(values, Iterable)
        or isinstance(values, str | bytes | Mapping)
        or hasattr(values, "read")
    ):
        raise TypeError(f"{name} must be a list, found {brief(values)}")
    return [*values]


def _texts(values: object, name: str) -> list[str]:
    return [_text(value, f"each of {name}") for value in _items(values, name)]


def _token_ids(ids: object) -> list[int]:
    with suppress(TypeError):
        return [operator.index(token) for token in ids]  # type: ignore[attr-defined]
    raise TypeError(f"ids must be a list of token ids, found {brief(ids)}")


def _paths(corpus: object) -> list[Path]:
    names = [corpus] if isinstance(corpus, str | os.PathLike) else _items(corpus, "corpus")
    if not names:
        raise usage("corpus is an empty list; give the name of a file, or a list of them")
    return [_path(name, "corpus") for name in names]


def _path(value: object, name: str) -> Path:
    """Return the path of a file or directory, which need not exist. Raises TypeError for anything else,
    LLMError for an impossible name, and for "", which would be the current directory."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a str or a Path, found {brief(value)}")
    path = os.fspath(value)
    if not path:
        raise usage(f"{name} is empty; give the name of a file")
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        if "\n" in path:
            raise usage(
                f"{name} must be the name of a file, found a text, {brief(path)}; write the text to a file, "
                "and give its name"
            ) from None
        if not isinstance(error, FileNotFoundError):  # too long, or with a character that no name can have
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise LLMError(f"{name} {brief(path)} cannot be opened: {reason}") from error
    return Path(path)


def _sampling(options: SamplingOptions) -> SamplingConfig:
    _check_names(options, list(SamplingOptions.__annotations__))
    seed = options.get("seed")
    stops = options.get("stop", ())
    if isinstance(stops, str):
        stops = (stops,)
    elif isinstance(stops, list):
        stops = tuple(stops)
    values: dict[str, Any] = {
        **options,
        "seed": secrets.randbelow(1 << 32) if seed is None else seed,
        "stop": stops,
    }
    values["logit_bias"] = _biases(options.get("logit_bias", {}))
    values |= {"grammar": _grammar(*(values.pop(name, None) for name in CONSTRAINTS))}
    sampling = SamplingConfig(**values)
    sampling.check_length()
    return sampling


def _biases(logit_bias: object) -> tuple[tuple[int, float], ...]:
    if isinstance(logit_bias, Mapping):
        with suppress(TypeError, ValueError):
            return tuple((operator.index(token), float(bias)) for token, bias in logit_bias.items())
    raise TypeError(f"logit_bias must be a dict from token ids to numbers, found {brief(logit_bias)}")


def _grammar(schema: Mapping[str, Any] | None, regex: str | None, grammar: str | None) -> Grammar | None:
    """Return the constraint on the text, if one was given. Raises LLMError."""
    constraints = {"schema": schema, "regex": regex, "grammar": grammar}
    given = [name for name, constraint in constraints.items() if constraint is not None]
    Grammar.check_single(given)
    if schema is not None:
        return Grammar.of_schema(schema)
    return Grammar(given[0], _text(constraints[given[0]], given[0])) if given else None
