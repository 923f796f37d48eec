"""Token shards: files of a few million tokens each, and their concatenation, which is never in memory.

A file has a header of HEADER_BYTES (a line of JSON), then the little-endian tokens. The header stores their number,
their bytes of text and the byte values in these, so that the tokens need not be read for that.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from llmcli.data.regular_file import open_regular
from llmcli.data.tokens.token_store import TokenCache
from llmcli.errors import LLMError

HEADER_BYTES = 4096
FORMAT = 2
OPEN_FILES = 64  # shards open at the same time
_READ_BYTES = 1 << 20
_MAX_LABEL = 200  # characters of a text's name

Tokens = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Shard:
    """A shard and its place in a file."""

    file: Path | IO[bytes] | None  # None: not stored yet
    offset: int  # position of the first token in the file
    dtype: str  # see `token_type`
    count: int  # number of tokens
    text_bytes: int  # size of their text
    seen_bytes: bytes  # the byte values that occur in the text, ascending
    changed_at: int | None = field(default=None, compare=False)  # st_mtime_ns of a verified file

    def read(self, file: IO[bytes], positions: NDArray[np.integer]) -> Tokens:
        """Read the tokens at some positions. Raises ValueError if the file is too short."""
        tokens = np.empty(len(positions), self.dtype)
        runs = np.flatnonzero(np.diff(positions) != 1) + 1  # where another window begins
        for first, end in pairwise((0, *runs.tolist(), len(positions))):
            file.seek(self.offset + int(positions[first]) * tokens.itemsize)
            if file.readinto(tokens[first:end].data) < (end - first) * tokens.itemsize:  # type: ignore[attr-defined]
                raise ValueError("it was cut off")
        return tokens


def shard_header(shard: Shard, tokens: bytes, labels: dict[str, str]) -> bytes:
    """Return the bytes before the tokens in a file. `labels` describe the text for users."""
    fields: dict[str, Any] = {"format": FORMAT, "dtype": shard.dtype, "tokens": shard.count}
    fields |= {"text_bytes": shard.text_bytes, "seen_bytes": shard.seen_bytes.hex()}
    fields |= {name: label[:_MAX_LABEL] for name, label in labels.items()}
    fields["digest"] = _digest(fields, [tokens])
    return json.dumps(fields).encode("ascii").ljust(HEADER_BYTES - 1) + b"\n"


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a file. Raises OSError, or ValueError for another kind of file."""
    with open_regular(path) as file:
        header = json.loads(file.read(HEADER_BYTES))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a token shard of this version")
    return header


def open_shard(path: Path) -> Shard:
    """Open a shard after verifying its tokens. Raises OSError, or ValueError for a damaged file."""
    changed_at = path.stat().st_mtime_ns
    header = read_header(path)
    expected = header.pop("digest", None)
    with open_regular(path) as file:
        file.seek(HEADER_BYTES)
        digest = _digest(header, iter(lambda: file.read(_READ_BYTES), b""))
    if digest != expected:  # the header stores it too
        raise ValueError(f"{path} is damaged")
    return Shard(
        path, HEADER_BYTES, header["dtype"], header["tokens"], header["text_bytes"],
        bytes.fromhex(header["seen_bytes"]), changed_at,
    )  # fmt: skip


def _digest(fields: Mapping[str, Any], blocks: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(json.dumps(fields).encode("ascii"), digest_size=16)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


class TokenShards:
    """The concatenated tokens of shards, indexed by slices or arrays of positions. The OPEN_FILES used last stay open.
    (They are not mapped into memory: where a mapped file was cut off, reading it kills the process.)"""

    def __init__(self, shards: Sequence[Shard], restore: Callable[[int], Shard] | None = None) -> None:
        """`restore` makes a shard again, given its index, if its file is gone."""
        self._shards, self._restore = list(shards), restore
        self._ends = np.cumsum([shard.count for shard in shards], dtype=np.int64)
        self.dtype = np.dtype(shards[0].dtype)
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self._shards)

    @property
    def seen_bytes(self) -> frozenset[int]:
        return frozenset[int]().union(*(shard.seen_bytes for shard in self._shards))

    def __getitem__(self, where: slice | NDArray[np.integer]) -> Tokens:
        positions = np.arange(*where.indices(len(self))) if isinstance(where, slice) else where
        flat = positions.ravel()
        shards = np.searchsorted(self._ends, flat, side="right")
        runs = np.flatnonzero(np.diff(shards)) + 1  # positions at which the shard changes
        result = np.empty(len(flat), self.dtype)
        for first, end in zip([0, *runs], [*runs, len(flat)], strict=True):
            if first < end:
                index = int(shards[first])
                start = self._ends[index] - self._shards[index].count
                result[first:end] = self._read(index, flat[first:end] - start)
        return result.reshape(positions.shape)

    def _read(self, index: int, positions: NDArray[np.integer]) -> Tokens:
        """Tokens of a shard, which is made again if another process removed, changed or cut off its file."""
        try:
            return self._shards[index].read(self._open(index), positions)
        except (OSError, ValueError) as error:
            count, file = self._shards[index].count, self._shards[index].file
            if self._restore is None:
                raise LLMError(f"cannot read the tokens in {file}: {error}") from error
            self._files.pop(index, None)
            self._shards[index] = self._restore(index)
        if self._shards[index].count != count:
            raise LLMError(
                "the tokens of the training text were removed from the cache, and the text has changed; run the "
                "command again"
            )
        return self._shards[index].read(self._open(index), positions)

    def _open(self, index: int) -> IO[bytes]:
        """Open a shard's file, closing the least recently used one if needed. Raises OSError or ValueError."""
        shard = self._shards[index]
        if not isinstance(shard.file, Path):
            assert shard.file is not None, "it was stored"
            return shard.file
        if index not in self._files:
            if shard.file.stat().st_mtime_ns != shard.changed_at:
                self._shards[index] = open_shard(shard.file)
            while len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[index] = cast(IO[bytes], open_regular(shard.file).detach())  # without a buffer
        self._files.move_to_end(index)
        return self._files[index]


@dataclass
class StoredText:
    """The shards of files that a run read together with one tokenizer."""

    text: str  # names of the files, as the user wrote them
    tokenizer: str  # start of its hash
    shards: int = 0
    tokens: int = 0
    size: int = 0  # total bytes of the shards
    used: float = 0.0  # when a run last opened a shard, in seconds since 1970


def stored_texts(cache: TokenCache) -> list[StoredText]:
    """List the texts, most recently used first; damaged shards have no names."""
    texts: dict[tuple[str, str], StoredText] = {}
    for file in cache.files():
        try:
            header = read_header(file.path)
            text, tokenizer, tokens = str(header["text"]), str(header["tokenizer"]), int(header["tokens"])
        except (OSError, ValueError, LookupError, TypeError):
            text, tokenizer, tokens = "damaged", "", 0
        stored = texts.setdefault((text, tokenizer), StoredText(text, tokenizer))
        stored.shards, stored.tokens, stored.size = stored.shards + 1, stored.tokens + tokens, stored.size + file.size
        stored.used = max(stored.used, file.used)
    return sorted(texts.values(), key=lambda text: text.used, reverse=True)
