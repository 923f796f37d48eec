"""`llm generate`: the file answers."""

import math
import secrets
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli import units
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
from llmcli.cli.safe_text import visible_whitespace
from llmcli.cli.text_layout import terminal_width, truncate, truncate_start
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.evaluation.training_text import TrainingText

    pass


def generate(
    context_: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to go on from; - reads standard input.")
    ] = None,
    model: ModelOption = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "-n", "--max-tokens", "--max-new-tokens", "--n-predict", metavar="N", help="Tokens to write at most."
        ),
    ] = SamplingConfig.max_tokens,
    temperature: Annotated[
        float,
        typer.Option(
            "-t", "--temperature", "--temp", metavar="X", help="0: always the likeliest; above 1: more surprising."
        ),
    ] = SamplingConfig.temperature,
    top_k: Annotated[
        int, typer.Option("-k", "--top-k", metavar="N", help="Choose among the k likeliest tokens; 0: all.")
    ] = SamplingConfig.top_k,
    top_p: Annotated[
        float,
        typer.Option(
            "-p", "--top-p", metavar="X", help="Choose among the likeliest that together reach this probability."
        ),
    ] = SamplingConfig.top_p,
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", metavar="X", help="Choose among those at least this fraction as likely as the likeliest."
        ),
    ] = SamplingConfig.min_p,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty", "--repeat-penalty", metavar="X", help="Above 1: say less what was said before."
        ),
    ] = SamplingConfig.repetition_penalty,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", metavar="N", help="The same seed writes the same text.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text (repeatable).")
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            "--num-samples",
            metavar="N",
            min=1,
            help="Number of texts to write; with --json one object a line.",
        ),
    ] = 1,
    next_: Annotated[
        int | None, typer.Option("--next", min=1, metavar="N", help="Show the N likeliest next words instead.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, metavar="K", help="Walk K tokens: the candidates of each, what is cut, what is chosen."
        ),
    ] = None,
    literal: Annotated[
        bool,
        typer.Option(
            "--literal/--no-literal",
            help="Split the prompt into tokens in one way only, as other programs do; else the first token is chosen "
            "by the prompt's text, so that a word that is cut off is completed.",
        ),
    ] = False,
    color: Annotated[bool, typer.Option("--color", help="Tint each token by its probability.")] = False,
    experts: Annotated[
        bool,
        typer.Option("--experts", help="Tint each token by the expert that counted most for it; how often each did."),
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Mark what stands word for word in the text that the model learned from.")
    ] = False,
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", metavar="FILE", help="That text, where it is not found by itself (repeatable)."),
    ] = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a text with a model, or show what may come next.

    Example: llm generate "I like to eat" --next 5
    """
    if next_ is not None:
        reject_options(
            context_, "with --next", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
            "seed", "stop", "samples", "literal", "color", "steps", "memory", "experts",
        )  # fmt: skip
    if steps is not None:
        reject_options(context_, "with --steps", "max_tokens", "stop", "samples", "color", "memory", "experts")
    if experts:
        reject_options(context_, "with --experts", "color", "device", "memory")
    if memory:
        reject_options(context_, "with --memory", "color")
    else:
        reject_options(context_, "without --memory", "corpus")
    if quantize:
        reject_options(context_, "with --quantize", "device")
    sampling = SamplingConfig(
        max_tokens=max_tokens,
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

    found = load_any(path)
    speakers = _Speakers(_experts_of(found, path)) if experts else None
    known = _learned(corpus, found, path) if memory else None
    runtime, tokenizer = open_runtime(found, device, quantize, console.note), open_tokenizer(found)
    length = len(tokenizer.encode(text))
    if length > runtime.context:
        console.note(f"the prompt has {length:,} tokens, the model sees {runtime.context:,}: only its end is used")
    if next_ is not None:
        _show_next(runtime, tokenizer, found.parameters, text, next_, json_)
        return
    if steps is not None:
        _walk(runtime, tokenizer, text, replace(sampling, max_tokens=steps), literal, json_)
        return
    written = []
    for number in range(samples):
        if samples > 1 and not json_ and known is None:
            console.note(f"--- {number + 1}")
        settings = replace(sampling, seed=sampling.seed + number)
        shown = not json_ and known is None  # what is to be marked is shown when it has been looked for
        written.append(_write(runtime, tokenizer, text, settings, literal, color, speakers, shown))
        if known is None:
            _finish(written[-1], json_)
    if known is not None:
        _finish_marked(written, known, json_)
    if color and not json_:
        token_output.probability_legend()
    if speakers and not json_:
        speakers.show()


def _experts_of(found: Any, path: Path) -> list[str]:
    """What its experts are called. Raises LLMError for a model that has none."""
    from llmcli.formats.ensemble_file import Ensemble

    if isinstance(found, Ensemble):
        return list(found.names)
    count = found.config.num_experts
    if not count:
        raise LLMError(f"{path} has no experts; a mixture has (llm mix), and a model trained with --experts")
    return [str(number) for number in range(count)]


class _Speakers:
    """Which expert counted most for each token: of a mixture its models, of a sparse model those of the last layer."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._most = [0] * len(names)
        self._weights = [0.0] * len(names)

    def heard(self, runtime: Any) -> list[float]:
        """Their weights for the token that was just written."""
        weights = [float(weight) for weight in runtime.expert_weights()[-1]]
        self._most[weights.index(max(weights))] += 1
        self._weights = [total + weight for total, weight in zip(self._weights, weights, strict=True)]
        return weights

    def show(self) -> None:
        tokens = max(1, sum(self._most))
        rows = [
            (name, str(most), f"{most / tokens:.0%}", f"{weight / tokens:.3f}")
            for name, most, weight in zip(self.names, self._most, self._weights, strict=True)
        ]
        tables.table(
            ("expert", "tokens", "share", "mean weight"), rows, numbers=(1, 2, 3), to_stderr=True, striped=True
        )
        console.caption(
            "tokens: those for which the expert had the largest weight. mean weight: its average share in the answer."
        )


def _learned(names: list[str] | None, model: Any, path: Path) -> list["TrainingText"]:
    """The text that the model, or each of a mixture, learned from, or what was named as that."""
    from llmcli.data.corpus import read_corpus
    from llmcli.evaluation.training_text import TrainingText, find_corpus, trained_bytes

    if not names:
        return [TrainingText.of(find_corpus(record, path), [record]) for record in model.records]
    found = read_corpus(names)
    note_skipped_files(found)
    if all(trained_bytes(found, record) is None for record in model.records):
        console.note(f"{', '.join(names)} is not the text that {path} says it learned from; all of it is searched")
    return [TrainingText.of(found, model.records)]


@dataclass(frozen=True)
class _Written:
    """What the model wrote."""

    prompt: str
    text: str
    tokens: list[dict[str, Any]]
    finish_reason: str | None
    seed: int
    tokens_per_second: float
    seconds_to_first_token: float


def _write(
    runtime: Any,
    tokenizer: Any,
    prompt: str,
    sampling: SamplingConfig,
    literal: bool,
    color: bool,
    speakers: _Speakers | None,
    shown: bool,
) -> _Written:
    """Let the model write; if `shown`, each piece appears as it comes."""
    from llmcli.generation.generator import generate

    began = time.perf_counter()
    first, tokens, text = math.nan, [], []
    reason = None
    if shown:
        _show_prompt(prompt)
    for piece in generate(runtime, tokenizer, prompt, sampling, literal=literal):
        if math.isnan(first):
            first = time.perf_counter() - began
        appearance = piece.text
        if piece.id is not None:
            token: dict[str, Any] = {"id": piece.id, "text": piece.text, "logprob": round(piece.logprob, 6)}
            if speakers:
                weights = speakers.heard(runtime)
                most = weights.index(max(weights))
                token["experts"] = {n: round(w, 4) for n, w in zip(speakers.names, weights, strict=True) if w > 0}
                appearance = styles.alternating(piece.text, most)
            elif color:
                appearance = styles.by_probability(piece.text, math.exp(piece.logprob))
            tokens.append(token)
        text.append(piece.text)
        reason = piece.finish_reason
        if shown:
            console.verbatim(appearance, raw=piece.id is not None and bool(color or speakers))
    taken = time.perf_counter() - began
    speed = (len(tokens) - 1) / (taken - first) if len(tokens) > 1 and taken > first else 0.0
    return _Written(prompt, "".join(text), tokens, reason, sampling.seed, speed, first)


def _show_prompt(prompt: str) -> None:
    if sys.stdout.isatty() and sys.stderr.isatty():
        console.prompt(prompt)


def _finish(written: _Written, json_: bool) -> None:
    """End a text that was shown, or show it as JSON."""
    if json_:
        console.json_result(_answer(written))
        return
    console.result()
    _say_speed(written)


def _finish_marked(written: list[_Written], known: list["TrainingText"], json_: bool) -> None:
    """Show texts with what stands in the text that was learned, which is searched once for all of them."""
    from llmcli.evaluation.memorization import find_verbatim

    memories = find_verbatim([one.text for one in written], known)
    for number, (one, found) in enumerate(zip(written, memories, strict=True), 1):
        if json_:
            memory = {
                "corpus": [document.name for corpus in known for document in corpus.corpus.documents],
                "searched_bytes": found.searched_bytes,
                "share": round(found.share, 6),
                "spans": [{"start": a, "end": b, "text": one.text[a:b]} for a, b in found.spans],
            }
            console.json_result(_answer(one) | {"memory": memory})
            continue
        if len(written) > 1:
            console.note(f"--- {number}")
        _show_prompt(one.prompt)
        token_output.with_highlights(one.text, found.spans)
        console.result()
        _say_memory(one.text, found, known)
        _say_speed(one)


def _answer(written: _Written) -> dict[str, Any]:
    return {
        "prompt": written.prompt,
        "text": written.text,
        "tokens": written.tokens,
        "finish_reason": written.finish_reason,
        "seed": written.seed,
        "tokens_per_second": round(written.tokens_per_second, 1),
        "seconds_to_first_token": round(written.seconds_to_first_token, 4),
    }


def _say_speed(written: _Written) -> None:
    if sys.stdout.isatty():
        console.note(f"[{len(written.tokens)} tokens, {written.tokens_per_second:,.0f} tokens/s, seed {written.seed}]")


def _say_memory(text: str, found: Any, known: list["TrainingText"]) -> None:
    from llmcli.evaluation.memorization import LENGTH

    names = [document.name for one in known for document in one.corpus.documents]
    where = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(text) < LENGTH:
        console.note(
            f"{len(text)} characters are too few to tell; what is looked for has {LENGTH}: ask for more with -n"
        )
        return
    longest = max((last - first for first, last in found.spans), default=0)
    console.note(
        f"{found.share:.0%} of its {len(text):,} characters stand word for word in {where}, in strings of at least "
        f"{LENGTH}" + (f"; the longest marked part has {longest:,}" if longest else "")
    )


def _show_next(runtime: Any, tokenizer: Any, parameters: int, prompt: str, count: int, json_: bool) -> None:
    from llmcli.generation.next_words import MAX_UNEXPLORED, max_evaluations, next_words

    most = max_evaluations(parameters)
    found = next_words(runtime, tokenizer, prompt, most)
    words = found.words[:count]
    if found.evaluations == most:
        console.note(f"stopped after asking the model {most:,} times; what was not followed is unexplored")
    if json_:
        listed = [
            {"text": word.text, "probability": round(word.probability, 6)}
            | ({"continues": True} if word.continues else {})
            for word in words
        ]
        answer = {
            "prompt": prompt,
            "next": listed,
            "unexplored": round(found.unexplored, 6),
            "entropy_bits": round(found.entropy, 6),
        }
        console.json_result(answer)
        return
    rows = [("…" * word.continues + visible_whitespace(word.text), word.probability) for word in words]
    if others := found.words[count:]:
        rows.append((f"({len(others)} others)", sum(word.probability for word in others)))
    rows.append(("(unexplored)", found.unexplored))
    if sys.stdout.isatty():
        console.heading(f"{truncate_start(prompt, terminal_width() - 2)}▁")
        at_least = found.unexplored >= MAX_UNEXPLORED
        console.paragraph(f"next word: {units.entropy(found.entropy, at_least=at_least)}")
    token_output.probabilities("next word", rows)
    console.caption(
        f"{units.choice(found.entropy, 'words')} The probability of a word is the sum over the ways to spell it; "
        f"unexplored is that of words that were not followed to their end."
    )


def _walk(runtime: Any, tokenizer: Any, prompt: str, sampling: SamplingConfig, literal: bool, json_: bool) -> None:
    from llmcli.generation.trace import trace

    steps, text = [], ""
    for number, choice in enumerate(trace(runtime, tokenizer, prompt, sampling, literal=literal), 1):
        steps.append(choice)
        if not json_:
            _show_choice(choice, number, prompt + text, tokenizer, sampling)
        text += choice.text
    if not json_:
        console.heading(f"{truncate_start(prompt + text, terminal_width() - 1)}")
        console.caption(
            "model: the probability that the model gives a token. chance: that with which it is drawn, after "
            "temperature and cuts. An entropy of 1 bit is a choice between 2 equally likely tokens, of 3 bits among 8."
        )
        console.note(f"[seed {sampling.seed}]")
        return

    def facts(candidate: Any) -> dict[str, Any]:
        return {
            "id": candidate.id,
            "text": tokenizer.label(candidate.id),
            "probability": round(candidate.probability, 6),
            "chance": round(candidate.sampling_probability, 6),
            "cut_by": candidate.removed_by,
        }

    answer = {
        "prompt": prompt,
        "text": text,
        "steps": [
            {
                "text": choice.text,
                "chosen": facts(choice.chosen),
                "candidates": [facts(candidate) for candidate in choice.candidates],
                "left": choice.remaining,
                "cuts": [
                    {"by": c.filter, "tokens": c.tokens, "probability": round(c.probability, 6)}
                    for c in choice.removals
                ],
                "entropy_bits": round(choice.entropy, 6),
                "spelling": choice.retokenized,
            }
            for choice in steps
        ],
        "finish_reason": steps[-1].finish_reason or "length",
        "seed": sampling.seed,
    }
    console.json_result(answer)


def _show_choice(choice: Any, number: int, text: str, tokenizer: Any, sampling: SamplingConfig) -> None:
    """One step: the candidates with the model's probability and the chance that the settings leave, and why."""
    console.heading(f"{number}  {truncate_start(text, terminal_width() - 6 - len(str(number)))}▁")
    if choice.retokenized:
        console.paragraph("the first token, summed over the ways to split the prompt's end into tokens")
    shown = list(choice.candidates)
    if choice.chosen not in shown:
        shown.append(choice.chosen)
    room = min(40, max(8, terminal_width() - 50))
    names = [truncate(visible_whitespace(tokenizer.label(c.id)), 16) for c in shown]
    tables.table(
        ("", "token", "model", "chance", ""),
        [
            (
                "→" if c == choice.chosen else "",
                name,
                f"{c.probability:.3f}",
                "" if c.removed_by else f"{c.sampling_probability:.3f}",
                f"cut by {c.removed_by}" if c.removed_by else token_output.bar(c.sampling_probability, room),
            )
            for c, name in zip(shown, names, strict=True)
        ],
        numbers=(2, 3),
    )
    settings = {"top-k": sampling.top_k, "top-p": sampling.top_p, "min-p": sampling.min_p}
    why = [f"entropy {units.bits(choice.entropy)} bits"]
    if sampling.repetition_penalty != 1:
        why.append(f"repetition penalty {sampling.repetition_penalty:g}")
    if sampling.temperature == 0:
        why.append("temperature 0 takes the likeliest")
    else:
        why.append(f"temperature {sampling.temperature:g}")
        for c in choice.removals:
            many = f"{c.tokens:,} token{'s' * (c.tokens != 1)} of {c.probability:.3f} together"
            why.append(f"{c.filter} {settings[c.filter]:g} cuts {many}")
        why.append(f"drawn from {choice.remaining:,}" if choice.remaining > 1 else "one is left")
    console.paragraph("; ".join(why))
