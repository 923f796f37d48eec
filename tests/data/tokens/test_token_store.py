"""The cache directory: where it is, its size, and what is removed from it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmcli.data.tokens import token_store as token_cache
from llmcli.data.tokens.token_store import TokenCache, cache_directory
from llmcli.errors import LLMError
from tests import platforms


def put(cache: TokenCache, key: str, size: int, used: float) -> Path:
    cache.directory.mkdir(parents=True, exist_ok=True)
    path = cache.directory / f"{key}.tokens"
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def keys(cache: TokenCache) -> list[str]:
    return [file.key for file in cache.files()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenCache:
    """An empty one for 100 bytes."""
    monkeypatch.setenv("LLMCLI_CACHE_GB", "1e-7")
    return TokenCache(tmp_path / "deep" / "cache")


@platforms.posix
def test_the_directory_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/llmcli")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_directory() == tmp_path / ".cache" / "llmcli"


def test_what_was_not_used_for_longest_is_removed_first(cache: TokenCache) -> None:
    for key, used in (("b", 2), ("c", 3), ("a", 1)):
        put(cache, key, 30, used)
    assert keys(cache) == ["a", "b", "c"]
    assert cache.write("d", [b"x" * 20, b"y" * 15], 35, keep={"d"})
    assert keys(cache) == ["b", "c", "d"]
    assert cache.find("b")  # and so it was used after "c"
    assert cache.write("e", [b"x" * 35], 35, keep={"d", "e"})
    assert set(keys(cache)) == {"b", "d", "e"}
    assert (cache.directory / "d.tokens").read_bytes() == b"x" * 20 + b"y" * 15


def test_what_the_run_uses_is_kept_and_the_limit_holds(cache: TokenCache) -> None:
    put(cache, "mine", 60, 1)
    put(cache, "other", 10, 2)
    assert cache.write("new", [b"x" * 41], 41, keep={"mine", "new"}) is None
    assert keys(cache) == ["mine"]
    assert cache.write("new", [b"x" * 40], 40, keep={"mine", "new"})
    assert keys(cache) == ["mine", "new"]


def test_a_cache_of_no_bytes_is_turned_off(cache: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_CACHE_GB", "0")
    assert cache.write("a", [b"x"], 1, keep=()) is None
    assert not cache.directory.exists()


def test_the_limit_is_a_tenth_of_the_disk_that_is_free_without_the_cache(cache: TokenCache, monkeypatch) -> None:
    monkeypatch.delenv("LLMCLI_CACHE_GB")
    put(cache, "a", 1000, 1)
    for free, limit in ((9000, 1000), (10**15, 20e9)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(token_cache.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert cache.limit() == limit


@pytest.mark.parametrize("requested", ["many", "-1", "inf", "nan"])
def test_a_limit_that_is_no_number_is_refused(cache: TokenCache, monkeypatch, requested: str) -> None:
    monkeypatch.setenv("LLMCLI_CACHE_GB", requested)
    with pytest.raises(LLMError, match="LLMCLI_CACHE_GB must be a number of gigabytes"):
        cache.limit()


def test_clearing_removes_the_files_of_the_cache_alone(cache: TokenCache) -> None:
    put(cache, "a", 5, 1)
    (cache.directory / "b.1-2.tmp").write_bytes(b"half")
    (cache.directory / "notes.txt").write_text("mine", "utf-8")
    assert [file.key for file in cache.clear()] == ["a"]
    assert [path.name for path in cache.directory.iterdir()] == ["notes.txt"]
    assert TokenCache(cache.directory / "none").clear() == []


def test_temporary_files_of_killed_processes_are_removed(cache: TokenCache) -> None:
    put(cache, "a", 5, 1)
    old, new = cache.directory / "b.1-2.tmp", cache.directory / "c.1-2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 1e6,) * 2)
    cache.write("d", [b"x"], 1, keep=())
    assert not old.exists() and new.exists()


def test_a_write_that_fails_leaves_nothing(cache: TokenCache) -> None:
    def parts():
        yield b"x"
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        cache.write("a", parts(), 2, keep=())
    assert list(cache.directory.iterdir()) == []


@pytest.mark.slow
def test_processes_that_write_the_same_file_at_the_same_time_succeed(cache: TokenCache) -> None:
    source = (
        "import sys; from pathlib import Path; from llmcli.data.tokens.token_store import TokenCache\n"
        "cache = TokenCache(Path(sys.argv[1]))\n"
        "for _ in range(300): assert cache.write('a', [b'x' * 40, b'y' * 40], 80, {'a'})\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", source, str(cache.directory)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [path.name for path in cache.directory.iterdir()] == ["a.tokens"]
    assert (cache.directory / "a.tokens").read_bytes() == b"x" * 40 + b"y" * 40
