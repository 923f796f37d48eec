"""What --memory shows: passages of a generated text that occur verbatim in the training text of the model."""

from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.cli.options import note_skipped_files
from llmcli.cli.terminal import console

if TYPE_CHECKING:
    from llmcli.evaluation.memorization import VerbatimSpans
    from llmcli.evaluation.training_text import TrainingText
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble

MAX_NAMES = 3  # of training files in a note


def training_texts(names: list[str] | None, source: "Checkpoint | Ensemble", path: Path) -> "list[TrainingText]":
    """What the model was trained on, or each model of an ensemble; or the files of these names instead."""
    from llmcli.data.sources import read_sources
    from llmcli.evaluation.training_text import TrainingText, find_training_texts, names_sources, recorded_reading

    if not names:
        texts, missing = find_training_texts(source.records, path)
        if missing:
            listed = ", ".join(missing[:MAX_NAMES]) + (", ..." if len(missing) > MAX_NAMES else "")
            console.note(f"{path} was also trained on text that is missing or has changed: {listed}")
        return texts
    sources = read_sources(names, recorded_reading(source.records))
    note_skipped_files(sources.text)
    if not any(names_sources(record, sources) for record in source.records):
        console.note(f"{', '.join(names)} is not the training text that {path} records; all of it is searched")
    return [TrainingText.of(sources, source.records)]


def corpus_names(texts: "list[TrainingText]") -> list[str]:
    """The names of the files that are searched."""
    return [name for text in texts for name in text.names]


def note_verbatim(text: str, matches: "VerbatimSpans", names: list[str], advice: str) -> None:
    """Say how much of a text occurs verbatim in the training text; `advice` is what to do about a text that is too
    short."""
    from llmcli.evaluation.memorization import LENGTH

    if len(text) < LENGTH:
        console.note(f"{len(text)} characters are too few: only passages of at least {LENGTH} count{advice}")
        return
    files = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    longest = max((end - start for start, end in matches.spans), default=0)
    console.note(
        f"{matches.share:.0%} of the {len(text):,} characters occur verbatim in {files}, in passages of at least "
        f"{LENGTH} characters" + (f"; the longest has {longest:,}" if longest else "")
    )
