"""`llm eval`: how well models predict a text."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli import units
from llmcli.cli import console, tables, token_output
from llmcli.cli.options import (
    DeviceOption,
    JsonOption,
    QuantizeOption,
    QuietOption,
    model_path,
    note_skipped_files,
    reject_options,
)
from llmcli.cli.safe_text import visible_whitespace
from llmcli.config import DEFAULT_MODEL, EVALUATION_CONTEXT
from llmcli.errors import LLMError, usage

if TYPE_CHECKING:
    from llmcli.data.corpus import Corpus
    from llmcli.evaluation.evaluator import Passage, Score
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble

MOST_SHOWN = 4_000  # tokens, in a terminal
MOST_TEXT = 1 << 26  # bytes that the compressors code: they hold them in memory


def eval_(
    context_: typer.Context,
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT", help="Text files, directories, globs, or - for standard input; .gz too."),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m", "--model", metavar="FILE", help=f"Repeatable; else $LLMCLI_MODEL, else {DEFAULT_MODEL} here."
        ),
    ] = None,
    past: Annotated[
        list[str] | None,
        typer.Option("--past", metavar="FILE", help="Text that the compressors read first (repeatable)."),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Of a text that a model learned from measure all, not the held-out end.")
    ] = False,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="Show what each token cost one model, and the most surprising passages.")
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="N",
            min=2,
            help=f"Tokens that the model sees at once; else its context length, {EVALUATION_CONTEXT} at most.",
        ),
    ] = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how well models predict a text, beside the compressors xz and PPM.

    Bits per byte say how much a model still has to be told to know the text: lower is better, 8 is knowing nothing.

    Example: llm eval held-out.txt -m a.safetensors -m b.safetensors
    """
    from llmcli.data.corpus import read_corpus
    from llmcli.evaluation.training_text import held_out_start
    from llmcli.formats.loading import load_any

    if per_token:
        reject_options(context_, "with --per-token", "past")
        if len(model or ()) > 1:
            raise usage(f"--per-token shows one model, found {len(model or ())}; name one with -m")
    models = {path: load_any(path) for path in (model_path(name) for name in model or (None,))}
    text = read_corpus(texts)
    note_skipped_files(text)
    before = read_corpus(past) if past else None
    start = 0 if whole else held_out_start(text, [record for found in models.values() for record in found.records])
    _say_what_is_known(text, models, start)
    if per_token:
        [(path, checkpoint)] = models.items()
        _per_token(path, checkpoint, text, start, device, quantize, context, json_)
        return
    ways = (None, quantize) if quantize else (None,)  # beside what it is as it is: what few bits cost
    results = [
        row
        for path, checkpoint in models.items()
        for way in ways
        for row in _results(path, checkpoint, text, start, device, way, context)
    ]
    if not results:
        raise LLMError(f"there is nothing to measure after byte {start:,} of the text; add --whole")
    files = list(dict.fromkeys(row["file"] for row in results))
    results.sort(key=lambda row: (files.index(row["file"]), row["bits_per_byte"]))
    baselines = _baselines(files[-1], text, start, before)
    if json_:
        answer = {"results": results, "baselines": baselines, "from_byte": start}
        console.json_result(answer)
        return
    rows: list[tuple[str, ...]] = [
        (row["model"], units.bits_per_byte(row["bits_per_byte"]), f"{row['perplexity']:.2f}", f"{row['accuracy']:.3f}",
         str(row["tokens"]), str(row["bytes"]), row["file"] or "all")
        for row in results
    ] + [
        (row["name"], units.bits_per_byte(row["bits_per_byte"]), "", "", "", str(row["bytes"]), row["file"] or "all")
        for row in baselines
    ]  # fmt: skip
    columns: tuple[str, ...] = ("model", "bits/byte", "perplexity", "accuracy", "tokens", "bytes", "text")
    if len(files) == 1:  # one text needs no name
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    tables.table(columns, rows, numbers=(1, 2, 3, 4, 5))
    console.caption(
        "bits/byte: lower is better, 8 is no knowledge; it compares any models. perplexity: as uncertain as a choice "
        "among so many equally likely tokens; it compares models with one tokenizer. accuracy: share of the tokens "
        "that were the model's first guess."
    )


def _say_what_is_known(text: "Corpus", models: dict[Path, "Checkpoint | Ensemble"], start: int) -> None:
    from llmcli.evaluation.training_text import trained_bytes, was_trained_on

    if start:
        by = ", ".join(
            str(path) for path, found in models.items() for r in found.records if trained_bytes(text, r) == start
        )
        console.note(
            f"{by} learned from the first {start:,} bytes of this text; measured are the {text.text_bytes - start:,} "
            f"after them (--whole measures all)"
        )
    for path, checkpoint in models.items():
        if any(was_trained_on(text, record, start) for record in checkpoint.records):
            console.note(f"{path} learned from some of this text: its figures do not tell how it predicts new text")


def _results(
    path: Path,
    checkpoint: "Checkpoint | Ensemble",
    text: "Corpus",
    start: int,
    device: str,
    quantize: str | None,
    context: int | None,
) -> Iterator[dict[str, Any]]:
    """A row for each document, and one for all together if there are several; its file is None."""
    from llmcli.evaluation.evaluator import Score, evaluation_context, passages, stride
    from llmcli.formats.loading import open_tokenizer
    from llmcli.models.open_runtime import open_runtime

    name = f"{path}, {quantize}" if quantize else str(path)
    runtime = open_runtime(checkpoint, device, quantize, console.note)
    tokenizer = open_tokenizer(checkpoint)
    try:
        total, parts = Score(0.0, 0, 0), passages(text, start)
        context = evaluation_context(runtime.context, context)
        step = stride(context)
        longer = f" (of {runtime.context:,}; --context changes it)" if context < runtime.context else ""
        console.note(
            f"{name}: context windows of {context:,} tokens{longer}, {step:,} apart; every token is predicted from at "
            f"least {step:,} tokens before it, or from all there are"
        )
        for part in parts:
            found = _measured(part, name, runtime, tokenizer, context)
            total += found
            if found.tokens:
                yield _row(name, part.name, found, context, step)
    except LLMError as error:
        raise LLMError(f"{path}: {error}", error.exit_code) from error
    if len(parts) > 1:
        yield _row(name, None, total, context, step)


def _measured(part: "Passage", name: str, runtime: Any, tokenizer: Any, context: int, *each: Any) -> "Score":
    """`measure` with its progress on stderr."""
    from llmcli.evaluation.evaluator import measure

    try:
        return measure(part, runtime, tokenizer, partial(_tell, f"{name}  {part.name}"), *each, context=context)
    finally:
        console.status("")


def _per_token(
    path: Path,
    checkpoint: "Checkpoint | Ensemble",
    text: "Corpus",
    start: int,
    device: str,
    quantize: str | None,
    context: int | None,
    json_: bool,
) -> None:
    """Each document's tokens with their bits; the passages over all of them."""
    import numpy as np

    from llmcli.evaluation.evaluator import Score, evaluation_context, passages
    from llmcli.evaluation.surprisal import most_surprising
    from llmcli.formats.loading import open_tokenizer
    from llmcli.models.open_runtime import open_runtime

    ids: list[int] = []
    bits: list[float] = []
    firsts: list[int] = []  # of each document
    names: list[str] = []
    total = Score(0.0, 0, 0)

    def keep(some: Any, nats: Any) -> None:
        ids.extend(some.tolist())
        bits.extend((np.asarray(nats, np.float64) / math.log(2)).tolist())

    try:
        runtime = open_runtime(checkpoint, device, quantize, console.note)
        tokenizer = open_tokenizer(checkpoint)
        context = evaluation_context(runtime.context, context)
        for part in passages(text, start):
            firsts.append(len(ids))
            names.append(part.name)
            total += _measured(part, str(path), runtime, tokenizer, context, keep)
    except LLMError as error:
        raise LLMError(f"{path}: {error}", error.exit_code) from error
    if not ids:
        raise LLMError(f"there is nothing to measure after byte {start:,} of the text; add --whole")
    dear = most_surprising(np.array(bits), breaks=firsts)
    if json_:
        answer = {
            "model": str(path),
            "files": [{"file": name, "first_token": first} for name, first in zip(names, firsts, strict=True)],
            "from_byte": start,
            "bits_per_byte": round(total.bits_per_byte, 6),
            "tokens": [
                {"id": token, "text": tokenizer.label(token), "bits": round(cost, 4)}
                for token, cost in zip(ids, bits, strict=True)
            ],
            "most_surprising": [
                {"first_token": place.start, "tokens": place.end - place.start, "bits": round(place.bits, 4),
                 "text": tokenizer.decode(ids[place.start : place.end])}
                for place in dear
            ],
        }  # fmt: skip
        console.json_result(answer)
        return
    shown = min(len(ids), MOST_SHOWN)
    if shown < len(ids):
        console.note(f"the first {shown:,} of {len(ids):,} tokens are shown; --json has them all")
    for number, first in enumerate(firsts):
        last = min([*firsts[number + 1 :], len(ids)][0], shown)
        if last > first:
            if len(firsts) > 1:
                console.heading(names[number])
            token_output.surprisals(_characters([tokenizer.token_bytes[i] for i in ids[first:last]], bits[first:last]))
    console.heading(f"{units.bits_per_byte(total.bits_per_byte)} bits per byte; the most surprising passages:")
    rows = []
    for place in dear:
        passage = tokenizer.decode_bytes(ids[place.start : place.end]).decode("utf-8", "ignore")
        each = place.bits / (place.end - place.start)
        said = visible_whitespace(passage).replace("·", " ")
        rows.append((f"{place.bits:.1f}", f"{each:.2f}", f"{place.start + 1:,}", said))
    tables.table(("bits", "a token", "at token", "passage"), rows, numbers=(0, 1, 2))
    console.caption("A token that the model gave probability 1/2 costs 1 bit, 1/4 costs 2 bits, 1/1024 costs 10 bits.")


def _characters(tokens: list[bytes], bits: list[float]) -> list[tuple[str, float]]:
    """What each token adds to the text, and its bits; tokens that share a character are one."""
    from llmcli.data.tokenizer import StreamDecoder

    decoder = StreamDecoder()
    texts, waiting = [], 0.0
    for data, cost in zip(tokens, bits, strict=True):
        waiting += cost
        if text := decoder.feed(data):
            texts.append((text, waiting))
            waiting = 0.0
    if rest := decoder.finish():
        texts.append((rest, waiting))
    return texts


def _tell(what: str, share: float) -> None:
    console.status(f"{share:4.0%}  {what}")


def _row(name: str, file: str | None, figures: Any, context: int, stride: int) -> dict[str, Any]:
    return {
        "model": name,
        "file": file,
        "bytes": figures.bytes,
        "tokens": figures.tokens,
        "bits_per_byte": round(figures.bits_per_byte, 6),
        "perplexity": round(figures.perplexity, 6),
        "accuracy": round(figures.accuracy, 6),
        "context": context,
        "stride": stride,
    }


def _baselines(file: str | None, text: "Corpus", start: int, before: "Corpus | None") -> list[dict[str, Any]]:
    """What compressors make of all that is measured, after `before` or else what the models learned from."""
    from llmcli.evaluation import compressors

    end = min(text.text_bytes, start + MOST_TEXT)
    if end < text.text_bytes:
        console.note(f"xz and PPM code the first {end - start:,} bytes of the text")
    past, past_end = (before, before.text_bytes) if before else (text, start)
    past_start = max(0, past_end - compressors.max_past_bytes())
    found = compressors.baselines(text.utf8(start, end), past.utf8(past_start, past_end))
    if past_end:
        read = ", ".join(f"{b.name} {b.past_bytes:,}" for b in found if b.past_bytes < past_end)
        console.note(f"xz and PPM read {past_end:,} bytes first" + (f", of them only the last: {read}" if read else ""))
    return [
        {"name": b.name, "file": file, "bytes": b.bytes, "bits_per_byte": round(b.bits_per_byte, 6),
         "past_bytes": b.past_bytes, "pieces": b.pieces}
        for b in sorted(found, key=lambda b: b.bits_per_byte)
    ]  # fmt: skip
