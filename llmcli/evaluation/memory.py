"""A model's words -> which of them stand word for word in the text that it learned from; and where that text is.

What counts is a string of at least recital.LENGTH characters, longer than almost any phrase that people happen to write
twice. recital.py asks the same of a model as a whole.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.data.corpus import Corpus, Document, TemporaryFileError, TextCopy, read_corpus
from llmcli.errors import LLMError
from llmcli.evaluation.evaluator import learned_bytes
from llmcli.evaluation.memorization import LENGTH, standing, strings


@dataclass(frozen=True)
class Memory:
    """What of a text stands in a corpus."""

    spans: tuple[tuple[int, int], ...]  # (first character, the one after the last): all strings inside stand there
    share: float  # of the characters, 0 to 1
    searched_bytes: int


@dataclass(frozen=True)
class Learned:
    """A corpus and how many bytes of it, from its beginning, are searched."""

    corpus: Corpus
    end: int

    @classmethod
    def of(cls, corpus: Corpus, records: Iterable[dict[str, Any]]) -> "Learned":
        """Of the corpus of a model's record only what the model learned from, not the rest; of any other all."""
        ends = [end for record in records if (end := learned_bytes(corpus, record)) is not None]
        return cls(corpus, ends[0] if ends else corpus.text_bytes)


def remembered(texts: Sequence[str], learned: Sequence[Learned]) -> list[Memory]:
    """What of each text stands in the corpora, which are read once for all of them."""
    found = spans(texts, itertools.chain.from_iterable(one.corpus.texts(0, one.end) for one in learned))
    searched = sum(one.end for one in learned)
    return [
        Memory(marked, sum(last - first for first, last in marked) / max(1, len(text)), searched)
        for text, marked in zip(texts, found, strict=True)
    ]


def spans(texts: Sequence[str], documents: Iterable[Iterable[str]]) -> list[tuple[tuple[int, int], ...]]:
    """Where in each text strings of LENGTH characters stand that are in one of the documents; those that overlap are
    one span."""
    found = standing(set(strings(texts)), documents)
    return [_spans(text, found) for text in texts]


def _spans(text: str, found: set[str]) -> tuple[tuple[int, int], ...]:
    covered = bytearray(len(text))
    for start, string in enumerate(strings([text])):
        if string in found:
            covered[start : start + LENGTH] = b"\1" * LENGTH
    edges = [i for i, (a, b) in enumerate(itertools.pairwise([0, *covered, 0])) if a != b]
    return tuple(itertools.pairwise(edges))[::2]


def find_corpus(record: dict[str, Any], model: Path) -> Corpus:
    """The text of a model's record: by its names, from here or from beside the model, and by its very content (sha256).

    Raises LLMError when the record names none, or one is not there as it was.
    """
    listed = record.get("corpus")
    documents = [d for d in listed if isinstance(d, dict)] if isinstance(listed, list) else []
    if not documents:
        raise LLMError(f"{model} does not say what text it learned from; name one with --corpus FILE")
    found: dict[Path, Document] = {}
    copy = TextCopy()
    for document in documents:
        name = str(document.get("name"))
        there = (_document(path, copy) for path in _places(name, model))
        match = next((one for one in there if one and one.sha256 == document.get("sha256")), None)
        if match is None:
            raise LLMError(
                f"{name[:200]}, which {model} learned from, is neither here nor beside it as it was; "
                f"name it with --corpus FILE"
            )
        found.setdefault(match.path.resolve(), match)
    return Corpus(tuple(found.values()))


def _places(name: str, model: Path) -> list[Path]:
    given = Path(name)
    return list(dict.fromkeys([given, model.parent / given, Path(given.name), model.parent / given.name]))


def _document(path: Path, copy: TextCopy) -> Document | None:
    """A file that was read through; None if it holds no text."""
    try:
        return read_corpus([str(path)], copy=copy).documents[0] if path.is_file() else None
    except TemporaryFileError:
        raise
    except (LLMError, OSError, ValueError):
        return None
