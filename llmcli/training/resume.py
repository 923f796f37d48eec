"""What a stopped run needs to go on, as a second safetensors file beside the model.

The file is complete in itself: the plan, the tokenizer, what the run was asked (its identity), and the state it had
after a step. Data order and dropout are functions of (seed, step), so that no random state is kept. Knows numpy, not
torch; who trains says what a state is.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llmcli.config import TrainConfig, as_record
from llmcli.errors import LLMError
from llmcli.formats.hf_config import dump_config, parse_config
from llmcli.formats.safetensors_file import Header, digest, read_header, read_tensor, write_tensors
from llmcli.training.plan import Plan, PlanRow

FORMAT_VERSION = "1"
FIRST_KEPT, MOST_APART = 2.0, 60.0  # seconds: when, and how far apart, a running run is written down ...
MARKED = 1 << 16  # bytes at the beginning of such a file that tell what it is
KEPT_SHARE = 50  # ... and at least so many times as far apart as that takes
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # in a directory of PEFT's
_MODEL, _ENDS = ".safetensors", (".resume.safetensors", ".resume")  # of the names of models, and of files kept here


@dataclass(frozen=True)
class State:
    """A run after a step: arrays by name, and figures that JSON can hold."""

    arrays: Mapping[str, NDArray[Any]]
    figures: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.figures["step"])


@dataclass(frozen=True)
class Stopped:
    """A run that can go on."""

    identity: dict[str, Any]  # what was asked, of what, with what; JSON
    plan: Plan
    tokenizer_json: str
    state: State


def path_beside(model: Path) -> Path:
    """Where what a run that makes `model` needs is kept: beside the file itself, where that is a symbolic link's, and
    under a name that no other model's run has.

    >>> path_beside(Path("a/model.safetensors")).name, path_beside(Path("a/model")).name
    ('model.resume.safetensors', 'model.resume')
    """
    model = model.resolve() if model.is_symlink() else model
    with_suffix, without = _ENDS
    name = model.name.removesuffix(_MODEL)
    return model.with_name(name + (with_suffix if model.name.endswith(_MODEL) else without))


def check_name(model: Path) -> None:
    """Raises LLMError for the name of a model that a run of another one may use for what it keeps."""
    if model.name.endswith(_ENDS):
        raise LLMError(f"{model}: such names are those of what stopped runs need to go on; give another -o")


def is_ours(path: Path) -> bool:
    """Whether a file is what a run left, be it damaged: nothing else may be replaced or removed."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return b'"llmcli.resume"' in file.read(MARKED)
    except OSError:
        return False


def save(path: Path, stopped: Stopped) -> None:
    """Write it; old or new, never half. Raises LLMError when the disk refuses."""
    plan = stopped.plan
    metadata = {
        "llmcli.resume": FORMAT_VERSION,
        "identity": json.dumps(stopped.identity, ensure_ascii=False),
        "config.json": dump_config(plan.model),
        "train": json.dumps(as_record(plan.train)),
        "choices": json.dumps([as_record(row) for row in plan.rows], ensure_ascii=False),
        "tokenizer.json": stopped.tokenizer_json,
        "figures": json.dumps(stopped.state.figures),
    }
    write_tensors(path, stopped.state.arrays, metadata)


def load(path: Path) -> Stopped:
    """Read it whole and check its hash. Raises LLMError when it is damaged or not such a file."""
    try:
        header = read_header(path)
    except LLMError as error:
        raise LLMError(f"{error}; begin anew with --force") from error
    found = header.metadata
    if found.get("llmcli.resume") != FORMAT_VERSION:
        raise LLMError(f"{path} is not what a stopped run left; move it away, or begin anew with --force")
    if digest(header) != found.get("sha256"):
        raise LLMError(f"{path} is damaged: its hash is another; begin anew with --force")
    try:
        plan = Plan(
            parse_config(found["config.json"]),
            TrainConfig(**json.loads(found["train"])),
            tuple(PlanRow(**row) for row in json.loads(found["choices"])),
        )
        identity, settings = json.loads(found["identity"]), plan.train
        if settings.context > plan.model.max_position_embeddings:
            raise ValueError(f"windows of {settings.context:,} tokens do not fit its model")
        asked = identity.get("--threads", settings.threads), identity.get("--steps", settings.steps)
        if asked != (settings.threads, settings.steps):
            raise ValueError("its plan is not that of its command")
        arrays = {name: read_tensor(header, tensor) for name, tensor in header.tensors.items()}
        return Stopped(identity, plan, found["tokenizer.json"], State(arrays, json.loads(found["figures"])))
    except (AttributeError, KeyError, ValueError, TypeError, OverflowError, LLMError) as error:
        raise LLMError(f"{path} is damaged: {error}; begin anew with --force") from error


def text_fingerprint(documents: Iterable[tuple[str, int, str]]) -> str:
    """What stands for a text in the identity of a run; its documents are (name of the file, bytes, sha256)."""
    documents = list(documents)
    names = json.dumps([[name, sha256] for name, _, sha256 in documents])
    files = "1 file" if len(documents) == 1 else f"{len(documents):,} files"
    size = sum(size for _, size, _ in documents)
    return f"{files} of {size:,} bytes (sha256 {hashlib.sha256(names.encode('utf-8')).hexdigest()[:16]})"


def is_saved_in(stopped: Stopped, model: Path) -> bool:
    """Whether a model, or adapters alone (a file, or PEFT's directory), is what the stopped run has saved when it was
    stopped, or just before it was killed, and has not been changed since: the whole of it is read, whatever its
    size."""
    try:
        header = read_header(model / ADAPTER_FILE if model.is_dir() else model)
        return _is_of(stopped, header.metadata) and _is_unchanged(header) and _holds_no_more(model, header.metadata)
    except (LLMError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return False


def _is_of(stopped: Stopped, metadata: Mapping[str, str]) -> bool:
    """Whether a run, by what a file says of its own origin, is this one."""
    record, identity = json.loads(metadata["training.json"]), stopped.identity
    documents = [(d["name"], d["bytes"], d["sha256"]) for d in record["corpus"]]
    base, named = record.get("base"), str(identity.get("--from") or "")
    return bool(
        record["train"] == as_record(stopped.plan.train)
        and metadata.get("tokenizer.json", stopped.tokenizer_json) == stopped.tokenizer_json  # adapters have none
        and text_fingerprint(documents) == identity.get("the text")
        and (base is None) == (not named)
        and (base is None or base["sha256"][:16] in named)
        and not record.keys() & {"adapter", "average_of"}  # what other commands make of a model
        and "quantization" not in metadata
    )


def _is_unchanged(header: Header) -> bool:
    return digest(header) == header.metadata["sha256"]


def _holds_no_more(model: Path, metadata: Mapping[str, str]) -> bool:
    """Whether a directory has the file of adapters, their config as that file has it, and nothing else."""
    if not model.is_dir():
        return True
    config = model / ADAPTER_CONFIG
    names = {path.name for path in model.iterdir()}
    return names == {ADAPTER_FILE, ADAPTER_CONFIG} and config.read_text("utf-8") == metadata[ADAPTER_CONFIG]


class Keeper:
    """Writes a run down now and then: soon at first, then each minute, and so that it costs a fiftieth of the time."""

    def __init__(
        self, path: Path, identity: dict[str, Any], plan: Plan, tokenizer_json: str, tell: Callable[[str], None]
    ) -> None:
        self._path, self._identity, self._plan, self._tokenizer_json = path, identity, plan, tokenizer_json
        self._tell: Callable[[str], None] | None = tell
        self._pause = FIRST_KEPT
        self._next = time.monotonic() + self._pause

    @property
    def resumable(self) -> bool:
        """Whether a run that is stopped now can go on: the disk took what it needs."""
        return self._tell is not None

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def keep(self, state: State) -> None:
        """A disk that refuses is told once; the run goes on."""
        began = time.monotonic()
        try:
            if os.path.exists(self._path) and not is_ours(self._path):  # noqa: PTH110 (Path.exists may raise)
                raise LLMError(f"{self._path} was made by another program meanwhile; it is left alone")
            save(self._path, Stopped(self._identity, self._plan, self._tokenizer_json, state))
        except LLMError as error:
            if self._tell:
                self._tell(f"{error}; if this run is stopped it cannot go on from here")
            self._tell = None
        now = time.monotonic()
        self._pause = max(min(2 * self._pause, MOST_APART), KEPT_SHARE * (now - began))
        self._next = now + self._pause


def check_same(stopped: Stopped, identity: Mapping[str, Any], path: Path) -> None:
    """Raises LLMError, which tells what differs, when a stopped run was another than this one."""
    found = differences(stopped.identity, json.loads(json.dumps(identity)))
    if found:
        raise LLMError(
            f"{path} is of a run that stopped at step {stopped.state.step:,}, and of another kind: "
            f"{'; '.join(found)}; give the same to go on, --force to begin anew, or another -o"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of an identity is another, a phrase each."""
    return [
        f"{key} was {_said(before.get(key))}, is {_said(now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def _said(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
