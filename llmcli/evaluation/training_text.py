"""Which text a model was trained on, according to its record: names, sizes and sha256 hashes of the files.

Decides which part of a corpus is held out for a model, and finds the training corpus again, and the conversations.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llmcli.data.conversation_files import ConversationFile, read_conversations
from llmcli.data.conversation_turns import speakers_in
from llmcli.data.conversations import Conversation
from llmcli.data.corpus import Corpus, read_corpus
from llmcli.data.documents import Document
from llmcli.data.sources import Sources
from llmcli.data.temporary_files import TemporaryFileError, TextCopy
from llmcli.errors import LLMError
from llmcli.evaluation.held_out_conversations import trained_indices

_JOINED = 1_000  # conversations whose messages are searched at once
_SEPARATOR = "\ud800"  # between messages: half a character, which is in no text
_Read = TypeVar("_Read", Document, ConversationFile)

Record = dict[str, Any]  # of a training run: training.json in the file of a model


def trained_bytes(corpus: Corpus, record: Record) -> int | None:
    """Bytes of a corpus, from its beginning, that a model was trained on; None if its record names another corpus."""
    if [str(document.get("sha256")) for document in _texts(record)] != [d.sha256 for d in corpus.documents]:
        return None
    count = record.get("train_bytes")
    return count if isinstance(count, int) and 0 <= count <= corpus.text_bytes else None


def held_out_start(corpus: Corpus, records: Iterable[Record]) -> int:
    """The byte from which on a corpus is held out for all of the models.

    0, the whole corpus, if none of them was trained on it, or one was trained on all of it.
    """
    start = max((trained_bytes(corpus, record) or 0 for record in records), default=0)
    return start if start < corpus.text_bytes else 0


def was_trained_on(corpus: Corpus, record: Record, start: int = 0) -> bool:
    """Whether a model was trained on text from byte `start` on, as far as the hashes of whole files show."""
    count = trained_bytes(corpus, record)
    if count is not None:
        return count > start
    hashes = {str(document.get("sha256")) for document in _files(record)}
    return not {document.sha256 for document in corpus.documents}.isdisjoint(hashes)


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
    """What a model was trained on: the beginning of a corpus, and conversations."""

    corpus: Corpus
    end: int  # bytes of the corpus, from its beginning
    files: tuple[ConversationFile, ...] = ()
    conversations: Sequence[Conversation] = field(default=(), repr=False)  # those of the files

    @classmethod
    def of(cls, sources: Sources, records: Iterable[Record]) -> "TrainingText":
        """The training part of texts that records name, the longest of them; the whole of any other text. The same for
        conversations."""
        records = list(records)
        ends = [end for record in records if (end := trained_bytes(sources.text, record)) is not None]
        conversations, files = sources.conversations, sources.conversation_files
        if trained := set[int]().union(*(trained_indices(files, record) for record in records)):
            conversations = [conversations[i] for i in sorted(trained)]
        return cls(sources.text, max(ends, default=sources.text.text_bytes), files, conversations)

    @property
    def names(self) -> list[str]:
        """Of the files."""
        return [document.name for document in self.corpus.documents] + [file.name for file in self.files]

    @property
    def bytes(self) -> int:
        """Size of the text, and of the messages."""
        return self.end + sum(conversation.text_bytes for conversation in self.conversations)

    def documents(self) -> Iterator[Iterable[str]]:
        """Each text, and the messages of the conversations, in pieces. No text that a model writes spans two messages,
        between which half a character stands."""
        yield from self.corpus.texts(0, self.end)
        yield map(self._messages, range(0, len(self.conversations), _JOINED))

    def _messages(self, first: int) -> str:
        chosen = self.conversations[first : first + _JOINED]
        return "".join(message.content + _SEPARATOR for one in chosen for message in one.messages)


def names_sources(record: Record, sources: Sources) -> bool:
    """Whether a model was trained on these texts, or on conversations of these files."""
    texts = bool(sources.text.documents) and trained_bytes(sources.text, record) is not None
    return texts or bool(trained_indices(sources.conversation_files, record))


def recorded_speakers(records: Iterable[Record]) -> tuple[str, str] | None:
    """The speakers that were named when a model was trained on text with turns; None if there were none."""
    shapes = (str(file.get("shape")) for record in records for file in _conversation_files(record))
    return next(filter(None, map(speakers_in, shapes)), None)


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
        match = _find(document, model, lambda path: read_corpus([str(path)], copy=copy).documents[0])
        matches.setdefault(match.path.resolve(), match)
    return Corpus(tuple(matches.values()))


def _read_conversations(file: dict[str, Any]) -> Callable[[Path], ConversationFile | None]:
    speakers = speakers_in(str(file.get("shape")))
    return lambda path: read_conversations(str(path), path, speakers=speakers)


def _find(file: dict[str, Any], model: Path, read: Callable[[Path], _Read | None]) -> _Read:
    """A file of a record. Raises LLMError when it is missing or has changed."""
    name = str(file.get("name"))
    candidates = (_read_file(path, read) for path in _candidate_paths(name, model))
    match = next((one for one in candidates if one and one.sha256 == file.get("sha256")), None)
    if match is None:
        raise LLMError(
            f"the training text of {model}, {name[:200]}, is missing or has changed (searched here and beside the "
            f"model); name it: --corpus FILE"
        )
    return match


def _candidate_paths(name: str, model: Path) -> list[Path]:
    given = Path(name)
    return list(dict.fromkeys([given, model.parent / given, Path(given.name), model.parent / given.name]))


def _read_file(path: Path, read: Callable[[Path], _Read | None]) -> _Read | None:
    """What is in a file; None if it is something else."""
    try:
        return read(path) if path.is_file() else None
    except TemporaryFileError:
        raise
    except (LLMError, OSError, ValueError):
        return None
