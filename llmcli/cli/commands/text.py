"""`llm text`: print the text that training would read from files."""

import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcli.cli.options import InputOptions, argument
from llmcli.cli.terminal import console

if TYPE_CHECKING:
    from llmcli.data.sources import Sources


class _Options(InputOptions):
    files: list[str] = argument(
        "FILE", "Files, directories or globs, as for llm train; - reads standard input.", ...
    )


def text(options: _Options) -> None:
    """A table on standard error shows how each kind of file was read, and what was left out.

    Example: llm text book.txt.gz
    """
    from llmcli.cli.reports.files import files_json, note_skipped_files, show_files
    from llmcli.data.reading_progress import reading_progress
    from llmcli.data.sources import check_reading, read_sources

    reading = options.reading()
    sources = read_sources(options.files, reading, on_read=reading_progress(None, console.note))
    check_reading(reading, [sources])
    if options.json:
        console.json_result(files_json(sources))
        return
    note_skipped_files(sources.text)
    for note in (sources.describe(), *sources.notes):
        console.note(note)
    show_files(sources.records(), (), to_stderr=True)
    last = "\n"
    for name, pieces in _texts(sources):
        if last != "\n":
            console.verbatim("\n")
        if len(options.files) > 1 or sources.text.skipped or len(sources.text.contents) > 1:
            console.note(f"--- {name}")
        for piece in pieces:
            console.verbatim(piece)
            last = piece[-1]
    if last != "\n" and sys.stdout.isatty():
        console.verbatim("\n")


def _texts(sources: "Sources") -> Iterator[tuple[str, Iterator[str]]]:
    """Yield (name of a file, its text in pieces); in conversations, each message begins with its role."""
    for part in sources.text.contents:
        yield part.document.name, part.text()
    for file in sources.conversation_files:
        messages = (
            [f"{message.role}: {message.content}\n" for message in conversation.messages]
            for conversation in file.conversations
        )
        yield file.name, itertools.chain.from_iterable((*lines, "\n") for lines in messages)
