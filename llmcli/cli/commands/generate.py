"""`llm generate`: continue a prompt, list the next words, or show how each token is chosen."""

import math
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli.cli import console, styles, tables, token_output
from llmcli.cli.options import (
    DeviceOption,
    JsonOption,
    ModelOption,
    QuantizeOption,
    QuietOption,
    model_path,
    note_skipped_files,
    reject_options,
    text_argument,
)
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.data.tokenizer import Tokenizer
    from llmcli.evaluation.memorization import VerbatimSpans
    from llmcli.evaluation.training_text import TrainingText
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.generation.generator import Piece
    from llmcli.models.runtime import Runtime

SAMPLING = "Sampling"
ANALYSIS = "Analysis"
MAX_NAMES = 3  # of training files in a note


def generate(
    context_: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to continue; - reads standard input.")
    ] = None,
    model: ModelOption = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "-n",
            "--max-tokens",
            "--max-new-tokens",
            "--n-predict",
            metavar="N",
            help="Maximum number of tokens to generate.",
        ),
    ] = SamplingConfig.max_tokens,
    temperature: Annotated[
        float,
        typer.Option(
            "-t",
            "--temperature",
            "--temp",
            metavar="X",
            help="Sampling temperature; 0 always chooses the most likely token.",
            rich_help_panel=SAMPLING,
        ),
    ] = SamplingConfig.temperature,
    top_k: Annotated[
        int,
        typer.Option(
            "-k",
            "--top-k",
            metavar="N",
            help="Sample from the N most likely tokens only; 0 is off.",
            rich_help_panel=SAMPLING,
        ),
    ] = SamplingConfig.top_k,
    top_p: Annotated[
        float,
        typer.Option(
            "-p",
            "--top-p",
            metavar="X",
            help="Sample from the most likely tokens only, as many as reach a total probability of X; 1 is off.",
            rich_help_panel=SAMPLING,
        ),
    ] = SamplingConfig.top_p,
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p",
            metavar="X",
            help="Sample only from tokens that are at least X times as likely as the most likely one; 0 is off.",
            rich_help_panel=SAMPLING,
        ),
    ] = SamplingConfig.min_p,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            "--repeat-penalty",
            metavar="X",
            help="Penalty on tokens that have occurred; above 1 reduces repetition, 1 is off.",
            rich_help_panel=SAMPLING,
        ),
    ] = SamplingConfig.repetition_penalty,
    seed: Annotated[
        int | None,
        typer.Option(
            "-s",
            "--seed",
            metavar="N",
            help="Random seed; the same seed generates the same text (default: random).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
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
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Mark passages that occur verbatim in the training text.",
            rich_help_panel=ANALYSIS,
        ),
    ] = False,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="With --memory: training text, if it is not found automatically; can be repeated.",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a prompt, or list the most likely next words.

    Example: llm generate "I like to eat" --next 5
    """
    _check_options(context_, next_, steps, experts, memory, quantize)
    sampling = SamplingConfig(
        max_tokens=max_tokens if steps is None else steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        stop=tuple(stop or ()),
    )
    path = model_path(model)
    text = text_argument(prompt, "prompt")
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.models.open_runtime import open_runtime

    source = load_any(path)
    usage = _ExpertUsage(_expert_names(source, path)) if experts else None
    training_texts = _training_texts(corpus, source, path) if memory else None
    runtime, tokenizer = open_runtime(source, device, quantize, console.note), open_tokenizer(source)
    _note_long_prompt(len(tokenizer.encode(text)), runtime.context)
    if next_ is not None:
        _list_next_words(runtime, tokenizer, text, next_, json_=json_)
    elif steps is not None:
        _trace_steps(runtime, tokenizer, text, sampling, literal=literal, json_=json_)
    else:
        style = _style(color, usage)
        settings = [replace(sampling, seed=sampling.seed + number) for number in range(samples)]
        generator = _Generator(runtime, tokenizer, text, literal, usage)
        if training_texts is None:
            _print_as_generated(generator, settings, style, json_=json_)
        else:
            _print_with_verbatim_passages([generator.run(each) for each in settings], training_texts, json_=json_)
        if color and not json_:
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
            "seed", "stop", "samples", "literal", "color", "steps", "memory", "experts",
        )  # fmt: skip
    if steps is not None:
        reject_options(context, "with --steps", "max_tokens", "stop", "samples", "color", "memory", "experts")
    if experts:
        reject_options(context, "with --experts", "color", "device", "memory")
    if memory:
        reject_options(context, "with --memory", "color")
    else:
        reject_options(context, "without --memory", "corpus")
    if quantize:
        reject_options(context, "with --quantize", "device")


def _note_long_prompt(tokens: int, context: int) -> None:
    if tokens > context:
        console.note(f"the prompt has {tokens:,} tokens, the context length is {context:,}: only its end is used")


# ---- generated text


@dataclass(frozen=True)
class _Generated:
    """A continuation of a prompt."""

    prompt: str
    text: str
    tokens: list[dict[str, Any]]  # as --json prints them
    finish_reason: str | None
    seed: int
    tokens_per_second: float
    seconds_to_first_token: float

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
    """Continues one prompt as often as it is asked to."""

    runtime: "Runtime"
    tokenizer: "Tokenizer"
    prompt: str
    literal: bool
    usage: "_ExpertUsage | None"

    def run(self, sampling: SamplingConfig, on_piece: "Callable[[Piece], None]" = lambda piece: None) -> _Generated:
        """Generate one text; `on_piece` is called for each piece as soon as it is there."""
        from llmcli.generation.generator import generate

        started = time.perf_counter()
        seconds_to_first, tokens, texts, finish_reason = math.nan, [], [], None
        for piece in generate(self.runtime, self.tokenizer, self.prompt, sampling, literal=self.literal):
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
        return _Generated(self.prompt, "".join(texts), tokens, finish_reason, sampling.seed, speed, seconds_to_first)


def _style(color: bool, usage: "_ExpertUsage | None") -> "Callable[[Piece], str] | None":
    """How tokens are coloured; None: not at all."""
    if usage:
        return lambda piece: styles.alternating(piece.text, usage.top_expert)
    if color:
        return lambda piece: styles.by_probability(piece.text, math.exp(piece.logprob))
    return None


def _print_as_generated(
    generator: _Generator, settings: list[SamplingConfig], style: "Callable[[Piece], str] | None", *, json_: bool
) -> None:
    """Generate a text for each setting; print each piece at once, or JSON at the end of each text."""

    def print_piece(piece: "Piece") -> None:
        if style and piece.id is not None:
            console.verbatim(style(piece), raw=True)
        else:
            console.verbatim(piece.text)

    for number, sampling in enumerate(settings, 1):
        if json_:
            console.json_result(generator.run(sampling).as_json())
            continue
        if len(settings) > 1:
            console.note(f"--- {number}")
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
    from llmcli.cli.next_words_report import next_words_json, print_next_words
    from llmcli.generation.next_words import max_evaluations, next_words

    limit = max_evaluations(runtime.parameters)
    search = next_words(runtime, tokenizer, prompt, limit)
    if search.evaluations == limit:
        console.note(f"the search stopped after {limit:,} evaluations of the model; the rest is unexplored")
    if json_:
        console.json_result(next_words_json(search, prompt, count))
    else:
        print_next_words(search, prompt, count)


def _trace_steps(
    runtime: "Runtime", tokenizer: "Tokenizer", prompt: str, sampling: SamplingConfig, *, literal: bool, json_: bool
) -> None:
    from llmcli.cli.trace_report import print_end, print_step, trace_json
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
        self.top_expert = 0  # index, for the last token
        self._names = names
        self._counts = [0] * len(names)  # tokens for which it had the largest weight
        self._weights = [0.0] * len(names)  # summed over the tokens

    def add_token(self, runtime: "Runtime") -> dict[str, float]:
        """Count the token that was just generated; the weights of its experts by name."""
        from llmcli.models.runtime import RuntimeWithExperts

        assert isinstance(runtime, RuntimeWithExperts)
        weights = [float(weight) for weight in runtime.expert_weights()[-1]]
        self.top_expert = weights.index(max(weights))
        self._counts[self.top_expert] += 1
        self._weights = [total + weight for total, weight in zip(self._weights, weights, strict=True)]
        return {name: round(weight, 4) for name, weight in zip(self._names, weights, strict=True) if weight > 0}

    def show(self) -> None:
        tokens = max(1, sum(self._counts))
        rows = [
            (name, str(count), f"{count / tokens:.0%}", f"{weight / tokens:.3f}")
            for name, count, weight in zip(self._names, self._counts, self._weights, strict=True)
        ]
        columns = ("expert", "tokens", "share", "mean weight")
        tables.table(columns, rows, numbers=(1, 2, 3), to_stderr=True, striped=True)
        console.caption(
            "tokens, share: those for which the expert had the largest weight. mean weight: averaged over all tokens."
        )


# ---- --memory


def _training_texts(names: list[str] | None, source: "Checkpoint | Ensemble", path: Path) -> "list[TrainingText]":
    """The training text of the model, or of each model of an ensemble; or the files of these names instead."""
    from llmcli.data.corpus import read_corpus
    from llmcli.evaluation.training_text import TrainingText, find_corpus, trained_bytes

    if not names:
        return [TrainingText.of(find_corpus(record, path), [record]) for record in source.records]
    corpus = read_corpus(names)
    note_skipped_files(corpus)
    if all(trained_bytes(corpus, record) is None for record in source.records):
        console.note(f"{', '.join(names)} is not the training text that {path} records; all of it is searched")
    return [TrainingText.of(corpus, source.records)]


def _print_with_verbatim_passages(
    texts: list[_Generated], training_texts: "list[TrainingText]", *, json_: bool
) -> None:
    """Print texts with their verbatim passages marked; the training text is searched once for all of them."""
    from llmcli.evaluation.memorization import find_verbatim

    names = [document.name for training_text in training_texts for document in training_text.corpus.documents]
    all_matches = find_verbatim([generated.text for generated in texts], training_texts)
    for number, (generated, matches) in enumerate(zip(texts, all_matches, strict=True), 1):
        if json_:
            console.json_result(generated.as_json() | {"memory": _verbatim_json(generated.text, matches, names)})
            continue
        if len(texts) > 1:
            console.note(f"--- {number}")
        _print_prompt(generated.prompt)
        token_output.with_highlights(generated.text, matches.spans)
        console.result()
        _note_verbatim(generated.text, matches, names)
        _note_speed(generated)


def _verbatim_json(text: str, matches: "VerbatimSpans", names: list[str]) -> dict[str, object]:
    return {
        "corpus": names,
        "searched_bytes": matches.searched_bytes,
        "share": round(matches.share, 6),
        "spans": [{"start": start, "end": end, "text": text[start:end]} for start, end in matches.spans],
    }


def _note_verbatim(text: str, matches: "VerbatimSpans", names: list[str]) -> None:
    """Say how much of a text occurs verbatim in the training text."""
    from llmcli.evaluation.memorization import LENGTH

    if len(text) < LENGTH:
        console.note(f"{len(text)} characters are too few: only passages of at least {LENGTH} count; use a larger -n")
        return
    files = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    longest = max((end - start for start, end in matches.spans), default=0)
    console.note(
        f"{matches.share:.0%} of the {len(text):,} characters occur verbatim in {files}, in passages of at least "
        f"{LENGTH} characters" + (f"; the longest has {longest:,}" if longest else "")
    )
