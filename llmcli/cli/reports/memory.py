"""The output of --memory: passages in a generated text that occur verbatim in the training text."""

from pathlib import Path
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports.files import note_skipped_files
from llmcli.cli.reports.tokens import with_highlights
from llmcli.cli.terminal import console

if TYPE_CHECKING:
    from llmcli.evaluation.memorization import VerbatimSpans
    from llmcli.evaluation.training_text import TrainingText
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble

MAX_NAMES = 3  # training files listed in a note


def training_texts(
    names: list[str] | None, source: "Checkpoint | Ensemble", path: Path, *, whole: bool = False
) -> "list[TrainingText]":
    """Find a model's training text (with the held-out part if `whole`); if files are named, read them
    instead."""
    from llmcli.data.sources import read_sources
    from llmcli.evaluation.training_text import (
        TrainingText,
        find_training_texts,
        names_sources,
        recorded_reading,
    )

    if not names:
        texts, missing = find_training_texts(source.records, path, whole=whole)
        if missing:
            listed = units.listed(missing, MAX_NAMES)
            console.note(f"{path} was also trained on text that is missing or has changed: {listed}")
        return texts
    sources = read_sources(names, recorded_reading(source.records))
    note_skipped_files(sources.text)
    if not any(names_sources(record, sources) for record in source.records):
        console.note(
            f"{', '.join(names)} is not the training text in the record of {path}; all of it is searched"
        )
    return [TrainingText.of(sources, source.records, whole=whole)]


def print_memory(text: str, matches: "VerbatimSpans", names: list[str]) -> None:
    """Print a text with its verbatim passages marked, then their share. `names` are the training files."""
    from llmcli.evaluation.memorization import LENGTH

    with_highlights(text, matches.spans)
    console.result()
    if len(text) < LENGTH:
        console.note(
            f"{len(text)} characters are too few: only passages of at least {LENGTH} count; use a larger -n"
        )
        return
    longest = max((end - start for start, end in matches.spans), default=0)
    console.note(
        f"{matches.share:.0%} of the {len(text):,} characters occur verbatim in "
        f"{units.listed(names, MAX_NAMES)}, in passages of at least {LENGTH} characters"
        f"{f'; the longest has {longest:,}' if longest else ''}"
    )
