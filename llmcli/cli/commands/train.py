"""`llm train`: train a model on text or conversations and save it as one file."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from llmcli import units
from llmcli.cli import process_start
from llmcli.cli.options import (
    JsonOption,
    QuietOption,
    column_option,
    is_default,
    note_skipped_files,
    one_of,
    pairs_option,
    parse_duration,
    plain_option,
    reading,
    reject_options,
    speakers_option,
    typed_options,
    vocab_size_option,
)
from llmcli.cli.terminal import console
from llmcli.cli.terminal.signals import end_on_stop_requests, forward_stop_requests, ignore_stop_requests, stop_requests
from llmcli.config import DEFAULT_MODEL, DEVICES, DTYPES, TrainConfig, cpu_cores
from llmcli.errors import LLMError, command_line, require_torch, usage
from llmcli.training.distributed.processes import BEGAN, Processes
from llmcli.training.planning import recipe

if TYPE_CHECKING:
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.training.data.prepare import Prepared
    from llmcli.training.files.output import Output
    from llmcli.training.session import Inputs, PlannedRun, Result

DATA = "Data and tokenizer"
MODEL = "Model architecture"
TRAINING = "Training"
MIN_LR_SCALE = 0.01  # a smaller factor is more likely meant as a learning rate
MAX_PROMPT_SEARCH_TOKENS = 4_000  # at the start of a text, in which a prompt is looked for
T = TypeVar("T")
# what a suggested command leaves out: the budget, which it replaces, what it adds itself, and what does not matter
OMITTED_PARAMETERS = {"time_", "steps", "epochs", "force", "json_", "quiet", "corpus"}


def train(
    context_: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS",
            help="Text or conversations: files, directories or globs, also .gz; - reads text from standard input.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Model file to write.")] = Path(
        DEFAULT_MODEL
    ),
    time_: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="TIME",
            help="Time budget, such as 90s, 5m or 2h (default: 5m). On a short text the run ends after 20 epochs.",
        ),
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
    kl_weight: Annotated[
        float | None,
        typer.Option(
            "--kl-weight",
            metavar="X",
            min=0.0,
            help="With --from, on conversations: weight of the KL divergence from the base model, which limits "
            "catastrophic forgetting; 0 turns it off (default: 5).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only",
            help="With --lora: save only the adapters; -o DIRECTORY writes them in PEFT format.",
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
            help="Held-out text: a file, or the fraction of the corpus to hold out (default: 0.1).",
            rich_help_panel=DATA,
        ),
    ] = None,
    speakers: Annotated[str | None, speakers_option(DATA)] = None,
    pairs: Annotated[bool, pairs_option(DATA)] = False,
    column: Annotated[str | None, column_option(DATA)] = None,
    plain: Annotated[bool, plain_option(DATA)] = False,
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
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            max=2**31 - 1,
            help="Random seed; with --steps it fixes the file on a CPU, but not on a GPU.",
            rich_help_panel=TRAINING,
        ),
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
            help="Number of CPU threads (default: one per core; in a timed run, fewer if other programs use them).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    processes_: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            max=1024,
            help="Number of processes on this machine, which share its cores or have a GPU each (default: 1). On "
            "several machines use torchrun.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    shard: Annotated[
        bool | None,
        typer.Option(
            "--shard/--no-shard",
            help="With several processes: give each a part of the weights, gradients and optimizer state (default: if "
            "a process has no memory for all of them).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model on text or conversations and save it as one file.

    Settings without an option are chosen for the data, the time budget and this machine; --dry-run shows them. Files of
    conversations (JSON Lines with messages, prompts and answers in two columns, ...) make a model that answers: llm
    chat. After text, they are trained on in the last part of the run.

    Example: llm train corpus.txt --time 5m
    """
    from llmcli.cli.reports.training import show_plan
    from llmcli.training import session
    from llmcli.training.files import output as training_output
    from llmcli.training.planning.plan import Request

    require_torch()
    _check_options(context_, from_, like, lora, tokenizer)
    how = reading(speakers, pairs, column, plain)
    processes = Processes.of()
    if processes_ and processes_ > 1 and not processes.are_several:
        processes = Processes(count=processes_, local_count=processes_)
        found = session.pick_device(device, processes)  # it would fail in each of them
        if not dry_run:
            raise typer.Exit(_launch(processes_, found))
    if processes.rank:
        if not dry_run:
            end_on_stop_requests()  # until it is connected with rank 0, which may never come so far
            _end_after(context_, partial(session.follow, processes, device, forward_stop_requests))
        return
    started = processes.began or process_start.began()
    _check_processes(processes, processes_)
    own_threads = processes.threads(threads or cpu_cores())
    request = Request(
        seconds=parse_duration(time_) if time_ else None, steps=steps, epochs=epochs, vocab_size=vocab_size,
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, context=context, tie=tie, batch_tokens=batch_tokens,
        dropout=dropout, lr=_learning_rate_scale(context_, lr_scale, lr), seed=seed, threads=own_threads,
        processes=processes.count, shard=shard, optimizer=optimizer, lora=lora or 0, experts=experts, active=active,
        kl_weight=kl_weight,
    )  # fmt: skip
    if dry_run:
        target = training_output.dry_run_output(output, adapter_only=adapter_only)
    else:
        target = context_.with_resource(
            training_output.claim_output(
                output, adapter_only=adapter_only, force=force, restarted=processes.restarts > 0,
                rename_existing=is_default(context_, "output"),
                model=from_ or like, model_role="the base model" if from_ else "the model given with --like",
                on_note=console.note, on_warning=console.warn,
            )
        )  # fmt: skip
    inputs = session.load_inputs(
        corpus, val, from_, like, tokenizer, target.path, reading=how, seconds=request.budget, on_note=console.note
    )
    note_skipped_files(inputs.corpus)
    if threads and threads > cpu_cores():
        cores = units.count(cpu_cores(), "core")
        console.note(f"--threads {threads} is more than the {cores} here; extra threads slow training down")
    options = {param.opts[0]: context_.params[str(param.name)] for param in context_.command.params}
    run = session.plan_run(
        request, inputs, target, device, dtype, options=options, fixed_threads=threads is not None,
        started=started, on_note=console.note, processes=processes,
    )  # fmt: skip
    _note_stopped_run(target, dry_run, processes.count)
    for note in inputs.notes:
        console.note(note)
    show_plan(run.prepared.plan, inputs.groups, dry_run=dry_run, json_=json_)
    if run.prepared.plan.warning:
        console.warn(run.prepared.plan.warning)
    if dry_run:
        return
    session.check_space(target, run.prepared)
    target.note_existing()
    train_and_save = partial(_run, context_, run, inputs, target, processes, started=started, json_=json_)
    if processes.are_several:
        _end_after(context_, train_and_save)
    train_and_save()


def _end_after(context: typer.Context, work: Callable[[], None]) -> NoReturn:
    """Do the work of one of several processes, and end it without finalizing Python: torch's threads may abort it
    then, which looks as if it were killed."""
    code = 0
    try:
        work()
    except LLMError as error:
        console.fail(str(error))
        code = error.exit_code
    except typer.Exit as end:
        code = end.exit_code
    except KeyboardInterrupt:
        console.note("interrupted")
        code = 130
    except SystemExit as end:  # a termination signal before the first step
        code = int(end.code or 0)
    ignore_stop_requests()  # the launcher passes on what the terminal has sent already
    context.close()
    with suppress(OSError):  # the reader of a pipe is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _launch(count: int, device: str) -> int:
    """Run the same command in several processes on a device; returns its exit code."""
    from llmcli.training.distributed.launcher import launch

    if device == "cpu" and count > cpu_cores():
        cores = units.count(cpu_cores(), "core")
        console.note(f"--processes {count} is more than the {cores} here; extra processes slow training down")
    os.environ[BEGAN] = repr(process_start.began())
    return launch(count, sys.argv[1:], console.note)


def _check_processes(processes: Processes, requested: int | None) -> None:
    """Raise LLMError if torchrun has started other processes than --processes says; say which machine has the files."""
    if requested and requested != processes.local_count:
        raise usage(
            f"torchrun has started {processes.local_count} processes on this machine; leave out --processes {requested}"
        )
    if processes.are_on_several_machines:
        console.note(f"rank 0 runs on the machine {platform.node()}: it reads the text and saves the model there")


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
        reject_options(context, "without --from", "lora", "adapter_only", "kl_weight")
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
            f"{recipe.MUON_LR:g} for Muon and {recipe.ADAMW_LR:g} for AdamW in a new model; leave it out to use them, "
            f"give --lr-scale 0.5 to halve them, or --lr-scale {alias:g} if you mean that factor"
        )
    console.warn(f"--lr-scale {scale:g} makes the learning rates so small that the model will hardly learn anything")
    return scale


# ---- the run


def _note_stopped_run(output: "Output", dry_run: bool, processes: int) -> None:
    """Say what happens to the state of a stopped run; with --force it is removed."""
    if stopped := output.stopped:
        before = stopped.processes
        changed = f", with {processes} instead of {before} processes" if processes != before else ""
        console.note(f"{output.resume_path}: resuming from step {stopped.state.step:,}{changed}")
    elif dry_run and output.resume_path.exists():
        console.note(f"{output.resume_path}: state of a stopped run; kept, --dry-run changes nothing")
    elif output.resume_path.exists():
        console.note(f"{output.resume_path}: state of a stopped run; discarded because of --force")
        output.discard_resume_file()


def _run(
    context: typer.Context,
    run: "PlannedRun",
    inputs: "Inputs",
    output: "Output",
    processes: Processes,
    *,
    started: float,
    json_: bool,
) -> None:
    """Train, show what happens, and report the result. `started` is when the time budget began."""
    from llmcli.cli.reports.training import show_event
    from llmcli.cli.terminal.progress import TrainingView
    from llmcli.training import session
    from llmcli.training.loop.events import Step

    output_error: OSError | None = None
    trains = False  # whether there is a step whose weights a stop request would save
    prepared, chosen = run.prepared, run.prepared.plan.conversations
    bytes_per_token, answers = prepared.record["read_bytes"] / max(1, len(prepared.tokens)), None
    if chosen:
        learned = prepared.record["conversations"]
        answers = 1 - chosen.share, max(1, learned["train_bytes"]) / learned["train_tokens"]
    view = TrainingView(bytes_per_token, hidden=json_, answers=answers)
    with (
        _first_step_interrupted(output, lambda: trains),
        stop_requests(lambda: trains, view.note_from_signal_handler) as signals,
        view,
    ):
        events = session.run(
            run, inputs, output, started=started, stop=lambda: bool(signals or output_error), on_note=console.note,
            processes=processes, on_stop_request=signals.append, on_progress=_show_generation,
        )  # fmt: skip
        try:
            for event in _with_signal_exit_code(events, signals):
                if isinstance(event, session.Result):
                    result = event
                    continue
                trains = trains or isinstance(event, Step)
                try:
                    show_event(event, view, json_=json_, of_answers=chosen is not None)
                except OSError as error:  # the reader has gone, or the disk is full: save what has been trained
                    output_error = output_error or error
        except LLMError as error:
            if output_error:
                console.note(f"stopped because events could no longer be written; {error}")
                raise output_error from error
            raise
    if output_error:
        console.note(f"stopped because events could no longer be written; saved {result.file}")
        raise output_error
    if problem := result.done.problem:
        raise LLMError(f"{problem}; saved the best weights so far (step {result.done.best_step:,}) in {result.file}")
    _report(context, result, run, inputs, output, json_=json_)
    if signals:
        raise typer.Exit(128 + signals[0])


@contextmanager
def _first_step_interrupted(output: "Output", trains: Callable[[], bool]) -> Iterator[None]:
    """Say that a Ctrl-C or a termination signal inside, before the first step, leaves no model."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if trains():
            raise
        console.status("")
        left = f"{output.resume_path} is unchanged" if output.stopped else "no model was written"
        console.note(f"interrupted before the first training step; {left}")
        raise typer.Exit(int(end.code or 1) if isinstance(end, SystemExit) else 130) from None


def _show_generation(share: float) -> None:
    """Progress of the text that a base model generates before the first step."""
    if not share:
        console.note(
            "the base model generates text, on which training limits the KL divergence from it (--kl-weight 0 turns "
            "this off)"
        )
    console.status(f"{share:4.0%}  generating text with the base model" if share < 1 else "")


def _with_signal_exit_code(events: Iterator[T], signals: Sequence[int]) -> Iterator[T]:
    """The same events; an LLMError after a signal gets the exit code of that signal."""
    try:
        yield from events
    except LLMError as error:
        if signals:
            raise LLMError(str(error), 128 + signals[0]) from error
        raise


# ---- the report


def _report(
    context: typer.Context, result: "Result", run: "PlannedRun", inputs: "Inputs", output: "Output", *, json_: bool
) -> None:
    """Print what was saved, how good the model is, and what to type next."""
    from llmcli.cli.reports.training import note_float32, show_result
    from llmcli.training.files.summary import summarize, usage_hints

    done = result.done
    sentences = summarize(
        done.checkpoint.record,
        result.baselines,
        command=_command_without_budget(context),
        seconds=done.seconds,
        resumable=result.resumable,
        again="the same command without --force" if context.params["force"] else "the same command",
    )
    parameters = done.checkpoint.parameters
    if output.adapter_only:
        parameters = sum(array.size for array in (done.adapters or {}).values())
        merge = ["llm", "import", str(inputs.base_path), "--adapter", str(result.file), "-o", "merged.safetensors"]
        sentences.append(f"To use the adapters, merge them into the base model: {command_line(merge)}")
    else:
        chats = run.prepared.conversations is not None
        sentences += usage_hints(
            _name_to_type(result.file), None if chats else _example_prompt(run.prepared),
            has_chat_template=_has_chat_template(done.checkpoint), chats=chats,
        )  # fmt: skip
    show_result(done, result.file, parameters=parameters, baselines=result.baselines, sentences=sentences, json_=json_)
    if inputs.base and not output.adapter_only and not json_:
        note_float32(inputs.base, str(inputs.base_path))


def _command_without_budget(context: typer.Context) -> str:
    """The command as it was typed, without its budget and with --force, to be completed by a new budget."""
    words = ["llm", "train", *context.params["corpus"]]
    for param in context.command.params:
        name = str(param.name)
        if name in OMITTED_PARAMETERS or not typed_options(context, name):
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
    from llmcli.data.conversations.example_prompt import example_prompt

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
