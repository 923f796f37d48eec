"""All training stages of a model: its own run, the runs of its base models, and the fit of its n-gram cache.

A training record lists the stages before its own run in `earlier_stages`. Each has the keys of a record that
describe the training data, so it can be read like a record. An exported model has no record, but has the
stages in its metadata.
"""

import itertools
import json
from collections.abc import Iterable

from llmcli.errors import LLMError
from llmcli.formats.metadata import Json, read_as
from llmcli.formats.training_record import Stage, TrainingRecord

Entry = Json  # a stage as JSON

BASE = "base model"
AVERAGE = "averaged model"
CACHE = "n-gram cache"
EXPORTED = "exported model"
METADATA_KEY = "llmcli.earlier_stages"  # key in an exported model
MAX_CHARACTERS = 1_000_000  # length of that entry: very long lists of files are left out
_DESCRIPTIONS = {
    BASE: "in its base model, {}",
    AVERAGE: "in {}, one of the averaged models",
    CACHE: "to fit its n-gram cache",
    EXPORTED: "before it was exported, in {}",
}
_KEYS = ("corpus", "train_bytes", "held_out", "conversations", "reading")  # kept for a stage


def all_stages(records: Iterable[TrainingRecord]) -> list[Stage]:
    """List the stages of several models."""
    return [stage for record in records for stage in record.stages]


def describe(stage: Stage) -> str:
    """Describe an earlier stage for messages; "" for the run that made the model."""
    return _DESCRIPTIONS.get(stage.stage, "").format(stage.file)


def as_earlier(record: TrainingRecord, stage: str, file: str) -> list[Entry]:
    """Return a model's stages as the earlier stages of a model made from it; `stage` is its role, `file` its
    name."""
    earlier: list[Entry] = []
    for trained in record.stages:
        entry = trained.document
        if not trained.stage:
            kept = {key: entry[key] for key in _KEYS if entry.get(key)}
            if "conversations" in kept:
                shares = ((key, kept["conversations"].get(key)) for key in ("held_out_share", "repeated"))
                kept["conversations"] = {key: value for key, value in shares if value}
            if "held_out" in kept:
                kept["held_out"] = {key: value for key, value in kept["held_out"].items() if key == "files"}
            entry = {"stage": stage, "file": file, **kept}
        if trained.corpus:
            earlier.append(entry)
    return earlier


def cache_stage(name: str, size: int, sha256: str) -> Entry:
    """Return the stage of fitting an n-gram cache on a text."""
    return {
        "stage": CACHE,
        "file": name,
        "corpus": [{"name": name, "bytes": size, "sha256": sha256, "held_out": 0}],
    }


def to_metadata(record: TrainingRecord, file: str) -> dict[str, str]:
    """Return the metadata entry for an exported model named `file`: the names and sizes of the files, but no
    hashes, directories or web addresses. {} if nothing is known."""
    stages = [
        {
            "stage": stage.stage or EXPORTED,
            "file": stage.file or file,
            "corpus": [{"name": name, "bytes": size} for name, size in stage.sizes.items()],
        }
        for stage in record.stages
        if stage.corpus
    ]
    text = json.dumps(stages, ensure_ascii=False, separators=(",", ":"))
    return {METADATA_KEY: text} if 2 < len(text) <= MAX_CHARACTERS else {}


def from_metadata(text: object) -> dict[str, list[Entry]]:
    """Parse the text written by `to_metadata` into an entry of a record; {} for anything else."""
    try:
        entries = json.loads(text) if isinstance(text, str) and len(text) <= MAX_CHARACTERS else []
        return joined(read_as(tuple[Json, ...], entries))
    except (ValueError, RecursionError, LLMError):
        return {}


def joined(*lists: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Join lists of earlier stages into an entry of a record, without repetition; {} if there are none."""
    by_content: dict[str, Entry] = {}
    for stage in itertools.chain(*lists):
        by_content.setdefault(repr([stage.get(key) for key in _KEYS]), stage)
    return {"earlier_stages": list(by_content.values())} if by_content else {}
