"""A training run from its inputs (data/inputs.py) to a model file: plan, train, save. Used by the command
line and the Python API."""

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from llmcli.config import ModelConfig, TrainConfig, as_record
from llmcli.data.files import ConversationFile
from llmcli.data.text.decoding import Document
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, option_of
from llmcli.evaluation import compressors, memorization
from llmcli.evaluation.compressors import Baseline
from llmcli.formats import adapters, atomic_io, loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.open_runtime import open_trained
from llmcli.models.torch import devices
from llmcli.training.data.conversations import PreparedConversations
from llmcli.training.data.held_out_questions import answer_questions
from llmcli.training.data.inputs import Inputs
from llmcli.training.data.known_answers import (
    check_known_answers,
    fit_min_confidence,
    seconds_to_fit,
    store_known_answers,
)
from llmcli.training.data.prepare import Prepared, prepare
from llmcli.training.data.run_data import RunData
from llmcli.training.distributed.process_group import ProcessGroup, explain_lost_process
from llmcli.training.distributed.processes import Processes
from llmcli.training.files import resume
from llmcli.training.files.output import Output
from llmcli.training.files.resume import StateSaver, StoppedRun, text_fingerprint
from llmcli.training.files.summary import summarize
from llmcli.training.loop import trainer
from llmcli.training.loop.clock import LOADING_SECONDS_PER_MILLION, Clock
from llmcli.training.loop.epoch_search import find_epochs
from llmcli.training.loop.events import Done, Evaluation, Event, Restarted, RunEvent, State, Step
from llmcli.training.loop.record import versions
from llmcli.training.loop.run import Run
from llmcli.training.planning import recipe, rules
from llmcli.training.planning.cost_model import BASE_BYTES, Machine, Memory, check_fits
from llmcli.training.planning.plan import EpochSearch, Plan, PlanRequest
from llmcli.training.step import data_parallel, hardware, throughput
from llmcli.training.step.data_parallel import Leader
from llmcli.training.step.thread_tuner import ThreadTuner

# seconds reserved for measuring memorization and saving the model; in a short run, at most a share of the
# budget for saving
RESERVED_SECONDS = 0.3
MEMORIZATION_SECONDS_PER_MILLION = 0.02
SAVING_SECONDS_PER_MILLION = 0.04
LARGEST_SAVING_SHARE = 0.15
# time for the compressors: a share of the time budget, or seconds without a budget
BASELINE_TIME_SHARE = 0.03
BASELINE_SECONDS = 9.99
BASELINE_NICENESS = 10  # for the compressors' threads, where threads can have one
# time for greedy answers to held-out questions: a share of the time budget, and the minimum in seconds
ANSWERS_TIME_SHARE = 0.03
ANSWERS_SECONDS = 0.5
SAMPLE_PROMPT_CHARACTERS = 24
ONE_PROCESS = Processes()
# tasks before the first step and after the last one, shown with their progress
GENERATING = "generating text with the base model"
FITTING = "fitting the minimum confidence of known answers"
OnProgress = Callable[[str, float], None]
PROCESS_GAIN = 0.85  # assumed gain in speed per additional process, relative to a single process
# all other fields of a request are part of the identity of a run
NOT_IN_IDENTITY = {"context_reason", "machine_reason", "processes", "threads"}


@dataclass(frozen=True)
class PlannedRun:
    """Everything that training needs."""

    output: Output
    prepared: Prepared
    identity: dict[str, Any]
    started: float  # start of the time budget (time.monotonic)
    processes: Processes
    tuner: ThreadTuner | None  # None: the number of threads is fixed
    known_answers: bool  # whether the model stores its training questions and answers
    signals: list[int] = field(default_factory=list)  # once there is one, the run ends and saves the model
    on_progress: OnProgress = lambda task, share: None

    def check_space(self) -> None:
        """Raise LLMError if the disk has no space for the model, or for adapters only."""
        plan = self.prepared.plan
        size = 4 * plan.model.parameters + len(self.prepared.tokenizer.to_json())
        if self.output.adapter_only:
            size = 4 * adapters.parameter_count(plan.model, plan.train.lora_rank)
        atomic_io.check_space(self.output.path, size)

    def stopped_in(self, state: State) -> StoppedRun:
        """Return what a resume file holds if the run is stopped in this state."""
        prepared = self.prepared
        tokenizer = prepared.tokenizer.to_json()
        return StoppedRun(self.identity, prepared.plan, tokenizer, state, prepared.max_bytes)

    @contextmanager
    def noting_errors(self, what: str) -> Iterator[None]:
        """Turn an error into a note, because the model must be saved even if the text was removed or memory
        ran out."""
        try:
            yield
        except Exception as error:
            self.output.on_note(f"{what}: {error}")

    def second_run(self, search: EpochSearch, spent: float) -> "PlannedRun":
        """Return the run that starts over with the number of epochs that this run found in `spent`
        seconds."""
        # in a resumed run, the seconds before the stop also count
        earlier = self.output.stopped.state.values["seconds"] if self.output.stopped else 0.0
        prepared = self.prepared.second_run(search, spent + recipe.RESTART_SECONDS)
        return replace(self, prepared=prepared, started=self.started - earlier)


def plan_run(
    request: PlanRequest,
    inputs: Inputs,
    output: Output,
    *,
    fixed_threads: bool,
    started: float,
    processes: Processes = ONE_PROCESS,
    time_given: str | None = None,
    known_answers: bool = False,
) -> PlannedRun:
    """Choose device and data type if they are "auto", prepare the tokens, and plan; a stopped run keeps its
    plan. `started` is the start of the time budget (time.monotonic); `time_given` is the budget as typed.
    Raises LLMError."""
    identity = _run_identity(request, inputs, output, processes, time_given)
    if inputs.like:
        length = inputs.like.config.max_position_embeddings
        request = replace(request, context=length, context_reason="same as the --like model")
    _check_stored(inputs, output, known_answers)
    # if steps or epochs end the run, the model's bytes depend on the number of threads
    is_fixed = fixed_threads or not request.has_time_budget or processes.are_several
    tuner = None
    if not is_fixed:
        tuner = ThreadTuner(request.threads, torch.set_num_threads, hardware.fastest_threads)
    machine = plan = None
    if stopped := output.stopped:
        resume.check_same_run(stopped, identity, output.resume_path, processes.count)
        _check_hardware(stopped, output.resume_path)
        device_of_process(stopped.plan.train.device, processes)
        request = replace(request, device=stopped.plan.train.device, dtype=stopped.plan.train.dtype)
        plan = _resumed_plan(stopped.plan, request, processes)
    else:
        conversations_alone = bool(inputs.files) and not inputs.corpus.documents
        request, machine = _choose_hardware(request, tuner, processes, conversations=conversations_alone)
    with hardware.explain_out_of_memory():
        prepared = prepare(
            request,
            inputs,
            machine,
            output=output.path,
            stopped_plan=plan,
            tokenizer=_open_tokenizer(inputs, stopped),
            max_bytes=stopped.max_bytes if stopped else None,
            on_note=output.on_note,
            elapsed=lambda: time.monotonic() - started,
        )
    if prepared.plan.sharded:
        hardware.check_can_shard()
    return PlannedRun(
        output,
        prepared,
        identity,
        started,
        processes,
        tuner,
        known_answers,
    )


def _resumed_plan(plan: Plan, request: PlanRequest, processes: Processes) -> Plan:
    """Adapt the plan of a stopped run to the processes of this run. Raises LLMError if memory is
    insufficient."""
    memory = _free_memory(plan.train.device, processes)
    train = replace(plan.train, threads=request.threads)
    if plan.train.teacher_share and processes.are_several:
        raise LLMError(
            "the stopped run trains a student with a teacher, which is only possible in one process: resume "
            "it without `processes`, or start over with `overwrite=True`"
        )
    needs_whole_weights = plan.conversations is not None and plan.conversations.base_divergence > 0
    sharded = not needs_whole_weights and rules.sharding(request, plan.model, train, memory).value
    check_fits(resumed := replace(plan, train=train, sharded=sharded), memory, processes.count)
    return resumed


def _check_stored(inputs: Inputs, output: Output, known_answers: bool) -> None:
    """Raise LLMError if the output file cannot store everything that the run produces, or if there are no
    known answers to store."""
    if known_answers:
        check_known_answers(inputs.sources.conversations, adapter_only=output.adapter_only)
    if output.adapter_only and inputs.files and inputs.template is None:
        count = inputs.new_tokens
        missing = f"the {count} tokens of a template" if count else "a template"
        raise LLMError(
            f"{inputs.base_path} has no chat template, and adapters cannot store {missing}; leave out "
            "`adapter_only`: the merged model stores the template"
        )


def device_of_process(name: str, processes: Processes) -> str:
    """Return the device of this process; each has its own GPU. Raises LLMError if there are too few
    GPUs."""
    device = devices.pick_device(name)
    if not processes.are_several or device == "cpu":
        return device
    if device == "mps":
        raise LLMError("a run on mps has only one process; leave out `processes`, or add `device` cpu")
    if (count := devices.gpu_count()) < processes.local_count:
        raise LLMError(
            f"{processes.local_count} processes need a GPU each, but torch finds {count} here; use "
            f"`processes` {count}, or `device` cpu"
        )
    return device


def _choose_hardware(
    request: PlanRequest, tuner: ThreadTuner | None, processes: Processes, *, conversations: bool
) -> tuple[PlanRequest, Machine]:
    """Return (request with device and data type, the machine with its free memory); `conversations` means
    that there is no plain text."""
    device = device_of_process(request.device, processes)
    dtype, reason = hardware.pick_dtype(request.dtype, device, request.threads)
    devices.check_dtype(dtype, device)

    def speed(model: ModelConfig, settings: TrainConfig, seconds: float) -> float:
        single_speed = throughput.measure_throughput(
            model, settings, seconds, tuner, conversations=conversations
        )
        return single_speed * (1 + PROCESS_GAIN * (processes.count - 1))

    request = replace(request, device=device, dtype=dtype, machine_reason=reason)
    return request, Machine(speed, _free_memory(device, processes))


def _check_hardware(stopped: StoppedRun, resume_path: Path) -> None:
    """Raise LLMError if a stopped run cannot resume on this machine."""
    settings = stopped.plan.train
    if problem := devices.find_problem(settings.dtype, settings.device):
        raise LLMError(
            f"{resume_path} is from a run on {settings.device} in {settings.dtype}, but {problem}; resume it "
            "on a machine where that works, or start over here with `device` auto "
            "`dtype` auto `overwrite=True`"
        )


def _free_memory(device: str, processes: Processes) -> Memory:
    """Return the free memory of a process; rank 0 also keeps copies of a GPU's weights on the host."""
    host = hardware.free_memory("cpu")
    if device == "cpu":
        return Memory(host / processes.local_count, math.inf)
    return Memory(hardware.free_memory(device), host - (processes.local_count - 1) * BASE_BYTES)


def _open_tokenizer(inputs: Inputs, stopped: StoppedRun | None) -> Tokenizer | None:
    """Return the existing tokenizer to use; None if a new one will be trained."""
    if inputs.base:
        return loading.open_tokenizer(inputs.base)
    if inputs.like:
        tokenizer = loading.open_tokenizer(inputs.like)
    else:
        text = stopped.tokenizer_json if stopped else inputs.tokenizer_json
        if text is None:
            return None
        tokenizer = Tokenizer.from_json(text)
    return tokenizer.with_chat_tokens() if inputs.files else tokenizer


def _run_identity(
    request: PlanRequest, inputs: Inputs, output: Output, processes: Processes, time_given: str | None
) -> dict[str, Any]:
    """Return the identity of a run as JSON. A stopped run resumes only if its identity is equal. It is stored
    in resume files, so renaming or adding a key makes older files unusable."""
    tokenizer = inputs.tokenizer
    base = None
    values = as_record(request) | {"lora": request.lora or None, "seconds": time_given or request.seconds}
    if inputs.tokenizer_json is not None:
        tokenizer = hashlib.sha256(inputs.tokenizer_json.encode("utf-8")).hexdigest()
    if inputs.base_path:
        base = f"{atomic_io.name_of(inputs.base_path.resolve())} (sha256 {inputs.base_sha256[:16]})"
    return {
        "the text": _data_fingerprint(inputs.corpus.documents, inputs.files),
        "--val": _held_out_fingerprint(inputs),
        "--from": base,
        "--tokenizer": tokenizer,
        "--threads": request.threads
        * processes.local_count,  # it may resume with a different number of processes
        "--adapter-only": output.adapter_only,
        **({"--speakers": ",".join(inputs.reading.speakers)} if inputs.reading.speakers else {}),
        **{
            option_of(name): value
            for name, value in values.items()
            if value is not None and name not in NOT_IN_IDENTITY
        },
        **({"how the text is read": reading} if (reading := inputs.reading.as_record()) else {}),
        **{f"the version of {name}": version for name, version in versions().items()},
    }


def _data_fingerprint(documents: Sequence[Document], files: Sequence[ConversationFile]) -> str:
    """Hash texts and conversations and the names of their files."""
    return text_fingerprint(
        [
            *((document.relative_name, document.text_bytes, document.sha256) for document in documents),
            *((Path(file.name).name, file.text_bytes, file.sha256) for file in files),
        ]
    )


def _held_out_fingerprint(inputs: Inputs) -> str | float:
    """Return the value of --val for the identity of a run."""
    documents, files = inputs.validation.text.documents, inputs.validation.conversation_files
    if documents or files:
        return _data_fingerprint(documents, files)
    held_out = inputs.held_out
    return held_out if len(inputs.corpus.contents) < 2 else f"{held_out:g} of several documents"


@dataclass(frozen=True)
class Result:
    """A finished run with a saved model."""

    done: Done = field(repr=False)  # includes all weights
    file: Path  # where the model was saved
    baselines: list[Baseline]
    resumable: bool  # whether an interrupted run can resume

    @property
    def bits_per_byte(self) -> float | None:
        """Score on the held-out text (with the n-gram cache if the model has one); None if nothing was held
        out."""
        return self.done.score.bits_per_byte if self.done.score else None

    @property
    def network_bits_per_byte(self) -> float | None:
        """Like `bits_per_byte`, for the network alone."""
        return self.done.score.network_bits_per_byte if self.done.score else None

    @property
    def adapting_bits_per_byte(self) -> float | None:
        """Like `bits_per_byte`, with the n-gram cache; None if the model has none."""
        return self.done.score.adapting_bits_per_byte if self.done.score else None


def run(
    planned: PlannedRun,
    *,
    signals: list[int] | None = None,
    on_progress: OnProgress = lambda task, share: None,
) -> Generator[RunEvent | Result, None, None]:
    """Train and save the model. Yields events; the last one is the Result. The run may start over once, with
    the number of epochs found by a first run.

    Once `signals` has an entry, the run ends after the current step and saves the model; a signal that
    reached another process is added to it. `on_progress` receives the name and the completed share (0 to 1)
    of a task before the first step or after the last one.
    """
    planned = replace(planned, signals=[] if signals is None else signals, on_progress=on_progress)
    output = planned.output
    stopped = output.stopped
    baselines = _Baselines(planned.prepared)
    evaluations = [*stopped.state.values.get("evaluations", ())] if stopped else []
    last = None  # step of the first run
    saver = StateSaver(output.resume_path, output.on_note)
    with hardware.explain_out_of_memory(), _leading(planned) as leader:
        events = _train(planned, leader, saver, stopped)
        while True:
            event = next(events)
            if isinstance(event, State):
                saver.save(planned.stopped_in(event))
                del event  # its copy of all weights must not stay in memory while training continues
            elif isinstance(event, Done):
                measured = _complete_record(event, planned, baselines, resumable=saver.resumable)
                file = output.save(event)
                if not event.interrupted:  # even after a problem, because a resumed run would fail again
                    output.discard_resume_file()
                yield Result(event, file, measured, saver.resumable)
                return
            else:
                yield event
                if isinstance(event, Evaluation):
                    evaluations.append((event.step, event.bits_per_byte))
                last = event if isinstance(event, Step) else last
                plan = planned.prepared.plan
                is_searching = plan.searches and not planned.signals
                if is_searching and last and (search := find_epochs(plan, evaluations, last)):
                    events.close()
                    planned = planned.second_run(search, last.seconds)
                    yield Restarted(last.step, last.seconds, planned.prepared.plan)
                    events = _train(planned, leader, saver, None)


def _train(
    planned: PlannedRun, leader: Leader | None, saver: StateSaver, stopped: StoppedRun | None
) -> Generator[Event, None, None]:
    """Yield the trainer's events."""
    signals = planned.signals
    prepared = planned.prepared

    def stop_requested() -> bool:
        if leader and not signals and (number := leader.group.stop_request()):
            signals.append(number)
        return bool(signals)

    corpus = prepared.inputs.corpus
    data = RunData(
        prepared,
        sample_prompt=_first_words(next(next(corpus.texts()))) if corpus.documents else None,
        probe=prepared.task.request.probe or (None if prepared.conversations else _probe_prompt(prepared)),
    )
    clock = Clock(
        prepared.plan.train,
        planned.started,
        _reserve_seconds(planned),
        stop_requested=stop_requested,
        processor_time=time.thread_time,
    )
    run = Run(data, clock, tuner=planned.tuner, leader=leader)
    run.begin(stopped.take_state() if stopped else None, partial(planned.on_progress, GENERATING))
    yield from trainer.train(run, saver.is_due)


def _probe_prompt(prepared: Prepared) -> str | None:
    """Return the start of a sentence. With a character tokenizer, it includes the following space, whose
    prediction would take an extra pass."""
    prompt = prepared.example_prompt()
    return f"{prompt} " if prompt and " " in prompt and prepared.tokenizer.kind == "char" else prompt


@contextmanager
def _leading(planned: PlannedRun) -> Iterator[Leader | None]:
    """Yield rank 0 of several processes, connected to the other ranks, which it shuts down on exit."""
    if not planned.processes.are_several:
        yield None
        return
    with explain_lost_process():
        group = ProcessGroup(planned.processes, planned.prepared.plan.train.device)
        leader = Leader(group)
        try:
            yield leader
        except LLMError:
            # after any other error, the other ranks may be waiting inside a pass; they detect the end of this
            # process
            leader.end()
            raise
        leader.end()
        group.close()


def run_worker(
    processes: Processes, device: str, on_connected: Callable[[Callable[[int, object], None]], None]
) -> None:
    """Worker loop of ranks above 0. `on_connected` receives a function that asks rank 0 to stop the run."""
    with explain_lost_process():
        group = ProcessGroup(processes, device_of_process(device, processes))
    on_connected(group.request_stop)
    try:
        with explain_lost_process():
            data_parallel.execute_commands(group)
            group.close()
    except LLMError:
        if group.stop_signal:  # rank 0 may have received the signal too, ended, and reported that
            raise SystemExit(128 + group.stop_signal) from None
        raise


def _reserve_seconds(planned: PlannedRun) -> float:
    """Return the seconds of the time budget reserved for the end of the run, after training and
    evaluations."""
    plan = planned.prepared.plan
    conversations = planned.prepared.conversations
    budget = plan.train.seconds
    millions = plan.model.parameters / 1e6
    if budget is None:
        return 0.0
    measuring = MEMORIZATION_SECONDS_PER_MILLION * millions
    if conversations:
        measuring = LOADING_SECONDS_PER_MILLION * millions + _answers_seconds(budget)
        measuring += seconds_to_fit(plan, conversations) if planned.known_answers else 0.0
    return RESERVED_SECONDS + measuring + _saving_seconds(plan)


def _saving_seconds(plan: Plan) -> float:
    """Return the seconds reserved for saving on a slow disk; fewer if they would take much of the budget."""
    seconds = SAVING_SECONDS_PER_MILLION * plan.model.parameters / 1e6
    return min(seconds, LARGEST_SAVING_SHARE * (plan.train.seconds or math.inf))


def _answers_seconds(budget: float | None) -> float:
    """Return the seconds for greedy answers to held-out questions."""
    return math.inf if budget is None else max(ANSWERS_SECONDS, ANSWERS_TIME_SHARE * budget)


class _Baselines(Thread):
    """Measures compressors on the held-out text while the model is trained; only the summary shows the
    results. Measures nothing if there is no time, and for conversations."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(daemon=True)
        self._measured: list[Baseline] = []
        self._error: Exception | None = None
        budget = prepared.plan.train.seconds
        training = prepared.split.training
        held_out = prepared.split.held_out
        self._seconds = BASELINE_SECONDS if budget is None else BASELINE_TIME_SHARE * budget
        sizes = held_out.text_bytes, training.text_bytes
        if not prepared.conversations and sizes[0] and compressors.affordable(*sizes, self._seconds):
            self._texts = held_out.utf8(), training.utf8()
            self.start()

    def run(self) -> None:
        if sys.platform == "linux":  # elsewhere, this would change the priority of all threads
            os.nice(BASELINE_NICENESS)
        try:
            self._measured = compressors.baselines(*self._texts, seconds=self._seconds)
        except Exception as error:  # raised by `wait`
            self._error = error
        del self._texts  # may be hundreds of megabytes

    def wait(self, is_over: Callable[[], bool]) -> list[Baseline]:
        """Return the results, or those so far once `is_over()` returns True."""
        while self.is_alive() and not is_over():
            self.join(0.05)
        if self._error:
            raise self._error
        return self._measured


def _complete_record(
    done: Done, planned: PlannedRun, baselines: _Baselines, *, resumable: bool
) -> list[Baseline]:
    """Add memorization or answers, and the summary of the run, to the model's record. Returns the baselines
    that the summary mentions."""
    checkpoint = done.checkpoint
    prepared = planned.prepared
    settings = prepared.plan.train
    seconds = math.inf if settings.seconds is None else settings.seconds - done.seconds
    seconds -= _saving_seconds(prepared.plan)
    loading = LOADING_SECONDS_PER_MILLION * checkpoint.parameters / 1e6  # before any measurement
    # a run that is late measures nothing
    end = -math.inf if done.interrupted or done.problem or seconds < loading else time.monotonic() + seconds
    entries: dict[str, Any] = {"memorised": None}

    def is_over() -> bool:
        return bool(planned.signals) or time.monotonic() > end

    if prepared.conversations:
        entries |= _measure_answers(checkpoint, planned, prepared.conversations, end)
    elif end > -math.inf:
        with planned.noting_errors("memorization could not be measured"):
            measured = memorization.measure_memorization(
                checkpoint,
                prepared.tokenizer,
                prepared.held_out,
                prepared.training_text.texts(),
                settings.seed,
                is_over,
            )
            entries["memorised"] = measured and measured._asdict()
    compressed: list[Baseline] = []
    with planned.noting_errors("compressors could not be measured"):
        compressed = baselines.wait(is_over)
    record = checkpoint.record | entries
    checkpoint.record = record | {"verdict": summarize(record, compressed, resumable=resumable)}
    return compressed


def _measure_answers(
    checkpoint: Checkpoint, planned: PlannedRun, conversations: PreparedConversations, end: float
) -> dict[str, Any]:
    """Measure answers to held-out questions, and store the known answers if the run has some, until `end`
    (time.monotonic). Returns entries of the record; None for what was not measured."""
    prepared = planned.prepared
    settings = planned.prepared.plan.train
    entries: dict[str, Any] = {"answers": None}
    if planned.known_answers:
        entries["known_answers"] = None
        store_known_answers(checkpoint, conversations)
    if end == -math.inf:
        return entries
    with planned.noting_errors("answers to held-out questions could not be measured"):
        runtime = open_trained(checkpoint, settings.device)
        answers_end = min(end, time.monotonic() + _answers_seconds(settings.seconds))
        answers = answer_questions(
            runtime,
            prepared.tokenizer,
            conversations,
            lambda: bool(planned.signals) or time.monotonic() > answers_end,
        )
        entries["answers"] = answers and answers._asdict()
        if planned.known_answers:
            seconds = min(end - time.monotonic(), seconds_to_fit(prepared.plan, conversations))
            shares = fit_min_confidence(
                checkpoint,
                runtime,
                prepared.tokenizer,
                conversations,
                seconds,
                lambda: bool(planned.signals),
                planned.output.on_note,
                partial(planned.on_progress, FITTING),
            )
            entries["known_answers"] = {
                name: count for name, count in shares._asdict().items() if count is not None
            }
    return entries


def _first_words(text: str) -> str:
    """Return the start of a text up to the end of a word: the prompt for samples during training.

    >>> _first_words("Once upon a time there was a king.\\n")
    'Once upon a time there'
    """
    line = text.strip().split("\n", 1)[0]
    longest = SAMPLE_PROMPT_CHARACTERS
    return line if len(line) <= longest else line[:longest].rsplit(" ", 1)[0]
