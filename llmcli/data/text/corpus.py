"""The corpus: documents, or parts of them, in order, found by the names of files, directories and glob patterns.

Text comes in pieces, so a corpus may be larger than memory.
"""

import bisect
import errno
import glob
import itertools
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from llmcli.data.text.documents import STANDARD_INPUT, Document, describe_binary_file, display_name, read_document
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy
from llmcli.errors import LLMError

GENERATED_DIRECTORIES = ("__pycache__", "node_modules")  # by tools, not written by anybody
SAMPLE_SPANS = 64  # number of spans that `Corpus.sample` takes from a long text


@dataclass(frozen=True)
class Part:
    """A document, or the bytes of its UTF-8 text from `start` to `end`."""

    document: Document
    start: int
    end: int

    @property
    def text_bytes(self) -> int:
        return self.end - self.start

    def text(self) -> Iterator[str]:
        """In pieces; see `Document.text`."""
        return self.document.text(self.start, self.end)


@dataclass(frozen=True)
class Corpus:
    """Texts in order, each a document or a part of one. A position in a corpus is a byte position in its UTF-8 text."""

    contents: tuple[Part, ...]
    skipped: tuple[str, ...] = ()  # why files found in directories were skipped, one line each

    @classmethod
    def of(cls, documents: Iterable[Document], skipped: Iterable[str] = ()) -> "Corpus":
        """Whole documents; empty ones are left out."""
        return cls(tuple(Part(one, 0, one.text_bytes) for one in documents if one.text_bytes), tuple(skipped))

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """Those that the texts are of."""
        return tuple(part.document for part in self.contents)

    @property
    def text_bytes(self) -> int:
        """Size of the text in UTF-8."""
        return self._ends[-1] if self._ends else 0

    @cached_property
    def _ends(self) -> list[int]:
        """The position at the end of each text."""
        return list(itertools.accumulate(part.text_bytes for part in self.contents))

    def texts(self, start: int = 0, end: int | None = None) -> Iterator[Iterator[str]]:
        """The text between two positions, document by document, each in pieces.

        A position inside a character is moved to the end of that character.
        """
        for part in self.parts(start, end):
            yield part.text()

    def parts(self, start: int = 0, end: int | None = None) -> Iterator[Part]:
        """What lies between two positions, document by document."""
        end = self.text_bytes if end is None else end
        for index in range(bisect.bisect_right(self._ends, start), len(self.contents)):
            part = self.contents[index]
            first = self._ends[index] - part.text_bytes
            if first >= end:
                return
            yield Part(
                part.document, part.start + max(0, start - first), part.start + min(end - first, part.text_bytes)
            )

    def cut(self, start: int, end: int) -> "Corpus":
        """What lies between two positions."""
        return Corpus(tuple(self.parts(start, end)))

    def utf8(self, start: int = 0, end: int | None = None) -> bytes:
        """The text between two positions as UTF-8, its documents joined, in memory."""
        return b"".join(piece.encode("utf-8") for text in self.texts(start, end) for piece in text)

    def sample(self, max_bytes: int) -> Iterator[Iterator[str]]:
        """The text; of more than `max_bytes`, SAMPLE_SPANS evenly spaced spans of about that size in total."""
        for part in self.sample_parts(max_bytes):
            yield part.text()

    def sample_parts(self, max_bytes: int) -> Iterator[Part]:
        """What `sample` reads."""
        if self.text_bytes <= max_bytes:
            yield from self.contents
            return
        span = max(1, max_bytes // SAMPLE_SPANS)
        for first in np.linspace(0, self.text_bytes - span, SAMPLE_SPANS).astype(np.int64).tolist():
            yield from self.parts(first, first + span)


def read_corpus(
    names: Iterable[str],
    stdin: IO[bytes] | None = None,
    copy: TextCopy | None = None,
    *,
    takes: Callable[[str, Path, TextCopy], Document | bool] | None = None,
    on_read: Callable[[str, int], None] = lambda name, size: None,
) -> Corpus:
    """Find and check every file. `names` are files, directories (all text files inside), glob patterns, or "-" for
    standard input.

    Each file is read to its end once: UTF-8 with or without a byte-order mark, UTF-16 with one, and either in gzip.
    What is not plain UTF-8 in a file is decoded into `copy`, a temporary file that several calls may share.
    A file that is not text raises LLMError if it was named, and is listed in `skipped` if a directory contained it; so
    is one for which `takes` raises LLMError. `takes` is called with the name and path of each file, and `copy`. It
    returns the text that the file is to be read as, or whether the caller reads that file itself; if it takes all of
    them, the corpus is empty. `on_read` is that of `read_document`.
    """
    names = list(names)
    documents: list[Document] = []
    skipped: list[str] = []
    not_read: dict[str, list[str]] = {}  # suffix of files in directories -> why each of them is not read
    seen: set[Path] = set()
    taken = False
    copy = copy or TextCopy()
    for name, path, relative, was_named in _find_files(names):
        if path.resolve() in seen:
            skipped.append(f"{name} was named before; it is read once")
            continue
        seen.add(path.resolve())
        try:
            found = takes(name, path, copy) if takes and name != "-" else False
            if found is True:
                taken = True
                continue
            document = found or _read_file(name, path, stdin, copy, on_read)
            documents.append(replace(document, relative_name=relative))
        except ReadingEndsError:
            raise
        except LLMError as error:
            if was_named:
                raise
            not_read.setdefault(path.suffix.lower(), []).append(str(error))
    if not taken:
        _check_has_text(names, documents, [*skipped, *itertools.chain(*not_read.values())])
    skipped += [_skipped_line(suffix, problems) for suffix, problems in not_read.items()]
    return Corpus.of(documents, skipped)


def _skipped_line(suffix: str, problems: list[str]) -> str:
    """One line for all files with a suffix.

    >>> _skipped_line(".pyc", ["a.pyc is not text", "b.pyc is not text"])
    '2 .pyc files; the first: a.pyc is not text'
    """
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems):,} {suffix or 'other'} files; the first: {problems[0]}"


def _read_file(
    name: str, path: Path, stdin: IO[bytes] | None, copy: TextCopy, on_read: Callable[[str, int], None]
) -> Document:
    """Raises LLMError for a file that is not text; the message says what it is if that is recognized."""
    stream = (stdin or sys.stdin.buffer) if name == "-" else None
    try:
        return read_document(display_name(name), path, stream, copy, on_read)
    except ReadingEndsError:
        raise
    except LLMError as error:
        description = None if stream else describe_binary_file(display_name(name), path)
        raise LLMError(description or str(error), error.exit_code) from error


def _check_has_text(names: list[str], documents: list[Document], skipped: list[str]) -> None:
    if not documents:
        details = f" ({len(skipped)} files there were skipped; the first: {skipped[0]})" if skipped else ""
        raise LLMError(f"no text found in {', '.join(names)}{details}; name a text file")
    if not any(document.text_bytes for document in documents):
        raise LLMError(f"{documents[0].name} is empty; name a file that contains text")


def _find_files(names: Iterable[str]) -> Iterator[tuple[str, Path, str, bool]]:
    """(name to show, path, relative name, whether the user named the file itself) of each file; those in a directory
    are sorted."""
    for name in names:
        if not name:
            raise LLMError("the name of a text is empty; name a text file, a directory, a pattern or -")
        path = Path(name)
        _check_name_length(name, path)
        if name == "-" or path.exists():
            yield from _files_of(name, path, path if path.is_dir() else path.parent)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise LLMError(f"nothing matches {name}; name a text file, a directory or a pattern")
            for match in matches:
                yield from _files_of(match, Path(match), _without_pattern(path))
        else:
            download = f"; this program downloads nothing, get it first: curl -LO {name}" if "://" in name else ""
            raise LLMError(f"there is no file or directory {name}{download}")


def _files_of(name: str, path: Path, root: Path) -> Iterator[tuple[str, Path, str, bool]]:
    """A file, or the files in a directory, with their names relative to `root`."""
    if name == "-":
        yield name, path, STANDARD_INPUT, True
    elif path.is_dir():
        for file in _files_inside(path):
            yield str(file), file, _relative_name(file, root), False
    else:
        yield name, path, _relative_name(path, root), True


def _relative_name(path: Path, root: Path) -> str:
    """The same on every system, wherever `root` is."""
    return unicodedata.normalize("NFC", display_name(path.relative_to(root).as_posix()))


def _without_pattern(path: Path) -> Path:
    """The directory in which a glob pattern begins.

    >>> _without_pattern(Path("docs/2024/*/a?.md")).as_posix()
    'docs/2024'
    """
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))


def _check_name_length(name: str, path: Path) -> None:
    """Raises LLMError for a text given in place of a file name."""
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise LLMError(
                f"{name[:40]}... is too long for a file name; save the text to a file and name that"
            ) from error


def _files_inside(directory: Path) -> Iterator[Path]:
    """The files in a directory and its subdirectories, sorted, without hidden ones and those that tools generate."""
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        hidden = any(part.startswith(".") or part in GENERATED_DIRECTORIES for part in parts)
        if path.is_file() and not hidden:
            yield path
