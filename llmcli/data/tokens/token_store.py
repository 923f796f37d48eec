"""The token cache: a directory of token files, which later runs on the same text read instead of tokenizing
it.

A file has a header of HEADER_BYTES (a line of JSON), followed by the little-endian tokens. The least recently
used files are removed first.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.data.regular_file import open_regular
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.data.tokens.tokens import TokenIds

SUFFIX = ".tokens"
TEMPORARY_SUFFIX = ".tmp"  # while a file is written
LIMIT_VARIABLE = "LLMCLI_CACHE_GB"
MAX_BYTES = 20e9  # total size of all files ...
DISK_SHARE = 0.1  # ... and maximum share of the disk space that would be free without them
HEADER_BYTES = 4096
FORMAT = 3
MAX_LABEL = 200  # characters of a text's name
STALE_SECONDS = 86_400.0  # an older temporary file belongs to a killed process


@dataclass(frozen=True)
class CachedFile:
    """A file in the cache."""

    path: Path
    size: int  # bytes
    used: float  # time when it was written or last opened by a run, in seconds since 1970


def cache_directory() -> Path | None:
    """Return $XDG_CACHE_HOME/llmcli or ~/.cache/llmcli; on Windows %LOCALAPPDATA%\\llmcli\\cache. None
    without a home directory. A relative path is ignored, as the XDG Base Directory Specification requires."""
    local = Path(os.environ.get("LOCALAPPDATA", "")) if os.name == "nt" else Path()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "llmcli"
    if local.is_absolute():
        return local / "llmcli" / "cache"
    try:
        return Path.home() / ".cache" / "llmcli"
    except RuntimeError:
        return None


class TokenCache:
    """The files in the cache directory, which the first `write` creates."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def files(self) -> list[CachedFile]:
        """List the files, least recently used first."""
        return sorted(self._files(SUFFIX), key=lambda file: (file.used, file.path))

    def limit(self) -> float:
        """Return the maximum total size in bytes; 0 if the cache is off. Raises LLMError for an invalid
        setting."""
        if requested := os.environ.get(LIMIT_VARIABLE):
            with contextlib.suppress(ValueError):
                if 0 <= (gigabytes := float(requested)) < math.inf:
                    return gigabytes * 1e9
            raise LLMError(
                f"{LIMIT_VARIABLE} must be a number of gigabytes, 0 or more, found {requested!r}; "
                "for example 20"
            )
        try:
            existing = next(path for path in (self.directory, *self.directory.parents) if path.exists())
            free = shutil.disk_usage(existing).free
        except (OSError, StopIteration):
            return MAX_BYTES
        return min(MAX_BYTES, DISK_SHARE * (free + sum(file.size for file in self._files(SUFFIX))))

    def read(self, key: str) -> "TokenIds | None":
        """Map the tokens with this key into memory, and mark their file as used; None if it is missing or
        damaged."""
        import numpy as np

        path = self._path(key)
        try:
            header = read_header(path)
            with open_regular(path) as file:
                tokens = np.memmap(file, header["dtype"], mode="r", offset=HEADER_BYTES)
            if header["digest"] == _digest(tokens):
                with contextlib.suppress(OSError):  # in a read-only directory
                    os.utime(path)
                return tokens
        except (OSError, ValueError, LookupError, TypeError):
            pass
        return None

    def write(self, key: str, tokens: "TokenIds", **labels: str) -> bool:
        """Store tokens; False if they do not fit. `labels` describe them for users. Another process may write
        the same file at the same time. Raises OSError."""
        from llmcli.data.tokens.tokens import blocks

        if not self._make_room(key, HEADER_BYTES + tokens.nbytes):
            return False
        header = {
            "format": FORMAT,
            "dtype": tokens.dtype.str,
            "tokens": len(tokens),
            "digest": _digest(tokens),
        }
        header |= {name: label[:MAX_LABEL] for name, label in labels.items()}
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}")
        try:
            with open(temporary, "wb") as file:
                file.write(json.dumps(header).encode("ascii").ljust(HEADER_BYTES - 1) + b"\n")
                file.writelines(block.tobytes() for block in blocks(tokens))
            try:
                os.replace(temporary, path)
            except PermissionError:  # on Windows: another process has the same file open
                if not path.is_file():
                    raise
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return True

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{SUFFIX}"

    def _make_room(self, key: str, size: int) -> bool:
        """Remove files until a file of `size` bytes fits. Returns whether it fits."""
        for file in self._files(TEMPORARY_SUFFIX):
            if time.time() - file.used > STALE_SECONDS:
                with contextlib.suppress(OSError):
                    file.path.unlink()
        # without the file that would be replaced
        limit = self.limit()
        files = [file for file in self.files() if file.path != self._path(key)]
        if size > limit:
            return False
        excess = sum(file.size for file in files) + size - limit
        for file in files:
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                file.path.unlink()
                excess -= file.size
        return excess <= 0

    def _files(self, suffix: str) -> Iterator[CachedFile]:
        try:
            paths = [path for path in self.directory.iterdir() if path.suffix == suffix]
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError):
                status = path.stat()
                yield CachedFile(path, status.st_size, status.st_mtime)


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a file. Raises OSError, or ValueError for another kind of file."""
    with open_regular(path) as file:
        header = json.loads(file.read(HEADER_BYTES))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a token file of this version")
    return header


def _digest(tokens: "TokenIds") -> str:
    from llmcli.data.tokens.tokens import blocks

    digest = hashlib.blake2b(tokens.dtype.str.encode(), digest_size=16)
    for block in blocks(tokens):
        digest.update(block.tobytes())
    return digest.hexdigest()
