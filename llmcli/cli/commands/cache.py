"""`llm cache`: list the cached tokens of long texts."""

import datetime

from llmcli import units
from llmcli.cli.options import ResultOptions
from llmcli.cli.terminal import tables
from llmcli.data.tokens.token_store import CachedFile, TokenCache, cache_directory, read_header
from llmcli.errors import LLMError


def cache(options: ResultOptions) -> None:
    """llm train keeps the tokens of texts of more than 64 MB, so that the next run on the same text with the
    same tokenizer starts sooner. The cache takes at most 20 GB or a tenth of the free disk space, or
    $LLMCLI_CACHE_GB; the least recently used files are removed first. To clear the cache, remove the
    directory shown.

    Example: llm cache
    """
    directory = cache_directory()
    if directory is None:
        raise LLMError("there is no home directory, so nothing is kept; set XDG_CACHE_HOME to a directory")
    opened = TokenCache(directory)
    files = opened.files()[::-1]  # most recently used first
    limit = opened.limit()
    size = sum(file.size for file in files)
    rows = [(*_text(file), file.size, _date(file.used)) for file in files]
    if rows and not options.json:
        shown = [(*row[:2], f"{row[2]:,}", units.size(row[3]), row[4]) for row in rows]
        tables.table(("text", "tokenizer", "tokens", "size", "used"), shown, numbers=(2, 3))
    entries = [dict(zip(("text", "tokenizer", "tokens", "bytes", "used"), row, strict=True)) for row in rows]
    options.report(
        {"directory": str(opened.directory), "bytes": size, "limit": round(limit), "texts": entries},
        f"{opened.directory}: {units.size(size)} of at most {units.size(limit)}",
    )


def _text(file: CachedFile) -> tuple[str, str, int]:
    """Return (names of the text as the user wrote them, start of the tokenizer's hash, number of tokens)."""
    try:
        header = read_header(file.path)
        return str(header["text"]), str(header["tokenizer"]), int(header["tokens"])
    except (OSError, ValueError, LookupError, TypeError):
        return "damaged", "", 0


def _date(seconds: float) -> str:
    """Format a time in seconds since 1970 in this computer's time zone."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
