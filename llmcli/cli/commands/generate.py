"""`llm generate`: continue a prompt, list the next words, or show how each token is chosen."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli.cli.options import (
    ANALYSIS,
    SAMPLING,
    CorpusOption,
    DeviceOption,
    JsonOption,
    MaxTokensOption,
    MemoryOption,
    MinPOption,
    ModelOption,
    NoCacheOption,
    QuantizeOption,
    QuietOption,
    RepetitionPenaltyOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    model_path,
    reject_options,
    sampling_config,
    text_argument,
)
from llmcli.cli.terminal import console, styles
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.evaluation.training_text import TrainingText
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.generation.chat import Assistant
    from llmcli.generation.generator import Piece
    from llmcli.models.runtime import Runtime


def generate(
    context_: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to continue; - reads standard input.")
    ] = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = SamplingConfig.max_tokens,
    temperature: TemperatureOption = SamplingConfig.temperature,
    top_k: TopKOption = SamplingConfig.top_k,
    top_p: TopPOption = SamplingConfig.top_p,
    min_p: MinPOption = SamplingConfig.min_p,
    repetition_penalty: RepetitionPenaltyOption = SamplingConfig.repetition_penalty,
    seed: SeedOption = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Stop sequence, not printed; can be repeated.")
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            "--num-samples",
            metavar="N",
            min=1,
            help="Number of texts to generate; --json prints one object per line.",
        ),
    ] = 1,
    next_: Annotated[
        int | None,
        typer.Option(
            "--next",
            min=1,
            metavar="N",
            help="List the N most likely next words instead of generating.",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            metavar="N",
            help="Generate N tokens and show for each the candidates and how it is sampled.",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    literal: Annotated[
        bool,
        typer.Option(
            "--literal/--no-literal",
            help="Tokenize the prompt in one way only, as other programs do. Otherwise the first token is sampled over "
            "all tokenizations of the prompt's end, so that an incomplete word can be completed.",
            rich_help_panel=SAMPLING,
        ),
    ] = False,
    prompt_pair: Annotated[
        bool,
        typer.Option(
            "--prompt-pair",
            help="The prompt is a question, or the first half of another pair the model was trained on: generate the "
            "answer, as llm chat does.",
        ),
    ] = False,
    color: Annotated[
        bool, typer.Option("--color", help="Color each token by its probability.", rich_help_panel=ANALYSIS)
    ] = False,
    experts: Annotated[
        bool,
        typer.Option(
            "--experts",
            help="Color each token by the expert with the largest weight, and count the tokens of each expert.",
            rich_help_panel=ANALYSIS,
        ),
    ] = False,
    memory: MemoryOption = False,
    corpus: CorpusOption = None,
    quantize: QuantizeOption = None,
    no_cache: NoCacheOption = False,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a prompt, or list the most likely next words.

    Example: llm generate "I like to eat" --next 5
    """
    _check_options(context_, next_, steps, experts, memory, quantize)
    sampling = sampling_config(context_)
    if steps is not None:
        sampling = replace(sampling, max_tokens=steps)
    path = model_path(model)
    text = text_argument(prompt, "prompt")
    if prompt_pair and not text.strip():
        raise LLMError("the prompt is empty; give a text to answer")
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.models.open_runtime import open_runtime

    source = load_any(path)
    usage = _ExpertUsage(_expert_names(source, path)) if experts else None
    training_texts = _training_texts(corpus, source, path) if memory else None
    runtime = open_runtime(source, device, quantize, console.note, cache=not no_cache)
    tokenizer = open_tokenizer(source)
    assistant = _open_assistant(source, runtime, tokenizer) if prompt_pair else None
    if assistant is None:
        _note_long_prompt(len(tokenizer.encode(text)), runtime.context)
    if next_ is not None:
        _list_next_words(runtime, tokenizer, text, next_, json_=json_)
    elif steps is not None:
        _trace_steps(runtime, tokenizer, text, sampling, literal=literal, json_=json_)
    else:
        generator = _Generator(runtime, tokenizer, text, literal, usage, assistant)
        settings = [replace(sampling, seed=sampling.seed + number) for number in range(samples)]
        if training_texts is None:
            _print_as_generated(generator, settings, color=color, json_=json_)
        else:
            _print_with_verbatim_passages([generator.run(each) for each in settings], training_texts, json_=json_)
        if color and not json_:
            from llmcli.cli.reports import tokens as token_output  # what only some options need is imported with them

            token_output.probability_legend()
        if usage and not json_:
            usage.show()


def _check_options(
    context: typer.Context, next_: int | None, steps: int | None, experts: bool, memory: bool, quantize: str | None
) -> None:
    """Raise LLMError for options that have no effect together."""
    if next_ is not None:
        reject_options(
            context, "with --next", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
            "seed", "stop", "samples", "literal", "prompt_pair", "color", "steps", "memory", "experts",
        )  # fmt: skip
    if steps is not None:
        reject_options(
            context, "with --steps", "max_tokens", "stop", "samples", "prompt_pair", "color", "memory", "experts"
        )
    if context.params["prompt_pair"]:
        reject_options(context, "with --prompt-pair", "literal")
    if experts:
        reject_options(context, "with --experts", "color", "device", "memory")
    if memory:
        reject_options(context, "with --memory", "color")
    else:
        reject_options(context, "without --memory", "corpus")
    if quantize:
        reject_options(context, "with --quantize", "device")


def _open_assistant(source: "Checkpoint | Ensemble", runtime: "Runtime", tokenizer: "Tokenizer") -> "Assistant":
    from llmcli.generation.chat import open_assistant

    return open_assistant(source, runtime, tokenizer)


def _training_texts(corpus: list[str] | None, source: "Checkpoint | Ensemble", path: Path) -> "list[TrainingText]":
    from llmcli.cli.reports import memory as memory_report

    return memory_report.training_texts(corpus, source, path)


def _note_long_prompt(tokens: int, context: int) -> None:
    if tokens > context:
        console.note(f"the prompt has {tokens:,} tokens, the context length is {context:,}: only its end is used")


# ---- generated text


@dataclass(frozen=True)
class _Generated:
    """A continuation of a prompt, or an answer to it."""

    prompt: str
    text: str
    tokens: list[dict[str, Any]]  # as --json prints them
    finish_reason: str | None
    seed: int
    tokens_per_second: float
    seconds_to_first_token: float
    is_answer: bool  # to the prompt, instead of its continuation

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "seconds_to_first_token": round(self.seconds_to_first_token, 4),
        }


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
        seconds = time.perf_counter() - started
        later = len(tokens) - 1
        speed = later / (seconds - seconds_to_first) if later > 0 and seconds > seconds_to_first else 0.0
        return _Generated(
            self.prompt, "".join(texts), tokens, finish_reason, sampling.seed, speed, seconds_to_first,
            is_answer=self.assistant is not None,
        )  # fmt: skip

    def _pieces(self, sampling: SamplingConfig) -> "Iterator[Piece]":
        from llmcli.generation.generator import Piece, generate

        if self.assistant is None:
            return generate(self.runtime, self.tokenizer, self.prompt, sampling, literal=self.literal)
        from llmcli.data.conversations.messages import Message

        events = self.assistant.answer([Message("user", self.prompt)], sampling)
        return (event for event in events if isinstance(event, Piece))


def _print_as_generated(generator: _Generator, settings: list[SamplingConfig], *, color: bool, json_: bool) -> None:
    """Generate a text for each setting; print each piece at once, or JSON at the end of each text."""

    def print_piece(piece: "Piece") -> None:
        if color and piece.id is not None:
            console.verbatim(styles.by_probability(piece.text, math.exp(piece.logprob)), raw=True)
        else:
            console.verbatim(piece.text)

    for number, sampling in enumerate(settings, 1):
        if json_:
            console.json_result(generator.run(sampling).as_json())
            continue
        if len(settings) > 1:
            console.note(f"--- {number}")
        if generator.assistant is None:
            _print_prompt(generator.prompt)
        generated = generator.run(sampling, print_piece)
        console.result()
        _note_speed(generated)


def _print_prompt(prompt: str) -> None:
    if sys.stdout.isatty() and sys.stderr.isatty():
        console.prompt(prompt)


def _note_speed(generated: _Generated) -> None:
    if sys.stdout.isatty():
        tokens, speed = len(generated.tokens), generated.tokens_per_second
        console.note(f"[{tokens} tokens, {speed:,.0f} tokens/s, seed {generated.seed}]")


# ---- --next and --steps


def _list_next_words(runtime: "Runtime", tokenizer: "Tokenizer", prompt: str, count: int, *, json_: bool) -> None:
    from llmcli.cli.reports.tokens import print_next_words
    from llmcli.generation.next_words import max_evaluations, next_words

    limit = max_evaluations(runtime.parameters)
    search = next_words(runtime, tokenizer, prompt, limit)
    if search.evaluations == limit:
        console.note(f"the search stopped after {limit:,} evaluations of the model; the rest is unexplored")
    if json_:
        console.json_result(search.as_json(prompt, count))
    else:
        print_next_words(search, prompt, count)


def _trace_steps(
    runtime: "Runtime", tokenizer: "Tokenizer", prompt: str, sampling: SamplingConfig, *, literal: bool, json_: bool
) -> None:
    from llmcli.cli.reports.trace import print_end, print_step, trace_json
    from llmcli.generation.trace import trace

    steps, text = [], prompt
    for step in trace(runtime, tokenizer, prompt, sampling, literal=literal):
        steps.append(step)
        if not json_:
            print_step(step, len(steps), text, tokenizer, sampling)
        text += step.text
    if json_:
        console.json_result(trace_json(steps, prompt, tokenizer, sampling.seed))
    else:
        print_end(text, sampling.seed)


# ---- --experts


def _expert_names(source: "Checkpoint | Ensemble", path: Path) -> list[str]:
    """The models of an ensemble, or the numbers of a sparse model's experts. Raises LLMError if there are none."""
    from llmcli.formats.ensemble_file import Ensemble

    if isinstance(source, Ensemble):
        return list(source.names)
    if not source.config.num_experts:
        raise LLMError(f"{path} has no experts; use an ensemble (llm mix), or a model trained with llm train --experts")
    return [str(number) for number in range(source.config.num_experts)]


class _ExpertUsage:
    """Which expert had the largest weight for each token: the models of an ensemble, or the experts of a sparse model's
    last layer."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._counts = [0] * len(names)  # tokens for which it had the largest weight
        self._weights = [0.0] * len(names)  # summed over the tokens

    def add_token(self, runtime: "Runtime") -> dict[str, float]:
        """Count the token that was just generated; the weights of its experts by name."""
        from llmcli.models.runtime import RuntimeWithExperts

        assert isinstance(runtime, RuntimeWithExperts)
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


# ---- --memory


def _print_with_verbatim_passages(
    texts: list[_Generated], training_texts: "list[TrainingText]", *, json_: bool
) -> None:
    """Print texts with their verbatim passages marked; the training text is searched once for all of them."""
    from llmcli.cli.reports.memory import Memory

    memory = Memory(training_texts)
    all_matches = memory.find([generated.text for generated in texts])
    for number, (generated, matches) in enumerate(zip(texts, all_matches, strict=True), 1):
        if json_:
            console.json_result(generated.as_json() | {"memory": memory.as_json(generated.text, matches)})
            continue
        if len(texts) > 1:
            console.note(f"--- {number}")
        if not generated.is_answer:
            _print_prompt(generated.prompt)
        memory.show(generated.text, matches, "; use a larger -n")
        _note_speed(generated)
