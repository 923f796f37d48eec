"""The text of all training stages of a model: its own run, the models that it was made from, and its n-gram cache.

A training record lists the stages before its own run in `earlier_stages`, each with the keys of a record that say what
was trained on, so that a stage can be read like a record. An exported model has no record, and carries them in its
metadata.
"""

import json
from collections.abc import Iterable
from typing import Any

Record = dict[str, Any]  # of a training run: training.json in the file of a model

BASE, AVERAGE, CACHE, EXPORTED = "base model", "averaged model", "n-gram cache", "exported model"
METADATA_KEY = "llmcli.earlier_stages"  # in the files of an exported model
MAX_CHARACTERS = 1_000_000  # of that entry: the names of very many files are left out
_DESCRIPTIONS = {
    BASE: "in its base model, {}",
    AVERAGE: "in {}, one of the models of which it is the average",
    CACHE: "to fit its n-gram cache",
    EXPORTED: "before it was exported, in {}",
}
_KEYS = ("corpus", "train_bytes", "held_out", "conversations")  # of a stage


def stages(record: Record) -> list[Record]:
    """The run of a record, and the earlier stages; only these for an averaged model, which has no run of its own."""
    earlier = record.get("earlier_stages")
    listed = [one for one in earlier if isinstance(one, dict)] if isinstance(earlier, list) else []
    if listed and "average_of" in record:
        return listed
    return [{key: value for key, value in record.items() if key != "earlier_stages"}, *listed]


def all_stages(records: Iterable[Record]) -> list[Record]:
    """The stages of several models."""
    return [stage for record in records for stage in stages(record)]


def describe(stage: Record) -> str:
    """The place of an earlier stage, for messages; "" for the run that made the model."""
    return _DESCRIPTIONS.get(str(stage.get("stage")), "").format(stage.get("file"))


def as_earlier(record: Record, stage: str, file: str) -> list[Record]:
    """The stages of a model, as earlier ones of a model made from it. `stage` is its role there, `file` its name."""
    earlier = []
    for one in stages(record):
        if "stage" not in one:
            kept = {key: one[key] for key in _KEYS if one.get(key)}
            if "conversations" in kept:
                kept["conversations"] = {"held_out_share": kept["conversations"].get("held_out_share")}
            if "held_out" in kept:
                kept["held_out"] = {key: value for key, value in kept["held_out"].items() if key == "files"}
            one = {"stage": stage, "file": file, **kept}
        if one.get("corpus"):
            earlier.append(one)
    return earlier


def cache_stage(name: str, size: int, sha256: str) -> Record:
    """The stage of fitting an n-gram cache on a text."""
    return {"stage": CACHE, "file": name, "corpus": [{"name": name, "bytes": size, "sha256": sha256, "held_out": 0}]}


def to_metadata(record: Record, file: str) -> dict[str, str]:
    """The metadata of an exported model called `file`; {} if nothing is known."""
    text = json.dumps(as_earlier(record, EXPORTED, file), ensure_ascii=False, separators=(",", ":"))
    return {METADATA_KEY: text} if 2 < len(text) <= MAX_CHARACTERS else {}


def from_metadata(text: object) -> dict[str, list[Record]]:
    """An entry of a record from the text that `to_metadata` wrote; {} for anything else."""
    try:
        found = json.loads(text) if isinstance(text, str) and len(text) <= MAX_CHARACTERS else []
    except (ValueError, RecursionError):
        return {}
    return joined(found) if isinstance(found, list) and all(isinstance(one, dict) for one in found) else {}


def joined(*lists: list[Record]) -> dict[str, list[Record]]:
    """Several lists of earlier stages as an entry of a record, without repetition; {} if there are none."""
    by_content: dict[str, Record] = {}
    for stage in (one for stages in lists for one in stages):
        by_content.setdefault(repr([stage.get(key) for key in _KEYS]), stage)
    return {"earlier_stages": list(by_content.values())} if by_content else {}
