"""Directories that hold a data set: cloned from the Hugging Face hub, or saved by `datasets.save_to_disk`.

The rows are the text; descriptions and licenses are not. Rows of splits other than `train` are held out. A
file belongs to a split if its path names it, or if the data set card (README.md) assigns it
(https://huggingface.co/docs/datasets/repository_structure).
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from llmcli.data.regular_file import open_regular
from llmcli.data.text.file_types import is_hidden, suffix_of

_ROWS = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_CARD_KEYS = re.compile(r"(?:dataset_info|configs|task_categories|size_categories|pretty_name):")
_CARD_BYTES = 1 << 16  # searched at the beginning of a README
_ENTRY = re.compile(r"^ *- (?=\w+:)|\{", re.MULTILINE)  # begins a mapping in a list of YAML
_SPLIT = re.compile(r"\bsplit:\s*[\"']?(\w+)")
_WORD = re.compile(r"[^\s\"',{}]+")
# the words that identify splits in the library `datasets`
_TRAIN = "train|training"
_VALIDATION = "validation|valid|dev|val"
_TEST = "test|testing|eval|evaluation"
# the splits of a data set; other text belongs to TRAINING
TRAINING = "training"
HELD_OUT = "held out"  # the validation split, or else the test split
UNUSED = "unused"  # the test split if there is also a validation split
ALL_SPLITS = (TRAINING, HELD_OUT, UNUSED)
_Row = TypeVar("_Row", Path, str)


def visible_files(directory: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """List the entries of a directory that are neither hidden nor generated, in order. Returns (files, links
    to a directory or to nothing, which are not followed, names that cannot be opened)."""
    visible = [
        path for path in sorted(directory.rglob("*")) if not is_hidden(path.relative_to(directory).parts)
    ]
    files = list[Path]()
    links = list[Path]()
    closed = list[Path]()
    for path in visible:
        try:
            if path.is_file():
                files.append(path)
            elif path.is_symlink():
                links.append(path)
            elif not (path.is_dir() and os.access(path, os.R_OK | os.X_OK)):
                closed.append(path)
        except PermissionError:  # its directory cannot be entered
            closed.append(path)
    return files, links, closed


def find_dataset(directory: Path, files: Sequence[Path]) -> dict[Path, str] | None:
    """Return the split of each file of rows in a directory with these `visible_files`; None if it is not a
    data set."""
    rows = [path for path in files if suffix_of(path.name) in _ROWS and path.name not in _DESCRIPTIONS]
    if not rows:
        return None
    card = _card(directory)
    assigned = list(_splits_in(card))
    names = {path: _with_splits(path.relative_to(directory).as_posix(), assigned) for path in rows}
    is_known = bool(card) or _is_saved(directory, rows)
    splits = _splits_of(names, is_known=is_known)
    if not splits and not is_known:
        return None
    splits = splits or dict.fromkeys(rows, TRAINING)
    # an empty file holds out nothing
    return {row: split for row, split in splits.items() if split != HELD_OUT or row.stat().st_size}


def archive_splits(members: Sequence[str]) -> dict[str, str]:
    """Return the split of each file of rows in an archive with these paths, if one is for training and
    another is not; nothing for another archive."""
    return _splits_of({member: f"{member}/" for member in members if suffix_of(member) in _ROWS})


def _splits_of(names: Mapping[_Row, str], *, is_known: bool = False) -> dict[_Row, str]:
    """Return the split of each file of rows, given its name; nothing if none is for training beside another
    one. Unless the data set `is_known`, the names must include one of a split for training."""
    train, validation, test = (_named(names, split) for split in (_TRAIN, _VALIDATION, _TEST))
    held_out = validation or test
    splits = dict.fromkeys(names, TRAINING) | dict.fromkeys(test, UNUSED) | dict.fromkeys(held_out, HELD_OUT)
    is_divided = held_out and TRAINING in splits.values() and (train or is_known)
    return splits if is_divided else {}


def _is_saved(directory: Path, rows: Iterable[Path]) -> bool:
    """Return whether `datasets.save_to_disk` wrote the directory."""
    is_described = any((directory / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return is_described and any(path.suffix == ".arrow" for path in rows)


def _card(directory: Path) -> str:
    """Return the YAML at the beginning of a data set's README; "" if it has no keys of a data set card."""
    try:
        with open_regular(directory / "README.md") as card:
            first, *lines = card.read(_CARD_BYTES).decode("utf-8", "replace").splitlines() or [""]
    except OSError:
        return ""
    end = next((number for number, line in enumerate(lines) if line.strip() == "---"), len(lines))
    is_card = first.strip() == "---" and any(map(_CARD_KEYS.match, lines[:end]))
    return "\n".join(lines[:end]) if is_card else ""


def _splits_in(card: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each split that a card names, with the patterns of its files (and other words, which match no
    file)."""
    for entry in _ENTRY.split(card):
        if split := _SPLIT.search(entry):
            words = (word.strip("[]").removeprefix("./") for word in _WORD.findall(entry))
            yield split[1], [word.replace("**/", "*") for word in words]


def _with_splits(name: str, assigned: Iterable[tuple[str, list[str]]]) -> str:
    """Return a file's path, followed by the splits that a card assigns it to, as additional parts."""
    splits = (split for split, words in assigned if any(fnmatch.fnmatchcase(name, word) for word in words))
    return "/".join([name, *splits, ""])


def _named(names: Mapping[_Row, str], words: str) -> list[_Row]:
    """Return the files with one of the words as a part of the name, or between separators of a part."""
    named = re.compile(rf"(?:^|[/_. -])(?:{words})(?=[/_. -])")
    return [row for row, name in names.items() if named.search(name.lower())]
