"""A training run from its inputs to its file: read, plan, train, save. The command line and the Python API call it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.config import as_record
from llmcli.data.tokenizer_path import read_tokenizer
from llmcli.errors import LLMError, usage
from llmcli.formats.output_path import reject_overwriting
from llmcli.training.output import Output
from llmcli.training.plan import Request
from llmcli.training.summary import summarize

if TYPE_CHECKING:  # torch is imported when training starts, not when the text is read
    from llmcli.data.corpus import Corpus
    from llmcli.data.tokenizer import Tokenizer
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.training.cost_model import Machine
    from llmcli.training.events import Done, Evaluation, Sample, Step
    from llmcli.training.prepare import Prepared
    from llmcli.training.resume import StoppedRun
    from llmcli.training.thread_tuner import ThreadTuner

Baseline = tuple[str, float]  # (name of a compressor, bits per byte)
# seconds of the time budget reserved for evaluating and saving the model, and for each million parameters
RESERVED_SECONDS, RESERVED_SECONDS_PER_MILLION = 0.6, 0.06
# seconds for the compressors: a share of the time budget, or without one
BASELINE_TIME_SHARE, BASELINE_SECONDS = 0.03, 9.99
SAMPLE_PROMPT_CHARACTERS = 24
# the options that are part of the identity of a run, see _run_identity
IDENTITY_OPTIONS = (
    "--time", "--steps", "--epochs", "--lora", "--adapter-only", "--vocab-size", "--layers", "--width", "--heads",
    "--kv-heads", "--experts", "--active", "--context", "--tie", "--batch-tokens", "--optimizer", "--dropout", "--seed",
    "--device", "--dtype",
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    corpus: Corpus
    held_out: Corpus | float  # validation text, or the fraction of the corpus to hold out at its end
    base: Checkpoint | None  # the model to fine-tune
    base_path: Path | None
    base_sha256: str
    like: Checkpoint | None  # the model whose tokenizer and context length are used
    tokenizer: str  # "bpe", "char" or a file
    tokenizer_json: str | None  # of an existing tokenizer; None: one is trained
    tokenizer_reason: str


def load_inputs(
    corpus: Sequence[str],
    val: str | float | None,
    base: Path | None,
    like: Path | None,
    tokenizer: str,
    output: Path,
    *,
    on_note: Callable[[str], None] = lambda note: None,
) -> Inputs:
    """Open the models and read the texts. Raises LLMError, also where the output would overwrite one of them."""
    from llmcli.data.corpus import Corpus, read_corpus
    from llmcli.formats import loading

    base_model = loading.load(base) if base else None
    like_model = loading.load_any(like).shared if like else None
    text = read_corpus(corpus)
    held_out = _held_out(val)
    documents = [*text.documents, *(held_out.documents if isinstance(held_out, Corpus) else ())]
    reject_overwriting(output, "model", [document.path for document in documents], "the training text")
    if isinstance(held_out, Corpus) and {d.sha256 for d in held_out.documents} & {d.sha256 for d in text.documents}:
        on_note("--val contains training text, so the validation loss does not measure generalization")
    tokenizer_json, reason = _existing_tokenizer(tokenizer, base_model, like_model, output)
    base_sha256 = loading.fingerprint(base) if base else ""
    return Inputs(text, held_out, base_model, base, base_sha256, like_model, tokenizer, tokenizer_json, reason)


def _held_out(val: str | float | None) -> Corpus | float:
    """The value of --val: a corpus, or a fraction of the training corpus."""
    from llmcli.data.corpus import read_corpus
    from llmcli.training.prepare import HELD_OUT

    if val is None:
        return HELD_OUT
    if isinstance(val, str) and Path(val).exists():
        return read_corpus([val])
    try:
        fraction = float(val)
    except ValueError:
        raise LLMError(f"--val {val}: there is no such file, and it is not a fraction such as 0.1") from None
    if not 0 <= fraction < 1:
        raise usage(f"--val must be a file, or a fraction from 0 (nothing held out) to below 1, found {val}")
    return fraction


def _existing_tokenizer(
    tokenizer: str, base: Checkpoint | None, like: Checkpoint | None, output: Path
) -> tuple[str | None, str]:
    """(the tokenizer.json of --tokenizer or of another model, None if a tokenizer is trained; the reason for it)."""
    if tokenizer not in ("bpe", "char"):
        reject_overwriting(output, "model", [Path(tokenizer)], "the tokenizer to use")
        return read_tokenizer(tokenizer, "bpe, char or a tokenizer.json")[0], "from the tokenizer given"
    if base:
        return base.tokenizer_json, "from the base model"
    return (like.tokenizer_json, "same as the --like model") if like else (None, "")


@dataclass(frozen=True)
class PlannedRun:
    """All that training needs."""

    request: Request
    prepared: Prepared
    identity: dict[str, Any]
    tuner: ThreadTuner | None  # None: the number of threads is fixed


def plan_run(
    request: Request,
    inputs: Inputs,
    output: Output,
    device: str,
    dtype: str,
    *,
    options: Mapping[str, object],
    fixed_threads: bool,
) -> PlannedRun:
    """Choose device and data type, prepare the tokens, plan; a stopped run keeps its plan. Raises LLMError."""
    from llmcli.training import hardware, resume
    from llmcli.training.memory_fit import check_fits
    from llmcli.training.prepare import prepare

    if inputs.like:
        length = inputs.like.config.max_position_embeddings
        request = replace(request, context=length, context_reason="same as the --like model")
    identity = _run_identity(options, request, inputs)
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
    return PlannedRun(request, prepared, identity, tuner)


def _choose_hardware(request: Request, device: str, dtype: str, tuner: ThreadTuner | None) -> tuple[Request, Machine]:
    """(the request with device and data type, this machine)"""
    from llmcli.models import devices
    from llmcli.training import hardware, throughput
    from llmcli.training.cost_model import Machine

    device = devices.pick_device(device)
    dtype, reason = hardware.pick_dtype(dtype, device, request.threads)
    hardware.check_dtype(dtype, device)
    machine = Machine(partial(throughput.measure_throughput, tuner=tuner), hardware.free_memory(device))
    return replace(request, device=device, dtype=dtype, machine_reason=reason), machine


def _check_hardware(stopped: StoppedRun, resume_path: Path) -> None:
    """Raise LLMError if a stopped run cannot resume on this machine."""
    from llmcli.training import hardware

    settings = stopped.plan.train
    try:
        hardware.check_dtype(settings.dtype, settings.device)
    except LLMError as error:
        raise LLMError(
            f"{resume_path} is from a run on {settings.device} in {settings.dtype}, which cannot resume here: {error}; "
            "resume it on a machine that can, or start over with --force"
        ) from error


def _open_tokenizer(inputs: Inputs, stopped: StoppedRun | None) -> Tokenizer | None:
    """The existing tokenizer to use; None if one is to be trained."""
    from llmcli.data.tokenizer import Tokenizer
    from llmcli.formats import loading

    if model := inputs.base or inputs.like:
        return loading.open_tokenizer(model)
    text = stopped.tokenizer_json if stopped else inputs.tokenizer_json
    return None if text is None else Tokenizer.from_json(text)


def _run_identity(options: Mapping[str, object], request: Request, inputs: Inputs) -> dict[str, Any]:
    """What identifies a run: a stopped one resumes only if all of this is equal. JSON.

    Resume files contain it: a key that is renamed or added makes older ones those of another run.
    """
    from llmcli.training.record import versions

    tokenizer = inputs.tokenizer
    if inputs.tokenizer_json is not None:
        tokenizer = hashlib.sha256(inputs.tokenizer_json.encode("utf-8")).hexdigest()
    return {
        "the text": _corpus_fingerprint(inputs.corpus),
        "--val": inputs.held_out if isinstance(inputs.held_out, float) else _corpus_fingerprint(inputs.held_out),
        "--from": _base_name(inputs),
        "--tokenizer": tokenizer,
        "--threads": request.threads,
        "--lr-scale": request.lr,
        **{name: options[name] for name in IDENTITY_OPTIONS if options.get(name) is not None},
        **{f"the version of {name}": version for name, version in versions().items()},
    }


def _base_name(inputs: Inputs) -> str | None:
    """The base model in the identity of a run."""
    from llmcli.formats import atomic_io

    if inputs.base_path is None:
        return None
    return f"{atomic_io.name_of(inputs.base_path.resolve())} (sha256 {inputs.base_sha256[:16]})"


def _corpus_fingerprint(corpus: Corpus) -> str:
    """A hash of the texts of a corpus and the names of their files."""
    from llmcli.training.resume import text_fingerprint

    return text_fingerprint((Path(d.name).name, d.text_bytes, d.sha256) for d in corpus.documents)


def add_base_to_record(record: dict[str, Any], inputs: Inputs) -> None:
    """Note in the training record which model was fine-tuned, and where that one comes from."""
    from llmcli.formats import atomic_io, loading

    if inputs.base is None or inputs.base_path is None:
        return
    record["base"] = {"file": atomic_io.name_of(inputs.base_path.resolve()), "sha256": inputs.base_sha256}
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
        """On the held-out text; None where nothing was held out."""
        return self.done.score.bits_per_byte if self.done.score else None


def run(
    plan: PlannedRun,
    inputs: Inputs,
    output: Output,
    *,
    started: float,
    stop: Callable[[], bool] = lambda: False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[Step | Evaluation | Sample | Result]:
    """Train, and save the model at the end: yields events, and the result as the last one.

    `started` is when the time budget began (time.monotonic). When `stop()` is true the run ends after the current step
    and saves what it has. Raises LLMError.
    """
    from llmcli.training import hardware, resume, trainer
    from llmcli.training.events import Done, State
    from llmcli.training.rules import regularization

    prepared, settings = plan.prepared, plan.prepared.plan
    add_base_to_record(prepared.record, inputs)
    baselines = _baselines(inputs, prepared)
    saver = resume.StateSaver(output.resume_path, plan.identity, settings, prepared.tokenizer.to_json(), on_note)
    with hardware.explain_out_of_memory():
        for event in trainer.train(
            settings,
            prepared.tokenizer,
            inputs.base,
            prepared.tokens,
            prepared.held_out,
            prepared.record,
            sample_prompt=_first_words(next(next(inputs.corpus.texts()))),
            started_at=started,
            reserve_seconds=RESERVED_SECONDS + RESERVED_SECONDS_PER_MILLION * settings.model.parameters / 1e6,
            stop=stop,
            save_due=saver.is_due,
            resume_from=output.stopped.state if output.stopped else None,
            regularize=partial(regularization, plan.request, settings.model, len(prepared.tokens)),
            tuner=plan.tuner,
        ):
            if isinstance(event, State):
                saver.save(event)
            elif isinstance(event, Done):
                _complete_record(event, plan, inputs.corpus, baselines, resumable=saver.resumable, on_note=on_note)
                file = output.save(event)
                if not event.interrupted:  # also after a problem: a resumed run would meet it again
                    output.discard_resume_file()
                yield Result(event, file, baselines, saver.resumable)
            else:
                yield event


def _baselines(inputs: Inputs, prepared: Prepared) -> list[Baseline]:
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
    done: Done,
    plan: PlannedRun,
    text: Corpus,
    baselines: list[Baseline],
    *,
    resumable: bool,
    on_note: Callable[[str], None],
) -> None:
    """Add memorization, unless the run was cut short, and the summary of the run to the record in the model."""
    record = done.checkpoint.record
    cut_short = done.interrupted or done.problem
    record["memorised"] = None if cut_short else _memorization(done.checkpoint, plan, text, on_note)
    record["verdict"] = summarize(record, baselines, resumable=resumable)


def _memorization(
    checkpoint: Checkpoint, plan: PlannedRun, text: Corpus, on_note: Callable[[str], None]
) -> dict[str, Any] | None:
    """How much of its training text the model repeats verbatim; None where it could not be measured."""
    from llmcli.evaluation.memorization import measure_memorization

    prepared = plan.prepared
    try:
        result = measure_memorization(
            checkpoint, prepared.tokenizer, prepared.held_out, prepared.read_from(text), plan.request.seed
        )
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
