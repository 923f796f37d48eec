"""The split of a corpus into training text and held-out text.

The end of each long document is held out. Short documents are held out as a whole, chosen by a hash of their
names; near-duplicates stay together. The split therefore does not depend on the location or order of the
files.

Near-duplicates that are too large to be held out are all trained on. If they make up most of the corpus, the
end of the longest one is held out.

Passages of the held-out text in the training text are found afterwards (repetitions.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.data.text.corpus import Corpus, DocumentPart
from llmcli.data.text.near_duplicates import near_duplicates

LONG_SHARE = 0.5  # a document with more than this share of the bytes to hold out is long
FRACTIONS = {0.05: "twentieth", 0.1: "tenth", 0.2: "fifth", 0.25: "quarter", 0.5: "half"}
MAX_NAMES = 3  # documents listed


@dataclass(frozen=True)
class CorpusSplit:
    """Training text and held-out text; either may be empty."""

    training: Corpus
    held_out: Corpus
    rule: str  # description of the held-out text; "" if there is none
    is_from_corpus: bool = True  # False: the held-out text is another corpus
    versions: int = 1  # documents in the largest group of near-duplicates that is not held out as a whole
    known_share: float = 0.0  # share of the held-out text that occurs verbatim in the training data
    seen_by_base: bool = False  # whether the base model was trained on all of the held-out text


def split(corpus: Corpus, share: float) -> CorpusSplit:
    """Hold out about this share (0 to below 1) of the bytes of a corpus."""
    sizes = [part.text_bytes for part in corpus.contents]
    groups = [(group, sum(sizes[index] for index in group)) for group in _groups(corpus)]
    longest = LONG_SHARE * share * corpus.text_bytes
    target = share * sum(size for _, size in groups if size <= longest)
    # indices of documents that are held out as a whole, and of those whose ends are held out
    whole: list[int] = []
    long: list[int] = []
    families: list[list[int]] = []  # large groups of near-duplicates
    held_out = 0
    for group, size in groups:
        if size > longest:
            if len(group) == 1:
                long += group
            else:
                families.append(group)
        elif held_out + size / 2 <= target:
            whole += group
            held_out += size
    are_cut = share > 0 and 2 * sum(sizes[index] for group in families for index in group) > corpus.text_bytes
    if are_cut:
        long += [max(group, key=sizes.__getitem__) for group in families]
    ends = [part.end for part in corpus.contents]  # where the training text of each document ends
    for index in whole:
        ends[index] = corpus.contents[index].start
    for index in long:
        part = corpus.contents[index]
        ends[index] = part.document.character_end(part.end - round(share * sizes[index]))
    parts = list(zip(corpus.contents, ends, strict=True))
    training = Corpus.of_parts(DocumentPart(part.document, part.start, end) for part, end in parts)
    validation = Corpus.of_parts(DocumentPart(part.document, end, part.end) for part, end in parts)
    if not validation.contents:
        return CorpusSplit(training, validation, "")
    rule = _rule(corpus, share, whole, long)
    if families and not are_cut:
        names = [corpus.documents[index].short_name for group in families for index in group]
        rule += f"; {len(names):,} near-duplicates, such as {min(names)}, are all trained on"
    return CorpusSplit(training, validation, rule, versions=max(map(len, families), default=1))


def _groups(corpus: Corpus) -> list[list[int]]:
    """Return groups of near-duplicates (indices) in a pseudorandom order that does not depend on the order of
    names."""
    keys = [
        (hashlib.sha256(document.relative_name.encode("utf-8")).digest(), document.sha256)
        for document in corpus.documents
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [[order[i] for i in group] for group in near_duplicates([corpus.documents[i] for i in order])]


def _rule(corpus: Corpus, share: float, whole: Sequence[int], long: Sequence[int]) -> str:
    end = f"the last {FRACTIONS.get(share, f'{share:.3g}')}"
    if len(corpus.contents) == 1:
        return f"{end} of the text"
    ends = [corpus.documents[i].short_name for i in sorted(long)]
    of_ends = f"{end} of {ends[0] if len(ends) == 1 else f'each of {len(ends):,} documents'}" if ends else ""
    if not whole:
        return of_ends
    kept = [corpus.documents[i] for i in sorted(whole)]
    names = [document.short_name for document in kept]
    if len(set(names)) < len(names):
        names = [document.relative_name for document in kept]
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    documents = f"{len(whole):,} of {len(corpus.contents):,} documents"
    return f"{documents} ({listed}) and {of_ends}" if ends else f"{documents}: {listed}"
