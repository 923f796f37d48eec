"""What this machine offers, and the errors where it lacks something."""

import ctypes
import platform
import struct
import subprocess
import sys
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
        ((0.001, 0.002), [0.97], 2),
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
