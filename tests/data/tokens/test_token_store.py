"""The cache directory: where it is, what its files hold, its size, and what is removed from it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmcli.data.tokens import token_store as token_cache
from llmcli.data.tokens.token_store import HEADER_BYTES, TokenCache, cache_directory, read_header
from tests import platforms
from tests.data.corpora import error_of


def put(cache: TokenCache, key: str, size: int, used: float) -> Path:
    cache.directory.mkdir(parents=True, exist_ok=True)
    path = cache.directory / f"{key}.tokens"
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def keys(cache: TokenCache) -> list[str]:
    return [file.path.stem for file in cache.files()]


def numbers(size: int) -> np.ndarray:
    """Tokens whose file has so many bytes."""
    return np.arange((size - HEADER_BYTES) // 2).astype("<u2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenCache:
    """An empty one for 10,000 bytes."""
    monkeypatch.setenv("LLMCLI_CACHE_GB", "1e-5")
    return TokenCache(tmp_path / "deep" / "cache")


@platforms.posix
def test_the_directory_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/llmcli")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_directory() == tmp_path / ".cache" / "llmcli"


@pytest.mark.parametrize(("dtype", "last"), [("<u2", 65_535), ("<u4", 2**32 - 1)])
def test_tokens_are_read_as_they_were_written(cache: TokenCache, dtype: str, last: int) -> None:
    assert cache.read("a") is None
    assert cache.write("a", np.array([7, 0, last], dtype), text="🍎" * 5000, tokenizer="hash")
    read = cache.read("a")
    assert read is not None and read.tolist() == [7, 0, last] and read.dtype == dtype
    (file,) = cache.files()
    assert file.size == HEADER_BYTES + 3 * np.dtype(dtype).itemsize
    assert {"text": "🍎" * 200, "tokenizer": "hash", "tokens": 3}.items() <= read_header(file.path).items()


def test_damaged_tokens_are_not_read(cache: TokenCache) -> None:
    cache.write("a", np.array([1, 2, 3, 4], "<u2"))
    (file,) = cache.files()
    before = file.path.read_bytes()
    damaged = [before[:-1], before[:HEADER_BYTES], before + b"\0\0", before.replace(b'"format": 3', b'"format": 1')]
    damaged += [before.replace(b"<u2", other) for other in (b"<u4", b">u2", b"<i2", b"|O2", b"zzz")]
    damaged += [before[:i] + bytes([before[i] ^ 1]) + before[i + 1 :] for i in (HEADER_BYTES, len(before) - 1)]
    for data in damaged:
        file.path.write_bytes(data)
        assert cache.read("a") is None


def test_what_was_not_used_for_longest_is_removed_first(cache: TokenCache) -> None:
    cache.write("a", numbers(HEADER_BYTES + 2))
    put(cache, "b", 1000, 2)
    put(cache, "c", 1000, 3)
    put(cache, "d", 3000, 1)
    assert keys(cache) == ["d", "b", "c", "a"]
    assert cache.write("e", numbers(4500))
    assert keys(cache) == ["c", "a", "e"]
    os.utime(cache.directory / "a.tokens", (1, 1))
    assert cache.read("a") is not None  # and so it was used last
    assert cache.write("f", numbers(4800))
    assert keys(cache) == ["a", "f"]


def test_tokens_that_do_not_fit_remove_nothing(cache: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, "other", 10, 2)
    assert not cache.write("new", numbers(10_002))
    assert cache.write("new", numbers(9_990))
    assert keys(cache) == ["other", "new"]
    monkeypatch.setenv("LLMCLI_CACHE_GB", "0")
    assert not cache.write("b", numbers(HEADER_BYTES))


def test_the_limit_is_a_tenth_of_the_disk_that_is_free_without_the_cache(cache: TokenCache, monkeypatch) -> None:
    monkeypatch.delenv("LLMCLI_CACHE_GB")
    put(cache, "a", 1000, 1)
    for free, limit in ((9000, 1000), (10**15, 20e9)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(token_cache.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert cache.limit() == limit


def test_a_limit_that_is_no_number_is_refused(cache: TokenCache, monkeypatch) -> None:
    for requested in ["many", "-1", "inf", "nan"]:
        monkeypatch.setenv("LLMCLI_CACHE_GB", requested)
        assert "LLMCLI_CACHE_GB must be a number of gigabytes" in error_of(cache.limit)


def test_temporary_files_of_killed_processes_are_removed(cache: TokenCache) -> None:
    put(cache, "a", 5, 1)
    old, new = cache.directory / "b.1-2.tmp", cache.directory / "c.1-2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 1e6,) * 2)
    cache.write("d", numbers(5000))
    assert not old.exists() and new.exists()


def test_a_write_that_fails_leaves_nothing(cache: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(token_cache.os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        cache.write("a", numbers(5000))
    assert list(cache.directory.iterdir()) == []


@pytest.mark.slow
def test_processes_that_write_the_same_file_at_the_same_time_succeed(cache: TokenCache) -> None:
    source = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from llmcli.data.tokens.token_store import TokenCache\n"
        "cache = TokenCache(Path(sys.argv[1]))\n"
        "for _ in range(300): assert cache.write('a', np.arange(80, dtype='<u2'))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", source, str(cache.directory)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [path.name for path in cache.directory.iterdir()] == ["a.tokens"]
    tokens = cache.read("a")
    assert tokens is not None and tokens.tolist() == list(range(80))
