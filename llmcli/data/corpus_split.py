"""The training text and the held-out text of a corpus.

Of a long document the end is held out; of short ones whole documents are, evenly over a hash of their names, with
near-duplicates on the same side. So neither depends on where the files are or in which order they are named, and a
file that is added changes little.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from llmcli.data.corpus import Corpus, Part
from llmcli.data.documents import Document
from llmcli.data.near_duplicates import near_duplicates

LONG_SHARE = 0.5  # of the bytes to hold out: a document that has more is long
FRACTIONS = {0.05: "twentieth", 0.1: "tenth", 0.2: "fifth", 0.25: "quarter", 0.5: "half"}
MAX_NAMES = 3  # of documents that are listed


@dataclass(frozen=True)
class CorpusSplit:
    """What a model is trained on, and what is held out. Either may be empty."""

    training: Corpus
    held_out: Corpus
    rule: str  # what is held out, as a phrase; "" if nothing is
    is_from_corpus: bool = True  # False: the held-out text is another corpus


def split(corpus: Corpus, share: float) -> CorpusSplit:
    """Hold out about a share of the bytes of a corpus, from 0 to below 1."""
    longest = LONG_SHARE * share * corpus.text_bytes
    groups = [(group, sum(corpus.contents[i].text_bytes for i in group)) for group in _groups(corpus, longest)]
    short = [(group, size) for group, size in groups if size <= longest]
    whole, held_out, wanted = set[int](), 0, share * sum(size for _, size in short)
    for group, size in short:
        if held_out + size / 2 <= wanted:
            whole.update(group)
            held_out += size
    long = {index for group, size in groups if size > longest for index in group}
    return _cut(corpus, share, whole, long)


def _groups(corpus: Corpus, longest: float) -> list[list[int]]:
    """The indices of near-duplicates, in an order that does not depend on that of the corpus; each document by itself
    if none is short."""
    order = sorted(range(len(corpus.contents)), key=lambda index: _key(corpus.documents[index]))
    if all(part.text_bytes > longest for part in corpus.contents):
        return [[index] for index in order]
    return [[order[i] for i in group] for group in near_duplicates([corpus.documents[i] for i in order])]


def _key(document: Document) -> tuple[bytes, str]:
    """By which documents are ordered: evenly distributed, and the same for every corpus that has the document."""
    return hashlib.sha256(document.relative_name.encode("utf-8")).digest(), document.sha256


def _cut(corpus: Corpus, share: float, whole: Collection[int], long: Collection[int]) -> CorpusSplit:
    """Hold out the documents `whole`, and the end of those in `long`."""
    training, held_out = [], []
    for index, part in enumerate(corpus.contents):
        size = part.text_bytes if index in whole else round(share * part.text_bytes) if index in long else 0
        middle = part.end - size
        training.append(Part(part.document, part.start, middle))
        held_out.append(Part(part.document, middle, part.end))
    kept, others = (Corpus(tuple(part for part in parts if part.text_bytes)) for parts in (training, held_out))
    return CorpusSplit(kept, others, _rule(corpus, share, whole, long) if others.contents else "")


def _rule(corpus: Corpus, share: float, whole: Collection[int], long: Collection[int]) -> str:
    end = f"the last {FRACTIONS.get(share, f'{share:.3g}')}"
    if len(corpus.contents) == 1:
        return f"{end} of the text"
    ends = [corpus.documents[i].relative_name for i in sorted(long)]
    of_ends = f"{end} of {ends[0] if len(ends) == 1 else f'each of {len(ends):,} documents'}" if ends else ""
    if not whole:
        return of_ends
    names = [corpus.documents[i].relative_name for i in sorted(whole)]
    listed = ", ".join([*names[:MAX_NAMES], *(["..."] if len(names) > MAX_NAMES else [])])
    documents = f"{len(whole):,} of {len(corpus.contents):,} documents"
    return f"{documents} ({listed}) and {of_ends}" if ends else f"{documents}: {listed}"
