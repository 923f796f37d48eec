"""The text of each token shard: parts of a corpus, cut where a tokenizer can encode both sides by themselves."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import tokenizers

from llmcli.data.text.corpus import Part
from llmcli.data.text.documents import Document, continuation_bytes
from llmcli.data.text.words import SEARCHED_CHARACTERS
from llmcli.data.tokenizers.tokenizer import Tokenizer

SHARD_BYTES = 16_000_000  # of text in a shard; the last one has less
_SEARCHED_BYTES = 2 * SEARCHED_CHARACTERS  # for a place to cut


@dataclass(frozen=True)
class ShardText:
    """The text of a shard. A text that ends in the middle of a shard is followed by an end-of-text token, if another
    one follows."""

    parts: tuple[Part, ...]
    begins_text: bool  # False: the first part is the rest of a text that the shard before begins
    is_first: bool  # of all shards

    def key(self, tokenizer_hash: str) -> str:
        """A hash of the text and of the tokenizer: equal ones have equal tokens."""
        parts = [[part.document.sha256, part.start, part.end] for part in self.parts]
        content = [1, tokenizer_hash, parts, self.begins_text, self.is_first]
        return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()[:40]


def label(texts: Iterable[ShardText]) -> str:
    """The names of the files of texts, for users."""
    names = dict.fromkeys(part.document.name for text in texts for part in text.parts)
    return next(iter(names)) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A hash of everything that the tokens of a text depend on."""
    return hashlib.sha256(f"{tokenizers.__version__}\n{tokenizer.to_json()}".encode()).hexdigest()


def divide(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[ShardText]:
    """The texts of shards of about SHARD_BYTES, which together are `parts`, a text each."""
    shard: list[Part] = []
    size, begins_text, is_first = 0, True, True
    for part in parts:
        start = part.start
        while part.end - start > SHARD_BYTES - size:
            cut = _cut(part.document, start + SHARD_BYTES - size, part.end, tokenizer)
            if cut >= part.end:
                break
            yield ShardText((*shard, Part(part.document, start, cut)), begins_text, is_first)
            shard, size, begins_text, is_first, start = [], 0, False, False, cut
        shard.append(Part(part.document, start, part.end))
        size += part.end - start
        if size >= SHARD_BYTES:
            yield ShardText(tuple(shard), begins_text, is_first)
            shard, size, begins_text, is_first = [], 0, True, False
    if shard:
        yield ShardText(tuple(shard), begins_text, is_first)


def _cut(document: Document, position: int, end: int, tokenizer: Tokenizer) -> int:
    """The first position in bytes from `position` on at which a text may be cut; the end of a character if there is
    none nearby."""
    data = document.utf8(position, min(_SEARCHED_BYTES, end - position))
    start = continuation_bytes(data[:4])
    text = data[start:].decode("utf-8", "ignore")
    cut = tokenizer.first_cut(text)
    return position + start + (len(text[:cut].encode("utf-8")) if cut else 0)
