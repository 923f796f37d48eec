"""`llm train`: text in, one file out."""

import hashlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llmcli import charts, console
from llmcli.commands.options import (
    JsonOption,
    QuietOption,
    note_left_out,
    refuse_gguf,
    refuse_overwriting,
    refuse_with,
    seconds,
    tokenizer_file,
    tokenizer_of,
    vocabulary_option,
)
from llmcli.config import DEFAULT_MODEL, TrainConfig, as_record
from llmcli.errors import LLMError, usage
from llmcli.verdict import verdict

SIZE = "Size of the model"
TEXT = "Text and tokens"
RUN = "How to learn"
AFTERWARDS = 0.6  # seconds that the verdict and saving take, and for each million parameters:
AFTERWARDS_MILLION = 0.06


def train(
    context_: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(metavar="CORPUS", help="Text files, directories, globs, or - for standard input; .gz too."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The model to write.")] = Path(
        DEFAULT_MODEL
    ),
    time_: Annotated[str | None, typer.Option("--time", metavar="TIME", help="How long to take: 90s, 5m, 2h.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="How many steps to take.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", metavar="X", help="How often to go through the text.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Teach this model: ours, a .gguf or a Hugging Face directory."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="FILE", help="Take this model's tokenizer and context, to be mixed with it."),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            "--lora", metavar="RANK", min=1, max=1024, help="With --from: learn low-rank adapters, then merge them."
        ),
    ] = None,
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only",
            help="With --lora: write the adapters alone: -o X.safetensors, or -o DIR for PEFT's two files.",
        ),
    ] = False,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="bpe|char|FILE",
            help="Learn one (bpe, char), or take a tokenizer.json.",
            rich_help_panel=TEXT,
        ),
    ] = "bpe",
    vocab_size: Annotated[
        int | None,
        vocabulary_option("Tokens in the vocabulary.", TEXT),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            "--val",
            metavar="FILE|SHARE",
            help="Text to be judged by: a file, or a share of the corpus's end (0.1).",
            rich_help_panel=TEXT,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option("--layers", metavar="N", min=1, max=1024, help="Blocks one after another.", rich_help_panel=SIZE),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            "--width", metavar="N", min=2, help="Numbers that stand for a token between blocks.", rich_help_panel=SIZE
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads", metavar="N", min=1, help="Heads of attention: a divisor of --width.", rich_help_panel=SIZE
        ),
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(
            "--kv-heads",
            metavar="N",
            min=1,
            help="Heads of keys and values: a divisor of --heads.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            "--experts",
            metavar="N",
            min=2,
            max=1024,
            help="Experts in each layer, of which a router picks a few for each token.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    active: Annotated[
        int | None,
        typer.Option(
            "--active", metavar="N", min=1, help="Experts that a token goes through; else 2.", rich_help_panel=SIZE
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", min=1, help="Tokens seen at once.", rich_help_panel=SIZE)
    ] = None,
    tie: Annotated[
        bool | None,
        typer.Option("--tie/--no-tie", help="One matrix for reading and writing tokens, or two.", rich_help_panel=SIZE),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", metavar="N", min=1, help="Tokens in a step.", rich_help_panel=RUN)
    ] = None,
    lr: Annotated[
        float, typer.Option("--lr", metavar="X", help="Multiplies the recipe's learning rates.", rich_help_panel=RUN)
    ] = TrainConfig.lr,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="muon|adamw", help="How weights move.", rich_help_panel=RUN)
    ] = None,
    dropout: Annotated[
        float | None, typer.Option("--dropout", metavar="X", help="Against learning by heart.", rich_help_panel=RUN)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", min=0, max=2**31 - 1, help="Everything random comes from it.", rich_help_panel=RUN
        ),
    ] = TrainConfig.seed,
    device: Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps", rich_help_panel=RUN)] = "auto",
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="auto|float32|bfloat16", help="Of the matrix products.", rich_help_panel=RUN),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=1024, help="Processor cores to use; else all.", rich_help_panel=RUN
        ),
    ] = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model on your text; the result is one file.

    Example: llm train corpus.txt --time 5m
    """
    began = time.monotonic()
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise usage(f"--device must be auto, cpu, cuda or mps, found {device}")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise usage(f"--dtype must be auto, float32 or bfloat16, found {dtype}")
    if from_ and (
        tokenizer != "bpe" or vocab_size or layers or width or heads or kv_heads or tie is not None or experts
    ):
        raise usage("--from keeps the tokenizer and the size of its model; leave out the options for them")
    if like and from_:
        raise usage("--from takes the tokenizer and the context of its model already; leave --like out")
    if like:
        refuse_with(context_, "--like", "tokenizer", "vocab_size", "context")
    if from_ is None:
        refuse_with(context_, "--from", "lora", "adapter_only", without=True)
    if lora is None:
        refuse_with(context_, "--lora", "adapter_only", without=True)
    if tokenizer not in ("bpe", "char"):
        refuse_with(context_, "--tokenizer FILE", "vocab_size")
    budget = seconds(time_) if time_ else None

    from llmcli import adapters, durable, importer, resume, safetensors_file
    from llmcli.corpus import Corpus, read_corpus
    from llmcli.planner import HELD_OUT, Machine, Request, check_fits, prepare
    from llmcli.tokenizer import Tokenizer

    fixed: dict[str, Any] = {
        "seconds": budget, "steps": steps, "epochs": epochs, "vocab_size": vocab_size, "layers": layers, "width": width,
        "heads": heads, "kv_heads": kv_heads, "context": context, "tie": tie, "batch_tokens": batch_tokens,
        "dropout": dropout, "lr": lr, "seed": seed, "threads": threads or _cores(), "optimizer": optimizer,
        "lora": lora or 0, "experts": experts, "active": active,
    }  # fmt: skip
    Request(**fixed)  # wishes at odds with each other are told before the work
    if not output.name:
        raise usage("-o needs the name of a file: -o model.safetensors")
    refuse_gguf(output)
    for_peft = output if adapter_only and adapters.in_directory(output) else None
    if for_peft:
        output = adapters.file_in(for_peft)
        if not dry_run:
            context_.with_resource(adapters.directory(for_peft, force=force))
    beside = resume.path_beside(output)
    stopped = None
    if not dry_run:
        for other in filter(None, (from_, like)):
            refuse_overwriting(output, "model", [other], "the model to go on from" if from_ else "the model to be like")
            refuse_overwriting(output, "model", importer.files(other), "part of a model that is read")
        durable.check_writable(output, force=True)
        context_.with_resource(durable.locked(output))
        for path in (output, beside):
            durable.remove_stale(path)
        if beside.exists() and not resume.is_ours(beside):
            raise LLMError(
                f"{beside}, where the run would be kept, is somebody's file; move it away, or give another -o"
            )
        stopped = resume.load(beside) if beside.exists() and not force else None
        force = force or (stopped is not None and resume.is_saved_in(stopped, output))
        durable.check_writable(output, force=force)
    base = importer.load(from_) if from_ else None
    pattern = importer.load_any(like).shared if like else None
    if pattern:
        fixed["context"] = pattern.config.max_position_embeddings
        fixed["context_reason"] = "that of the model to be like"
    text = read_corpus(corpus)
    note_left_out(text)
    held_out = _held_out(val, HELD_OUT)
    inputs = [*text.documents, *(held_out.documents if isinstance(held_out, Corpus) else ())]
    refuse_overwriting(output, "model", [document.path for document in inputs], "the text to learn from")
    if tokenizer not in ("bpe", "char"):
        refuse_overwriting(output, "model", [Path(tokenizer)], "the tokenizer to take")
    if isinstance(held_out, Corpus) and {d.sha256 for d in held_out.documents} & {d.sha256 for d in text.documents}:
        console.note("--val holds text to learn from too: its figures will not tell how new text is predicted")
    if threads and threads > _cores():
        console.note(f"--threads {threads}: there are {_cores()} cores; more threads get in each other's way")
    alike = base or pattern
    given = alike.tokenizer_json if alike else None
    whose = "that of the model to go on from" if base else "that of the model to be like" if pattern else ""
    if tokenizer not in ("bpe", "char"):
        given, _ = tokenizer_file(tokenizer, "bpe, char or a tokenizer.json")
        whose = "that of the tokenizer given"

    from llmcli import machine, trainer  # torch wakes up here

    fingerprint = importer.fingerprint(from_) if from_ else ""
    said = f"{durable.name_of(from_.resolve())} (sha256 {fingerprint[:16]})" if from_ else None
    identity = _identity(context_, text, held_out, fixed["threads"], given, said)
    if stopped:
        resume.check_same(stopped, identity, beside)
        given = stopped.tokenizer_json
        settings = stopped.plan.train
        request = Request(**fixed, device=settings.device, dtype=settings.dtype)
        here = None
    else:
        device = machine.pick_device(device)
        dtype, why = machine.pick_dtype(dtype, device, fixed["threads"])
        request = Request(**fixed, device=device, dtype=dtype, machine_reason=why)
        here = Machine(trainer.measured_speed, machine.free_memory(device))
    with machine.memory_told():
        ready = prepare(
            request,
            text,
            here,
            held_out=held_out,
            tokenizer=tokenizer_of(alike) if alike else Tokenizer.from_json(given) if given is not None else None,
            characters=tokenizer == "char",
            base=base.config if base else None,
            whose=whose,
        )
    if stopped:
        check_fits(stopped.plan, machine.free_memory(stopped.plan.train.device))
        ready = replace(ready, plan=stopped.plan)
        console.note(f"{beside}: going on from step {stopped.state.step:,} of the run that stopped")
    elif beside.exists() and not dry_run:
        console.note(f"{beside}: the run that stopped is given up, as --force says")
        beside.unlink()
    _show_plan(ready.plan, dry_run, json_)
    if dry_run:
        if beside.exists():
            console.note(f"{beside}: what a stopped run needs to go on; a dry run leaves it alone")
        return
    if base and from_:
        ready.record["base"] = {"file": durable.name_of(from_.resolve()), "sha256": fingerprint}
        if source := importer.source_hash(base):
            ready.record["base"]["source_sha256"] = source
        ready.record.update({key: base.record[key] for key in ("imported",) if key in base.record})
    durable.check_space(output, 4 * ready.plan.model.parameters + len(ready.tokenizer.to_json()))
    prompt = _first_words(next(next(text.texts())))
    bytes_per_token = ready.record["read_bytes"] / len(ready.tokens)
    baselines = _baselines(text, held_out, ready.record, 0.03 * (ready.plan.train.seconds or 333.0))
    keeper = resume.Keeper(beside, identity, ready.plan, ready.tokenizer.to_json(), console.note)
    with _signals() as caught, console.TrainingView(bytes_per_token, still=json_) as view, machine.memory_told():
        events = trainer.train(
            ready.plan, ready.tokenizer, base, ready.tokens, ready.held_out, ready.record,
            sample_prompt=prompt, began=began, spare=_afterwards(ready.plan.model.parameters),
            stop=lambda: bool(caught), save=keeper.due, go_on=stopped.state if stopped else None,
        )  # fmt: skip
        for event in events:
            if isinstance(event, resume.State):
                keeper.keep(event)
            elif isinstance(event, trainer.Done):
                done = event
                record = done.checkpoint.record
                record["memorised"] = None if caught or done.problem else _memorised(done.checkpoint, ready, text, seed)
                record["verdict"] = verdict(record, baselines)
                output = _save(output, done, force, adapter_only)
                if for_peft:
                    adapters.save_config(output)
                if not done.interrupted:  # going on after a problem would end in the same
                    with suppress(OSError):  # the model is safe, wherever it went
                        beside.unlink()
            elif json_ or sys.stderr.isatty() or not isinstance(event, trainer.Sample):
                _show(event, view, json_)
    if done.problem:
        raise LLMError(f"{done.problem}; the best weights before that, of step {done.best_step:,}, are in {output}")
    sentences = verdict(record, baselines, again=_again(context_), model=None if adapter_only else _named(output))
    if adapter_only:
        merge = shlex.join(
            ["llm", "import", str(from_), "--adapter", str(for_peft or output), "-o", "merged.safetensors"]
        )
        sentences.append(f"Merge it with its model, then ask that: {merge}")
        if for_peft:
            sentences.append(f"In Python: peft.PeftModel.from_pretrained(model, {str(for_peft)!r})")
    parameters = done.checkpoint.parameters
    if adapter_only:
        parameters = sum(array.size for array in (done.adapters or {}).values())
    _show_done(done, output, parameters, json_, baselines, sentences)
    kinds = base.dtypes.values() if base and not adapter_only else ()
    few = sorted({safetensors_file.TORCH_NAMES[kind] for kind in kinds})
    if few and not json_:
        console.note(
            f"its weights are float32, those of {from_} {' and '.join(few)}: small steps are lost in fewer bits"
        )
    if caught:
        raise typer.Exit(128 + caught[0])


def _identity(
    context: typer.Context, text: Any, held_out: Any, threads: int, tokenizer: str | None, base: str | None
) -> dict[str, Any]:
    """What a run is a run of: a stopped one goes on only where all of it is the same."""
    from llmcli import trainer

    not_part = {
        "corpus",
        "output",
        "dry_run",
        "force",
        "json_",
        "quiet",
        "threads",
        "val",
        "from_",
        "like",
        "tokenizer",
    }
    options = {
        param.opts[0]: context.params[param.name]
        for param in context.command.params
        if param.name and param.name not in not_part and context.params.get(param.name) is not None
    }
    kind = context.params["tokenizer"]
    return {
        "the text": _fingerprint(text),
        "--val": held_out if isinstance(held_out, float) else _fingerprint(held_out),
        "--from": base,
        "--tokenizer": kind if tokenizer is None else hashlib.sha256(tokenizer.encode("utf-8")).hexdigest(),
        "--threads": threads,
        **options,
        **{f"the version of {name}": version for name, version in trainer.versions().items()},
    }


def _fingerprint(corpus: Any) -> str:
    """Of the bytes of a corpus and the names of its files."""
    names = [[Path(document.name).name, document.sha256] for document in corpus.documents]
    found = hashlib.sha256(json.dumps(names).encode("utf-8")).hexdigest()
    files = "1 file" if len(names) == 1 else f"{len(names):,} files"
    return f"{files} of {corpus.text_bytes:,} bytes (sha256 {found[:16]})"


def _baselines(text: Any, held_out: Any, record: dict[str, Any], seconds: float) -> list[tuple[str, float]]:
    """What compressors that have read the training text need for the held-out one; none where that takes too long."""
    from llmcli import compressors

    cut, measured = record["train_bytes"], record["held_out"]["bytes"]
    if not measured or not compressors.affordable(measured, cut, seconds):
        return []
    past, new = text.data(0, cut), text.data(cut) if isinstance(held_out, float) else held_out.data()
    return [(found.name, found.bits_per_byte) for found in compressors.baselines(new, past, seconds=seconds)]


def _memorised(checkpoint: Any, ready: Any, text: Any, seed: int) -> dict[str, Any] | None:
    """How much of its text the model recites, for the record; None where that cannot be told."""
    from llmcli.recital import recite

    try:
        found = recite(checkpoint, ready.tokenizer, ready.held_out, ready.read_from(text), seed)
    except LLMError as error:  # the text has gone meanwhile; the model must not be lost with it
        console.note(f"what it knows by heart cannot be told: {error}")
        return None
    return as_record(found) if found else None


def _again(context: typer.Context) -> str:
    """The command as it was typed, but for its budget, ready to be typed again."""
    words = ["llm", "train", *context.params["corpus"]]
    budget = {"time_", "steps", "epochs", "force", "json_", "quiet", "corpus"}
    for param in context.command.params:
        name = param.name or ""
        source, value = context.get_parameter_source(name), context.params.get(name)
        if name in budget or source is None or source.name != "COMMANDLINE":
            continue
        if isinstance(value, bool):
            words.append((param.opts if value else param.secondary_opts)[0])
        else:
            words += [param.opts[0], str(value)]
    return shlex.join([*words, "--force"])


def _named(output: Path) -> str:
    """The model as other commands must be told of it: "" for the one they find."""
    return "" if str(output) == DEFAULT_MODEL else str(output)


def _afterwards(parameters: int) -> float:
    return AFTERWARDS + AFTERWARDS_MILLION * parameters / 1e6


def _save(output: Path, done: Any, force: bool, adapter_only: bool) -> Path:
    """Write the model where it was wanted, else, rather than lose it, where there is room; the place it went to."""
    from llmcli import adapters
    from llmcli.checkpoint import save

    def write(place: Path) -> None:
        if adapter_only:
            adapters.save(place, done.adapters, done.checkpoint)
        else:
            save(place, done.checkpoint)

    place = output
    if output.exists() and not force:  # it was not there when the run began
        place = next(p for n in range(2, 1000) if not (p := output.with_stem(f"{output.stem}-{n}")).exists())
        console.warn(f"{output} was made by somebody else meanwhile; it is left alone, the model goes to {place}")
    try:
        write(place)
    except LLMError as error:
        place = Path(tempfile.mkdtemp(prefix="llmcli-")) / output.name
        write(place)
        console.warn(f"{error}; so the model went to {place}")
    return place


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _held_out(val: str | None, default: float) -> Any:
    """A share of the corpus, or another corpus."""
    from llmcli.corpus import read_corpus

    if val is None:
        return default
    if Path(val).exists():
        return read_corpus([val])
    try:
        share = float(val)
    except ValueError:
        raise LLMError(f"--val {val}: there is no such file, and it is no share of the corpus such as 0.1") from None
    if not 0 <= share < 1:
        raise usage(f"--val {val} is no share of the corpus; give 0 (nothing held out) to below 1, or a file")
    return share


def _first_words(text: str, longest: int = 24) -> str:
    """The beginning of a text, up to the end of a word, to go on from.

    >>> _first_words("Once upon a time there was a king.\\n")
    'Once upon a time there'
    """
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= longest else line[:longest].rsplit(" ", 1)[0]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP, so that the run can end well; a second one ends it at once."""
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        console.note_at_once("finishing this step and saving; once more to quit without")

    kinds = [kind for name in ("SIGINT", "SIGTERM", "SIGHUP") if (kind := getattr(signal, name, None))]
    before = {kind: signal.signal(kind, catch) for kind in kinds}
    try:
        yield caught
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _show_plan(plan: Any, is_result: bool, json_: bool) -> None:
    if json_:
        choices = [as_record(choice) for choice in plan.choices]
        _event("plan", choices=choices, config=json.loads(plan.model.to_json()), train=as_record(plan.train))
        return
    console.table(("", "plan", "because"), [(c.name, c.value, c.reason) for c in plan.choices], to_stderr=not is_result)


def _show(event: Any, view: console.TrainingView, json_: bool) -> None:
    from llmcli import trainer

    if json_:
        kind = {trainer.Step: "step", trainer.Evaluation: "eval", trainer.Sample: "sample"}[type(event)]
        _event(kind, **as_record(event))
    elif isinstance(event, trainer.Step):
        view.step(**as_record(event))
    elif isinstance(event, trainer.Evaluation):
        view.evaluation(event.step, event.bits_per_byte)
    else:
        view.sample(event.prompt, event.text)


def _show_done(
    done: Any, output: Path, parameters: int, json_: bool, baselines: list[tuple[str, float]], sentences: list[str]
) -> None:
    bits = done.figures.bits_per_byte if done.figures else None
    if json_:
        _event(
            "done", file=str(output), steps=done.step, seconds=round(done.seconds, 2), bits_per_byte=bits,
            parameters=parameters, best_step=done.best_step, interrupted=done.interrupted,
            bits_per_byte_before=done.before.bits_per_byte if done.before else None,
            baselines=[{"name": name, "bits_per_byte": found} for name, found in baselines],
            memorised=done.checkpoint.record["memorised"], verdict=sentences,
        )  # fmt: skip
        return
    verb = "interrupted: saved what there is in" if done.interrupted else "saved"
    best = f" (best weights: step {done.best_step:,})" if done.best_step != done.step else ""
    console.note(
        f"{verb} {output}: {charts.number(parameters)} parameters, {done.step:,} steps{best}, "
        f"{charts.duration(done.seconds)}"
    )
    if done.before and bits is not None:
        kept = "; nothing that was tried was better, so it is as it was" if done.best_step == 0 else ""
        console.note(f"held-out bits per byte: {done.before.bits_per_byte:.3f} before, {bits:.3f} after{kept}")
    for sentence in sentences:
        console.note(sentence)


def _event(kind: str, **values: Any) -> None:
    console.result(json.dumps({"event": kind, **values}, ensure_ascii=False))
