"""The resume file: a second safetensors file next to the model. A stopped run continues from it.

It holds the plan, the tokenizer, the identity of the run (its settings and data), and its state after a step.
Data order and dropout are functions of (seed, step), so no random generator's state is saved.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli import units
from llmcli.config import TrainConfig, as_record
from llmcli.data.regular_file import open_regular
from llmcli.errors import OPTIONS, LLMError
from llmcli.formats.huggingface.config import dump_config, parse_config
from llmcli.formats.safetensors.file import digest, read_tensor, write_tensors
from llmcli.formats.safetensors.header import read_header
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.loop.events import State
from llmcli.training.planning.plan import ConversationSettings, EpochSearch, Expected, Plan, PlanRow

FORMAT_KEY = "llmcli.resume"
FORMAT_VERSION = "1"
THREADS = "--threads"  # key in the identity of a run: threads of all processes on the machine of rank 0
HEADER_BYTES = 1 << 16  # the beginning of the file, which includes FORMAT_KEY
FIRST_PAUSE = 2.0  # seconds between two saves, at first
LONGEST_PAUSE = 60.0  # maximum seconds between two saves ...
PAUSE_PER_SAVE = 50  # ... but at least this many times as long as a save takes
# optional fields of a plan
PLAN_PARTS: dict[str, Any] = {
    "conversations": ConversationSettings,
    "expected": Expected,
    "search": EpochSearch,
}
_MODEL_SUFFIX = ".safetensors"
_RESUME_SUFFIXES = (".resume.safetensors", ".resume")


@dataclass(frozen=True)
class StoppedRun:
    """A run that can continue."""

    identity: dict[str, Any]  # options, text and versions on which the run depends, as JSON
    plan: Plan
    tokenizer_json: str
    state: State
    max_bytes: int | None = None  # limit of the training text; None: not saved (by an older version)

    @property
    def processes(self) -> int:
        return int(self.state.values.get("processes", 1))

    def take_state(self) -> State:
        """Return the state, and drop its large arrays here: all but the losses."""
        taken = State(dict(self.state.arrays), self.state.values)
        for name in taken.arrays.keys() - {"losses"}:
            del self.state.arrays[name]
        return taken


def resume_path(model: Path) -> Path:
    """Return the path of the resume file next to `model`, or next to the target of a symbolic link.

    >>> resume_path(Path("a/model.safetensors")).name, resume_path(Path("a/model")).name
    ('model.resume.safetensors', 'model.resume')
    """
    model = model.resolve() if model.is_symlink() else model
    with_suffix, without = _RESUME_SUFFIXES
    name = model.name.removesuffix(_MODEL_SUFFIX)
    return model.with_name(name + (with_suffix if model.name.endswith(_MODEL_SUFFIX) else without))


def check_model_name(model: Path) -> None:
    """Raise LLMError if a model would be named like a resume file."""
    if model.name.endswith(_RESUME_SUFFIXES):
        raise LLMError(
            f"{model}: names that end in {' or '.join(_RESUME_SUFFIXES)} are for resume files; "
            "give another `output`"
        )


def is_resume_file(path: Path) -> bool:
    """Return whether a file is a resume file, possibly damaged. No other file may be replaced or removed."""
    try:
        with open_regular(path) as file:
            return f'"{FORMAT_KEY}"'.encode() in file.read(HEADER_BYTES)
    except OSError:
        return False


def save(path: Path, run: StoppedRun) -> None:
    """Write the file atomically. Raises LLMError if that fails, for instance on a full disk."""
    plan = run.plan
    metadata = {
        FORMAT_KEY: FORMAT_VERSION,
        "identity": json.dumps(run.identity, ensure_ascii=False),
        "config.json": dump_config(plan.model),
        "train": json.dumps(as_record(plan.train)),
        "choices": json.dumps([as_record(row) for row in plan.rows], ensure_ascii=False),
        "tokenizer.json": run.tokenizer_json,
        "figures": json.dumps(run.state.values),
    }
    if run.max_bytes:
        metadata["max_bytes"] = json.dumps(run.max_bytes)
    for key in PLAN_PARTS:
        if part := getattr(plan, key):
            metadata[key] = json.dumps(as_record(part))
    write_tensors(path, run.state.arrays, metadata)


def load(path: Path) -> StoppedRun:
    """Read the file and verify its hash. Raises LLMError if it is damaged or not a resume file."""
    try:
        header = read_header(path)
    except LLMError as error:
        raise LLMError(f"{error}; start over with `overwrite=True`") from error
    metadata = header.metadata
    if metadata.get(FORMAT_KEY) != FORMAT_VERSION:
        raise LLMError(
            f"{path} is not a resume file of this version; move it away, or start over with `overwrite=True`"
        )
    if digest(header) != metadata.get("sha256"):
        raise LLMError(f"{path} is damaged: its hash does not match; start over with `overwrite=True`")
    try:
        identity = json.loads(metadata["identity"])
        plan = _read_plan(metadata)
        _check_plan(plan, identity)
        arrays = {name: read_tensor(header, tensor) for name, tensor in header.tensors.items()}
        state = State(arrays, json.loads(metadata["figures"]))
        max_bytes = int(metadata["max_bytes"]) if "max_bytes" in metadata else None
        return StoppedRun(identity, plan, metadata["tokenizer.json"], state, max_bytes)
    except (AttributeError, KeyError, ValueError, TypeError, OverflowError, LLMError) as error:
        raise LLMError(f"{path} is damaged: {error}; start over with `overwrite=True`") from error


def _read_plan(metadata: Mapping[str, str]) -> Plan:
    parts = {key: kind(**json.loads(metadata[key])) for key, kind in PLAN_PARTS.items() if key in metadata}
    return Plan(
        parse_config(metadata["config.json"]),
        TrainConfig(**json.loads(metadata["train"])),
        tuple(PlanRow(**row) for row in json.loads(metadata["choices"])),
        **parts,
    )


def _check_plan(plan: Plan, identity: Mapping[str, Any]) -> None:
    settings = plan.train
    if settings.context > plan.model.max_position_embeddings:
        raise ValueError(f"windows of {settings.context:,} tokens are longer than the model's context")
    threads = identity.get(THREADS, settings.threads)
    steps = identity.get("--steps", settings.steps)
    if threads < settings.threads or steps != settings.steps:  # several processes share the threads
        raise ValueError("its plan and its command have different `threads` or `steps`")


class StateSaver:
    """Saves the state of a run at growing intervals, long enough that saving takes a fiftieth of the time."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """`warn` receives the first failure."""
        self._path = path
        self._warn = warn
        self._pause = FIRST_PAUSE
        self._next = time.monotonic() + FIRST_PAUSE
        self._has_saved = self._has_failed = False

    @property
    def resumable(self) -> bool:
        """Return whether a run that is stopped now can resume, from a state that is already saved or can be
        saved now."""
        return self._has_saved or not self._has_failed

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def save(self, run: StoppedRun) -> None:
        """Save a run. The first failure is a warning; the run continues."""
        began = time.monotonic()
        try:
            exists = os.path.exists(self._path)  # noqa: PTH110 (Path.exists may raise)
            if exists and not is_resume_file(self._path):
                raise LLMError(f"{self._path} was created by another process during the run and is kept")
            save(self._path, run)
            self._has_saved = True
        except LLMError as error:
            if not self._has_failed:
                self._warn(f"{error}; if this run is stopped, it cannot be resumed from here")
            self._has_failed = True
        now = time.monotonic()
        self._pause = max(min(2 * self._pause, LONGEST_PAUSE), PAUSE_PER_SAVE * (now - began))
        self._next = now + self._pause


def text_fingerprint(documents: Iterable[tuple[str, int, str]]) -> str:
    """Describe the training text for the identity of a run. Each document is (file name, bytes, sha256)."""
    documents = list(documents)
    names = json.dumps([[name, sha256] for name, _, sha256 in documents])
    digest_ = hashlib.sha256(names.encode("utf-8")).hexdigest()[:16]
    return (
        f"{units.count(len(documents), 'file')} of {sum(d[1] for d in documents):,} bytes (sha256 {digest_})"
    )


def check_same_run(stopped: StoppedRun, identity: Mapping[str, Any], path: Path, processes: int = 1) -> None:
    """Raise LLMError with the differences if the stopped run in the file `path` has a different identity."""
    # a different number of processes changes the order of sums anyway, so threads do not matter
    if processes != stopped.processes and THREADS in stopped.identity:
        identity = {**identity, THREADS: stopped.identity[THREADS]}
    before = stopped.identity
    now = json.loads(json.dumps(identity))
    if different := [
        _difference(key, before.get(key), now.get(key))
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]:
        raise LLMError(
            f"{path} is from a run that stopped at step {stopped.state.step:,} and had other settings: "
            f"{'; '.join(different)}; give the same to resume it, `overwrite=True` to start over, "
            "or another `output`"
        )


def _difference(key: str, before: object, now: object) -> str:
    sizes = {str(value).partition(" (sha256 ")[0] for value in (before, now)}
    note = " (the hash includes the names of the files)" if len(sizes) == 1 and key != "--from" else ""
    return f"{_setting(key)} was {_quoted(before)}, is {_quoted(now)}{note}"


def _setting(key: str) -> str:
    names = {option: name for name, option in OPTIONS.items()}
    return f"`{names.get(key) or key[2:].replace('-', '_')}`" if key.startswith("--") else key


def _quoted(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_saved_in(stopped: StoppedRun, model: Path) -> bool:
    """Return whether `model` (a model or adapters) was saved by this run, when it was stopped or just before
    it was killed, and has not changed since. Reads the whole file."""
    try:
        header = read_header(model)
        return _is_of(stopped, header.metadata) and digest(header) == header.metadata["sha256"]
    except (LLMError, OSError, KeyError):
        return False


def _is_of(stopped: StoppedRun, metadata: Mapping[str, str]) -> bool:
    record = TrainingRecord.parse(metadata["training.json"])
    identity = stopped.identity
    documents = [(file.name, file.bytes, file.sha256) for file in record.corpus]
    base = record.base
    base_option = str(identity.get("--from") or "")
    return bool(
        record.train  # a resumed run may have a different number of threads
        and record.train.document | {"threads": None} == as_record(stopped.plan.train) | {"threads": None}
        and metadata.get("tokenizer.json", stopped.tokenizer_json)
        == stopped.tokenizer_json  # adapters have none
        and text_fingerprint(documents) == identity.get("the text")
        and (base is None) == (not base_option)
        and (base is None or f"(sha256 {base.sha256[:16]})" in base_option)
        and not (record.adapter or record.average_of)  # merged or averaged by another command
        and "quantization" not in metadata
    )
