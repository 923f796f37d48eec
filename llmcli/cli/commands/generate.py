"""`llm generate`: continue a prompt, list the next words, or show how each token is chosen."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.cli.options import ANALYSIS, SAMPLING, GenerationOptions, argument, flag, model_path, option, text_argument
from llmcli.cli.terminal import console, styles
from llmcli.config import SamplingConfig, as_record
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.cli.reports.memory import Memory
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.generation.chat import Assistant
    from llmcli.generation.generator import Piece
    from llmcli.models.runtime import Runtime


class _Options(GenerationOptions):
    prompt: str | None = argument("PROMPT", "Text to continue; - reads standard input.")
    model: str | None
    max_tokens: int
    stop: list[str] | None = option("TEXT", "Stop sequence, not printed; can be repeated.")
    samples: int = option(
        "N",
        "Number of texts to generate; --json prints one object per line.",
        1,
        names="--samples --num-samples",
        min=1,
    )
    literal: bool = flag(
        "Tokenize the prompt in one way only, as other programs do. Otherwise the first token is sampled over all "
        "tokenizations of the prompt's end, so that an incomplete word can be completed.",
        names="--literal/--no-literal",
        panel=SAMPLING,
    )
    next: int | None = option("N", "List the N most likely next words instead of generating.", min=1, panel=ANALYSIS)
    steps: int | None = option(
        "N", "Generate N tokens and show for each the candidates and how it is sampled.", min=1, panel=ANALYSIS
    )
    prompt_pair: bool = flag(
        "The prompt is a question, or the first half of another pair the model was trained on: generate the answer, as "
        "llm chat does."
    )
    color: bool = flag("Color each token by its probability.", panel=ANALYSIS)
    experts: bool = flag("Count for each expert the tokens for which it had the largest weight.", panel=ANALYSIS)


def generate(options: _Options) -> None:
    """Continue a prompt, or list the most likely next words.

    Example: llm generate "I like to eat" --next 5
    """
    _check_options(options)
    sampling = options.sampling()
    path = model_path(options.model)
    text = text_argument(options.prompt, "prompt")
    if options.prompt_pair and not text.strip():
        raise LLMError("the prompt is empty; give a text to answer")
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.models.open_runtime import open_runtime

    source = load_any(path)
    usage = _ExpertUsage(_expert_names(source, path)) if options.experts else None
    memory = None
    if options.memory:
        from llmcli.cli.reports.memory import (
            Memory,
            training_texts,
        )  # what only some options need is imported with them

        memory = Memory(training_texts(options.corpus, source, path))
    runtime = open_runtime(source, options.device, options.quantize, console.note, cache=not options.no_cache)
    tokenizer = open_tokenizer(source)
    assistant = None
    if options.prompt_pair:
        from llmcli.generation.chat import open_assistant

        assistant = open_assistant(source, runtime, tokenizer)
    elif (tokens := len(tokenizer.encode(text))) > runtime.context:
        length = runtime.context
        console.note(f"the prompt has {tokens:,} tokens, the context length is {length:,}: only its end is used")
    if options.next is not None:
        _list_next_words(options, runtime, tokenizer, text, options.next)
    elif options.steps is not None:
        _trace_steps(options, runtime, tokenizer, text, replace(sampling, max_tokens=options.steps))
    else:
        generator = _Generator(runtime, tokenizer, text, options.literal, usage, assistant)
        settings = [replace(sampling, seed=sampling.seed + number) for number in range(options.samples)]
        _print_texts(options, generator, settings, memory)
        if options.color and not options.json:
            from llmcli.cli.reports.tokens import probability_legend

            probability_legend()
        if usage and not options.json:
            usage.show()


def _check_options(options: _Options) -> None:
    """Raise LLMError for options that have no effect together."""
    if options.next is not None:
        options.reject(
            "with --next", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
            "samples", "literal", "prompt_pair", "color", "steps", "memory", "experts",
        )  # fmt: skip
    if options.steps is not None:
        options.reject("with --steps", "max_tokens", "stop", "samples", "prompt_pair", "color", "memory", "experts")
    if options.prompt_pair:
        options.reject("with --prompt-pair", "literal")
    if options.experts:
        options.reject("with --experts", "color", "device", "memory")
    if options.memory:
        options.reject("with --memory", "color")


# ---- generated text


@dataclass(frozen=True)
class _Generated:
    """A continuation of a prompt, or an answer to it; its fields are those of --json."""

    prompt: str
    text: str
    tokens: list[dict[str, Any]]
    finish_reason: str | None
    seed: int
    tokens_per_second: float
    seconds_to_first_token: float


@dataclass(frozen=True)
class _Generator:
    """Continues or answers one prompt as often as it is asked to."""

    runtime: "Runtime"
    tokenizer: "Tokenizer"
    prompt: str
    literal: bool
    usage: "_ExpertUsage | None"
    assistant: "Assistant | None"  # answers, with --prompt-pair

    def run(self, sampling: SamplingConfig, on_piece: "Callable[[Piece], None]" = lambda piece: None) -> _Generated:
        """Generate one text; `on_piece` is called for each piece as soon as it is there."""
        started = time.perf_counter()
        seconds_to_first, tokens, texts, finish_reason = math.nan, [], [], None
        for piece in self._pieces(sampling):
            if math.isnan(seconds_to_first):
                seconds_to_first = time.perf_counter() - started
            if piece.id is not None:
                token: dict[str, Any] = {"id": piece.id, "text": piece.text, "logprob": round(piece.logprob, 6)}
                if self.usage:
                    token["experts"] = self.usage.add_token(self.runtime)
                tokens.append(token)
            texts.append(piece.text)
            finish_reason = piece.finish_reason
            on_piece(piece)
        seconds, later = time.perf_counter() - started, len(tokens) - 1
        speed = later / (seconds - seconds_to_first) if later > 0 and seconds > seconds_to_first else 0.0
        return _Generated(
            self.prompt, "".join(texts), tokens, finish_reason, sampling.seed, round(speed, 1),
            round(seconds_to_first, 4),
        )  # fmt: skip

    def _pieces(self, sampling: SamplingConfig) -> "Iterator[Piece]":
        from llmcli.generation.generator import Piece, generate

        if self.assistant is None:
            return generate(self.runtime, self.tokenizer, self.prompt, sampling, literal=self.literal)
        from llmcli.data.conversations.messages import Message

        events = self.assistant.answer([Message("user", self.prompt)], sampling)
        return (event for event in events if isinstance(event, Piece))


def _print_texts(
    options: _Options, generator: _Generator, settings: list[SamplingConfig], memory: "Memory | None"
) -> None:
    """Generate a text for each setting and print it: each piece at once, JSON at the end of each text. With `memory`,
    its verbatim passages are marked; the training text is searched once for all texts."""

    def print_piece(piece: "Piece") -> None:
        if options.color and piece.id is not None:
            console.verbatim(styles.by_probability(piece.text, math.exp(piece.logprob)), raw=True)
        else:
            console.verbatim(piece.text)

    finished = [generator.run(sampling) for sampling in settings] if memory else []
    matches = memory.find([generated.text for generated in finished]) if memory else []
    for index, sampling in enumerate(settings):
        if options.json:
            generated = finished[index] if memory else generator.run(sampling)
            found = {"memory": memory.as_json(generated.text, matches[index])} if memory else {}
            console.json_result(as_record(generated) | found)
            continue
        if len(settings) > 1:
            console.note(f"--- {index + 1}")
        if generator.assistant is None and sys.stdout.isatty() and sys.stderr.isatty():
            console.prompt(generator.prompt)
        if memory:
            generated = finished[index]
            memory.show(generated.text, matches[index], "; use a larger -n")
        else:
            generated = generator.run(sampling, print_piece)
            console.result()
        if sys.stdout.isatty():
            tokens, speed = len(generated.tokens), generated.tokens_per_second
            console.note(f"[{tokens} tokens, {speed:,.0f} tokens/s, seed {generated.seed}]")


# ---- --next and --steps


def _list_next_words(options: _Options, runtime: "Runtime", tokenizer: "Tokenizer", prompt: str, count: int) -> None:
    from llmcli.cli.reports.tokens import print_next_words
    from llmcli.generation.next_words import max_evaluations, next_words

    limit = max_evaluations(runtime.parameters)
    search = next_words(runtime, tokenizer, prompt, limit)
    if search.evaluations == limit:
        console.note(f"the search stopped after {limit:,} evaluations of the model; the rest is unexplored")
    if options.json:
        console.json_result(search.as_json(prompt, count))
    else:
        print_next_words(search, prompt, count)


def _trace_steps(
    options: _Options, runtime: "Runtime", tokenizer: "Tokenizer", prompt: str, sampling: SamplingConfig
) -> None:
    from llmcli.cli.reports.trace import print_end, print_step, trace_json
    from llmcli.generation.trace import trace

    steps, text = [], prompt
    for step in trace(runtime, tokenizer, prompt, sampling, literal=options.literal):
        steps.append(step)
        if not options.json:
            print_step(step, len(steps), text, tokenizer, sampling)
        text += step.text
    if options.json:
        console.json_result(trace_json(steps, prompt, tokenizer, sampling.seed))
    else:
        print_end(text, sampling.seed)


# ---- --experts


def _expert_names(source: "Checkpoint | Ensemble", path: Path) -> list[str]:
    """`expert_names`. Raises LLMError if there are none."""
    from llmcli.models.open_runtime import expert_names

    if not (names := expert_names(source)):
        raise LLMError(f"{path} has no experts; use an ensemble (llm mix), or a model trained with llm train --experts")
    return names


class _ExpertUsage:
    """Which expert had the largest weight for each token: the models of an ensemble, or the experts of a sparse model's
    last layer."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._counts = [0] * len(names)  # tokens for which it had the largest weight
        self._weights = [0.0] * len(names)  # summed over the tokens

    def add_token(self, runtime: "Runtime") -> dict[str, float]:
        """Count the token that was just generated; the weights of its experts by name."""
        weights = [float(weight) for weight in runtime.expert_weights()[-1]]
        self._counts[weights.index(max(weights))] += 1
        self._weights = [total + weight for total, weight in zip(self._weights, weights, strict=True)]
        return {name: round(weight, 4) for name, weight in zip(self._names, weights, strict=True) if weight > 0}

    def show(self) -> None:
        from llmcli.cli.terminal import tables

        tokens = max(1, sum(self._counts))
        rows = [
            (name, str(count), f"{count / tokens:.0%}", f"{weight / tokens:.3f}")
            for name, count, weight in zip(self._names, self._counts, self._weights, strict=True)
        ]
        columns = ("expert", "tokens", "share", "mean weight")
        tables.table(columns, rows, numbers=(1, 2, 3), to_stderr=True)
        console.caption(
            "tokens, share: those for which the expert had the largest weight. mean weight: averaged over all tokens."
        )
