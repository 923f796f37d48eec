"""Boilerplate: Project Gutenberg's header and license, and lines that many documents share, such as
navigation.

A line counts as repeated if more than one in ONE_IN documents, and at least MIN_DOCUMENTS, contain it. Runs
of repeated lines, with the blank lines between them, are cut unless they are as short as a common word or a
brace. Documents are counted in tables of a fixed size (count-min sketch, Cormode and Muthukrishnan 2005),
which overestimate only when they fill up.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, takewhile

from llmcli import units
from llmcli.data.text.dataset_directory import TRAINING
from llmcli.data.text.decoding import Document, OnRead, document_of_texts, ignore
from llmcli.data.text.temporary_files import TextCopy
from llmcli.data.text.words import grouped
from llmcli.errors import brief

MIN_DOCUMENTS = 5
ONE_IN = 10
MAX_LINES = 10_000  # maximum number of distinct lines that are cut
SUGGESTED_SHARE = 0.02  # minimum share of the text for a suggestion; source code also has some repeated lines
_MIN_RUN = 24  # minimum bytes of a run of repeated lines that is cut
_SLOTS = 1 << 21  # per table
# an estimate reads this many bytes at both ends of this many documents
_SAMPLED_DOCUMENTS = 32
_SAMPLED_BYTES = 1 << 15
_BLOCK = 1 << 16  # characters of lines written at once
_QUOTED = 42  # characters of a line in a note, with quotation marks
_GUTENBERG_START = re.compile(
    r"^(?:\*\*\* ?START OF (?:THE |THIS )?PROJECT GUTENBERG[^*]{0,300}\*\*\*|"
    r"\*END ?\*? ?THE SMALL PRINT!).*\n",
    re.I | re.M,
)
_GUTENBERG_END = re.compile(r"\s*(?:\*\*\* ?END OF (?:THE |THIS )?|End of (?:the )?)Project Gutenberg", re.I)


@dataclass
class Cuts:
    """Counts of the text cut from documents."""

    documents: int = 0
    text_bytes: int = 0
    of_bytes: int = 0  # size of all documents
    gutenberg: int = 0  # documents with the header of Project Gutenberg
    lines: Counter[str] = field(default_factory=Counter)  # the beginnings of repeated lines

    def __str__(self) -> str:
        if not self.documents:
            return "boilerplate: none found, nothing is cut"
        gutenberg = (
            f", with header and license of Project Gutenberg in {self.gutenberg:,}" if self.gutenberg else ""
        )
        first = ", ".join(brief(line, _QUOTED) for line, _ in self.lines.most_common(3))
        often = f", most often {first}" if first else ""
        return (
            f"boilerplate: {units.size(self.text_bytes)} ({self.text_bytes / self.of_bytes:.1%} of the text) "
            f"cut from {units.count(self.documents, 'document')}{gutenberg}: "
            f"{units.count(self.lines.total(), 'repeated line')}{often}"
        )


def repeated_lines(documents: Iterable[Iterable[str]], number_of_documents: int) -> list[str]:
    """Return the hashes of the lines that documents repeat; each document is an iterable of lines, which is
    read and dropped before the next one."""
    if number_of_documents < MIN_DOCUMENTS:
        return []
    # two tables; each slot has the number of documents and the latest of them
    tables = [(array("I", bytes(4 * _SLOTS)), array("I", bytes(4 * _SLOTS))) for _ in range(2)]

    def count(line_hash: str, document: int) -> int:
        """Count a line of a document, numbered from 1. Returns the number of documents so far."""
        counted = []
        number = int(line_hash, 16)
        for counts, last in tables:
            number, slot = divmod(number, _SLOTS)
            if last[slot] != document:
                last[slot] = document
                counts[slot] += 1
            counted.append(counts[slot])
        return min(counted)

    repeated = set[str]()
    min_documents = max(MIN_DOCUMENTS, number_of_documents // ONE_IN + 1)
    for number, lines in enumerate(documents, 1):
        for line in filter(str.strip, lines):
            line_hash = _hash(line)
            if count(line_hash, number) >= min_documents and len(repeated) < MAX_LINES:
                repeated.add(line_hash)
    return sorted(repeated)


def _hash(line: str) -> str:
    return hashlib.blake2b(line.strip().encode("utf-8", "replace"), digest_size=8).hexdigest()


def strip(
    documents: Sequence[Document], repeated: Sequence[str] | None, copy: TextCopy, on_read: OnRead = ignore
) -> tuple[list[Document], tuple[str, ...], Cuts]:
    """Cut boilerplate from documents, and append them to `copy`. Returns (documents, hashes of the repeated
    lines, counts of the text that was cut). With `repeated`, the hashes returned by an earlier call, the same
    lines are cut."""
    if repeated is None:
        training = [document for document in documents if document.split == TRAINING]
        repeated = repeated_lines((_body(document, on_read) for document in training), len(training))
    hashes = {*repeated}
    cuts = Cuts(of_bytes=sum(document.text_bytes for document in documents))
    return [_strip(document, hashes, copy, cuts, on_read) for document in documents], tuple(repeated), cuts


def _strip(
    document: Document, repeated: Container[str], copy: TextCopy, cuts: Cuts, on_read: OnRead
) -> Document:
    has_gutenberg = header_lines(document.start) > 0
    cut = Counter[str]()
    offset = copy.size
    # larger pieces are faster to write
    blocks = map("\n".join, grouped(_without_runs(_body(document, on_read), repeated, cut), _BLOCK, len))
    stripped = document_of_texts(document.name, document.path, blocks, copy, "\n")
    if not cut and not has_gutenberg:
        copy.truncate(offset)
        return document
    cuts.documents += 1
    cuts.text_bytes += document.text_bytes - stripped.text_bytes
    cuts.gutenberg += has_gutenberg
    cuts.lines.update(cut)
    reasons = (
        ("repeated line", cut.total()),
        ("header and license of Project Gutenberg", int(has_gutenberg)),
    )
    return replace(
        document,
        text_bytes=stripped.text_bytes,
        sha256=stripped.sha256,
        offset=stripped.offset,
        copy=copy,
        characters=stripped.characters,
        skipped=(*document.skipped, *(reason for reason in reasons if reason[1])),
    )


def _body(document: Document, on_read: OnRead) -> Iterator[str]:
    """Return the lines of a document without the header and the license of Project Gutenberg."""
    skipped = header_lines(document.start)
    lines = islice(document.lines(on_read), skipped, None)
    return takewhile(lambda line: not _GUTENBERG_END.match(line), lines) if skipped else lines


def header_lines(start: str) -> int:
    """Return the number of lines in the header of Project Gutenberg at the start of a text; 0 if there is
    none."""
    match = _GUTENBERG_START.search(start)
    return start.count("\n", 0, match.end()) if match else 0


def _without_runs(lines: Iterable[str], repeated: Container[str], cut: Counter[str]) -> Iterator[str]:
    """Yield the lines without runs of repeated lines, which are counted in `cut`; a run with blank lines is
    replaced by one blank line."""
    run: list[str] = []
    for line in chain(lines, [None]):
        if line is not None and (_hash(line) in repeated if line.strip() else run):
            run.append(line)
            continue
        words = list(filter(str.strip, run))
        if sum(len(word.strip().encode("utf-8")) for word in words) >= _MIN_RUN:
            cut.update(word.strip()[:_QUOTED] for word in words)
            run = [""] * (len(words) < len(run))
        yield from run
        run = []
        if line is not None:
            yield line


def estimate(documents: Sequence[Document]) -> float:
    """Estimate the share of boilerplate in documents from the ends of some of them."""
    sampled = [documents[i] for i in range(0, len(documents), -(-len(documents) // _SAMPLED_DOCUMENTS) or 1)]
    texts = [_ends(document) for document in sampled]
    repeated = {*repeated_lines((body for _, body in texts), len(texts))}
    cut = sum(_size(lines) - _size(_without_runs(body, repeated, Counter())) for lines, body in texts)
    return cut / max(1, sum(document.characters for document in sampled))


def _size(lines: Iterable[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _ends(document: Document) -> tuple[list[str], list[str]]:
    """Return (lines at both ends of a document, these without Project Gutenberg's header and license)."""
    size = document.text_bytes
    middle = min(size, _SAMPLED_BYTES)
    start, end = (
        "".join(document.text(*part)) for part in ((0, middle), (max(middle, size - _SAMPLED_BYTES), size))
    )
    lines = [*start.splitlines(), *end.splitlines()]
    skipped = header_lines(start)
    return lines, list(takewhile(lambda line: not (skipped and _GUTENBERG_END.match(line)), lines[skipped:]))
