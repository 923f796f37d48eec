"""A training run from its inputs to its file: read, plan, train, save. The command line and the Python API call it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.config import as_record
from llmcli.errors import LLMError
from llmcli.evaluation.training_text import recorded_path
from llmcli.training.data.inputs import Inputs, load_inputs
from llmcli.training.distributed.processes import Processes
from llmcli.training.files.output import Output
from llmcli.training.files.summary import summarize
from llmcli.training.planning.plan import Plan, Request

if TYPE_CHECKING:  # torch is imported when training starts, not when the text is read
    from llmcli.data.conversations.files import ConversationFile
    from llmcli.data.text.corpus import Corpus
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.evaluation.compressors import Baseline
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.training.data.prepare import Prepared
    from llmcli.training.files.resume import StateSaver, StoppedRun
    from llmcli.training.loop.correction import Correction, MeasuredSpeeds
    from llmcli.training.loop.events import Done, Evaluation, Event, Restarted, Sample, Step, TeacherTrained
    from llmcli.training.planning.cost_model import Machine, Memory
    from llmcli.training.step.data_parallel import Leader
    from llmcli.training.step.thread_tuner import ThreadTuner

__all__ = ["Inputs", "PlannedRun", "Result", "check_space", "load_inputs", "plan_run", "run"]

# seconds of the time budget reserved for what follows the training and its evaluations: measuring memorization and
# saving the model; the latter also for each million parameters, up to a share of a budget that is short for the model
RESERVED_SECONDS, MEMORIZATION_SECONDS_PER_MILLION, SAVING_SECONDS_PER_MILLION = 0.6, 0.02, 0.04
LARGEST_SAVING_SHARE = 0.15
MEASURED_SECONDS = 1.0  # for measuring memorization, at least, where the run is late
# seconds for the compressors: a share of the time budget, or without one
BASELINE_TIME_SHARE, BASELINE_SECONDS = 0.03, 9.99
# seconds for greedy answers to held-out questions: a share of the time budget, and at least
ANSWERS_TIME_SHARE, ANSWERS_SECONDS = 0.03, 0.5
SAMPLE_PROMPT_CHARACTERS = 24
ONE_PROCESS = Processes()
PROCESS_GAIN = 0.85  # speed that each further process is assumed to add, relative to one alone
# the options that are part of the identity of a run, see _run_identity
IDENTITY_OPTIONS = (
    "--time", "--steps", "--epochs", "--lora", "--adapter-only", "--kl-weight", "--vocab-size", "--layers", "--width",
    "--heads", "--kv-heads", "--experts", "--active", "--context", "--tie", "--batch-tokens", "--optimizer",
    "--dropout", "--seed", "--device", "--dtype", "--speakers",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """All that training needs."""

    request: Request
    prepared: Prepared
    identity: dict[str, Any]
    tuner: ThreadTuner | None  # None: the number of threads is fixed
    correction: Correction | None = None  # of the model's size, where a clock ends the run and the planner chose it


def plan_run(
    request: Request,
    inputs: Inputs,
    output: Output,
    device: str,
    dtype: str,
    *,
    options: Mapping[str, object],
    fixed_threads: bool,
    started: float,
    on_note: Callable[[str], None] = lambda note: None,
    processes: Processes = ONE_PROCESS,
) -> PlannedRun:
    """Choose device and data type, prepare the tokens, plan; a stopped run keeps its plan. `started` is when the time
    budget began (time.monotonic). Raises LLMError."""
    from llmcli.training.data.prepare import prepare
    from llmcli.training.files import resume
    from llmcli.training.loop.correction import Correction
    from llmcli.training.planning.cost_model import Machine
    from llmcli.training.step import hardware

    if inputs.like:
        length = inputs.like.config.max_position_embeddings
        request = replace(request, context=length, context_reason="same as the --like model")
    _check_adapters(inputs, output)
    identity = _run_identity(options, request, inputs, processes)
    # Where steps or epochs end the run, the bytes of the model depend on the number of threads.
    is_fixed = fixed_threads or request.steps or request.epochs or processes.are_several
    tuner = None if is_fixed else hardware.torch_thread_tuner(request.threads)
    machine: Machine | None = None
    speeds: MeasuredSpeeds | None = None
    if stopped := output.stopped:
        resume.check_same_run(stopped, identity, output.resume_path, processes.count)
        _check_hardware(stopped, output.resume_path)
        pick_device(stopped.plan.train.device, processes)
        request = replace(request, device=stopped.plan.train.device, dtype=stopped.plan.train.dtype)
    else:
        conversations_alone = inputs.conversations is not None and not inputs.corpus.documents
        request, speeds = _choose_hardware(request, device, dtype, tuner, processes, conversations=conversations_alone)
        machine = Machine(speeds, _free_memory(request.device, processes))
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
            conversations=inputs.conversations,
            max_bytes=stopped.max_bytes if stopped else None,
            base_record=inputs.base.record if inputs.base else None,
            on_note=on_note,
            elapsed=lambda: time.monotonic() - started,
        )
    if stopped:
        prepared = prepared.with_plan(_resumed_plan(stopped.plan, request, processes))
    if prepared.plan.sharded:
        hardware.check_can_shard()
    correction = None
    if speeds and machine and _may_correct(request, inputs, processes):
        correction = Correction(prepared, speeds, machine.memory)
    return PlannedRun(request, _with_paths(prepared, inputs, output.path), identity, tuner, correction)


def _may_correct(request: Request, inputs: Inputs, processes: Processes) -> bool:
    """Whether the size of the model may be corrected after the first steps. A GPU is not shared with other programs as
    cores are."""
    is_fixed = request.layers or request.width or inputs.base or not request.has_time_budget
    return request.device == "cpu" and not is_fixed and not processes.are_several


def _with_paths(prepared: Prepared, inputs: Inputs, model: Path) -> Prepared:
    """With the paths of the training files in the record."""
    conversation_files = inputs.conversations.files if inputs.conversations else ()
    files = [one.path for one in inputs.corpus.documents] + [one.path for one in conversation_files]
    entries = [
        entry | ({"path": path} if (path := recorded_path(file, model)) else {})
        for entry, file in zip(prepared.record["corpus"], files, strict=True)
    ]
    return replace(prepared, record=prepared.record | {"corpus": entries})


def _resumed_plan(plan: Plan, request: Request, processes: Processes) -> Plan:
    """The plan of a stopped run for the processes of this one. Raises LLMError if their memory is too short."""
    from llmcli.training.planning import rules
    from llmcli.training.planning.memory_fit import check_fits

    memory = _free_memory(plan.train.device, processes)
    train = replace(plan.train, threads=request.threads)
    if plan.train.teacher_share and processes.are_several:
        raise LLMError(
            "the stopped run trains a second model from the predictions of a first, which takes one process: resume "
            "it without --processes, or start over with --force"
        )
    needs_whole_weights = plan.conversations is not None and plan.conversations.base_divergence > 0
    sharded = not needs_whole_weights and rules.sharding(request, plan.model, train, memory).value
    resumed = replace(plan, train=train, sharded=sharded)
    check_fits(resumed, memory, processes.count)
    return resumed


def _check_adapters(inputs: Inputs, output: Output) -> None:
    """Raise LLMError if a file of adapters could not hold all that the run trains."""
    if output.adapter_only and inputs.conversations and inputs.conversations.template is None:
        count = inputs.conversations.new_tokens
        lacks = f"{count} tokens of one" if count else "one to store"
        raise LLMError(
            f"{inputs.base_path} has no chat template, and adapters have no place for {lacks}; leave out "
            "--adapter-only: the merged model has it"
        )


def pick_device(name: str, processes: Processes) -> str:
    """The device of each process, of a GPU one to each. Raises LLMError where there are too few."""
    from llmcli.models.torch import devices

    device = devices.pick_device(name)
    if not processes.are_several or device == "cpu":
        return device
    if device == "mps":
        raise LLMError("a run on mps has one process; leave out --processes, or add --device cpu")
    if (count := devices.gpu_count()) < processes.local_count:
        raise LLMError(
            f"{processes.local_count} processes need a GPU each, but torch finds {count} here; use --processes {count}"
            ", or --device cpu"
        )
    return device


def _choose_hardware(
    request: Request,
    device: str,
    dtype: str,
    tuner: ThreadTuner | None,
    processes: Processes,
    *,
    conversations: bool,
) -> tuple[Request, MeasuredSpeeds]:
    """(the request with device and data type, the speeds there); `conversations` is whether there is nothing else."""
    from llmcli.models.torch import devices
    from llmcli.training.loop.correction import MeasuredSpeeds
    from llmcli.training.step import hardware, throughput

    device = pick_device(device, processes)
    dtype, reason = hardware.pick_dtype(dtype, device, request.threads)
    devices.check_dtype(dtype, device)
    measured = partial(throughput.measure_throughput, tuner=tuner, conversations=conversations)
    gain = 1 + PROCESS_GAIN * (processes.count - 1)
    return replace(request, device=device, dtype=dtype, machine_reason=reason), MeasuredSpeeds(measured, gain)


def _check_hardware(stopped: StoppedRun, resume_path: Path) -> None:
    """Raise LLMError if a stopped run cannot resume on this machine."""
    from llmcli.models.torch import devices

    settings = stopped.plan.train
    if problem := devices.find_problem(settings.dtype, settings.device):
        works_in_float32 = settings.dtype != "float32" and not devices.find_problem("float32", settings.device)
        option = "--dtype float32" if works_in_float32 else "--device cpu"
        raise LLMError(
            f"{resume_path} is from a run on {settings.device} in {settings.dtype}, but {problem}; resume it on a "
            f"machine where that works, or start over here with {option} --force"
        )


def _free_memory(device: str, processes: Processes) -> Memory:
    """For rank 0, which alone keeps copies on the host of a GPU. On a CPU the processes share its memory."""
    from llmcli.training.planning.cost_model import BASE_BYTES, Memory
    from llmcli.training.step import hardware

    host = hardware.free_memory("cpu")
    if device == "cpu":
        return Memory(host / processes.local_count, math.inf)
    return Memory(hardware.free_memory(device), host - (processes.local_count - 1) * BASE_BYTES)


def _open_tokenizer(inputs: Inputs, stopped: StoppedRun | None) -> Tokenizer | None:
    """The existing tokenizer to use; None if one is to be trained."""
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.formats import loading

    if inputs.base:
        return loading.open_tokenizer(inputs.base)
    if inputs.like:
        tokenizer = loading.open_tokenizer(inputs.like)
    else:
        text = stopped.tokenizer_json if stopped else inputs.tokenizer_json
        if text is None:
            return None
        tokenizer = Tokenizer.from_json(text)
    return tokenizer.with_chat_tokens() if inputs.conversations else tokenizer


def _run_identity(
    options: Mapping[str, object], request: Request, inputs: Inputs, processes: Processes
) -> dict[str, Any]:
    """What identifies a run: a stopped one resumes only if all of this is equal. JSON.

    Resume files contain it: a key that is renamed or added makes older ones those of another run.
    """
    from llmcli.training.loop.record import versions

    tokenizer = inputs.tokenizer
    if inputs.tokenizer_json is not None:
        tokenizer = hashlib.sha256(inputs.tokenizer_json.encode("utf-8")).hexdigest()
    return {
        "the text": _data_fingerprint(inputs.corpus, inputs.conversations.files if inputs.conversations else ()),
        "--val": _held_out_fingerprint(inputs),
        "--from": _base_name(inputs),
        "--tokenizer": tokenizer,
        "--threads": request.threads * processes.local_count,  # it may resume with another number of processes
        "--lr-scale": request.lr,
        **{name: options[name] for name in IDENTITY_OPTIONS if options.get(name) is not None},
        **({"how the text is read": inputs.reading.as_record()} if inputs.reading.is_requested else {}),
        **{f"the version of {name}": version for name, version in versions().items()},
    }


def _base_name(inputs: Inputs) -> str | None:
    """The base model in the identity of a run."""
    from llmcli.formats import atomic_io

    if inputs.base_path is None:
        return None
    return f"{atomic_io.name_of(inputs.base_path.resolve())} (sha256 {inputs.base_sha256[:16]})"


def _data_fingerprint(corpus: Corpus, files: Sequence[ConversationFile]) -> str:
    """A hash of texts and conversations and the names of their files."""
    from llmcli.training.files.resume import text_fingerprint

    return text_fingerprint([
        *((document.relative_name, document.text_bytes, document.sha256) for document in corpus.documents),
        *((Path(file.name).name, file.text_bytes, file.sha256) for file in files),
    ])  # fmt: skip


def _held_out_fingerprint(inputs: Inputs) -> str | float:
    """The value of --val in the identity of a run."""
    from llmcli.data.text.corpus import Corpus

    text, files = inputs.held_out, inputs.conversations.held_out if inputs.conversations else ()
    if isinstance(text, float) and (isinstance(files, float) or not files):
        return text if len(inputs.corpus.contents) < 2 else f"{text:g} of several documents"
    return _data_fingerprint(Corpus(()) if isinstance(text, float) else text, () if isinstance(files, float) else files)


def add_base_to_record(record: dict[str, Any], inputs: Inputs) -> None:
    """Note in the training record which model was fine-tuned, where that one comes from, and what it was trained on."""
    from llmcli.formats import atomic_io, loading, training_stages

    if inputs.base is None or inputs.base_path is None:
        return
    name = atomic_io.name_of(inputs.base_path.resolve())
    record["base"] = {"file": name, "sha256": inputs.base_sha256}
    record.update(training_stages.joined(training_stages.as_earlier(inputs.base.record, training_stages.BASE, name)))
    if source := loading.source_fingerprint(inputs.base):
        record["base"]["source_sha256"] = source
    record.update({key: inputs.base.record[key] for key in ("imported",) if key in inputs.base.record})


def check_space(output: Output, prepared: Prepared) -> None:
    """Raise LLMError if the disk has no space for the model, or for the adapters alone."""
    from llmcli.formats import adapters, atomic_io

    plan = prepared.plan
    size = 4 * plan.model.parameters + len(prepared.tokenizer.to_json())
    if output.adapter_only:
        size = 4 * adapters.parameter_count(plan.model, plan.train.lora_rank)
    atomic_io.check_space(output.path, size)


@dataclass(frozen=True)
class Result:
    """A run that has ended, its model saved."""

    done: Done = field(repr=False)  # it holds all weights
    file: Path  # where the model was saved
    baselines: list[Baseline]
    resumable: bool  # whether an interrupted run can resume

    @property
    def bits_per_byte(self) -> float | None:
        """On the held-out text, as the model runs; None where nothing was held out."""
        return self.done.score.bits_per_byte if self.done.score else None

    @property
    def network_bits_per_byte(self) -> float | None:
        """The same of the network alone."""
        return self.done.score.network_bits_per_byte if self.done.score else None

    @property
    def adapting_bits_per_byte(self) -> float | None:
        """The same with the n-gram cache, if the model has one."""
        return self.done.score.adapting_bits_per_byte if self.done.score else None


def run(
    plan: PlannedRun,
    inputs: Inputs,
    output: Output,
    *,
    started: float,
    stop: Callable[[], bool] = lambda: False,
    on_note: Callable[[str], None] = lambda note: None,
    processes: Processes = ONE_PROCESS,
    on_stop_request: Callable[[int], None] = lambda signal: None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Iterator[Step | Evaluation | Sample | TeacherTrained | Restarted | Result]:
    """Train, and save the model at the end: yields events, and the result as the last one. If its first steps have
    another speed than the plan assumed, the run may start over once, with a model of another size.

    `started` is when the time budget began (time.monotonic). When `stop()` is true the run ends after the current step
    and saves what it has. `on_stop_request` gets the signal that another of several processes received, after which
    `stop` is asked again. `on_progress` is that of `trainer.train`. Raises LLMError.
    """
    from llmcli.training.files import resume
    from llmcli.training.loop.events import Done, State
    from llmcli.training.step import hardware

    prepared, correction = plan.prepared, plan.correction
    add_base_to_record(prepared.record, inputs)
    if inputs.reading.is_requested:
        prepared.record["reading"] = inputs.reading.as_record()
    baselines = _baselines(prepared)
    saver = resume.StateSaver(
        output.resume_path, plan.identity, prepared.plan, prepared.tokenizer.to_json(), on_note, prepared.max_bytes
    )
    with hardware.explain_out_of_memory(), _leading(processes, prepared.plan.train.device) as leader:
        stop_anywhere = _or_elsewhere(stop, leader, on_stop_request) if leader else stop
        train = partial(
            _train, inputs=inputs, output=output, saver=saver, started=started, leader=leader, stop=stop_anywhere,
            on_progress=on_progress,
        )  # fmt: skip
        events = train(plan)
        while True:
            event = next(events)
            if isinstance(event, State):
                saver.save(event)
                del event  # or its copy of all weights would be in memory while training goes on
                if correction:
                    correction.pause()
            elif isinstance(event, Done):
                _complete_record(event, plan, baselines, resumable=saver.resumable, on_note=on_note, stop=stop)
                file = output.save(event)
                if not event.interrupted:  # also after a problem: a resumed run would meet it again
                    output.discard_resume_file()
                yield Result(event, file, baselines, saver.resumable)
                return
            else:
                yield event
                if correction and (restarted := correction.restart(event)) and not stop():
                    events.close()
                    plan, correction, saver.plan = _start_over(plan, restarted), None, restarted.plan
                    yield restarted
                    events = train(plan)


def _train(
    plan: PlannedRun,
    *,
    inputs: Inputs,
    output: Output,
    saver: StateSaver,
    started: float,
    stop: Callable[[], bool],
    leader: Leader | None,
    on_progress: Callable[[float], None],
) -> Generator[Event, None, None]:
    """The events of the trainer."""
    from llmcli.training.data.find_plain_text import find_plain_text
    from llmcli.training.loop import trainer

    prepared = plan.prepared
    yield from trainer.train(
        prepared.plan,
        prepared.tokenizer,
        inputs.base,
        prepared.tokens,
        prepared.held_out,
        prepared.record,
        sample_prompt=_first_words(next(next(inputs.corpus.texts()))) if inputs.corpus.documents else None,
        started_at=started,
        reserve_seconds=_reserve_seconds(prepared),
        stop=stop,
        save_due=saver.is_due,
        resume_from=output.stopped.take_state() if output.stopped else None,
        regularize=prepared.regularization(plan.request),
        tuner=plan.tuner,
        conversations=prepared.conversations,
        plain_text=find_plain_text(inputs, prepared),
        leader=leader,
        on_progress=on_progress,
    )


def _start_over(plan: PlannedRun, restarted: Restarted) -> PlannedRun:
    """The same run with the new plan; its record says what was before."""
    before = {
        "after_seconds": round(restarted.seconds, 2),
        "speed": round(restarted.speed, 3),
        "parameters": restarted.before.model.parameters,
    }
    prepared = plan.prepared.with_plan(restarted.plan)
    return replace(plan, prepared=replace(prepared, record=prepared.record | {"restart": before}))


@contextmanager
def _leading(processes: Processes, device: str) -> Iterator[Leader | None]:
    """Rank 0 of several processes: connected with the others, which end at the end."""
    if not processes.are_several:
        yield None
        return
    from llmcli.training.distributed.process_group import ProcessGroup
    from llmcli.training.step.data_parallel import Leader

    group = ProcessGroup(processes, device)
    leader = Leader(group)
    try:
        yield leader
    except LLMError:  # after any other error the others may wait for the rest of a pass: they notice that this one ends
        leader.end()
        raise
    leader.end()
    group.close()


def _or_elsewhere(
    stop: Callable[[], bool], leader: Leader, on_stop_request: Callable[[int], None]
) -> Callable[[], bool]:
    """`stop`, once any stop request that another process received has been passed on."""

    def stop_anywhere() -> bool:
        if not stop() and (number := leader.group.stop_request()):
            on_stop_request(number)
        return stop()

    return stop_anywhere


def follow(processes: Processes, device: str, on_connected: Callable[[Callable[[int], None]], None]) -> None:
    """Any other rank: compute what rank 0 says until it ends. `on_connected` gets a function that asks rank 0 to stop.
    Raises LLMError when another process has ended."""
    from llmcli.training.distributed.process_group import ProcessGroup
    from llmcli.training.step import data_parallel

    group = ProcessGroup(processes, pick_device(device, processes))
    on_connected(group.request_stop)
    data_parallel.follow(group)
    group.close()


def _reserve_seconds(prepared: Prepared) -> float:
    """Seconds of the time budget for what follows the training and its evaluations."""
    from llmcli.training.loop.run_timer import LOADING_SECONDS_PER_MILLION

    budget, millions = prepared.plan.train.seconds, prepared.plan.model.parameters / 1e6
    if budget is None:
        return 0.0
    measuring = MEMORIZATION_SECONDS_PER_MILLION * millions
    if prepared.conversations:
        measuring = LOADING_SECONDS_PER_MILLION * millions + _answers_seconds(budget)
    return RESERVED_SECONDS + measuring + _saving_seconds(prepared.plan)


def _saving_seconds(plan: Plan) -> float:
    """Seconds for saving the model, on a slow disk; fewer in a budget that is short for the model."""
    seconds = SAVING_SECONDS_PER_MILLION * plan.model.parameters / 1e6
    return min(seconds, LARGEST_SAVING_SHARE * (plan.train.seconds or math.inf))


def _answers_seconds(budget: float | None) -> float:
    """Seconds for greedy answers to held-out questions."""
    return math.inf if budget is None else max(ANSWERS_SECONDS, ANSWERS_TIME_SHARE * budget)


def _baselines(prepared: Prepared) -> list[Baseline]:
    """Bits per byte of compressors on the held-out text, after reading the training text; none if it is too long for
    the time there is, and none of answers, which are no text without their questions."""
    from llmcli.evaluation import compressors

    if prepared.conversations:
        return []

    budget = prepared.plan.train.seconds
    seconds = BASELINE_SECONDS if budget is None else BASELINE_TIME_SHARE * budget
    training, held_out = prepared.split.training, prepared.split.held_out
    if not held_out.text_bytes or not compressors.affordable(held_out.text_bytes, training.text_bytes, seconds):
        return []
    text, past = held_out.utf8(), training.utf8()
    return compressors.baselines(text, past, seconds=seconds)


def _complete_record(
    done: Done,
    plan: PlannedRun,
    baselines: list[Baseline],
    *,
    resumable: bool,
    on_note: Callable[[str], None],
    stop: Callable[[], bool],
) -> None:
    """Add memorization, unless the run was cut short, and the summary of the run to the record in the model."""
    from llmcli.training.loop.run_timer import LOADING_SECONDS_PER_MILLION

    record, settings = done.checkpoint.record, plan.prepared.plan.train
    seconds = math.inf if settings.seconds is None else settings.seconds - done.seconds
    seconds = max(MEASURED_SECONDS, seconds - _saving_seconds(plan.prepared.plan))
    loading = LOADING_SECONDS_PER_MILLION * done.checkpoint.parameters / 1e6  # the model, to measure anything
    cut_short = done.interrupted or done.problem or seconds < loading
    if plan.prepared.conversations:
        record["memorised"] = None
        record["answers"] = None if cut_short else _answers(done.checkpoint, plan.prepared, on_note, seconds, stop)
    else:
        record["memorised"] = None if cut_short else _memorization(done.checkpoint, plan, on_note, seconds, stop)
    record["verdict"] = summarize(record, baselines, resumable=resumable)


def _answers(
    checkpoint: Checkpoint,
    prepared: Prepared,
    on_note: Callable[[str], None],
    seconds: float,
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """How the model answers held-out questions; None where that could not be measured, in `seconds` at most."""
    from llmcli.training.data.held_out_questions import answer_questions

    assert prepared.conversations
    try:
        settings = prepared.plan.train
        seconds = min(seconds, _answers_seconds(settings.seconds))
        result = answer_questions(
            checkpoint, prepared.tokenizer, prepared.conversations, seconds, device=settings.device, stop=stop
        )
    except Exception as error:  # memory is short: the model must still be saved
        on_note(f"answers to held-out questions could not be measured: {error}")
        return None
    return as_record(result) if result else None


def _memorization(
    checkpoint: Checkpoint,
    plan: PlannedRun,
    on_note: Callable[[str], None],
    seconds: float,
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """How much of its training text the model repeats verbatim; None where it could not be measured, in about `seconds`
    at most."""
    from llmcli.evaluation.memorization import measure_memorization

    prepared, end = plan.prepared, time.monotonic() + seconds
    try:
        result = measure_memorization(
            checkpoint, prepared.tokenizer, prepared.held_out, prepared.training_text(), plan.request.seed,
            lambda: stop() or time.monotonic() > end,
        )  # fmt: skip
    except Exception as error:  # the text was removed, or memory is short: the model must still be saved
        on_note(f"memorization could not be measured: {error}")
        return None
    return as_record(result) if result else None


def _first_words(text: str, longest: int = SAMPLE_PROMPT_CHARACTERS) -> str:
    """The start of a text, up to the end of a word: the prompt of the samples during training.

    >>> _first_words("Once upon a time there was a king.\\n")
    'Once upon a time there'
    """
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= longest else line[:longest].rsplit(" ", 1)[0]
