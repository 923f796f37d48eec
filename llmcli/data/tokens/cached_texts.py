"""What the cache of tokens holds: shards by the text and the tokenizer that they are of."""

from collections import defaultdict
from dataclasses import dataclass

from llmcli.data.tokens.shards import read_header
from llmcli.data.tokens.token_store import CachedFile, TokenCache


@dataclass(frozen=True)
class CachedText:
    """The shards of files that a run read together, with one tokenizer."""

    text: str  # the names of the files, as the user wrote them
    tokenizer: str  # the beginning of a hash
    shards: int
    tokens: int
    size: int  # of the shards, in bytes
    used: float  # when a run last opened one, in seconds since 1970


def cached_texts(cache: TokenCache) -> list[CachedText]:
    """Those used last first."""
    groups: dict[tuple[str, str], list[tuple[CachedFile, int]]] = defaultdict(list)
    for file in cache.files():
        text, tokenizer, tokens = _describe(file)
        groups[text, tokenizer].append((file, tokens))
    texts = [
        CachedText(
            text,
            tokenizer,
            len(shards),
            sum(tokens for _, tokens in shards),
            sum(file.size for file, _ in shards),
            max(file.used for file, _ in shards),
        )
        for (text, tokenizer), shards in groups.items()
    ]
    return sorted(texts, key=lambda text: text.used, reverse=True)


def _describe(file: CachedFile) -> tuple[str, str, int]:
    """(text, tokenizer, tokens) of a shard; a damaged one is listed without names."""
    try:
        header = read_header(file.path)
        return str(header["text"]), str(header["tokenizer"]), int(header["tokens"])
    except (OSError, ValueError, LookupError, TypeError):
        return "damaged", "", 0
