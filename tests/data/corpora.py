"""Helpers for tests that read a corpus."""

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

import pytest

from llmcli.data import sources
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.files import ConversationFile
from llmcli.data.text.corpus import Corpus, FoundFile
from llmcli.errors import LLMError

# of a run that takes a second
SMALL = ("--steps", 2, "--layers", 1, "--width", 16, "--context", 32, "--batch-tokens", 64, "--threads", 1)


def read_corpus(names: Iterable[str], stdin: IO[bytes] | None = None, encoding: str = "") -> Corpus:
    """The whole text of files, without looking for records and markup."""
    with contextlib.ExitStack() as stack:
        if stdin:
            stack.enter_context(mock.patch("sys.stdin", SimpleNamespace(buffer=stdin)))
        # also texts that are the same
        stack.enter_context(mock.patch.object(sources, "_without_duplicates", lambda documents: (documents, [])))
        return sources.read_sources(names, ReadOptions(plain=True, encoding=encoding)).text


def read_conversations(name: str, reading: ReadOptions = ReadOptions()) -> ConversationFile | None:  # noqa: B008
    """The conversations in one file; None for other text."""
    contents, _ = sources._read_files([FoundFile(name, Path(name), name, is_required=True)], reading)
    return next((file for file in contents if isinstance(file, ConversationFile)), None)


def error_of(call: Callable[..., object], *arguments: object, exit_code: int = 1, **options: object) -> str:
    """The message, one line, of the error that a call ends with."""
    with pytest.raises(LLMError) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code and "\n" not in str(caught.value)
    return str(caught.value)


def joined(corpus: Corpus, start: int = 0, end: int | None = None) -> str:
    return "".join(part for text in corpus.cut(start, end).texts() for part in text)


def put(name: str, data: bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def corpus_of(*texts: str) -> Corpus:
    """Of files 0.txt, 1.txt and so on."""
    return read_corpus([put(f"{i}.txt", text.encode()) for i, text in enumerate(texts)])


def names(corpus: Corpus) -> list[str]:
    return [document.name for document in corpus.documents]


class FullDisk(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def zstd(data: bytes) -> bytes:
    packed: bytes = pytest.importorskip("backports.zstd", exc_type=ImportError).compress(data)
    return packed


def write_parquet(name: str, records: list[dict[str, Any]]) -> bytes:
    """A table of these rows as a Parquet file; returns its bytes."""
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    parquet.write_table(pyarrow.Table.from_pylist(records), name)
    return Path(name).read_bytes()
