"""Which text a model was trained on, according to its record: names, sizes and sha256 hashes of the files.

A record includes earlier stages of training, such as that of the base model (formats/training_stages.py).
Decides which part of a text a model was not trained on, and finds the training corpus again, and the conversations.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from llmcli.data.conversations.files import ConversationFile, read_conversations, read_records
from llmcli.data.conversations.messages import Conversation
from llmcli.data.conversations.record_kinds import Reading
from llmcli.data.conversations.turns import speakers_in
from llmcli.data.sources import Sources
from llmcli.data.text.corpus import Corpus, Part, read_corpus
from llmcli.data.text.documents import Document
from llmcli.data.text.temporary_files import TemporaryFileError, TextCopy
from llmcli.errors import LLMError
from llmcli.evaluation.held_out_conversations import trained_indices
from llmcli.formats.training_stages import CACHE, Record, all_stages, describe, stages

_JOINED = 1_000  # conversations whose messages are searched at once
_SEPARATOR = "\ud800"  # between messages: half a character, which is in no text
_Read = TypeVar("_Read", Document, ConversationFile)


def trained_lengths(record: Record) -> dict[str, int]:
    """How many bytes of each text, from its beginning, were trained on in one stage, by the sha256 of the text; 0 for
    one that was held out. {} if the record is not valid."""
    texts = _texts(record)
    sizes = [size if isinstance(size := text.get("bytes"), int) else 0 for text in texts]
    if any("held_out" in text for text in texts):
        lengths = [
            size - int(text.get("held_out", 0)) - int(text.get("left_out", 0))
            for text, size in zip(texts, sizes, strict=True)
        ]
    else:  # the end of the whole corpus, in files of earlier versions; nothing, or another text
        total = record.get("train_bytes")
        if not isinstance(total, int) or not 0 <= total <= sum(sizes):
            return {}
        starts = itertools.accumulate(sizes, initial=0)
        lengths = [min(size, max(0, total - start)) for start, size in zip(starts, sizes, strict=False)]
    trained: dict[str, int] = {}
    for text, length in zip(texts, lengths, strict=True):
        sha256 = str(text.get("sha256"))
        trained[sha256] = max(length, trained.get(sha256, 0))
    return trained


def names_texts(corpus: Corpus, record: Record) -> bool:
    """Whether a record names texts of a corpus, trained on or held out."""
    return not _trained_lengths([record]).keys().isdisjoint(document.sha256 for document in corpus.documents)


def _trained_lengths(records: Iterable[Record]) -> dict[str, int]:
    """The most that any of the models was trained on in any stage."""
    longest: dict[str, int] = {}
    for stage in all_stages(records):
        for sha256, length in trained_lengths(stage).items():
            longest[sha256] = max(length, longest.get(sha256, 0))
    return longest


def trained_part(corpus: Corpus, records: Iterable[Record]) -> Corpus:
    """What any of the models was trained on, as far as their records name texts of the corpus."""
    return Corpus(tuple(part for part in _divide(corpus, records)[0] if part.text_bytes))


def untrained_part(corpus: Corpus, records: Iterable[Record]) -> Corpus:
    """The rest of the corpus, which none of the models was trained on. It may be empty."""
    return Corpus(tuple(part for part in _divide(corpus, records)[1] if part.text_bytes))


def _divide(corpus: Corpus, records: Iterable[Record]) -> tuple[list[Part], list[Part]]:
    """Each text as what was trained on, and the rest."""
    known = _trained_lengths(records)
    ends = [known.get(document.sha256, 0) for document in corpus.documents]
    middles = [min(max(part.start, end), part.end) for part, end in zip(corpus.contents, ends, strict=True)]
    divided = list(zip(corpus.contents, middles, strict=True))
    return [Part(one.document, one.start, middle) for one, middle in divided], [
        Part(one.document, middle, one.end) for one, middle in divided
    ]


def was_trained_on(corpus: Corpus, record: Record) -> bool:
    """Whether a model was trained on any of this text, as far as the hashes of whole files show; also on conversations
    in it."""
    return bool(trained_in(corpus, record))


def trained_in(corpus: Corpus, record: Record) -> list[str]:
    """The stages in which a model was trained on any of this text, described; "" is the run that made it."""
    hashes = {document.sha256 for document in corpus.documents}
    return [
        describe(stage)
        for stage in stages(record)
        if not hashes.isdisjoint(str(file.get("sha256")) for file in _conversation_files(stage))
        or trained_part(corpus, [stage]).contents
    ]


def is_held_out(corpus: Corpus, record: Record) -> bool:
    """Whether a text is what was held out when a model was trained: of its corpus, or as another file."""
    files, trained = held_out_files(record), _trained_lengths([record])
    return bool(corpus.contents) and all(
        part.document.sha256 in files or part.start >= trained.get(part.document.sha256, sys.maxsize)
        for part in corpus.contents
    )


def held_out_files(record: Record) -> set[str]:
    """The sha256 of each text or file of conversations that --val named when a model was trained."""
    held_out = [one for stage in stages(record) if isinstance(one := stage.get("held_out"), dict)]
    return {str(file.get("sha256")) for one in held_out for file in one.get("files") or () if isinstance(file, dict)}


def _files(record: Record) -> list[dict[str, Any]]:
    """The files in a record; none if the record has an unexpected structure."""
    listed = record.get("corpus")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def recorded_names(record: Record) -> list[str]:
    """The names of the files in a record."""
    return [str(file.get("name")) for file in _files(record)]


def _texts(record: Record) -> list[dict[str, Any]]:
    """The files in a record that are plain text, and not conversations."""
    return [one for one in _files(record) if "shape" not in one]


def _conversation_files(record: Record) -> list[dict[str, Any]]:
    """The files in a record that are conversations."""
    return [one for one in _files(record) if "shape" in one]


@dataclass(frozen=True)
class TrainingText:
    """What a model was trained on: texts, or parts of them, and conversations."""

    corpus: Corpus
    files: tuple[ConversationFile, ...] = ()
    conversations: Sequence[Conversation] = field(default=(), repr=False)  # those of the files

    @classmethod
    def of(cls, sources: Sources, records: Iterable[Record]) -> "TrainingText":
        """The training part of texts that records name, the longest of them; the whole of any other text. The same for
        conversations."""
        records = list(records)
        known = _trained_lengths(records)
        parts = [
            part
            for whole, trained in zip(sources.text.contents, _divide(sources.text, records)[0], strict=True)
            if (part := trained if whole.document.sha256 in known else whole).text_bytes
        ]
        conversations, files = sources.conversations, sources.conversation_files
        if trained_on := set[int]().union(*(trained_indices(files, one) for one in all_stages(records))):
            conversations = [conversations[i] for i in sorted(trained_on)]
        return cls(Corpus(tuple(parts)), files, conversations)

    @property
    def names(self) -> list[str]:
        """Of the files."""
        return [document.name for document in self.corpus.documents] + [file.name for file in self.files]

    @property
    def bytes(self) -> int:
        """Size of the text, and of the messages."""
        return self.corpus.text_bytes + sum(conversation.text_bytes for conversation in self.conversations)

    def documents(self) -> Iterator[Iterable[str]]:
        """Each text, and the messages of the conversations, in pieces. No text that a model writes spans two messages,
        between which half a character stands."""
        yield from self.corpus.texts()
        yield map(self._messages, range(0, len(self.conversations), _JOINED))

    def _messages(self, first: int) -> str:
        chosen = self.conversations[first : first + _JOINED]
        return "".join(message.content + _SEPARATOR for one in chosen for message in one.messages)


def names_sources(record: Record, sources: Sources) -> bool:
    """Whether a model was trained on these texts, or on conversations of these files."""
    files = sources.conversation_files
    return names_texts(sources.text, record) or any(trained_indices(files, stage) for stage in stages(record))


def recorded_speakers(records: Iterable[Record]) -> tuple[str, str] | None:
    """The speakers that were named when a model was trained on text with turns; None if there were none."""
    shapes = (str(file.get("shape")) for record in records for file in _conversation_files(record))
    return next(filter(None, map(speakers_in, shapes)), None)


def recorded_reading(records: Iterable[Record]) -> Reading:
    """How the user said that files are read when a model was trained."""
    records = list(records)
    requested = (Reading.of_record(record.get("reading")) for record in records)
    reading = next((one for one in requested if one.is_requested), Reading())
    return replace(reading, speakers=recorded_speakers(records))


def find_training_texts(records: Iterable[Record], model: Path) -> tuple[list[TrainingText], list[str]]:
    """(what models were trained on, in all stages; the names of the texts of earlier stages that are not found). Text
    is searched for here and beside the model.

    Raises LLMError when a record names none, or when a file of it is missing or has changed.
    """
    texts: list[TrainingText] = []
    missing: list[str] = []
    searched = set[str]()
    for record in records:
        for number, stage in enumerate(one for one in stages(record) if one.get("stage") != CACHE):
            hashes = {str(file.get("sha256")) for file in _files(stage)}
            if number and hashes <= searched:
                continue
            try:
                texts.append(TrainingText.of(find_sources(stage, model), [record]))
                searched |= hashes
            except LLMError:
                if not number:
                    raise
                missing += recorded_names(stage)
    return texts, missing


def find_sources(record: Record, model: Path) -> Sources:
    """The texts and conversations that a record names, searched for here and beside the model.

    Raises LLMError when the record names none, or when a file is missing or has changed.
    """
    files = [_find(file, model, _read_conversations(file)) for file in _conversation_files(record)]
    corpus = find_corpus(record, model) if _texts(record) or not files else Corpus(())
    return Sources(corpus, tuple(files))


def find_corpus(record: Record, model: Path) -> Corpus:
    """The corpus that a record names, searched for here and beside the model, and recognized by its sha256.

    Raises LLMError when the record names none, or when a file is missing or has changed.
    """
    documents = _texts(record)
    if not documents:
        raise LLMError(f"{model} does not record its training text; name it: --corpus FILE")
    copy = TextCopy()
    matches: dict[Path, Document] = {}
    for document in documents:
        match = _find(document, model, _read_text(document, copy))
        matches.setdefault(match.path.resolve(), match)
    return Corpus.of(matches.values())


def _read_conversations(file: dict[str, Any]) -> Callable[[Path], ConversationFile | None]:
    reading = Reading.of_record(file, speakers_in(str(file.get("shape"))))
    return lambda path: read_conversations(str(path), path, reading)


def _read_text(file: dict[str, Any], copy: TextCopy) -> Callable[[Path], Document | None]:
    """A reader of the same text: that of a column, or that of a whole file."""
    reading = Reading.of_record(file)

    def read(path: Path) -> Document | None:
        if not reading.columns:
            return read_corpus([str(path)], copy=copy).documents[0]
        found = read_records(str(path), path, reading, copy, text_only=True)
        return found if isinstance(found, Document) else None

    return read


def _find(file: dict[str, Any], model: Path, read: Callable[[Path], _Read | None]) -> _Read:
    """A file of a record. Raises LLMError when it is missing or has changed."""
    name = str(file.get("name"))
    candidates = (_read_file(path, read) for path in _candidate_paths(file, model))
    match = next((one for one in candidates if one and one.sha256 == file.get("sha256")), None)
    if match is None:
        raise LLMError(
            f"the training text of {model}, {name[:200]}, is missing or has changed (searched here and beside the "
            f"model); name it: --corpus FILE"
        )
    return match


def recorded_path(file: Path, model: Path) -> str | None:
    """The path of a training file from the directory of the model, with "/", so that it is found again when both are
    moved together. None for standard input, and where either is outside the current directory: the record must not
    name directories that the user did not."""
    here, file, model = Path.cwd(), Path(os.path.abspath(file)), Path(os.path.abspath(model))
    if not (file.is_file() and file.is_relative_to(here) and model.is_relative_to(here)):
        return None
    return Path(os.path.relpath(file, model.parent)).as_posix()


def _candidate_paths(file: dict[str, Any], model: Path) -> list[Path]:
    given, relative = Path(str(file.get("name"))), file.get("path")
    beside = [model.parent / relative] if isinstance(relative, str) else []
    return list(dict.fromkeys([*beside, given, model.parent / given, Path(given.name), model.parent / given.name]))


def _read_file(path: Path, read: Callable[[Path], _Read | None]) -> _Read | None:
    """What is in a file; None if it is something else."""
    try:
        return read(path) if path.is_file() else None
    except TemporaryFileError:
        raise
    except (LLMError, OSError, ValueError):
        return None
