"""`llm generate`: the file answers."""

import json
import math
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llmcli import charts, console
from llmcli.commands.options import (
    DeviceOption,
    JsonOption,
    ModelOption,
    QuantizeOption,
    QuietOption,
    model_path,
    open_model,
    refuse_with,
    text_argument,
)
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError


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
        int, typer.Option("--samples", "--num-samples", metavar="N", min=1, help="Write so many texts.")
    ] = 1,
    next_: Annotated[
        int | None, typer.Option("--next", min=1, metavar="N", help="Show the N likeliest next words instead.")
    ] = None,
    literal: Annotated[
        bool | None,
        typer.Option(
            "--literal/--no-literal",
            help="Take the prompt's last word as it stands, as other programs do, or let it grow; by default only "
            "models from other programs are asked so.",
        ),
    ] = None,
    color: Annotated[bool, typer.Option("--color", help="Tint each token by its probability.")] = False,
    experts: Annotated[
        bool,
        typer.Option("--experts", help="Tint each token by the expert that counted most for it; how often each did."),
    ] = False,
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a text with a model, or show what may come next.

    Example: llm generate "I like to eat" --next 5
    """
    if next_ is not None:
        refuse_with(
            context_, "--next", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed",
            "stop", "samples", "literal", "color", "experts",
        )  # fmt: skip
    if experts:
        refuse_with(context_, "--experts", "color", "device")
    if quantize:
        refuse_with(context_, "--quantize", "device")
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
    from llmcli.importer import load_any, was_imported

    found = load_any(path)
    speakers = _Speakers(_experts_of(found, path)) if experts else None
    runtime, tokenizer = open_model(found, device, quantize)
    literal = was_imported(found) if literal is None else literal
    length = len(tokenizer.encode(text))
    if length > runtime.context:
        console.note(f"the prompt has {length:,} tokens, the model sees {runtime.context:,}: only its end is used")
    if next_ is not None:
        _show_next(runtime, tokenizer, found.parameters, text, next_, json_)
        return
    for number in range(samples):
        if samples > 1 and not json_:
            console.note(f"--- {number + 1}")
        settings = replace(sampling, seed=sampling.seed + number)
        _write(runtime, tokenizer, text, settings, literal, color, speakers, json_)
    if speakers and not json_:
        speakers.show()


def _experts_of(found: Any, path: Path) -> list[str]:
    """What its experts are called. Raises LLMError for a model that has none."""
    from llmcli.mixture_file import Mixture

    if isinstance(found, Mixture):
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
        console.table(
            ("expert", "tokens", "share", "mean weight"), rows, numbers=(1, 2, 3), to_stderr=True, striped=True
        )


def _write(
    runtime: Any,
    tokenizer: Any,
    prompt: str,
    sampling: SamplingConfig,
    literal: bool,
    color: bool,
    speakers: _Speakers | None,
    json_: bool,
) -> None:
    from llmcli.generator import generate

    began = time.perf_counter()
    first, tokens, text = math.nan, [], []
    reason = None
    if not json_ and sys.stdout.isatty() and sys.stderr.isatty():
        console.prompt(prompt)
    for piece in generate(runtime, tokenizer, prompt, sampling, literal=literal):
        if math.isnan(first):
            first = time.perf_counter() - began
        shown = piece.text
        if piece.id is not None:
            token: dict[str, Any] = {"id": piece.id, "text": piece.text, "logprob": round(piece.logprob, 6)}
            if speakers:
                weights = speakers.heard(runtime)
                most = weights.index(max(weights))
                token["experts"] = {n: round(w, 4) for n, w in zip(speakers.names, weights, strict=True) if w > 0}
                shown = console.stripe(piece.text, most)
            elif color:
                shown = console.tint(piece.text, math.exp(piece.logprob))
            tokens.append(token)
        text.append(piece.text)
        reason = piece.finish_reason
        if not json_:
            console.result(shown, end="", raw=piece.id is not None and bool(color or speakers))
    taken = time.perf_counter() - began
    speed = (len(tokens) - 1) / (taken - first) if len(tokens) > 1 and taken > first else 0.0
    if json_:
        answer = {
            "prompt": prompt,
            "text": "".join(text),
            "tokens": tokens,
            "finish_reason": reason,
            "seed": sampling.seed,
            "tokens_per_second": round(speed, 1),
            "seconds_to_first_token": round(first, 4),
        }
        console.result(json.dumps(answer, ensure_ascii=False))
        return
    console.result()
    if sys.stdout.isatty():
        console.note(f"[{len(tokens)} tokens, {speed:,.0f} tokens/s, seed {sampling.seed}]")


def _show_next(runtime: Any, tokenizer: Any, parameters: int, prompt: str, count: int, json_: bool) -> None:
    from llmcli.words import most_looks, next_words

    most = most_looks(parameters)
    found = next_words(runtime, tokenizer, prompt, most)
    words = found.words[:count]
    if found.looks == most:
        console.note(f"stopped after asking the model {most:,} times; what was not followed is unexplored")
    if json_:
        listed = [
            {"text": word.text, "probability": round(word.probability, 6)}
            | ({"continues": True} if word.continues else {})
            for word in words
        ]
        answer = {"prompt": prompt, "next": listed, "unexplored": round(found.unexplored, 6)}
        console.result(json.dumps(answer, ensure_ascii=False))
        return
    rows = [("…" * word.continues + console.shown(word.text), word.probability) for word in words]
    if others := found.words[count:]:
        rows.append((f"({len(others)} others)", sum(word.probability for word in others)))
    rows.append(("(unexplored)", found.unexplored))
    bars = [charts.bar(chance, 40) for _, chance in rows] if sys.stdout.isatty() else [""] * len(rows)
    console.table(
        ("next word", "probability", ""),
        [(name, f"{chance:.3f}", bar) for (name, chance), bar in zip(rows, bars, strict=True)],
        numbers=(1,),
    )
