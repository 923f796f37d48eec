"""Tables of the files that were read, by kind, and notes on skipped files."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.terminal import console, tables
from llmcli.errors import with_options

if TYPE_CHECKING:
    from llmcli.data.sources import Sources
    from llmcli.data.text.corpus import Corpus

MAX_ROWS = 10
MAX_NOTES = 5


def note_skipped_files(corpus: "Corpus") -> None:
    """Note which files in directories were not read, and why."""
    for line in corpus.skipped[:MAX_NOTES]:
        console.note(f"skipped: {line}")
    if (more := len(corpus.skipped) - MAX_NOTES) > 0:
        console.note(f"skipped: {units.count(more, 'more kind')} of files; to list all: llm text --json")


def files_json(sources: "Sources") -> dict[str, Any]:
    """Return the files that were read, and a line for each that was not, with the reason."""
    return {"documents": sources.records(), "not_read": _with_options(sources.text.not_read)}


def _with_options(lines: Iterable[str]) -> list[str]:
    return [with_options(line, console.settings.options) for line in lines]


def show_files(records: Iterable[dict[str, Any]], skipped: Sequence[str], *, to_stderr: bool = False) -> None:
    """Print a table of files, given as `Sources.records`."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        encoding = f", {record['encoding']}" if "encoding" in record else ""
        kinds.setdefault(f"{record['kind']}{encoding}", []).append(record)
    rows = [(kind, *_totals(files)) for kind, files in kinds.items()]
    rows += [("not read", "", "", "", reason) for reason in _with_options(skipped)]
    columns = ("kind", "documents", "bytes", "characters", "not read")
    tables.table(columns, rows[:MAX_ROWS], numbers=(1, 2, 3), to_stderr=to_stderr)
    if len(rows) > MAX_ROWS:
        console.note(f"{len(rows) - MAX_ROWS:,} more rows; to list all files: --json")


def _totals(files: list[dict[str, Any]]) -> tuple[str, str, str, str]:
    skipped: Counter[str] = Counter()
    for file in files:
        for part in file.get("skipped", ()):
            skipped[part["reason"]] += part["count"]
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in skipped.items())
    sums = (sum(file[key] for file in files) for key in ("bytes", "characters"))
    return (f"{len(files):,}", *(f"{total:,}" for total in sums), reasons)  # type: ignore[return-value]
