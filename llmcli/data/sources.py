"""The files that a command names, recognized by content (plain text, text in a column, or conversations), and
the texts and conversations that a Python program passes."""

import contextlib
import itertools
import json
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from llmcli import units
from llmcli.data.conversations.messages import Conversation, normalized
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.conversations.turns import named_speakers
from llmcli.data.documents.reader import Content, DocumentReader, ReadFile, needs_child
from llmcli.data.files import MARKUP, ConversationFile, read_records
from llmcli.data.regular_file import reading_error
from llmcli.data.text import file_types
from llmcli.data.text.boilerplate import strip
from llmcli.data.text.corpus import Corpus, FoundFile, find_files
from llmcli.data.text.dataset_directory import HELD_OUT, TRAINING, archive_splits
from llmcli.data.text.decoding import (
    BLOCK_BYTES,
    Document,
    FileContent,
    OnRead,
    OpenFile,
    Stored,
    display_name,
    document_of_texts,
    ignore,
)
from llmcli.data.text.file_types import COLLECTION_KINDS, TEXT_KINDS
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy, temporary_file_errors
from llmcli.errors import LLMError, as_argument, brief, command_line

_MAX_NAMES = 3  # files listed in a description ...
_MAX_KINDS = 3  # ... of these kinds
# a position or size, which may differ between files with the same problem
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_OTHER_COLUMN = "`column` NAME or `plain`"
_AUTOMATIC = ReadOptions()
# kind of a text in memory; name of conversations in memory
_IN_MEMORY = "in memory"
_CONVERSATIONS = "conversations in memory"


@dataclass(frozen=True)
class FileGroup:
    """Files recognized as the same kind."""

    kind: str  # "plain text", "text in a column", "pairs", "conversations"
    detail: str = ""  # description for users
    columns: tuple[str, ...] = ()
    otherwise: str = ""  # options to read them as another kind
    names: tuple[str, ...] = ()
    share: float = 1.0  # its share of the bytes of all files

    def __str__(self) -> str:
        share = f"{self.share:.0%} of the text" if MARKUP in self.detail and self.share < 1 else ""
        details = "; ".join(
            filter(None, (self.detail, share, self.otherwise and f"otherwise: {self.otherwise}"))
        )
        names = ", ".join(self.names[:_MAX_NAMES])
        if len(self.names) > _MAX_NAMES:
            noun = {_IN_MEMORY: "text"}.get(
                self.detail, "document" if self.detail in COLLECTION_KINDS else "file"
            )
            names = f"{units.count(len(self.names), noun)} ({names}, ...)"
        return f"{self.kind} in {names}" + (f" ({details})" if details else "")

    def as_record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "detail": self.detail,
            "columns": list(self.columns),
            "files": len(self.names),
            "names": list(self.names[:_MAX_NAMES]),
        }


@dataclass(frozen=True)
class Sources:
    """The contents of files: text and conversations. One of them may be empty."""

    text: Corpus
    conversation_files: tuple[ConversationFile, ...]
    boilerplate: tuple[str, ...] | None = None  # hashes of the lines that were cut, if requested
    cuts: str = ""  # description of the boilerplate that was cut

    @property
    def conversations(self) -> list[Conversation]:
        return [conversation for file in self.conversation_files for conversation in file.conversations]

    @property
    def _files(self) -> list[Content]:
        return [*self.text.documents, *self.conversation_files]

    @property
    def notes(self) -> list[str]:
        """Notes, one line each, on how files were read and what was left out."""
        files: list[Content] = [*self.conversation_files, *self.text.documents]
        notes = [note for file in files for note in file.notes]
        return [*notes, self.cuts] if self.cuts else notes

    def records(self) -> list[dict[str, Any]]:
        """Describe each file for JSON: its kind, its size, the characters that were read, and the skipped
        parts."""
        return list(map(_record, self._files))

    def divided(self) -> "tuple[Sources, Sources]":
        """Return (the training text with all notes, the held-out split of data sets)."""
        training, held_out = (
            (
                tuple(part for part in self.text.contents if part.document.split == split),
                tuple(file for file in self.conversation_files if file.split == split),
            )
            for split in (TRAINING, HELD_OUT)
        )
        text = replace(self.text, contents=training[0])
        rest = replace(self, text=text, conversation_files=training[1])
        return rest, Sources(Corpus(held_out[0]), held_out[1])

    def groups(self) -> list[FileGroup]:
        files: dict[FileGroup, list[Content]] = {}
        for file in self._files:
            files.setdefault(_group(file), []).append(file)
        total = max(1, sum(file.text_bytes for file in self._files))
        return [
            replace(
                group,
                names=tuple(file.name for file in same),
                share=sum(file.text_bytes for file in same) / total,
            )
            for group, same in files.items()
        ]

    def describe(self, *, options: bool = True) -> str:
        """Describe the kinds of the files, and the `options` to read them differently, in one line."""
        groups = [group if options else replace(group, otherwise="") for group in self.groups()]
        more = len(groups) - _MAX_KINDS
        if more > 0:
            groups = sorted(groups, key=lambda group: -group.share)[:_MAX_KINDS]
        others = f"; and {units.count(more, 'more kind')}" if more > 0 else ""
        return f"data: {'; '.join(map(str, groups))}{others}"


def _record(file: Content) -> dict[str, Any]:
    """Describe what was read from a file. Optional fields are left out."""
    kind = _group(file).kind
    if isinstance(file, Document):
        kind = file.kind or ("table" if file.columns else kind)
        characters = file.characters
    else:
        messages = (message for conversation in file.conversations for message in conversation.messages)
        characters = sum(len(message.content) for message in messages)
    reasons = [{"reason": reason, "count": count} for reason, count in file.skipped]
    optional = {"encoding": file.encoding, "columns": list(file.columns), "skipped": reasons}
    return {
        "name": file.name,
        "kind": kind,
        "bytes": file.file_bytes,
        "characters": characters,
        "sha256": file.sha256,
        **{key: value for key, value in optional.items() if value},
    }


def _group(file: Content) -> FileGroup:
    """Return the group of a file, without names."""
    encoding = file.encoding and f"decoded from {file.encoding}"
    if isinstance(file, ConversationFile):
        shape = file.shape
        if shape == "two columns":
            shape = file.first_row or f"columns {' and '.join(file.columns)}"
        otherwise = _OTHER_COLUMN if file.columns and not file.first_row else "`plain`"
        kind = "pairs" if len(file.columns) == 2 else "conversations"
        return FileGroup(kind, ", ".join(filter(None, (shape, encoding))), file.columns, otherwise)
    if file.kind:
        return FileGroup("text", file.kind, otherwise="`plain`" if file.kind in TEXT_KINDS else "")
    if file.columns:
        detail = "; ".join(filter(None, (file.detail, encoding)))
        return FileGroup("text", detail, file.columns, _OTHER_COLUMN)
    return FileGroup("plain text", file.detail or encoding)


def read_sources(
    names: Sequence[str],
    reading: ReadOptions = _AUTOMATIC,
    *,
    splits: Collection[str] = (TRAINING,),
    on_read: OnRead = ignore,
) -> Sources:
    """Read files, directories and patterns; of data sets, only these `splits`. Raises LLMError, for instance
    for a malformed record of a conversation."""
    files, skipped = find_files(names)
    used = [file for file in files if file.split in splits]
    contents, unreadable = _read_files(used, reading, on_read)
    if unused := [file.name for file in (*files, *contents) if file.split not in splits]:
        found = f"{units.count(len(unused), 'file')} of a split other than training"
        skipped.append(f"{found}: {units.listed(list(map(display_name, unused)), _MAX_NAMES)}")
    contents = [content for content in contents if content.split in splits]
    not_read = [*skipped, *(problem for _, problem in unreadable)]
    if not any(content.split == TRAINING for content in contents):
        number = units.count(len(not_read), "file")
        details = f" ({number} skipped; the first: {not_read[0]})" if not_read else ""
        raise LLMError(f"no text found in {', '.join(names)}{details}; name a text file")
    same: dict[tuple[str, str], list[str]] = {}
    for name, problem in unreadable:
        suffix = PurePath(name).suffix.lower()
        reason = _NUMBER.sub("", problem.replace(name, "")).partition(";")[0]
        same.setdefault((suffix, reason), []).append(problem)
    for (suffix, _), problems in same.items():
        number = f"{len(problems):,} {suffix or 'other'} files; the first: " if len(problems) > 1 else ""
        skipped.append(number + problems[0])
    return _sources_of(contents, skipped, not_read, reading, on_read)


def sources_in_memory(
    texts: Iterable[str], conversations: Iterable[object] = (), reading: ReadOptions = _AUTOMATIC
) -> Sources:
    """Create a document for each text, and read conversations, each a list of messages or a record."""
    copy = TextCopy()
    contents = list[Content]()
    for number, text in enumerate(texts, 1):
        name = f"text {number}"
        text = text.removeprefix("\ufeff")
        if "\0" in text:
            raise LLMError(f"{name} is not text: a zero character at position {text.index(chr(0)):,}")
        document = document_of_texts(name, Path(), [text], copy)
        contents.append(
            replace(document, kind=_IN_MEMORY, file_bytes=document.text_bytes, relative_name=name)
        )
    if lines := [json.dumps(conversation) + "\n" for conversation in conversations]:
        stored = Stored(copy.size)
        copy.append("".join(lines).encode("ascii"))
        file = read_records(_CONVERSATIONS, Path(), stored, reading=reading, copy=copy)
        if isinstance(file, Document):
            raise LLMError(
                f"conversations must be lists of messages, or records with answers, found {brief(lines[0])}"
            )
        contents.append(file)
    return _sources_of(contents, [], [], reading, ignore)


def was_in_memory(name: str, kind: str) -> bool:
    """Return whether an entry of a training record is for a text or for conversations without a file."""
    return kind == _IN_MEMORY or name == _CONVERSATIONS


def _sources_of(
    contents: list[Content],
    skipped: list[str],
    not_read: list[str],
    reading: ReadOptions,
    on_read: OnRead,
) -> Sources:
    """Combine contents into a corpus and conversations; duplicate texts are read once."""
    contents, boilerplate, cuts = _stripped(contents, reading, on_read)
    files = tuple(file for file in contents if isinstance(file, ConversationFile))
    documents, duplicates = _without_duplicates([file for file in contents if isinstance(file, Document)])
    if duplicates:
        number = units.count(len(duplicates), "document")
        names = units.listed(duplicates, _MAX_NAMES)
        skipped.append(f"{number} with the text of another, which is read once: {names}")
    not_read += [f"{line}: the same text, which is read once" for line in duplicates]
    training = [document for document in documents if document.split == TRAINING]
    if not files and not any(document.text_bytes for document in training):
        raise LLMError(f"{training[0].name} is empty; give some text to read")
    # empty files, and those in which everything is boilerplate
    if empty := [document.name for document in documents if not document.text_bytes]:
        skipped.append(
            f"{units.count(len(empty), 'document')} without text: {units.listed(empty, _MAX_NAMES)}"
        )
    not_read += [f"{name} has no text" for name in empty]
    text = replace(Corpus.of(documents), skipped=tuple(skipped), not_read=tuple(not_read))
    return Sources(text, files, boilerplate, cuts)


def _stripped(
    contents: list[Content], reading: ReadOptions, on_read: OnRead
) -> tuple[list[Content], tuple[str, ...] | None, str]:
    """Cut boilerplate from documents, if requested. Returns (contents, hashes of lines, description of what
    was cut)."""
    if not reading.strip_boilerplate:
        return contents, None, ""
    documents = [file for file in contents if isinstance(file, Document)]
    stripped, boilerplate, cut = strip(documents, reading.boilerplate, TextCopy(), on_read)
    new = iter(stripped)
    return (
        [next(new) if isinstance(content, Document) else content for content in contents],
        boilerplate,
        str(cut),
    )


def _without_duplicates(
    documents: list[Document],
) -> tuple[list[Document], list[str]]:
    """Keep the first of several documents of a split with the same text. Returns (documents, "NAME (as
    NAME)" for each duplicate)."""
    first: dict[tuple[str, str], Document] = {}
    kept = []
    duplicates = []
    for document in documents:
        same = first.setdefault((document.split, document.sha256), document)
        if same is document or not document.text_bytes:
            kept.append(document)
        else:
            duplicates.append(f"{document.name} (as {same.name})")
    return kept, duplicates


def read_text(name: str) -> Document:
    """Read one text file, which may be compressed, or standard input ("-"). Raises LLMError for any other
    file."""
    file = FoundFile(name, Path(name), name, is_required=True)
    contents, _ = _read_files([file], ReadOptions(plain=True))
    documents = [
        content
        for content in contents
        if isinstance(content, Document) and not (content.kind or content.member)
    ]
    if len(documents) != 1:
        command = command_line(["llm", "text", as_argument(name)])
        raise LLMError(
            f"{name} is not a text file; extract its text first: {command} > {command_line([f'{name}.txt'])}"
        )
    [document] = documents
    if known := file_types.recognize(name, document.start.encode()):  # `plain` reads text with markup
        raise LLMError(f"{document.name} {file_types.describe(document.name, known)}")
    return document


def require_conversations(path: Path) -> ConversationFile:
    """Read one file of conversations. Raises LLMError as `read_sources` does, and for other text."""
    contents, _ = _read_files([FoundFile(str(path), path, path.name, is_required=True)], ReadOptions())
    for file in contents:
        if isinstance(file, ConversationFile):
            return file
    raise LLMError(
        f'{path} has no conversations; expected records with "messages", "prompt" and "completion", '
        '"instruction" and "output" or "conversations", two columns, or turns such as User: and Assistant:'
    )


def read_if_possible(paths: Iterable[Path], reading: ReadOptions) -> list[Content]:
    """Read files like `read_sources`, but leave out unreadable ones."""
    files = [FoundFile(str(path), path, path.name, is_required=False) for path in paths]
    contents, _ = _read_files(files, reading)
    return _stripped(contents, reading, ignore)[0]


def _read_files(
    files: Sequence[FoundFile], reading: ReadOptions, on_read: OnRead = ignore
) -> tuple[list[Content], list[tuple[str, str]]]:
    """Read files in order; child processes read those that are not plain text. Skips unreadable files in
    directories and archives, and unreadable documents if there are several. Returns (contents, (name, reason
    in one line) of each file that is not read)."""
    contents: list[Content] = []
    unreadable: list[tuple[str, str]] = []
    copy = TextCopy()
    begun: list[Future[ReadFile] | ReadFile] = []

    def read_or_submit(file: FoundFile, name: str) -> Future[ReadFile] | ReadFile:
        """Read plain text; other files are read by a child process."""

        def read(content: FileContent) -> ReadFile:
            found = read_records(name, file.path, content, reading=reading, copy=copy, on_read=on_read)
            return [found], [], True

        if _is_stream(file):
            blocks = _stream(file, name, on_read)
            first = next(blocks, b"")
            start = first[: file_types.START_BYTES]
            blocks = itertools.chain([first], blocks)
            if needs_child(name, start, plain=True):
                path = stack.enter_context(_temporary_file(blocks))
                return reader.submit(name, path, start, plain=True)
            stored = Stored(copy.size)
            for block in blocks:
                copy.append(block)
            return read(stored)
        with OpenFile(name, file.path) as opened:
            start = opened.read(0, file_types.START_BYTES)
            if not needs_child(name, start, plain=reading.plain):
                return read(opened)
        return reader.submit(name, file.path, start, plain=reading.plain)

    with DocumentReader(reading) as reader, contextlib.ExitStack() as stack:
        for file in files:
            name = display_name(file.name)
            try:
                begun.append(read_or_submit(file, name))
            except LLMError as error:
                if file.is_required or isinstance(error, ReadingEndsError):
                    raise
                begun.append(([], [(name, str(error))], True))
        for file, result in zip(files, begun, strict=True):
            found, problems, is_text = reader.wait(result, on_read) if isinstance(result, Future) else result
            if problems and not found and file.is_required and (is_text or len(files) == 1):
                # a problem with the whole archive is more useful than the first file's
                of_archive = (line for name, line in problems if name == display_name(file.name))
                raise LLMError(next(of_archive, problems[0][1]))
            unreadable += problems
            splits = archive_splits([content.member for content in found])
            for content in found:
                relative_name = f"{file.relative_name}/{content.member}".rstrip("/")
                split = splits.get(content.member, file.split)
                contents.append(replace(content, path=file.path, relative_name=relative_name, split=split))
    return contents, unreadable


def _is_stream(file: FoundFile) -> bool:
    """Return whether a file can be read only once: standard input, or the output of a command in `<(...)`."""
    return file.name == "-" or (file.name.startswith(_STREAMS) and not file.path.is_file())


def _stream(file: FoundFile, name: str, on_read: OnRead) -> Iterator[bytes]:
    """Yield the content of a stream in blocks."""
    is_input = file.name == "-"
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if is_input else open(file.path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                on_read(name, len(block))
                yield block
    except OSError as error:
        raise reading_error(error, name) from error


@contextlib.contextmanager
def _temporary_file(blocks: Iterable[bytes]) -> Iterator[Path]:
    """Write the content of a stream to a temporary file, which a child process can open."""
    with temporary_file_errors("standard input"):
        directory = tempfile.TemporaryDirectory(prefix="llmcli-")
    with directory as name:
        path = Path(name, "input")
        with temporary_file_errors("standard input"), open(path, "wb") as file:
            file.writelines(blocks)
        yield path


def check_reading(reading: ReadOptions, sources: Sequence[Sources]) -> None:
    """Raise LLMError if the options match none of the files."""
    files = [file for source in sources for file in source.conversation_files]
    if reading.speakers and named_speakers(*reading.speakers)[0] not in {file.shape for file in files}:
        user, assistant = reading.speakers
        raise LLMError(
            f"`speakers` {user},{assistant}: no file has turns of both; "
            f'wanted a text with lines that begin with "{user}:" and "{assistant}:", '
            "including the first line; check the names, or leave `speakers` out"
        )
    requested = {normalized(column) for column in reading.columns}
    read: list[Content] = [*files, *(text for source in sources for text in source.text.documents)]
    if requested and not any(set(map(normalized, file.columns)) == requested for file in read):
        option = (
            f"`template` {brief(reading.template)}"
            if reading.template
            else f"`column` {','.join(reading.columns)}"
        )
        columns = [f"{file.name} has {', '.join(file.all_columns) or 'no columns'}" for file in read]
        raise LLMError(f"{option}: no file has these columns; {units.listed(columns, _MAX_NAMES)}")
    if reading.pairs and not any(len(file.columns) == 2 for file in read):
        raise LLMError(f"`pairs`: no file is a two-column table; {sources[0].describe()}")
