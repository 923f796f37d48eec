"""`llm train`: text in, one file out."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from llmcli import units
from llmcli.cli import console, progress, tables
from llmcli.cli.options import (
    JsonOption,
    QuietOption,
    note_left_out,
    note_structured,
    refuse_gguf,
    refuse_overwriting,
    refuse_with,
    seconds,
    termination_signals,
    tokenizer_file,
    vocabulary_option,
)
from llmcli.config import ADAMW_LR, DEFAULT_MODEL, DEVICES, DTYPES, MUON_LR, TrainConfig, as_record
from llmcli.data.example_prompt import example_prompt
from llmcli.errors import LLMError, command_line, usage
from llmcli.formats.hf_config import dump_config
from llmcli.training.summary import summarize, usage_hints

SIZE = "Model size"
TEXT = "Text and tokens"
RUN = "Training"
SMALL_SCALE = 0.01  # a factor of learning rates below this is more likely meant as a learning rate
AFTERWARDS = 0.6  # seconds that the summary and saving take, and for each million parameters:
AFTERWARDS_MILLION = 0.06
SAME_REQUEST = 0.5  # seconds within which a second signal is the first one again
PROMPT_TOKENS = 4_000  # at the beginning of a text, in which a prompt is looked for


def train(
    context_: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(metavar="CORPUS", help="Text files, directories, globs, or - for standard input; .gz too."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The model to write.")] = Path(
        DEFAULT_MODEL
    ),
    time_: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Time budget: 90s, 5m, 2h (default 5m).")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Number of training steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", metavar="X", help="Number of passes over the text.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Fine-tune this model: ours, a .gguf or a Hugging Face directory."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like", metavar="FILE", help="Use this model's tokenizer and context length, to mix both later."
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            "--lora", metavar="RANK", min=1, max=1024, help="With --from: train low-rank adapters, then merge them."
        ),
    ] = None,
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only",
            help="With --lora: write only the adapters; with -o DIR as a directory that PEFT can load.",
        ),
    ] = False,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="bpe|char|FILE",
            help="Train one (bpe, char), or use a tokenizer.json.",
            rich_help_panel=TEXT,
        ),
    ] = "bpe",
    vocab_size: Annotated[
        int | None,
        vocabulary_option("Vocabulary size, in tokens.", TEXT),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            "--val",
            metavar="FILE|SHARE",
            help="Validation file, or fraction of the corpus at its end (default 0.1).",
            rich_help_panel=TEXT,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option("--layers", metavar="N", min=1, max=1024, help="Transformer layers.", rich_help_panel=SIZE),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            metavar="N",
            min=2,
            max=1_000_000,
            help="Hidden size (embedding width) of the model.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads", metavar="N", min=1, help="Attention heads: a divisor of --width.", rich_help_panel=SIZE
        ),
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(
            "--kv-heads",
            metavar="N",
            min=1,
            help="Key and value heads: a divisor of --heads.",
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
            help="Experts per layer; a router picks a few of them for each token.",
            rich_help_panel=SIZE,
        ),
    ] = None,
    active: Annotated[
        int | None,
        typer.Option("--active", metavar="N", min=1, help="Experts per token (default 2).", rich_help_panel=SIZE),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", min=1, help="Context length, in tokens.", rich_help_panel=SIZE),
    ] = None,
    tie: Annotated[
        bool | None,
        typer.Option("--tie/--no-tie", help="Tie input and output embeddings.", rich_help_panel=SIZE),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", metavar="N", min=1, help="Batch size, in tokens.", rich_help_panel=RUN),
    ] = None,
    lr_scale: Annotated[
        float,
        typer.Option("--lr-scale", metavar="X", help="Multiply the recipe's learning rates by X.", rich_help_panel=RUN),
    ] = TrainConfig.lr,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="X",
            help="Another name for --lr-scale: a factor, not a learning rate.",
            rich_help_panel=RUN,
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="muon|adamw", help="Optimizer.", rich_help_panel=RUN)
    ] = None,
    dropout: Annotated[
        float | None, typer.Option("--dropout", metavar="X", help="Dropout rate (0 to 1).", rich_help_panel=RUN)
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, max=2**31 - 1, help="Random seed.", rich_help_panel=RUN),
    ] = TrainConfig.seed,
    device: Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps", rich_help_panel=RUN)] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="auto|float32|bfloat16", help="Data type of matrix products.", rich_help_panel=RUN
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=1024, help="CPU threads (default: all cores).", rich_help_panel=RUN
        ),
    ] = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model on your text; the result is one file.

    Example: llm train corpus.txt --time 5m
    """
    began = time.monotonic()
    if device not in (*DEVICES, "auto"):
        raise usage(f"--device must be auto, cpu, cuda or mps, found {device}")
    if dtype not in ("auto", *DTYPES):
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
    if lr is not None:
        refuse_with(context_, "--lr", "lr_scale")
    lr_scale = _learning_rate_scale(lr_scale, lr)

    from llmcli.data.corpus import Corpus, read_corpus
    from llmcli.data.tokenizer import Tokenizer
    from llmcli.formats import adapters, atomic_io, loading, safetensors_file
    from llmcli.training import resume
    from llmcli.training.cost_model import Machine
    from llmcli.training.memory_fit import check_fits
    from llmcli.training.plan import Request
    from llmcli.training.prepare import HELD_OUT, prepare
    from llmcli.training.rules import regularization

    fixed: dict[str, Any] = {
        "seconds": budget, "steps": steps, "epochs": epochs, "vocab_size": vocab_size, "layers": layers, "width": width,
        "heads": heads, "kv_heads": kv_heads, "context": context, "tie": tie, "batch_tokens": batch_tokens,
        "dropout": dropout, "lr": lr_scale, "seed": seed, "threads": threads or _cores(), "optimizer": optimizer,
        "lora": lora or 0, "experts": experts, "active": active,
    }  # fmt: skip
    Request(**fixed)  # wishes at odds with each other are told before the work
    if not output.name:
        raise usage("-o needs the name of a file: -o model.safetensors")
    refuse_gguf(output)
    if adapter_only:
        output = _adapter_file(context_, output, force, dry_run)
    resume.check_model_name(output)
    beside = resume.resume_path(output)
    stopped, keep = None, False
    if not dry_run:
        for other in filter(None, (from_, like)):
            refuse_overwriting(output, "model", [other], "the model to go on from" if from_ else "the model to be like")
            refuse_overwriting(output, "model", loading.files(other), "part of a model that is read")
        atomic_io.check_writable(output, force=True)
        if problem := context_.with_resource(atomic_io.locked(output)):
            console.note(f"{output} cannot be locked here ({problem}): see to it that no other run writes it")
        else:
            for path in (output, beside):
                atomic_io.remove_stale(path)
        if beside.exists() and not resume.is_resume_file(beside):
            raise LLMError(
                f"{beside}, where the run would be kept, is somebody's file; move it away, or give another -o"
            )
        stopped = resume.load(beside) if beside.exists() and not force else None
        replaceable = _may_replace(output, force, stopped)
        if stopped and not replaceable:
            raise LLMError(
                f"{output} is not what the run that stopped at step {stopped.state.step:,} saved, and is kept; move it "
                "away to go on from there, begin anew with --force, or give another -o"
            )
        keep = not replaceable and _is_kept(context_, output)
        atomic_io.check_writable(output, force=replaceable or keep)
        if keep:
            console.note(f"{output} exists already; it will be kept under another name (-o names the new model)")
    base = loading.load(from_) if from_ else None
    pattern = loading.load_any(like).shared if like else None
    if pattern:
        fixed["context"] = pattern.config.max_position_embeddings
        fixed["context_reason"] = "same as the --like model"
    text = read_corpus(corpus)
    note_left_out(text)
    note_structured(text)
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
    whose = "from the base model" if base else "same as the --like model" if pattern else ""
    if tokenizer not in ("bpe", "char"):
        given, _ = tokenizer_file(tokenizer, "bpe, char or a tokenizer.json")
        whose = "from the tokenizer given"

    from llmcli.models import devices
    from llmcli.training import events, hardware, throughput, trainer  # torch wakes up here

    fingerprint = loading.fingerprint(from_) if from_ else ""
    said = f"{atomic_io.name_of(from_.resolve())} (sha256 {fingerprint[:16]})" if from_ else None
    identity = _identity(context_, text, held_out, fixed["threads"], given, said, lr_scale)
    # with --threads their number stays; so it does where steps decide, since the bytes of the model depend on it
    tuner = None if threads or steps or epochs else hardware.torch_thread_tuner(fixed["threads"])
    if stopped:
        resume.check_same_run(stopped, identity, beside)
        _check_device(stopped, beside)
        given = stopped.tokenizer_json
        settings = stopped.plan.train
        request = Request(**fixed, device=settings.device, dtype=settings.dtype)
        here = None
    else:
        device = devices.pick_device(device)
        dtype, why = hardware.pick_dtype(dtype, device, fixed["threads"])
        hardware.check_dtype(dtype, device)
        request = Request(**fixed, device=device, dtype=dtype, machine_reason=why)
        here = Machine(partial(throughput.measure_throughput, tuner=tuner), hardware.free_memory(device))
    with hardware.explain_out_of_memory():
        ready = prepare(
            request,
            text,
            here,
            held_out=held_out,
            tokenizer=loading.open_tokenizer(alike)
            if alike
            else Tokenizer.from_json(given)
            if given is not None
            else None,
            characters=tokenizer == "char",
            base=base.config if base else None,
            tokenizer_reason=whose,
        )
    if stopped:
        check_fits(stopped.plan, hardware.free_memory(stopped.plan.train.device))
        ready = replace(ready, plan=stopped.plan)
        console.note(f"{beside}: going on from step {stopped.state.step:,} of the run that stopped")
    elif beside.exists() and not dry_run:
        console.note(f"{beside}: the run that stopped is given up, as --force says")
        with suppress(FileNotFoundError):
            beside.unlink()
    _show_plan(ready.plan, dry_run, json_)
    if ready.plan.warning:
        console.warn(ready.plan.warning)
    if dry_run:
        if beside.exists():
            console.note(f"{beside}: what a stopped run needs to go on; a dry run leaves it alone")
        return
    if base and from_:
        ready.record["base"] = {"file": atomic_io.name_of(from_.resolve()), "sha256": fingerprint}
        if source := loading.source_hash(base):
            ready.record["base"]["source_sha256"] = source
        ready.record.update({key: base.record[key] for key in ("imported",) if key in base.record})
    size = 4 * ready.plan.model.parameters + len(ready.tokenizer.to_json())
    if adapter_only:
        size = 4 * adapters.parameter_count(ready.plan.model, ready.plan.train.lora_rank)
    atomic_io.check_space(output, size)
    prompt = _first_words(next(next(text.texts())))
    bytes_per_token = ready.record["read_bytes"] / len(ready.tokens)
    baselines = _baselines(text, held_out, ready.record, 0.03 * (ready.plan.train.seconds or 333.0))
    unread: OSError | None = None
    saver = resume.StateSaver(beside, identity, ready.plan, ready.tokenizer.to_json(), console.note)
    with (
        _signals() as caught,
        progress.TrainingView(bytes_per_token, hidden=json_) as view,
        hardware.explain_out_of_memory(),
    ):
        happened = trainer.train(
            ready.plan, ready.tokenizer, base, ready.tokens, ready.held_out, ready.record,
            sample_prompt=prompt, started_at=began, reserve_seconds=_afterwards(ready.plan.model.parameters),
            stop=lambda: bool(caught or unread), save_due=saver.is_due, resume_from=stopped.state if stopped else None,
            regularize=partial(regularization, request, ready.plan.model, len(ready.tokens)), tuner=tuner,
        )  # fmt: skip
        for event in _ending_as_asked(happened, caught):
            if isinstance(event, events.State):
                saver.save(event)
            elif isinstance(event, events.Done):
                done = event
                record = done.checkpoint.record
                record["memorised"] = None if caught or done.problem else _memorised(done.checkpoint, ready, text, seed)
                record["verdict"] = summarize(record, baselines, resumable=saver.resumable)
                output = _save(
                    output, done, beside, adapter_only, replace=_may_replace(output, force, stopped), keep=keep
                )
                # going on after a problem would end in the same
                if not done.interrupted and resume.is_resume_file(beside):
                    with suppress(OSError):  # the model is safe, wherever it went
                        beside.unlink()
            elif json_ or sys.stderr.isatty() or not isinstance(event, events.Sample):
                try:
                    _show(event, view, json_)
                except OSError as error:  # nobody reads the events, or their disk is full: the model is not lost by it
                    unread = unread or error
    if unread:
        console.note(f"the events could not be written any more; saved what there is in {output}")
        raise unread
    if done.problem:
        raise LLMError(f"{done.problem}; the best weights before that, of step {done.best_step:,}, are in {output}")
    sentences = summarize(record, baselines, command=_again(context_), seconds=done.seconds, resumable=saver.resumable)
    if adapter_only:
        merge = command_line(["llm", "import", str(from_), "--adapter", str(output), "-o", "merged.safetensors"])
        sentences.append(f"Merge the adapters into their model, then use that: {merge}")
    else:
        sentences += usage_hints(_named(output), _prompt(ready), chats=_chats(done.checkpoint))
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


def _adapter_file(context: typer.Context, output: Path, force: bool, dry_run: bool) -> Path:
    """The file to write adapters to: the name itself if it ends in .safetensors, else that of PEFT in a directory,
    which is made if it is not there."""
    from llmcli.formats import adapters, atomic_io

    if output.suffix.lower() == ".safetensors" and not output.is_dir():
        return output
    if output.exists() and not output.is_dir():
        raise LLMError(f"{output} is a file; give a name that ends in .safetensors, or a directory for PEFT")
    found = output / adapters.PEFT_FILE
    if dry_run:
        return found
    if not output.is_dir():
        context.with_resource(_new_directory(output))
    if not found.exists():
        atomic_io.check_writable(output / adapters.PEFT_CONFIG, force=force, example=adapters.PEFT_CONFIG)
    return found


@contextmanager
def _new_directory(path: Path) -> Iterator[None]:
    """Make a directory, which is removed if nothing comes into it."""
    try:
        path.mkdir()
    except FileNotFoundError:
        raise LLMError(f"there is no directory {path.parent}; make it first: mkdir -p {path.parent}") from None
    except OSError as error:
        raise LLMError(
            f"cannot make the directory {path}: {error.strerror or error}; give another name with -o"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # what was written stays
            path.rmdir()


def _learning_rate_scale(scale: float, alias: float | None) -> float:
    """The factor of --lr-scale or its alias --lr. Other programs take a learning rate by the name --lr: one that looks
    like that is refused, for as a factor it would ruin the run."""
    found = scale if alias is None else alias
    if not 0 < found < SMALL_SCALE:
        return found
    if alias is not None:
        raise usage(
            f"--lr {alias:g} looks like a learning rate, but it multiplies the recipe's own rates, which are "
            f"{MUON_LR:g} for Muon and {ADAMW_LR:g} for AdamW in a new model; leave it out to use them, give "
            f"--lr-scale 0.5 to halve them, or --lr-scale {alias:g} if you mean that factor"
        )
    console.warn(f"--lr-scale {found:g} multiplies the learning rates: the model will hardly learn anything")
    return found


def _identity(
    context: typer.Context,
    text: Any,
    held_out: Any,
    threads: int,
    tokenizer: str | None,
    base: str | None,
    lr_scale: float,
) -> dict[str, Any]:
    """What a run is a run of: a stopped one goes on only where all of it is the same."""
    from llmcli.training.record import versions

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
        "lr_scale",
        "lr",
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
        "--lr-scale": lr_scale,
        **options,
        **{f"the version of {name}": version for name, version in versions().items()},
    }


def _fingerprint(corpus: Any) -> str:
    """Of the bytes of a corpus and the names of its files."""
    from llmcli.training.resume import text_fingerprint

    return text_fingerprint((Path(d.name).name, d.text_bytes, d.sha256) for d in corpus.documents)


def _baselines(text: Any, held_out: Any, record: dict[str, Any], seconds: float) -> list[tuple[str, float]]:
    """What compressors that have read the training text need for the held-out one; none where that takes too long."""
    from llmcli.evaluation import compressors

    cut, measured = record["train_bytes"], record["held_out"]["bytes"]
    if not measured or not compressors.affordable(measured, cut, seconds):
        return []
    past, new = text.utf8(0, cut), text.utf8(cut) if isinstance(held_out, float) else held_out.utf8()
    return [(found.name, found.bits_per_byte) for found in compressors.baselines(new, past, seconds=seconds)]


def _memorised(checkpoint: Any, ready: Any, text: Any, seed: int) -> dict[str, Any] | None:
    """How much of its text the model recites, for the record; None where that cannot be told."""
    from llmcli.evaluation.memorization import measure_memorization

    try:
        found = measure_memorization(checkpoint, ready.tokenizer, ready.held_out, ready.read_from(text), seed)
    except Exception as error:  # the text has gone, or no memory is left: the model must not be lost with it
        console.note(f"memorization could not be measured: {error}")
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
    return command_line([*words, "--force"])


def _named(output: Path) -> str:
    """The model as other commands must be told of it: "" for the one they find."""
    return "" if str(output) == DEFAULT_MODEL else str(output)


def _afterwards(parameters: int) -> float:
    return AFTERWARDS + AFTERWARDS_MILLION * parameters / 1e6


def _may_replace(output: Path, force: bool, stopped: Any) -> bool:
    """Whether what is there, if anything, may be written over: by --force, or as what the stopped run left, unchanged
    to the last byte."""
    from llmcli.training.resume import is_saved_in

    there = os.path.exists(output)  # noqa: PTH110 (Path.exists raises where the directory may not be looked into)
    return force or not there or (stopped is not None and is_saved_in(stopped, output))


def _check_device(stopped: Any, beside: Path) -> None:
    """Raises LLMError when a stopped run cannot go on with what this computer has."""
    from llmcli.training import hardware

    settings = stopped.plan.train
    try:
        hardware.check_dtype(settings.dtype, settings.device)
    except LLMError as error:
        raise LLMError(
            f"{beside} is of a run on {settings.device} in {settings.dtype}, which cannot go on here: {error}; go on "
            "where that is possible, or begin anew with --force"
        ) from error


def _prompt(ready: Any) -> str | None:
    """The beginning of a sentence of the held-out text, or else of the training text, to try the model with."""
    for ids, starts_inside in ((ready.held_out, True), (ready.tokens, False)):
        documents: list[list[int]] = [[]]
        for token in ids[:PROMPT_TOKENS].tolist():
            if token == ready.tokenizer.eos_id:
                documents.append([])
            else:
                documents[-1].append(token)
        text = "\n".join(map(ready.tokenizer.decode, documents))
        if prompt := example_prompt(text, starts_inside=starts_inside):
            return prompt
    return None


def _chats(checkpoint: Any) -> bool:
    """Whether the model has a chat template: then it was trained to answer."""
    try:
        return bool(json.loads(checkpoint.tokenizer_config_json or "{}").get("chat_template"))
    except (ValueError, AttributeError):
        return False


def _is_kept(context: typer.Context, output: Path) -> bool:
    """Whether the file that stands where the new model goes gets another name then: a model of ours under the name that
    a model has where none is given. Whoever gives a name wants that name, and is asked for --force."""
    from llmcli.formats import loading

    source = context.get_parameter_source("output")
    if source is None or source.name != "DEFAULT" or output.is_symlink() or not output.is_file():
        return False
    try:
        return bool(loading.read_header(output).is_ours)
    except LLMError:
        return False


def _save(output: Path, done: Any, beside: Path, adapter_only: bool, *, replace: bool, keep: bool) -> Path:
    """Write the model where it was wanted, else, rather than lose it, where that can be done; the place it went to.

    What is at `output` is left alone unless `replace`; with `keep` it gets another name first.
    """
    from llmcli.formats import adapters, atomic_io
    from llmcli.formats.checkpoint import save
    from llmcli.training.resume import is_resume_file

    def write(place: Path) -> None:
        if adapter_only:
            adapters.save(place, done.adapters, done.checkpoint)
        else:
            save(place, done.checkpoint)

    place = output
    taken = "" if replace else f"{output} was written by another program during the run and is kept"
    if taken and keep:
        try:
            console.note(f"the former {output} is kept as {atomic_io.set_aside(output)}")
            taken = ""
        except LLMError as error:
            taken = str(error)
    if taken:
        place = next(p for n in itertools.count(2) if not (p := output.with_stem(f"{output.stem}-{n}")).exists())
        console.warn(f"{taken}; the model goes to {place}")
    try:
        write(place)
        return place
    except LLMError as error:
        problem = error
    for directory in (None, os.path.expanduser("~")):  # noqa: PTH111 (it never fails)
        with suppress(LLMError, OSError):
            refuge = Path(tempfile.mkdtemp(prefix="llmcli-", dir=directory))
            try:
                write(refuge / output.name)
            except BaseException:
                shutil.rmtree(refuge, ignore_errors=True)
                raise
            console.warn(f"{problem}; so the model went to {refuge / output.name}")
            return refuge / output.name
    kept = f"; make room and type the same command: it goes on from {beside}" if is_resume_file(beside) else ""
    raise LLMError(f"{problem}; no other place took the model either{kept}") from problem


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _held_out(val: str | None, default: float) -> Any:
    """A share of the corpus, or another corpus."""
    from llmcli.data.corpus import read_corpus

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
    """Collects SIGINT and its like, so that the run can end well; a later second one ends it at once.

    One request often comes as two signals: `timeout` sends it to the process and to its group, a closed terminal by the
    shell and by the system.
    """
    caught: list[int] = []
    first = 0.0  # when

    def catch(number: int, _: Any) -> None:
        nonlocal first
        now = time.monotonic()
        if not caught:
            first = now
            caught.append(number)
            console.note_from_signal_handler("finishing this step and saving; once more to quit without")
        elif now - first >= SAME_REQUEST:
            raise KeyboardInterrupt

    before = {kind: signal.signal(kind, catch) for kind in (signal.SIGINT, *termination_signals())}
    try:
        yield caught
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _ending_as_asked(events: Iterator[Any], caught: Sequence[int]) -> Iterator[Any]:
    """The events of a run; an error after a signal ends with the exit code of that signal."""
    try:
        yield from events
    except LLMError as error:
        if caught:
            raise LLMError(str(error), 128 + caught[0]) from error
        raise


def _show_plan(plan: Any, is_result: bool, json_: bool) -> None:
    if json_:
        choices = [as_record(row) for row in plan.rows]
        _event("plan", choices=choices, config=json.loads(dump_config(plan.model)), train=as_record(plan.train))
        return
    if is_result or not sys.stderr.isatty():
        rows = [(row.name, row.value, row.reason) for row in plan.rows]
        tables.table(("setting", "value", "reason"), rows, to_stderr=not is_result)
        return
    from llmcli.training.plan_table import overview

    shown = [(row.name, f"{row.value} ({row.reason})") for row in overview(plan)]
    for line in tables.pair_lines([*shown, ("", "--dry-run shows the whole plan")], sys.stderr):
        console.note(line)


def _show(event: Any, view: progress.TrainingView, json_: bool) -> None:
    from llmcli.training import events

    if json_:
        kind = {events.Step: "step", events.Evaluation: "eval", events.Sample: "sample"}[type(event)]
        _event(kind, **as_record(event))
    elif isinstance(event, events.Step):
        view.step(**as_record(event))
    elif isinstance(event, events.Evaluation):
        view.evaluation(event.step, event.bits_per_byte)
    else:
        view.sample(event.prompt, event.text)


def _show_done(
    done: Any, output: Path, parameters: int, json_: bool, baselines: list[tuple[str, float]], sentences: list[str]
) -> None:
    bits = done.score.bits_per_byte if done.score else None
    if json_:
        _event(
            "done", file=str(output), steps=done.step, seconds=round(done.seconds, 2), bits_per_byte=bits,
            parameters=parameters, best_step=done.best_step, interrupted=done.interrupted,
            bits_per_byte_before=done.base_score.bits_per_byte if done.base_score else None,
            baselines=[{"name": name, "bits_per_byte": found} for name, found in baselines],
            memorised=done.checkpoint.record["memorised"], verdict=sentences,
        )  # fmt: skip
        return
    verb = "interrupted: saved what there is in" if done.interrupted else "saved"
    best = f" (best weights: step {done.best_step:,})" if done.best_step != done.step else ""
    console.note(
        f"{verb} {output}: {units.number(parameters)} parameters, {done.step:,} step{'s' * (done.step != 1)}{best}, "
        f"{units.duration(done.seconds)}"
    )
    if done.base_score and bits is not None:
        kept = "; nothing that was tried was better, so it is as it was" if done.best_step == 0 else ""
        before, after = (
            units.bits_per_byte(done.checkpoint.record[key]) for key in ("bits_per_byte_before", "bits_per_byte")
        )
        console.note(f"held-out bits per byte: {before} before, {after} after{kept}")
    for sentence in sentences:
        console.note(sentence)


def _event(kind: str, **values: Any) -> None:
    console.json_result({"event": kind, **values})
