"""`llm train`: train a model on text and save it as one file."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli.cli import console, progress
from llmcli.cli.options import (
    JsonOption,
    QuietOption,
    note_json_files,
    note_skipped_files,
    one_of,
    parse_duration,
    read_tokenizer,
    reject_options,
    reject_overwriting,
    typed_options,
    vocab_size_option,
)
from llmcli.cli.signals import stop_requests
from llmcli.cli.training_output import Output, claim_output
from llmcli.cli.training_report import Baselines, note_float32, show_event, show_plan, show_result
from llmcli.config import ADAMW_LR, DEFAULT_MODEL, DEVICES, DTYPES, MUON_LR, TrainConfig, as_record, cpu_cores
from llmcli.data.example_prompt import example_prompt
from llmcli.errors import LLMError, command_line, usage
from llmcli.training.plan import Request
from llmcli.training.summary import summarize, usage_hints

if TYPE_CHECKING:
    from llmcli.data.corpus import Corpus
    from llmcli.data.tokenizer import Tokenizer
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.training.cost_model import Machine
    from llmcli.training.events import Done, Event
    from llmcli.training.prepare import Prepared
    from llmcli.training.resume import StoppedRun
    from llmcli.training.thread_tuner import ThreadTuner

DATA = "Data and tokenizer"
MODEL = "Model architecture"
TRAINING = "Training"
MIN_LR_SCALE = 0.01  # a smaller factor is more likely meant as a learning rate
# seconds of the time budget reserved for evaluating and saving the model, and for each million parameters
RESERVED_SECONDS, RESERVED_SECONDS_PER_MILLION = 0.6, 0.06
# seconds for the compressors: a share of the time budget, or without one
BASELINE_TIME_SHARE, BASELINE_SECONDS = 0.03, 9.99
MAX_PROMPT_SEARCH_TOKENS = 4_000  # at the start of a text, in which a prompt is looked for
SAMPLE_PROMPT_CHARACTERS = 24
# the options that are part of what a run is, by the names of the command's parameters; see _run_identity
IDENTITY_OPTIONS = (
    "time_", "steps", "epochs", "lora", "adapter_only", "vocab_size", "layers", "width", "heads", "kv_heads", "experts",
    "active", "context", "tie", "batch_tokens", "optimizer", "dropout", "seed", "device", "dtype",
)  # fmt: skip
# the options of a run's budget, and those that do not matter when a command is suggested again with a larger budget
BUDGET_OPTIONS = {"time_", "steps", "epochs", "force", "json_", "quiet", "corpus"}


def train(
    context_: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS", help="Training text: files, directories or globs, also .gz; - reads standard input."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Model file to write.")] = Path(
        DEFAULT_MODEL
    ),
    time_: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Time budget, such as 90s, 5m or 2h (default: 5m).")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Number of training steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", metavar="X", help="Number of epochs (passes over the text).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and exit.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite an existing output, and start over instead of resuming.")
    ] = False,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Base model to fine-tune: .safetensors, .gguf or Hugging Face directory."
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="FILE",
            help="Model whose tokenizer and context length to use, so that llm mix can combine both.",
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            "--lora",
            metavar="RANK",
            min=1,
            max=1024,
            help="With --from: train low-rank adapters (LoRA) of this rank, then merge them.",
        ),
    ] = None,
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only",
            help="With --lora: save only the adapters; -o DIRECTORY writes them as PEFT does.",
        ),
    ] = False,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="bpe|char|FILE",
            help="Kind of tokenizer to train, or a tokenizer.json to use.",
            rich_help_panel=DATA,
        ),
    ] = "bpe",
    vocab_size: Annotated[int | None, vocab_size_option("Vocabulary size, in tokens.", DATA)] = None,
    val: Annotated[
        str | None,
        typer.Option(
            "--val",
            metavar="FILE|FRACTION",
            help="Validation text, or fraction of the corpus held out at its end (default: 0.1).",
            rich_help_panel=DATA,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers", metavar="N", min=1, max=1024, help="Number of transformer layers.", rich_help_panel=MODEL
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            metavar="N",
            min=2,
            max=1_000_000,
            help="Hidden size (embedding width).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads", metavar="N", min=1, help="Number of attention heads; must divide --width.", rich_help_panel=MODEL
        ),
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(
            "--kv-heads",
            metavar="N",
            min=1,
            help="Number of key-value heads; must divide --heads.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            "--experts",
            metavar="N",
            min=2,
            max=1024,
            help="Number of experts per layer (sparse mixture of experts).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    active: Annotated[
        int | None,
        typer.Option(
            "--active",
            metavar="N",
            min=1,
            help="With --experts: active experts per token (default: 2).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", min=1, help="Context length, in tokens.", rich_help_panel=MODEL),
    ] = None,
    tie: Annotated[
        bool | None,
        typer.Option("--tie/--no-tie", help="Tie input and output embeddings.", rich_help_panel=MODEL),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", metavar="N", min=1, help="Batch size, in tokens.", rich_help_panel=TRAINING),
    ] = None,
    lr_scale: Annotated[
        float,
        typer.Option(
            "--lr-scale",
            metavar="X",
            help="Factor that multiplies the recipe's learning rates.",
            rich_help_panel=TRAINING,
        ),
    ] = TrainConfig.lr,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="X",
            help="Alias of --lr-scale: a factor, not a learning rate.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="muon|adamw",
            help="Optimizer; muon uses AdamW for embeddings and norms.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option("--dropout", metavar="X", help="Dropout rate, from 0 to below 1.", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, max=2**31 - 1, help="Random seed.", rich_help_panel=TRAINING),
    ] = TrainConfig.seed,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="auto|cpu|cuda|mps",
            help="Device to train on; auto uses a GPU if there is one.",
            callback=one_of("--device", "auto", *DEVICES),
            rich_help_panel=TRAINING,
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="auto|float32|bfloat16",
            help="Data type of matrix products; auto uses the faster one.",
            callback=one_of("--dtype", "auto", *DTYPES),
            rich_help_panel=TRAINING,
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            max=1024,
            help="Number of CPU threads (default: one per core).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model on text and save it as one file.

    What no option sets is chosen for the text, the time budget and this machine; --dry-run shows the plan.

    Example: llm train corpus.txt --time 5m
    """
    started = time.monotonic()
    _check_options(context_, from_, like, lora, tokenizer)
    request = Request(
        seconds=parse_duration(time_) if time_ else None, steps=steps, epochs=epochs, vocab_size=vocab_size,
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, context=context, tie=tie, batch_tokens=batch_tokens,
        dropout=dropout, lr=_learning_rate_scale(context_, lr_scale, lr), seed=seed, threads=threads or cpu_cores(),
        optimizer=optimizer, lora=lora or 0, experts=experts, active=active,
    )  # fmt: skip
    target = claim_output(
        context_, output, adapter_only=adapter_only, force=force, dry_run=dry_run,
        model=from_ or like, model_role="the base model" if from_ else "the model given with --like",
    )  # fmt: skip
    inputs = _load_inputs(corpus, val, from_, like, tokenizer, target.path)
    if threads and threads > cpu_cores():
        console.note(f"--threads {threads} is more than the {cpu_cores()} cores here; extra threads slow training down")
    run = _plan_run(context_, request, inputs, target, device, dtype, fixed_threads=threads is not None)
    _note_stopped_run(target, dry_run)
    show_plan(run.prepared.plan, dry_run=dry_run, json_=json_)
    if run.prepared.plan.warning:
        console.warn(run.prepared.plan.warning)
    if dry_run:
        return
    _add_base_to_record(run.prepared.record, inputs)
    _check_space(target, run.prepared)
    result = _train(run, inputs, target, started=started, json_=json_)
    if result.output_error:
        console.note(f"stopped because events could not be written any more; saved {result.file}")
        raise result.output_error
    if problem := result.done.problem:
        raise LLMError(
            f"{problem}; saved the best weights before that, of step {result.done.best_step:,}, in {result.file}"
        )
    _report(context_, result, run, inputs, target, json_=json_)
    if result.signal:
        raise typer.Exit(128 + result.signal)


# ---- options


def _check_options(
    context: typer.Context, from_: Path | None, like: Path | None, lora: int | None, tokenizer: str
) -> None:
    """Raise LLMError for options that contradict each other."""
    if from_ and like:
        raise usage("--from already sets the tokenizer and the context length; leave out --like")
    if from_:
        fixed = ["vocab_size", "layers", "width", "heads", "kv_heads", "tie", "experts"]
        if options := typed_options(context, *fixed, *(["tokenizer"] if tokenizer != "bpe" else [])):
            raise usage(f"--from keeps the tokenizer and the size of the base model; leave out {' and '.join(options)}")
    else:
        reject_options(context, "without --from", "lora", "adapter_only")
    if like:
        reject_options(context, "with --like", "tokenizer", "vocab_size", "context")
    if lora is None:
        reject_options(context, "without --lora", "adapter_only")
    if tokenizer not in ("bpe", "char"):
        reject_options(context, "with --tokenizer FILE", "vocab_size")


def _learning_rate_scale(context: typer.Context, scale: float, alias: float | None) -> float:
    """The factor that --lr-scale, or its alias --lr, gives.

    Other programs take a learning rate as --lr. A value of --lr that looks like one raises LLMError, since as a factor
    it would ruin the run.
    """
    if alias is not None:
        reject_options(context, "with --lr", "lr_scale")
        scale = alias
    if not 0 < scale < MIN_LR_SCALE:
        return scale
    if alias is not None:
        raise usage(
            f"--lr {alias:g} looks like a learning rate, but it multiplies the recipe's learning rates, which are "
            f"{MUON_LR:g} for Muon and {ADAMW_LR:g} for AdamW in a new model; leave it out to use them, give "
            f"--lr-scale 0.5 to halve them, or --lr-scale {alias:g} if you mean that factor"
        )
    console.warn(f"--lr-scale {scale:g} makes the learning rates so small that the model will hardly learn anything")
    return scale


# ---- inputs


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    corpus: "Corpus"
    held_out: "Corpus | float"  # validation text, or the fraction of the corpus to hold out at its end
    base: "Checkpoint | None"  # the model to fine-tune
    base_path: Path | None
    base_sha256: str
    like: "Checkpoint | None"  # the model whose tokenizer and context length are used
    tokenizer: str  # "bpe", "char" or a file
    tokenizer_json: str | None  # of an existing tokenizer; None: one is trained
    tokenizer_reason: str


def _load_inputs(
    corpus: list[str], val: str | None, from_: Path | None, like: Path | None, tokenizer: str, output: Path
) -> Inputs:
    """Open the models and read the texts. Raises LLMError, also where the output would overwrite one of them."""
    from llmcli.data.corpus import Corpus, read_corpus
    from llmcli.formats import loading

    base = loading.load(from_) if from_ else None
    like_model = loading.load_any(like).shared if like else None
    text = read_corpus(corpus)
    note_skipped_files(text)
    note_json_files(text)
    held_out = _held_out(val)
    documents = [*text.documents, *(held_out.documents if isinstance(held_out, Corpus) else ())]
    reject_overwriting(output, "model", [document.path for document in documents], "the training text")
    if isinstance(held_out, Corpus) and {d.sha256 for d in held_out.documents} & {d.sha256 for d in text.documents}:
        console.note("--val contains training text, so its figures do not measure how well new text is predicted")
    tokenizer_json, reason = _existing_tokenizer(tokenizer, base, like_model, output)
    base_sha256 = loading.fingerprint(from_) if from_ else ""
    return Inputs(text, held_out, base, from_, base_sha256, like_model, tokenizer, tokenizer_json, reason)


def _held_out(val: str | None) -> "Corpus | float":
    """The value of --val: a corpus, or a fraction of the training corpus."""
    from llmcli.data.corpus import read_corpus
    from llmcli.training.prepare import HELD_OUT

    if val is None:
        return HELD_OUT
    if Path(val).exists():
        return read_corpus([val])
    try:
        fraction = float(val)
    except ValueError:
        raise LLMError(f"--val {val}: there is no such file, and it is no fraction of the corpus such as 0.1") from None
    if not 0 <= fraction < 1:
        raise usage(f"--val must be a file, or a fraction from 0 (nothing held out) to below 1, found {val}")
    return fraction


def _existing_tokenizer(
    tokenizer: str, base: "Checkpoint | None", like: "Checkpoint | None", output: Path
) -> tuple[str | None, str]:
    """(the tokenizer.json of --tokenizer or of another model, None if a tokenizer is trained; the reason for it)."""
    if tokenizer not in ("bpe", "char"):
        reject_overwriting(output, "model", [Path(tokenizer)], "the tokenizer to use")
        return read_tokenizer(tokenizer, "bpe, char or a tokenizer.json")[0], "from the tokenizer given"
    if base:
        return base.tokenizer_json, "from the base model"
    return (like.tokenizer_json, "same as the --like model") if like else (None, "")


# ---- the planned run


@dataclass(frozen=True)
class Run:
    """All that training needs."""

    request: Request
    prepared: "Prepared"
    identity: dict[str, Any]
    tuner: "ThreadTuner | None"  # None: the number of threads is fixed


def _plan_run(
    context: typer.Context,
    request: Request,
    inputs: Inputs,
    output: Output,
    device: str,
    dtype: str,
    *,
    fixed_threads: bool,
) -> Run:
    """Choose device and data type, prepare the tokens, plan; a stopped run keeps its plan. Raises LLMError."""
    from llmcli.training import hardware, resume
    from llmcli.training.memory_fit import check_fits
    from llmcli.training.prepare import prepare

    if inputs.like:
        length = inputs.like.config.max_position_embeddings
        request = replace(request, context=length, context_reason="same as the --like model")
    identity = _run_identity(context, request, inputs)
    # Where steps or epochs end the run, the bytes of the model depend on the number of threads.
    is_fixed = fixed_threads or request.steps or request.epochs
    tuner = None if is_fixed else hardware.torch_thread_tuner(request.threads)
    machine: Machine | None = None
    if stopped := output.stopped:
        resume.check_same_run(stopped, identity, output.resume_path)
        _check_hardware(stopped, output.resume_path)
        request = replace(request, device=stopped.plan.train.device, dtype=stopped.plan.train.dtype)
    else:
        request, machine = _choose_hardware(request, device, dtype, tuner)
    with hardware.explain_out_of_memory():
        prepared = prepare(
            request,
            inputs.corpus,
            machine,
            held_out=inputs.held_out,
            tokenizer=_open_tokenizer(inputs, stopped),
            characters=inputs.tokenizer == "char",
            base=inputs.base.config if inputs.base else None,
            tokenizer_reason=inputs.tokenizer_reason,
        )
    if stopped:
        check_fits(stopped.plan, hardware.free_memory(stopped.plan.train.device))
        prepared = replace(prepared, plan=stopped.plan)
    return Run(request, prepared, identity, tuner)


def _choose_hardware(
    request: Request, device: str, dtype: str, tuner: "ThreadTuner | None"
) -> "tuple[Request, Machine]":
    """(the request with device and data type, this machine)"""
    from llmcli.models import devices
    from llmcli.training import hardware, throughput
    from llmcli.training.cost_model import Machine

    device = devices.pick_device(device)
    dtype, reason = hardware.pick_dtype(dtype, device, request.threads)
    hardware.check_dtype(dtype, device)
    machine = Machine(partial(throughput.measure_throughput, tuner=tuner), hardware.free_memory(device))
    return replace(request, device=device, dtype=dtype, machine_reason=reason), machine


def _check_hardware(stopped: "StoppedRun", resume_path: Path) -> None:
    """Raise LLMError if a stopped run cannot resume on this machine."""
    from llmcli.training import hardware

    settings = stopped.plan.train
    try:
        hardware.check_dtype(settings.dtype, settings.device)
    except LLMError as error:
        raise LLMError(
            f"{resume_path} is of a run on {settings.device} in {settings.dtype}, which cannot resume here: {error}; "
            "resume it on a machine that can, or start over with --force"
        ) from error


def _open_tokenizer(inputs: Inputs, stopped: "StoppedRun | None") -> "Tokenizer | None":
    """The existing tokenizer to use; None if one is to be trained."""
    from llmcli.data.tokenizer import Tokenizer
    from llmcli.formats import loading

    if model := inputs.base or inputs.like:
        return loading.open_tokenizer(model)
    text = stopped.tokenizer_json if stopped else inputs.tokenizer_json
    return None if text is None else Tokenizer.from_json(text)


def _run_identity(context: typer.Context, request: Request, inputs: Inputs) -> dict[str, Any]:
    """What makes a run the same run: a stopped one resumes only if all of this is equal. JSON.

    Resume files contain it: a key that is renamed or added makes older ones those of another run.
    """
    from llmcli.training.record import versions

    tokenizer = inputs.tokenizer
    if inputs.tokenizer_json is not None:
        tokenizer = hashlib.sha256(inputs.tokenizer_json.encode("utf-8")).hexdigest()
    options = {param.name: param.opts[0] for param in context.command.params}
    return {
        "the text": _corpus_fingerprint(inputs.corpus),
        "--val": inputs.held_out if isinstance(inputs.held_out, float) else _corpus_fingerprint(inputs.held_out),
        "--from": _base_name(inputs),
        "--tokenizer": tokenizer,
        "--threads": request.threads,
        "--lr-scale": request.lr,
        **{options[name]: context.params[name] for name in IDENTITY_OPTIONS if context.params[name] is not None},
        **{f"the version of {name}": version for name, version in versions().items()},
    }


def _base_name(inputs: Inputs) -> str | None:
    """The base model in the identity of a run."""
    from llmcli.formats import atomic_io

    if inputs.base_path is None:
        return None
    return f"{atomic_io.name_of(inputs.base_path.resolve())} (sha256 {inputs.base_sha256[:16]})"


def _corpus_fingerprint(corpus: "Corpus") -> str:
    """A hash of the texts of a corpus and the names of their files."""
    from llmcli.training.resume import text_fingerprint

    return text_fingerprint((Path(d.name).name, d.text_bytes, d.sha256) for d in corpus.documents)


def _note_stopped_run(output: Output, dry_run: bool) -> None:
    """Say what happens to the state of a stopped run; with --force it is removed."""
    if output.stopped:
        console.note(f"{output.resume_path}: resuming from step {output.stopped.state.step:,}")
    elif dry_run and output.resume_path.exists():
        console.note(f"{output.resume_path}: state of a stopped run; kept, --dry-run changes nothing")
    elif output.resume_path.exists():
        console.note(f"{output.resume_path}: state of a stopped run; discarded because of --force")
        output.discard_resume_file()


def _add_base_to_record(record: dict[str, Any], inputs: Inputs) -> None:
    """Note in the training record which model was fine-tuned, and where that one comes from."""
    from llmcli.formats import atomic_io, loading

    if inputs.base is None or inputs.base_path is None:
        return
    record["base"] = {"file": atomic_io.name_of(inputs.base_path.resolve()), "sha256": inputs.base_sha256}
    if source := loading.source_hash(inputs.base):
        record["base"]["source_sha256"] = source
    record.update({key: inputs.base.record[key] for key in ("imported",) if key in inputs.base.record})


def _check_space(output: Output, prepared: "Prepared") -> None:
    """Raise LLMError if the disk has no space for the model, or for the adapters alone."""
    from llmcli.formats import adapters, atomic_io

    plan = prepared.plan
    size = 4 * plan.model.parameters + len(prepared.tokenizer.to_json())
    if output.adapter_only:
        size = 4 * adapters.parameter_count(plan.model, plan.train.lora_rank)
    atomic_io.check_space(output.path, size)


# ---- training


@dataclass(frozen=True)
class Result:
    """A run that has ended, its model saved."""

    done: "Done"
    file: Path  # where the model was saved
    baselines: Baselines
    resumable: bool  # whether an interrupted run can resume
    signal: int | None  # that interrupted it
    output_error: OSError | None  # why events could no longer be written to stdout, which ended the run


def _train(run: Run, inputs: Inputs, output: Output, *, started: float, json_: bool) -> Result:
    """Train, show what happens, and save the model at the end. `started` is when the time budget began."""
    from llmcli.training import hardware, resume, trainer
    from llmcli.training.events import Done, State
    from llmcli.training.rules import regularization

    prepared, plan = run.prepared, run.prepared.plan
    text = inputs.corpus
    sample_prompt = _first_words(next(next(text.texts())))
    baselines = _baselines(inputs, prepared)
    output_error: OSError | None = None
    saver = resume.StateSaver(output.resume_path, run.identity, plan, prepared.tokenizer.to_json(), console.note)
    view = progress.TrainingView(prepared.record["read_bytes"] / len(prepared.tokens), hidden=json_)
    with stop_requests() as signals, view, hardware.explain_out_of_memory():
        events = trainer.train(
            plan,
            prepared.tokenizer,
            inputs.base,
            prepared.tokens,
            prepared.held_out,
            prepared.record,
            sample_prompt=sample_prompt,
            started_at=started,
            reserve_seconds=RESERVED_SECONDS + RESERVED_SECONDS_PER_MILLION * plan.model.parameters / 1e6,
            stop=lambda: bool(signals or output_error),
            save_due=saver.is_due,
            resume_from=output.stopped.state if output.stopped else None,
            regularize=partial(regularization, run.request, plan.model, len(prepared.tokens)),
            tuner=run.tuner,
        )
        for event in _with_signal_exit_code(events, signals):
            if isinstance(event, State):
                saver.save(event)
            elif isinstance(event, Done):
                done = event
                _complete_record(done, run, text, baselines, resumable=saver.resumable, measure=not signals)
                file = output.save(done)
                if not done.interrupted:  # also after a problem: a resumed run would meet it again
                    output.discard_resume_file()
            else:
                try:
                    show_event(event, view, json_=json_)
                except OSError as error:  # the reader has gone, or the disk is full: save what has been trained
                    output_error = output_error or error
    return Result(done, file, baselines, saver.resumable, signals[0] if signals else None, output_error)


def _with_signal_exit_code(events: "Iterator[Event]", signals: Sequence[int]) -> "Iterator[Event]":
    """The same events; an LLMError after a signal gets the exit code of that signal."""
    try:
        yield from events
    except LLMError as error:
        if signals:
            raise LLMError(str(error), 128 + signals[0]) from error
        raise


def _baselines(inputs: Inputs, prepared: "Prepared") -> Baselines:
    """Bits per byte of compressors on the held-out text, after reading the training text; none if it is too long for
    the time there is."""
    from llmcli.evaluation import compressors

    budget = prepared.plan.train.seconds
    seconds = BASELINE_SECONDS if budget is None else BASELINE_TIME_SHARE * budget
    train_bytes, held_out_bytes = prepared.record["train_bytes"], prepared.record["held_out"]["bytes"]
    if not held_out_bytes or not compressors.affordable(held_out_bytes, train_bytes, seconds):
        return []
    corpus, held_out = inputs.corpus, inputs.held_out
    past = corpus.utf8(0, train_bytes)
    text = corpus.utf8(train_bytes) if isinstance(held_out, float) else held_out.utf8()
    return [(result.name, result.bits_per_byte) for result in compressors.baselines(text, past, seconds=seconds)]


def _complete_record(
    done: "Done", run: Run, text: "Corpus", baselines: Baselines, *, resumable: bool, measure: bool
) -> None:
    """Add memorization, if it is to be measured, and the summary of the run to the record in the model."""
    record = done.checkpoint.record
    record["memorised"] = _memorization(done.checkpoint, run, text) if measure and not done.problem else None
    record["verdict"] = summarize(record, baselines, resumable=resumable)


def _memorization(checkpoint: "Checkpoint", run: Run, text: "Corpus") -> dict[str, Any] | None:
    """How much of its training text the model repeats verbatim; None where it could not be measured."""
    from llmcli.evaluation.memorization import measure_memorization

    prepared = run.prepared
    try:
        result = measure_memorization(
            checkpoint, prepared.tokenizer, prepared.held_out, prepared.read_from(text), run.request.seed
        )
    except Exception as error:  # the text was removed, or memory is short: the model must still be saved
        console.note(f"memorization could not be measured: {error}")
        return None
    return as_record(result) if result else None


def _first_words(text: str, longest: int = SAMPLE_PROMPT_CHARACTERS) -> str:
    """The start of a text, up to the end of a word: the prompt of the samples during training.

    >>> _first_words("Once upon a time there was a king.\\n")
    'Once upon a time there'
    """
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= longest else line[:longest].rsplit(" ", 1)[0]


# ---- the report


def _report(context: typer.Context, result: Result, run: Run, inputs: Inputs, output: Output, *, json_: bool) -> None:
    """Print what was saved, how good the model is, and what to type next."""
    done = result.done
    sentences = summarize(
        done.checkpoint.record,
        result.baselines,
        command=_command_without_budget(context),
        seconds=done.seconds,
        resumable=result.resumable,
    )
    parameters = done.checkpoint.parameters
    if output.adapter_only:
        parameters = sum(array.size for array in (done.adapters or {}).values())
        merge = ["llm", "import", str(inputs.base_path), "--adapter", str(result.file), "-o", "merged.safetensors"]
        sentences.append(f"To use the adapters, merge them into the base model: {command_line(merge)}")
    else:
        prompt, chats = _example_prompt(run.prepared), _has_chat_template(done.checkpoint)
        sentences += usage_hints(_name_to_type(result.file), prompt, chats=chats)
    show_result(done, result.file, parameters=parameters, baselines=result.baselines, sentences=sentences, json_=json_)
    if inputs.base and not output.adapter_only and not json_:
        note_float32(inputs.base, str(inputs.base_path))


def _command_without_budget(context: typer.Context) -> str:
    """The command as it was typed, without its budget and with --force, to be completed by a new budget."""
    words = ["llm", "train", *context.params["corpus"]]
    for param in context.command.params:
        name = str(param.name)
        if name in BUDGET_OPTIONS or not typed_options(context, name):
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append((param.opts if value else param.secondary_opts)[0])
        else:
            words += [param.opts[0], str(value)]
    return command_line([*words, "--force"])


def _name_to_type(file: Path) -> str:
    """The model as other commands need it named; "" for the default, which they find by themselves."""
    return "" if str(file) == DEFAULT_MODEL else str(file)


def _example_prompt(prepared: "Prepared") -> str | None:
    """The start of a sentence of the held-out text, or else of the training text, to try the model with."""
    tokenizer = prepared.tokenizer
    for ids, starts_inside in ((prepared.held_out, True), (prepared.tokens, False)):
        documents: list[list[int]] = [[]]
        for token in ids[:MAX_PROMPT_SEARCH_TOKENS].tolist():
            if token == tokenizer.eos_id:
                documents.append([])
            else:
                documents[-1].append(token)
        text = "\n".join(map(tokenizer.decode, documents))
        if prompt := example_prompt(text, starts_inside=starts_inside):
            return prompt
    return None


def _has_chat_template(checkpoint: "Checkpoint") -> bool:
    """Whether the model was trained to answer in a chat."""
    try:
        return bool(json.loads(checkpoint.tokenizer_config_json or "{}").get("chat_template"))
    except (ValueError, AttributeError):
        return False
