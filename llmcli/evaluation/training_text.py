"""Which text a model was trained on, according to its record: names, sizes and sha256 hashes of the files.

Decides which part of a corpus is held out for a model, and finds the training corpus again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.data.corpus import Corpus, read_corpus
from llmcli.data.documents import Document
from llmcli.data.temporary_files import TemporaryFileError, TextCopy
from llmcli.errors import LLMError

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


def _texts(record: Record) -> list[dict[str, Any]]:
    """The files in a record that are plain text, and not conversations."""
    return [one for one in _files(record) if "shape" not in one]


@dataclass(frozen=True)
class TrainingText:
    """The part of a corpus that a model was trained on."""

    corpus: Corpus
    end: int  # bytes, from the beginning

    @classmethod
    def of(cls, corpus: Corpus, records: Iterable[Record]) -> "TrainingText":
        """The training part if records name this corpus, the longest of them; the whole of any other corpus."""
        ends = [end for record in records if (end := trained_bytes(corpus, record)) is not None]
        return cls(corpus, max(ends, default=corpus.text_bytes))


def find_corpus(record: Record, model: Path, *, or_conversations: bool = False) -> Corpus:
    """The corpus that a record names, searched for here and beside the model, and recognized by its sha256.

    With `or_conversations` the files of a model that was trained on conversations alone count as text.

    Raises LLMError when the record names none, or when a file is missing or has changed.
    """
    documents = _texts(record) or (_files(record) if or_conversations else [])
    if not documents:
        raise LLMError(f"{model} does not record its training text; name it: --corpus FILE")
    matches: dict[Path, Document] = {}
    copy = TextCopy()
    for document in documents:
        name = str(document.get("name"))
        candidates = (_read_document(path, copy) for path in _candidate_paths(name, model))
        match = next((one for one in candidates if one and one.sha256 == document.get("sha256")), None)
        if match is None:
            raise LLMError(
                f"the training text of {model}, {name[:200]}, is missing or has changed (searched here and beside the "
                f"model); name it: --corpus FILE"
            )
        matches.setdefault(match.path.resolve(), match)
    return Corpus(tuple(matches.values()))


def _candidate_paths(name: str, model: Path) -> list[Path]:
    given = Path(name)
    return list(dict.fromkeys([given, model.parent / given, Path(given.name), model.parent / given.name]))


def _read_document(path: Path, copy: TextCopy) -> Document | None:
    """The document in a file; None if the file holds no text."""
    try:
        return read_corpus([str(path)], copy=copy).documents[0] if path.is_file() else None
    except TemporaryFileError:
        raise
    except (LLMError, OSError, ValueError):
        return None
