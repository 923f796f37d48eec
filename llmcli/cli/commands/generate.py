"""`llm generate`: continue a prompt, list the next words, or show how each token is chosen."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcli import units
from llmcli.cli.chat.answers import Answer, note_incomplete, token_json
from llmcli.cli.options import (
    CHOICES_HELP,
    SAMPLING_HEADING,
    SAMPLING_OPTIONS,
    GenerationOptions,
    argument,
    flag,
    model_path,
    option,
    read_choices,
    text_argument,
)
from llmcli.cli.terminal import console
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.data.prompts import PromptRow
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.evaluation.training_text import TrainingText
    from llmcli.generation.engine.requests import GenerationRequest
    from llmcli.generation.generator import Piece
    from llmcli.models.runtime import Runtime

CONFLICTS = {
    "batch": "prompt samples lines next steps memory color experts",
    "lines": "samples literal color next steps memory experts choices min_tokens",
    "next": f"{SAMPLING_OPTIONS} stop samples literal color steps memory experts choices",
    "choices": f"{SAMPLING_OPTIONS} stop samples color steps memory experts",
    "steps": "max_tokens stop samples color memory experts",
    "experts": "color device memory",
    "memory": "color",
    "json": "color",
}


class _Options(GenerationOptions):
    RARE = "literal min_tokens no_cache"
    prompt: str | None = argument("PROMPT", 'Text to continue; "" begins a text, - reads standard input.')
    model: str | None
    max_tokens: int
    stop: list[str] | None = option("TEXT", "Stop sequence, not printed; can be repeated.")
    samples: int = option(
        "N", "Number of texts; --json prints a line for each.", 1, names="--samples --num-samples", min=1
    )
    lines: int | None = option(
        "N",
        "Generate N distinct lines in the style of the training text, starting with PROMPT if given.",
        min=1,
    )
    new: bool = flag("With --lines: leave out lines of the training text.")
    _sampling: str = SAMPLING_HEADING
    literal: bool = flag("Disable token healing: an incomplete last word of the prompt is not completed.")
    _analysis: str = "Analysis"
    next: int | None = option("N", "List the N most likely next words instead of generating.", min=1)
    choices: str | None = option(
        "LIST", f"Show the probability of each of these continuations: {CHOICES_HELP}."
    )
    steps: int | None = option("N", "Show how each of N tokens is chosen from its candidates.", min=1)
    memory: bool = flag("Mark passages that occur verbatim in the training text.")
    corpus: list[str] | None = option(
        "FILE", "With --memory or --new: the training text, if it cannot be found."
    )
    color: bool = flag("Color each token by its probability.")
    experts: bool = flag("Count the tokens for which each expert had the largest weight.")


def generate(options: _Options) -> None:
    """Example: llm generate "I like to eat" --next 5"""
    options.check(CONFLICTS, {"lines": "new"})
    if not (options.memory or options.new):
        options.reject("without --memory or --new", "corpus")
    sampling = options.sampling()
    path = model_path(options.model)
    choices = [] if options.choices is None else read_choices(options.choices, strips=False)
    needs_prompt = not (options.batch or (options.lines and options.prompt is None))
    text = text_argument(options.prompt, "prompt") if needs_prompt else ""
    if not (text or options.batch or options.lines) and options.prompt != "":
        raise LLMError('the prompt is empty; write "" to begin a text')
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.models.open_runtime import expert_names, open_runtime

    source = load_any(path)
    experts = expert_names(source) if options.experts else []
    if options.experts and not experts:
        raise LLMError(
            f"{path} has no experts; use an ensemble (llm mix), or a model trained with llm train --experts"
        )
    texts: list[TrainingText] = []
    if options.memory or options.new:
        from llmcli.cli.reports.memory import training_texts

        texts = training_texts(options.corpus, source, path, whole=options.new)
    runtime = open_runtime(source, options.device, options.quantize, console.note, cache=not options.no_cache)
    tokenizer = open_tokenizer(source)
    prepared = _PreparedPrompt(options, sampling, runtime, tokenizer, text, experts, [])
    if not options.batch and (tokens := len(tokenizer.encode(text))) > runtime.context:
        length = runtime.context
        console.note(
            f"the prompt has {tokens:,} tokens, the context length is {length:,}: only its end is used"
        )
    if options.batch:
        _answer_batch(prepared, path, choices)
    elif options.lines is not None:
        _print_lines(prepared, options.lines, texts)
    elif options.next is not None:
        _list_next_words(prepared, options.next)
    elif choices:
        _score_choices(prepared, choices)
    elif options.steps is not None:
        _trace_steps(prepared, options.steps)
    else:
        _print_texts(prepared, texts)


# ---- generated text


class _PreparedPrompt(NamedTuple):
    """A prompt, and a model that continues it any number of times."""

    options: _Options
    sampling: SamplingConfig
    runtime: "Runtime"
    tokenizer: "Tokenizer"
    prompt: str
    experts: list[
        str
    ]  # names of the models of an ensemble, or of the experts in the last layer; [] if not counted
    weights: list[list[float]]  # weights of the experts for each generated token

    def generate(
        self, sampling: SamplingConfig, on_piece: "Callable[[Piece], None]"
    ) -> tuple[Answer, dict[str, Any]]:
        """Return (one generated text, its JSON). `on_piece` receives each piece as it is generated."""
        from llmcli.generation.generator import generate

        answer = Answer(sampling)
        tokens = []
        for piece in generate(
            self.runtime, self.tokenizer, self.prompt, sampling, literal=self.options.literal
        ):
            answer.add(piece)
            if piece.id is not None:
                tokens.append(token_json(piece) | self._expert_json())
            on_piece(piece)
        return answer, {
            "prompt": self.prompt,
            "text": answer.text,
            "tokens": tokens,
            "finish_reason": answer.finish_reason,
            "seed": sampling.seed,
            **answer.speed_json(),
        }

    def _expert_json(self) -> dict[str, Any]:
        """Keep the weights of the experts for the token that was just generated, and return them by name."""
        if not self.experts:
            return {}
        weights = [float(weight) for weight in self.runtime.expert_weights()[-1]]
        self.weights.append(weights)
        named = zip(self.experts, weights, strict=True)
        return {"experts": {name: round(weight, 4) for name, weight in named if weight > 0}}


def _print_texts(prepared: _PreparedPrompt, texts: "list[TrainingText]") -> None:
    """Print the pieces of each text as they are generated. With --memory, all are generated first, so that
    the training texts are searched only once."""
    options = prepared.options
    settings = [
        replace(prepared.sampling, seed=prepared.sampling.seed + number) for number in range(options.samples)
    ]

    def print_piece(piece: "Piece") -> None:
        if options.color and piece.id is not None:
            from llmcli.cli.reports.tokens import with_probability

            with_probability(piece)
        elif not (options.json or options.memory):
            console.verbatim(piece.text)

    finished: list[tuple[Answer, dict[str, Any]]] = []
    if options.memory:
        from llmcli.cli.reports.memory import print_memory
        from llmcli.evaluation.memorization import find_verbatim

        names = [name for text in texts for name in text.names]
        finished = [prepared.generate(sampling, print_piece) for sampling in settings]
        matches = find_verbatim([answer.text for answer, _ in finished], texts)
    for index, sampling in enumerate(settings):
        if len(settings) > 1 and not options.json:
            console.note(f"--- {index + 1}")
        if sys.stdout.isatty() and sys.stderr.isatty() and not options.json:
            console.prompt(prepared.prompt)
        answer, record = finished[index] if finished else prepared.generate(sampling, print_piece)
        if options.json:
            memory = {"memory": matches[index].as_json(answer.text, names)} if finished else {}
            console.json_result(record | memory)
        elif finished:
            print_memory(answer.text, matches[index], names)
        else:
            console.verbatim("\n")
        note_incomplete(answer)
        if sys.stdout.isatty() and not options.json:
            answer.note_speed()
    if options.color:
        from llmcli.cli.reports.tokens import probability_legend

        probability_legend()
    if prepared.experts and not options.json:
        _print_experts(prepared.experts, prepared.weights)


# ---- --lines


def _print_lines(prepared: _PreparedPrompt, count: int, texts: "list[TrainingText]") -> None:
    """Generate and print distinct lines, with --new without the lines of the training texts."""
    from llmcli.evaluation.memorization import occurring_lines
    from llmcli.generation.lines import LineGenerator

    options = prepared.options
    lines = LineGenerator(
        prepared.runtime,
        prepared.tokenizer,
        prepared.prompt,
        prepared.sampling,
        count,
        lambda lines: occurring_lines(lines, (pieces for text in texts for pieces in text.documents())),
    )
    printed = []
    for line in lines:
        printed.append(line)
        if not options.json:
            console.verbatim(line + "\n")
    if options.json:
        console.json_result(
            {
                "lines": printed,
                "generated": lines.generated,
                "duplicates": lines.duplicates,
                "known": lines.dropped,
                "incomplete": lines.incomplete,
                "seed": prepared.sampling.seed,
            }
        )
    figures = (
        f"{units.count(lines.generated, 'line')} generated: {units.count(lines.duplicates, 'duplicate')}"
    )
    if options.new:
        figures += f", {lines.dropped:,} in the training text"
    if lines.incomplete:
        figures += f", {lines.incomplete:,} empty, longer than -n or several lines"
    if len(printed) < count:
        advice = "a higher `temperature` varies them more"
        if lines.incomplete > lines.duplicates + lines.dropped:
            constrained = ", and the constraint must allow single lines" if prepared.sampling.grammar else ""
            advice = f"a higher `max_tokens` allows longer ones{constrained}"
        raise LLMError(f"found {len(printed):,} of {count:,} lines; {figures}; {advice}")
    console.note(figures)


# ---- --batch


def _answer_batch(prepared: _PreparedPrompt, path: Path, choices: list[str]) -> None:
    from llmcli.cli import batch
    from llmcli.generation.batch import continuation_request

    options, tokenizer = prepared.options, prepared.tokenizer

    def request(row: "PromptRow", sampling: SamplingConfig) -> "GenerationRequest":
        if row.messages:
            raise LLMError("these are messages, which generate does not answer; use llm chat --batch")
        return continuation_request(row.prompt, tokenizer, sampling, choices, literal=options.literal)

    batch.run(options, path, prepared.runtime, tokenizer, request, "text")


# ---- --choices, --next and --steps


def _score_choices(prepared: _PreparedPrompt, choices: Sequence[str]) -> None:
    from llmcli.cli.reports.choices import print_choices
    from llmcli.generation.choices import score_continuations
    from llmcli.generation.token_healing import Prompt

    prompt = Prompt.of(prepared.prompt, prepared.tokenizer, literal=prepared.options.literal)
    scored = [
        *chain.from_iterable(score_continuations(prepared.runtime, prepared.tokenizer, prompt, choices))
    ]
    print_choices("continuation", prepared.prompt, scored, json_=prepared.options.json)


def _list_next_words(prepared: _PreparedPrompt, count: int) -> None:
    from llmcli.cli.reports.tokens import print_next_words
    from llmcli.generation.next_words import max_evaluations, next_words

    search = next_words(prepared.runtime, prepared.tokenizer, prepared.prompt)
    if search.evaluations == (limit := max_evaluations(prepared.runtime.parameters)):
        console.note(f"the search stopped after {limit:,} evaluations of the model; the rest is unexplored")
    if prepared.options.json:
        console.json_result(search.as_json(prepared.prompt, count))
    else:
        print_next_words(search, prepared.prompt, count)


def _trace_steps(prepared: _PreparedPrompt, count: int) -> None:
    from llmcli.cli.reports.trace import print_end, print_step, step_json
    from llmcli.generation.trace import trace

    steps = []
    text = prepared.prompt
    sampling = replace(prepared.sampling, max_tokens=count)
    for step in trace(prepared.runtime, prepared.tokenizer, text, sampling, literal=prepared.options.literal):
        steps.append(step_json(step, prepared.tokenizer))
        if not prepared.options.json:
            print_step(steps[-1], len(steps), text, sampling)
        text += step.text
    if prepared.options.json:
        console.json_result(
            {
                "prompt": prepared.prompt,
                "text": text[len(prepared.prompt) :],
                "steps": steps,
                "finish_reason": step.finish_reason or "length",
                "seed": sampling.seed,
            }
        )
    else:
        print_end(text, sampling.seed)


# ---- --experts


def _print_experts(names: list[str], weights: list[list[float]]) -> None:
    """Print how many of the tokens, with these `weights`, each expert had the largest weight for."""
    from llmcli.cli.terminal import tables

    counts = Counter(row.index(max(row)) for row in weights)
    tokens = max(1, len(weights))
    rows = [
        (name, str(counts[i]), f"{counts[i] / tokens:.0%}", f"{sum(row[i] for row in weights) / tokens:.3f}")
        for i, name in enumerate(names)
    ]
    columns = ("expert", "tokens", "share", "mean weight")
    tables.table(columns, rows, numbers=(1, 2, 3), to_stderr=True)
    console.caption(
        "tokens, share: those for which the expert had the largest weight. mean weight: "
        "averaged over all tokens."
    )
