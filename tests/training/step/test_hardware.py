"""What this machine offers, and the errors where it lacks something."""

import ctypes
import math
import platform
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmcli.errors import LLMError
from llmcli.training.step import hardware
from tests import platforms


def test_the_dtype_is_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product takes one second in float32. The reason holds no measured figure."""
    for seconds, faster in [(0.5, "bfloat16"), (0.9, "float32"), (9.0, "float32")]:
        times = {torch.float32: 1.0, torch.bfloat16: seconds}
        monkeypatch.setattr(hardware, "_product_seconds", times.__getitem__)
        dtype, reason = hardware.pick_dtype("auto", "cpu", 1)
        assert dtype == faster
        assert not any(letter.isdigit() for letter in reason.replace("16", "").replace("32", ""))


def test_a_gpu_that_only_emulates_bfloat16_trains_in_float32(monkeypatch) -> None:
    for native, chosen in [(True, "bfloat16"), (False, "float32")]:
        with monkeypatch.context() as patch:
            supported = {True: True, False: native}  # with and without emulation
            patch.setattr(
                torch.cuda, "is_bf16_supported", lambda including_emulation=True, of=supported: of[including_emulation]
            )
            assert hardware.pick_dtype("auto", "cuda", 1)[0] == chosen


def test_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 << 30, 8 << 30))
    assert hardware.free_memory("cuda") == 7 << 30
    monkeypatch.setattr(hardware, "available_memory", lambda: 10000.0)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 6000)
    assert hardware.free_memory("mps") == 6000
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 20_000)
    assert hardware.free_memory("mps") == 10000


def test_free_memory_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(pointer: Any) -> int:
        length, _ = struct.unpack_from("<II", pointer._obj)
        struct.pack_into("<II7Q", pointer._obj, 0, length, 40, 8 << 30, 5 << 30, *range(5))
        return int(length == 64)

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert hardware._windows_memory() == 5 << 30


@platforms.linux
def test_a_limit_on_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    assert hardware._process_memory() > 0
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 50, 1 << 50))
    assert 1 << 49 < hardware._process_memory() < 1 << 50
    monkeypatch.setattr(hardware, "_process_memory", lambda: 1000.0)
    assert hardware.free_memory("cpu") == 1000.0


def test_an_error_for_lack_of_memory_says_what_to_type() -> None:
    """No machine has room for 2^60 numbers."""
    for error in [RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), MemoryError(), None]:
        with pytest.raises(LLMError, match=r"out of memory; .*`batch_tokens` 1024"), hardware.explain_out_of_memory():
            if error:
                raise error
            torch.empty(1 << 60)


@pytest.mark.parametrize(
    ("seconds", "shares", "threads"),
    [
        ((0.01, 0.001), [1.0], 1),
        ((0.001, 0.002), [1.0], 2),
        ((0.001, 0.00095), [1.0], 2),
        ((0.001, 0.002), [0.7, 0.7], 1),  # a thread waits for a core
        ((0.001, 0.002), [0.5, 0.97], 2),
    ],
)
def test_the_fastest_number_of_threads_is_chosen(seconds, shares, threads, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "_chain_seconds", dict(zip((2, 1), seconds, strict=True)).__getitem__)
    monkeypatch.setattr(hardware, "_core_share", iter(shares).__next__)
    assert hardware.fastest_threads([2, 1]) == threads


@platforms.linux
@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_until_it_is_returned() -> None:
    code = """
import torch
from pathlib import Path
from llmcli.training.step import hardware
resident = lambda: int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096 / 1e6
hardware.keep_freed_memory()
before = resident()
tensors = [torch.ones(250_000) for _ in range(300)]
last = torch.ones(1)
del tensors
kept = resident()
hardware.return_freed_memory()
print(kept - before, resident() - before)
"""
    kept, after = map(float, subprocess.check_output([sys.executable, "-c", code]).split())
    assert kept > 250  # of 300 MB
    assert after < 50


# ---- memory limits of control groups, on copies of the directories of real machines

MB = 1 << 20
Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """`put("sys/a", memory_max=3)` makes a group with the file memory.max in it."""

    def make(group: str, **files: object) -> None:
        directory = tmp_path / group
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (directory / name.replace("memory_", "memory.", 1)).write_text(f"{value}\n")

    return make


def available(root: Path, groups: str) -> float:
    """To a process with these lines in /proc/self/cgroup, where root/sys is /sys/fs/cgroup."""
    (root / "cgroup").write_text(groups)
    return hardware.available_memory(root / "cgroup", root / "sys")


def test_the_smallest_remainder_of_nested_groups_counts(tmp_path: Path, put: Put) -> None:
    put("sys", memory_stat="anon 7")  # the root has no limit
    put("sys/user.slice", memory_max=8000 * MB, memory_current=7000 * MB, memory_stat="inactive_file 0")
    put("sys/user.slice/job", memory_max=4000 * MB, memory_current=1000 * MB, memory_stat="inactive_file 0")
    put("sys/user.slice/job/step", memory_max="max", memory_current=900 * MB)
    assert available(tmp_path, "0::/user.slice/job/step\n") == 1000 * MB  # what other groups leave of the slice
    put("sys/user.slice", memory_max="max")
    assert available(tmp_path, "0::/user.slice/job/step\n") == 3000 * MB
    put("sys/user.slice/job", memory_max="max")
    assert available(tmp_path, "0::/user.slice/job/step\n") == math.inf


# a container of 4 GB that has read a text of 5 GB
STAT = f"anon {200 * MB}\nfile {3700 * MB}\nshmem {100 * MB}\nactive_file {1600 * MB}\ninactive_file {2000 * MB}"


def test_the_files_of_a_group_say_how_much_is_left(tmp_path: Path, put: Put) -> None:
    for number, (files, left) in enumerate(
        (
            # memory.high is a limit too
            ({"memory_max": 4000, "memory_high": 3000, "memory_current": 1000, "memory_stat": "active_file 0"}, 2000),
            # the page cache does not count as used; tmpfs (shmem) and process memory (anon) do
            ({"memory_max": 4000 * MB, "memory_current": 3990 * MB, "memory_stat": STAT}, (4000 - 390) * MB),
            # a group over its limit
            ({"memory_max": 3000, "memory_high": 500, "memory_current": 2900}, 0),
            # files that cannot be read
            *(
                ({"memory_max": text, "memory_current": text, "memory_stat": text}, math.inf)
                for text in ("", "max", "x", "-5")
            ),
        )
    ):
        put(f"{number}/sys", **files)
        assert available(tmp_path / str(number), "0::/\nnot a line of its kind\n\n:") == left, files
    assert hardware.available_memory(tmp_path / "nowhere") == math.inf


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path, put: Put) -> None:
    """The name of the group on the host does not exist inside; a group created inside does. Hierarchies of version 1
    are ignored."""
    put("sys", memory_max=3000, memory_current=1000)
    put("sys/jobs", memory_max=1500, memory_current=500)
    put("sys/memory/b", memory_max=800, memory_current=700)
    assert available(tmp_path, "4:memory:/b\n0::/jobs\n") == 1000
    for name in ("/docker/12ab", "/elsewhere", "/../other"):
        assert available(tmp_path, f"0::{name}\n") == 2000


def test_free_memory_respects_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.available_memory() > 1e6  # of this very process
    monkeypatch.setattr(hardware, "available_memory", lambda: 12345.0)
    assert hardware.free_memory("cpu") == 12345.0
