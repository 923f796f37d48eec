"""The token cache: a directory of token files, which a later run on the same text reads instead of tokenizing.

This module handles the names, sizes and ages of the files, shards.py their contents. The least recently used files are
removed first.
"""

import contextlib
import math
import os
import shutil
import threading
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmcli.errors import LLMError

SUFFIX = ".tokens"
TEMPORARY_SUFFIX = ".tmp"  # while a file is written
LIMIT_VARIABLE = "LLMCLI_CACHE_GB"
MAX_BYTES = 20e9  # total size of all files ...
DISK_SHARE = 0.1  # ... and its share of the disk space that is free without them
STALE_SECONDS = 86_400.0  # an older temporary file belongs to a killed process


@dataclass(frozen=True)
class CachedFile:
    """A file in the cache."""

    path: Path
    size: int  # bytes
    used: float  # when it was written, or last opened by a run, in seconds since 1970

    @property
    def key(self) -> str:
        return self.path.stem


def cache_directory() -> Path | None:
    """Return $XDG_CACHE_HOME/llmcli or ~/.cache/llmcli; on Windows %LOCALAPPDATA%\\llmcli\\cache. None without a home
    directory. A relative path is ignored, as the XDG Base Directory Specification requires."""
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
        """Return the maximum total size in bytes; 0 if the cache is off. Raises LLMError for an invalid setting."""
        if requested := os.environ.get(LIMIT_VARIABLE):
            with contextlib.suppress(ValueError):
                if 0 <= (gigabytes := float(requested)) < math.inf:
                    return gigabytes * 1e9
            raise LLMError(
                f"{LIMIT_VARIABLE} must be a number of gigabytes, 0 or more, found {requested!r}; for example 20"
            )
        try:
            existing = next(path for path in (self.directory, *self.directory.parents) if path.exists())
            free = shutil.disk_usage(existing).free
        except (OSError, StopIteration):
            return MAX_BYTES
        return min(MAX_BYTES, DISK_SHARE * (free + sum(file.size for file in self._files(SUFFIX))))

    def find(self, key: str) -> Path | None:
        """Return the file with this key, and mark it as used; None if there is none."""
        path = self._path(key)
        try:
            os.utime(path)
        except OSError:
            return path if path.is_file() else None  # even in a read-only directory
        return path

    def write(self, key: str, parts: Iterable[bytes], size: int, keep: Container[str]) -> Path | None:
        """Store a file of `parts` with `size` bytes in total; None if it does not fit beside the files in `keep`.
        Another process may write the same file at the same time. Raises OSError."""
        if not self._make_room(key, size, keep):
            return None
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}")
        try:
            with open(temporary, "wb") as file:
                file.writelines(parts)
            try:
                os.replace(temporary, path)
            except PermissionError:  # on Windows: another process has the same file open
                if not path.is_file():
                    raise
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return path

    def clear(self) -> list[CachedFile]:
        """Remove and return all files. Raises OSError if one cannot be removed."""
        files = [*self.files(), *self._files(TEMPORARY_SUFFIX)]
        for file in files:
            file.path.unlink(missing_ok=True)
        return [file for file in files if file.path.suffix == SUFFIX]

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{SUFFIX}"

    def _make_room(self, key: str, size: int, keep: Container[str]) -> bool:
        """Remove files whose keys are not in `keep` until a file of `size` bytes fits. Returns whether it fits."""
        for file in self._files(TEMPORARY_SUFFIX):
            if time.time() - file.used > STALE_SECONDS:
                with contextlib.suppress(OSError):
                    file.path.unlink()
        limit, files = self.limit(), [file for file in self.files() if file.key != key]  # it would be replaced
        excess = sum(file.size for file in files) + size - limit
        for file in files:
            if excess <= 0:
                break
            if file.key not in keep:
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
