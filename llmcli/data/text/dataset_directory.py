"""Directories that hold a data set: cloned from the Hugging Face hub, or saved by `datasets.save_to_disk`.

Their rows are the text. Descriptions and licenses are not, and the rows of other splits than `train` are held out
(https://huggingface.co/docs/datasets/repository_structure).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmcli.data.text.file_types import is_hidden, unpacked_name

_ROWS = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_CARD_KEYS = re.compile(r"(?:dataset_info|configs|task_categories|size_categories|pretty_name):")
_CARD_LINES = 200  # of a README that are searched for keys
# the words by which the library `datasets` tells splits apart
_VALIDATION, _TEST = "validation|valid|dev|val", "test|testing|eval|evaluation"


@dataclass(frozen=True)
class DatasetDirectory:
    """The files of a data set."""

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]  # the validation split, or else the test split
    unused: tuple[Path, ...]  # the test split beside a validation split
    others: tuple[Path, ...]  # which have no rows


def find_dataset(directory: Path) -> DatasetDirectory | None:
    """Return the files of the data set in a directory; None if it holds other text."""
    if not (_is_saved(directory) or _has_card(directory)):
        return None
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    files = [path for path in files if not is_hidden(path.relative_to(directory).parts)]
    rows = [path for path in files if _suffix(path) in _ROWS and path.name not in _DESCRIPTIONS]
    validation, test = ([path for path in rows if _is_split(path, directory, words)] for words in (_VALIDATION, _TEST))
    training = [path for path in rows if path not in validation and path not in test]
    if not training:
        return None
    others = tuple(path for path in files if path not in rows)
    return DatasetDirectory(tuple(training), tuple(validation or test), tuple(test if validation else ()), others)


def held_out_splits(names: Iterable[str]) -> list[str]:
    """Return the files that the data sets among these names hold out."""
    datasets = [find_dataset(Path(name)) for name in names if Path(name).is_dir()]
    return [str(path) for dataset in datasets if dataset for path in dataset.held_out]


def _is_saved(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("state.json", "dataset_dict.json")) and any(
        directory.rglob("*.arrow")
    )


def _has_card(directory: Path) -> bool:
    """Return whether the directory has the README of a data set: its first lines are YAML with a key of data sets."""
    try:
        with (directory / "README.md").open(encoding="utf-8", errors="replace") as card:
            if card.readline().strip() != "---":
                return False
            lines = [card.readline() for _ in range(_CARD_LINES)]
    except OSError:
        return False
    return any(_CARD_KEYS.match(line) for line in lines)


def _suffix(path: Path) -> str:
    return Path(unpacked_name(path.name)).suffix.lower()


def _is_split(path: Path, directory: Path, words: str) -> bool:
    """Return whether a part of the path, or of the file's name between marks, is one of the words."""
    name = path.relative_to(directory).as_posix().lower()
    return re.search(rf"(?:^|[/_. -])(?:{words})(?=[/_. -])", name) is not None
