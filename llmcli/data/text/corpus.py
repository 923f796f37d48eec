"""The corpus: documents, or parts of them, in order. Text is read in pieces, so it may be larger than
memory."""

import bisect
import glob
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from llmcli import units
from llmcli.data.regular_file import reading_error
from llmcli.data.text.dataset_directory import HELD_OUT, TRAINING, find_dataset, visible_files
from llmcli.data.text.decoding import STANDARD_INPUT, Document, display_name
from llmcli.data.text.file_types import is_hidden
from llmcli.errors import LLMError, usage

MAX_NAMES = 3  # files listed on a line
WEB_ASSETS = (".css", ".js", ".mjs", ".map", ".svg")  # files of a web site that are not pages
# written by documentation generators: Sphinx, mdBook, MkDocs
SITE_INDEXES = ("searchindex.js", "searchindex.json", "search_index.json", "sitemap.xml")
SAMPLE_SPANS = 64  # spans that `Corpus.sample` takes from a long text


@dataclass(frozen=True)
class DocumentPart:
    """A document or a part of it: the bytes of its UTF-8 text from `start` to `end`."""

    document: Document
    start: int
    end: int

    @property
    def text_bytes(self) -> int:
        return self.end - self.start

    @property
    def first_line(self) -> int:
        """Number of the line in the document (from 1) where this part begins."""
        return 1 + sum(piece.count("\n") for piece in self.document.text(0, self.start))

    def text(self) -> Iterator[str]:
        return self.document.text(self.start, self.end)


@dataclass(frozen=True)
class Corpus:
    """Documents or parts of documents in order. A position in a corpus is a byte position in its UTF-8
    text."""

    contents: tuple[DocumentPart, ...]
    # lines about files skipped in directories: one per reason
    skipped: tuple[str, ...] = ()
    not_read: tuple[str, ...] = ()  # the same, one line per file

    @classmethod
    def of(cls, documents: Iterable[Document]) -> "Corpus":
        """Create a corpus of whole documents; empty documents are left out."""
        return cls.of_parts(DocumentPart(d, 0, d.text_bytes) for d in documents)

    @classmethod
    def of_parts(cls, parts: Iterable[DocumentPart]) -> "Corpus":
        """Create a corpus of parts; empty parts are left out."""
        return cls(tuple(part for part in parts if part.text_bytes))

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        return tuple(part.document for part in self.contents)

    @property
    def text_bytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(part.text_bytes for part in self.contents))

    def texts(self) -> Iterator[Iterator[str]]:
        return (part.text() for part in self.contents)

    def utf8(self) -> bytes:
        """Return the text of all documents, joined in memory."""
        return b"".join(piece.encode("utf-8") for text in self.texts() for piece in text)

    def cut(self, start: int, end: int | None = None) -> "Corpus":
        """Return the text between two positions; a position inside a character moves to its end."""
        return Corpus.of_parts(self._parts(start, self.text_bytes if end is None else end))

    def sample(self, max_bytes: int) -> "Corpus":
        """Return the text or, if it exceeds `max_bytes`, SAMPLE_SPANS evenly spaced spans of about that total
        size."""
        if self.text_bytes <= max_bytes:
            return self
        span = max(1, max_bytes // SAMPLE_SPANS)
        starts = np.linspace(0, self.text_bytes - span, SAMPLE_SPANS).astype(np.int64).tolist()
        return Corpus.of_parts(part for start in starts for part in self._parts(start, start + span))

    def _parts(self, start: int, end: int) -> Iterator[DocumentPart]:
        for index in range(bisect.bisect_right(self._ends, start), len(self.contents)):
            part = self.contents[index]
            first = self._ends[index] - part.text_bytes
            if first >= end:
                return
            low = max(0, start - first)
            high = min(end - first, part.text_bytes)
            yield DocumentPart(part.document, part.start + low, part.start + high)


@dataclass(frozen=True)
class FoundFile:
    """A file to read."""

    name: str  # displayed name
    path: Path
    relative_name: str  # path relative to the named directory, with "/"; for a named file, its name
    # whether an error in it is one of the command: the user named the file itself, not its directory, or it
    # is the held-out split
    is_required: bool
    split: str = TRAINING  # its split, if the named directory is a data set


def find_files(names: Iterable[str]) -> tuple[list[FoundFile], list[str]]:
    """Return (files in order, a line for each repeated file). A name is a file, directory, glob, or "-"
    (stdin)."""
    files: dict[str, FoundFile] = {}
    skipped: list[str] = []
    for file in _find_files(names, skipped):
        resolved = os.path.realpath(file.path)  # Path.resolve raises an error for a link to itself
        earlier = files.get(resolved)
        # a file of another split that the user also names itself is training text
        if earlier is None or (earlier.split != TRAINING and file.split == TRAINING):
            files.pop(resolved, None)
            files[resolved] = file
        elif file.name == earlier.name:
            skipped.append(f"{file.name}: found twice")
        else:
            skipped.append(f"{file.name}: the same file was found before, as {earlier.name}")
    return list(files.values()), skipped


def _find_files(names: Iterable[str], skipped: list[str]) -> Iterator[FoundFile]:
    for name in names:
        if not name:
            raise usage("the name of a text is empty; name a text file, a directory, a pattern or -")
        path = Path(name)
        if name == "-":
            yield FoundFile(name, path, STANDARD_INPUT, True)
        elif os.path.exists(path):  # noqa: PTH110 (raises no error for a name that is too long)
            yield from _files_of(name, path, path if path.is_dir() else path.parent, skipped)
        elif glob.has_magic(name):
            root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
            matches = _matches(name, path, root)
            if not matches:
                raise LLMError(
                    f"nothing matches {display_name(name)[:200]}; name a text file, a directory or a pattern"
                )
            for match in matches:
                yield from _files_of(match, Path(match), root, skipped)
        else:
            download = (
                f"; llm does not download files; download it first: curl -LO {name}" if "://" in name else ""
            )
            raise LLMError(f"there is no file or directory {display_name(name)[:200]}{download}")


def _matches(pattern: str, path: Path, root: Path) -> list[str]:
    """Return the sorted names that match a pattern; `root` is its beginning without wildcards. For "**", the
    module glob would follow links, which may form a cycle."""
    parts = path.parts[len(root.parts) :]
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    names = (part if part == "**" else part.replace("**", "*") for part in parts)
    matches = (match.relative_to(root) for match in root.glob(str(Path(*names))))
    return sorted(str(root / match) for match in matches if not is_hidden(match.parts))


def _files_of(name: str, path: Path, root: Path, skipped: list[str]) -> Iterator[FoundFile]:
    """Yield a file, or the files in a directory, with names relative to `root`, except hidden and generated
    files."""
    is_directory = path.is_dir()
    for file, split in (_text_files(path, skipped) if is_directory else {path: TRAINING}).items():
        relative = unicodedata.normalize("NFC", display_name(file.relative_to(root).as_posix()))
        is_required = not is_directory or split == HELD_OUT
        yield FoundFile(str(file) if is_directory else name, file, relative, is_required, split)


def _text_files(directory: Path, skipped: list[str]) -> dict[Path, str]:
    """Return the files to read in a directory, with their splits: the rows of a data set, the pages of a web
    site, or all files that are neither hidden nor generated. Adds a line to `skipped` for each kind of
    skipped file. Raises LLMError if the directory cannot be read."""

    def skip(paths: Sequence[Path], noun: str, reason: str) -> None:
        if paths:
            names = units.listed([display_name(path.name) for path in paths], MAX_NAMES)
            skipped.append(
                f"{display_name(str(directory))}: {units.count(len(paths), noun)} {reason}: {names}"
            )

    try:
        os.scandir(directory).close()  # `visible_files` finds nothing in a directory that cannot be read
    except OSError as error:
        raise reading_error(error, display_name(str(directory))) from error
    files, links, closed = visible_files(directory)
    skip(links, "link", "to a directory or to nothing, not followed")
    skip(closed, "name", "that cannot be opened as a file or a directory")
    if splits := find_dataset(directory, files):
        skip([path for path in files if path not in splits], "file", "without rows of the data set")
        return splits
    assets = [path for path in files if path.suffix.lower() in WEB_ASSETS or path.name in SITE_INDEXES]
    pages = sum(path.suffix.lower() in (".html", ".htm", ".xhtml") for path in files)
    if assets and (pages > len(assets) or (pages and any(path.name in SITE_INDEXES for path in assets))):
        skip(assets, "file", "beside the pages of a web site")
        files = [path for path in files if path not in assets]
    return dict.fromkeys(files, TRAINING)
