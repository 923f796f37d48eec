"""`llm train`: train a model on text or conversations and save it as one file."""

import os
import platform
import signal
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from llmcli.cli import process_start
from llmcli.cli.error_report import report
from llmcli.cli.options import (
    DATA,
    InputOptions,
    argument,
    flag,
    one_of,
    option,
    parse_duration,
    utf8_argument,
)
from llmcli.cli.terminal import console
from llmcli.config import (
    DEFAULT_MODEL,
    DEVICES,
    DTYPES,
    MAX_VOCAB_SIZE,
    MIN_VOCAB_SIZE,
    TrainConfig,
    cpu_cores,
)
from llmcli.errors import (
    INTERRUPTED,
    LLMError,
    as_argument,
    command_line,
    require_server,
    require_torch,
    usage,
)
from llmcli.signals import on_stop_requests, stop_requests
from llmcli.training.distributed.processes import BEGAN, Processes

if TYPE_CHECKING:
    from llmcli.cli.reports.watch import Watch
    from llmcli.cli.terminal.progress import TrainingView
    from llmcli.data.conversations.record_kinds import ReadOptions
    from llmcli.training.data.inputs import Inputs
    from llmcli.training.files.output import Output
    from llmcli.training.planning.plan import PlanRequest
    from llmcli.training.session import PlannedRun, Result

MAX_QUESTION = 60  # characters shown of a training question
BUDGETS = ("time", "steps", "epochs")
# options left out of a suggested command, because it sets them itself or they are irrelevant
OMITTED = ("dry_run", "force", "json", "quiet", "corpus", "watch", "host", "port")
KEPT_FROM_BASE = ("like", "vocab_size", "layers", "width", "heads", "experts", "tokenizer")


class _Options(InputOptions):
    RARE = (
        "kl_weight adapter_only heads batch_tokens lr_scale optimizer dtype threads processes template "
        "strip_boilerplate probe port"
    )
    corpus: list[str] = argument(
        "CORPUS",
        "Text or conversations: files, directories or globs, also .gz; - reads text from standard input.",
        ...,
    )
    output: Path = option("FILE", "Model file to write.", Path(DEFAULT_MODEL), names="-o --output")
    time: str | None = option(
        "TIME", "Time budget, such as 90s, 5m or 2h (default: 5m; ends earlier after 20 epochs)."
    )
    steps: int | None = option("N", "Number of training steps.", min=1)
    epochs: float | None = option("X", "Number of epochs (passes over the text).")
    dry_run: bool = flag("Print the plan and exit.")
    watch: bool = flag("Show the run on a local web page; needs the extra serve.")
    host: str = option(
        "HOST",
        "With --watch: 0.0.0.0 shows it to other computers, with the class code that is printed.",
        "127.0.0.1",
    )
    port: int = option("N", "With --watch: port of the page (default: a free one).", 0, min=0, max=65535)
    force: bool = flag("Overwrite an existing output, and start over instead of resuming.")
    from_: Path | None = option(
        "FILE",
        "Base model to fine-tune: .safetensors, .gguf, Hugging Face directory, hf:OWNER/NAME or smollm2 "
        "(hf:HuggingFaceTB/SmolLM2-135M).",
    )
    like: Path | None = option("FILE", "Use this model's tokenizer and context length; required for llm mix.")
    lora: int | None = option(
        "RANK", "With --from: train LoRA adapters of this rank and merge them.", min=1, max=1024
    )
    adapter_only: bool = flag("With --lora: save only the adapters; -o DIRECTORY writes them in PEFT format.")
    _data: str = DATA
    tokenizer: str = option("bpe|char|FILE", "Tokenizer to train, or a tokenizer.json to use.", "bpe")
    vocab_size: int | None = option("N", "Vocabulary size.", min=MIN_VOCAB_SIZE, max=MAX_VOCAB_SIZE)
    known_answers: bool = flag(
        "Store the questions and answers in the model file, as readable text, for llm chat --known-answers."
    )
    val: str | None = option(
        "FILE|FRACTION", "Held-out text: a file, or the fraction of the corpus to hold out (default: 0.1)."
    )
    _model: str = "Model architecture"
    layers: int | None = option("N", "Number of transformer layers.", min=1, max=1000)
    width: int | None = option("N", "Hidden size (embedding width).", min=2, max=1_000_000)
    heads: int | None = option("N", "Number of attention heads; must divide --width.", min=1)
    experts: int | None = option(
        "N", "Experts per layer; each token uses 2 of them (mixture of experts).", min=2, max=1000
    )
    context: int | None = option("N", "Context length, in tokens.", min=1)
    _training: str = "Training"
    kl_weight: float | None = option(
        "X", "With --from: weight of the KL divergence that limits forgetting (default: 5).", min=0.0
    )
    batch_tokens: int | None = option("N", "Batch size, in tokens.", min=1)
    lr_scale: float = option("X", "Factor that multiplies the recipe's learning rates.", TrainConfig.lr)
    optimizer: str | None = option("muon|adamw", "Optimizer; muon uses AdamW for embeddings and norms.")
    dropout: float | None = option("X", "Dropout rate, from 0 to 0.99.")
    probe: str | None = option(
        "TEXT", "Prompt whose likeliest next words are recorded (default: one from the held-out text)."
    )
    seed: int = option(
        "N",
        "Random seed; with --steps on a CPU, runs are reproducible bit for bit.",
        TrainConfig.seed,
        min=0,
        max=2**31 - 1,
    )
    device: str = one_of("auto", *DEVICES, default="auto", help="Device; auto: a GPU if available.")
    dtype: str = one_of("auto", *DTYPES, default="auto", help="Precision; auto: the faster one.")
    threads: int | None = option(
        "N",
        "Number of CPU threads (default: one per core; with --time, one per core that is not in use).",
        min=1,
        max=1024,
    )
    processes: int | None = option(
        "N", "Processes on this machine (default: 1); on several, use torchrun.", min=1, max=1024
    )


def train(options: _Options) -> None:
    """Settings without an option are chosen for the data, the time budget and this machine; --dry-run shows
    them. From conversations (JSON Lines with messages, tables of prompts and answers, ...) the model learns
    to answer; see llm chat. If there is also text, the run ends with the conversations.

    Example: llm train corpus.txt --time 5m
    """
    require_torch()
    _check_options(options)
    if options.watch:
        require_server("llm train --watch")
    reading = options.reading()
    processes = Processes.of()
    if options.processes and options.processes > 1 and not processes.are_several:
        processes = Processes(count=options.processes, local_count=options.processes)
        from llmcli.training.session import device_of_process

        device_of_process(options.device, processes)  # otherwise every process would report the error
        if not options.dry_run:
            from llmcli.training.distributed.launcher import launch

            os.environ[BEGAN] = repr(process_start.began())
            raise typer.Exit(launch(options.processes, sys.argv[1:], console.note))
    if processes.rank:
        if not options.dry_run:
            # signals end this process until it has connected to rank 0, which may never happen
            on_stop_requests(signal.SIG_DFL)
            from llmcli.training.session import run_worker

            _end_after(options, partial(run_worker, processes, options.device, on_stop_requests))
        return
    if options.processes and options.processes != processes.local_count:
        raise usage(
            f"torchrun has started {processes.local_count} processes on this machine; leave out --processes "
            f"{options.processes}"
        )
    if processes.are_on_several_machines:
        console.note(
            f"rank 0 runs on the machine {platform.node()}: it reads the text and saves the model there"
        )
    train_and_save = partial(_plan_and_run, options, reading, processes)
    if processes.are_several and not options.dry_run:
        _end_after(options, train_and_save)
    train_and_save()


def _plan_and_run(options: _Options, reading: "ReadOptions", processes: Processes) -> None:
    """Read the text, show the plan, train and save (rank 0)."""
    from llmcli.cli.reports.files import note_skipped_files
    from llmcli.cli.reports.training import show_plan
    from llmcli.training.data.inputs import load_inputs

    started = processes.began or process_start.began()
    request = _request(options, processes)
    target = _claim_output(options, processes)
    inputs = load_inputs(
        options.corpus,
        options.val,
        options.from_,
        options.like,
        options.tokenizer,
        target.path,
        reading=reading,
        seconds=request.budget,
        on_note=console.note,
    )
    note_skipped_files(inputs.corpus)
    from llmcli.training import session  # imports torch: report errors in the text first

    planned = session.plan_run(
        request,
        inputs,
        target,
        fixed_threads=options.threads is not None,
        started=started,
        processes=processes,
        time_given=options.time,
        known_answers=options.known_answers,
    )
    _note_stopped_run(target, options.dry_run, processes.count)
    for note in inputs.notes:
        console.note(note)
    show_plan(planned.prepared.plan, inputs, dry_run=options.dry_run, json_=options.json)
    if planned.prepared.plan.warning:
        console.warn(planned.prepared.plan.warning)
    if not (options.from_ or target.stopped):
        _note_published_base(options, inputs)
    if options.dry_run:
        return
    planned.check_space()
    target.note_existing()
    _run(options, planned)


def _claim_output(options: _Options, processes: Processes) -> "Output":
    """Lock the output for this run; with --dry-run only check it. Raises LLMError."""
    from llmcli.training.files import output as training_output

    if options.dry_run:
        return training_output.dry_run_output(
            options.output, adapter_only=options.adapter_only, on_note=console.note
        )
    return options.invocation.with_resource(
        training_output.claim_output(
            options.output,
            adapter_only=options.adapter_only,
            force=options.force,
            restarted=processes.restarts > 0,
            rename_existing=not options.typed("output"),
            model=options.from_ or options.like,
            on_note=console.note,
            on_warning=console.warn,
        )
    )


def _end_after(options: _Options, work: Callable[[], None]) -> NoReturn:
    """Do the work of a rank, then exit without finalizing Python: torch's threads may crash finalization, and
    the process would look as if it was killed."""
    code = 0
    try:
        work()
    except typer.Exit as end:
        code = end.exit_code
    except SystemExit as end:  # raised by a termination signal before the first step
        code = int(end.code or 0)
    except BaseException as error:
        code = report(error)
    # the launcher forwards signals that the terminal has already sent to all processes
    on_stop_requests(signal.SIG_IGN)
    options.invocation.close()
    with suppress(OSError):  # the reader of the pipe is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


# ---- options


def _request(options: _Options, processes: Processes) -> "PlanRequest":
    """Return the settings fixed by options; the planner chooses the others. Raises LLMError."""
    from llmcli.training.planning.plan import PlanRequest

    names = {field.name for field in fields(PlanRequest)}
    typed = {name: value for name, value in vars(options).items() if name in names and value is not None}
    typed |= {
        "lr": options.lr_scale,
        "processes": processes.count,
        "probe": options.probe and utf8_argument(options.probe, "text of --probe"),
        "threads": processes.threads(options.threads or cpu_cores()),
    }
    return PlanRequest(seconds=parse_duration(options.time) if options.time else None, **typed)


def _check_options(options: _Options) -> None:
    """Raise LLMError for conflicting options."""
    if options.from_:
        fixed = KEPT_FROM_BASE if options.tokenizer != "bpe" else KEPT_FROM_BASE[:-1]
        options.reject("with --from, which keeps the tokenizer and the size of the base model", *fixed)
    else:
        options.reject("without --from", "lora", "adapter_only", "kl_weight")
    options.check(
        {"like": "tokenizer vocab_size context", "dry_run": "watch"},
        {"lora": "adapter_only", "watch": "host port"},
    )
    if options.tokenizer not in ("bpe", "char"):
        options.reject("with --tokenizer FILE", "vocab_size")


# ---- the run


def _note_stopped_run(output: "Output", dry_run: bool, processes: int) -> None:
    """Note what happens to the state of a stopped run; --force removes it."""
    if stopped := output.stopped:
        before = stopped.processes
        changed = f", with {processes} instead of {before} processes" if processes != before else ""
        console.note(f"{output.resume_path}: resuming from step {stopped.state.step:,}{changed}")
    elif output.resume_path.exists():
        fate = "kept, --dry-run changes nothing" if dry_run else "discarded because of --force"
        console.note(f"{output.resume_path}: state of a stopped run; {fate}")
        if not dry_run:
            output.discard_resume_file()


def _note_published_base(options: _Options, inputs: "Inputs") -> None:
    """Suggest a published base model if the text is English prose and no option asks for a new model."""
    from llmcli.training.data import published_base

    chosen = options.typed(*KEPT_FROM_BASE, "optimizer")
    if chosen or inputs.files or not published_base.is_english_prose(inputs.corpus):
        return
    command = _command(options, OMITTED, "--from", published_base.NAME, "--lora", "8")
    console.note(
        "English prose: a published model, fine-tuned in the same time, predicts this text better (a "
        f"download of {published_base.DOWNLOAD_MEGABYTES} MB; larger and slower than a new model): {command}"
    )


def _run(options: _Options, planned: "PlannedRun") -> None:
    """Train, show progress, and report the result."""
    from llmcli.cli.terminal.progress import TrainingView

    view = TrainingView(*_loss_units(planned), hidden=options.json)
    if stopped := planned.output.stopped:
        view.losses.stopped = stopped.state
    watch: Watch | None = None
    with ExitStack() as stack:
        if options.watch:
            from llmcli.cli.reports import watch as pages

            address = options.host, options.port
            watch = pages.Watch(planned.output.path, planned.prepared.plan, view.losses, address)
            stack.callback(watch.close)
            watch.invite()
        result, signals = _train(options, planned, view, watch)
        if watch:
            watch.finish(result, has_model=not planned.output.adapter_only)
        try:
            _report(options, result, planned)
        except KeyboardInterrupt:
            if result.done.interrupted:
                raise
            console.note(f"interrupted after the run; {result.file} is complete")
            raise typer.Exit(INTERRUPTED) from None
        is_at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
        if watch and is_at_terminal and not (signals or options.json or planned.processes.are_several):
            watch.stay_open()
    if signals:
        raise typer.Exit(128 + signals[0])


def _loss_units(planned: "PlannedRun") -> tuple[float, tuple[float, float] | None]:
    """Return the arguments of TrainingLosses."""
    prepared, chosen = planned.prepared, planned.prepared.plan.conversations
    bytes_per_token = prepared.record.read_bytes / max(1, len(prepared.tokens))
    if chosen and (learned := prepared.record.conversations):
        return bytes_per_token, (1 - chosen.share, max(1, learned.train_bytes) / learned.train_tokens)
    return bytes_per_token, None


def _train(
    options: _Options,
    planned: "PlannedRun",
    view: "TrainingView",
    watch: "Watch | None",
) -> "tuple[Result, list[int]]":
    """Train and show progress; return (result, signals that ended the run)."""
    from llmcli.cli.reports.training import show_event
    from llmcli.training import session
    from llmcli.training.loop.events import Step

    output_error: OSError | None = None
    trains = False  # whether a step was taken, so that there are weights to save after a stop request
    of_answers = planned.prepared.plan.conversations is not None
    with (
        _first_step_interrupted(planned.output, lambda: trains),
        stop_requests(lambda: trains, view.note_from_signal_handler) as signals,
        view,
    ):
        events = session.run(planned, signals=signals, on_progress=partial(_show_progress, view))
        try:
            for event in events:
                if isinstance(event, session.Result):
                    result = event
                    continue
                trains = trains or isinstance(event, Step)
                try:
                    show_event(event, view, json_=options.json, of_answers=of_answers)
                except OSError as error:  # the reader is gone, or the disk is full: save the weights so far
                    output_error = output_error or error
                    signals.append(signal.SIGTERM)
                if watch:
                    watch.add(event)
        except LLMError as error:
            if output_error:
                console.note(f"stopped because events could no longer be written; {error}")
                raise output_error from error
            raise LLMError(str(error), 128 + signals[0] if signals else error.exit_code) from error
    if output_error:
        console.note(f"stopped because events could no longer be written; saved {result.file}")
        raise output_error
    if problem := result.done.problem:
        raise LLMError(
            f"{problem}; saved the best weights so far (step {result.done.best_step:,}) in {result.file}"
        )
    return result, signals


@contextmanager
def _first_step_interrupted(output: "Output", trains: Callable[[], bool]) -> Iterator[None]:
    """Print a note if Ctrl-C or a termination signal before the first step leaves no model."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if trains():
            raise
        console.status("")
        left = f"{output.resume_path} is unchanged" if output.stopped else "no model was written"
        console.note(f"interrupted before the first training step; {left}")
        raise typer.Exit(int(end.code or 1) if isinstance(end, SystemExit) else INTERRUPTED) from None


def _show_progress(view: "TrainingView", task: str, share: float) -> None:
    """Show the progress of a task before the first step or after the last one."""
    from llmcli.training.session import GENERATING

    if task == GENERATING and not share:
        console.note(
            "the base model generates text for limiting the KL divergence from it "
            "(--kl-weight 0 turns this off)"
        )
    view.status(f"{share:4.0%}  {task}" if share < 1 else "")


# ---- the report


def _report(options: _Options, result: "Result", planned: "PlannedRun") -> None:
    """Report the saved file, the quality of the model, and the command to try next."""
    from llmcli.cli.reports.training import show_result
    from llmcli.training.files.summary import summarize, usage_hint

    done = result.done
    inputs = planned.prepared.inputs
    output = planned.output
    conversations = planned.prepared.conversations
    labels = conversations.labels if conversations else []
    sentences = summarize(
        done.checkpoint.record,
        result.baselines,
        command=_command_without_budget(options, result.file, output.path),
        seconds=done.seconds,
        resumable=result.resumable,
        again="the same command without --force" if options.force else "the same command",
    )
    parameters = done.checkpoint.parameters
    if output.adapter_only:
        parameters = sum(array.size for array in (done.adapters or {}).values())
        merge = [
            "llm",
            "import",
            as_argument(inputs.base_path),
            "--adapter",
            str(result.file),
            "-o",
            "merged.safetensors",
        ]
        sentences.append(f"To use the adapters, merge them into the base model: {command_line(merge)}")
    else:
        trained_on = done.checkpoint.record.conversations
        chats = trained_on is not None and trained_on.epochs > 0  # an interrupted run may not reach them
        first = conversations.training.texts[0].messages if conversations and labels else ()
        question = next(
            (" ".join(message.content.split()) for message in first if message.role == "user"), ""
        )
        hint = usage_hint(
            ""
            if str(result.file) == DEFAULT_MODEL
            else str(result.file),  # the default model need not be named
            question[:MAX_QUESTION] if chats else planned.prepared.example_prompt(),
            chats=chats,
            labels=labels if chats else (),
            knows_answers=done.checkpoint.known_answers is not None,
            kind=None if chats else planned.prepared.line_kind(),
            has_chat_template='"chat_template"' in (done.checkpoint.tokenizer_config_json or ""),
        )
        sentences.append(hint)
    show_result(
        done,
        result.file,
        parameters=parameters,
        baselines=result.baselines,
        sentences=sentences,
        json_=options.json,
    )


def _command_without_budget(options: _Options, saved: Path, planned: Path) -> str:
    """Return the command that trains again and replaces the file `saved`; the caller adds a new budget.
    `saved` differs from `planned` if another process wrote a file there during the run."""
    omitted = (*OMITTED, *BUDGETS)
    if saved == planned:
        return _command(options, omitted, "--force")
    return _command(options, (*omitted, "output"), "-o", str(saved), "--force")


def _command(options: _Options, omitted: Container[str], *added: str) -> str:
    """Return the typed command without the `omitted` options and with the words `added`."""
    words = ["llm", "train", *map(as_argument, options.corpus)]
    for param in options.params:
        name = str(param.name)
        if name in omitted or not options.typed(name):
            continue
        value = getattr(options, name)
        if isinstance(value, bool):
            words.append(param.opts[0])
        else:
            words += [param.opts[0], str(value)]
    return command_line([*words, *added])
