"""What this computer can do, and what is said when it cannot."""

import ctypes
import struct
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmcli.errors import LLMError
from llmcli.training import hardware
from tests import platforms


def test_the_type_of_products_is_as_asked_or_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.pick_dtype("bfloat16", "cpu", 1) == ("bfloat16", "as asked")
    for seconds, wanted in ((0.5, "bfloat16"), (0.9, "float32"), (9.0, "float32")):
        monkeypatch.setattr(
            hardware, "_product_seconds", lambda dtype, low=seconds: low if dtype == torch.bfloat16 else 1.0
        )
        found, why = hardware.pick_dtype("auto", "cpu", 1)
        assert found == wanted and not any(letter.isdigit() for letter in why.replace("16", "").replace("32", ""))


def test_memory_is_found() -> None:
    assert 1e8 < hardware.free_memory("cpu") < 1e14


def test_windows_is_asked_for_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(found: Any) -> int:
        length, _ = struct.unpack_from("<II", found._obj)
        struct.pack_into("<II7Q", found._obj, 0, length, 40, 8 << 30, 5 << 30, *range(5))
        return int(length == 64)

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert hardware._windows_memory() == 5 << 30


@platforms.linux
def test_a_limit_on_the_process_is_seen() -> None:
    code = """
import resource
from llmcli.training import hardware
before = hardware.free_memory("cpu")
resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
assert hardware._process_memory() < 64 << 30
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
print(before, hardware.free_memory("cpu"))
"""
    import resource

    if resource.getrlimit(resource.RLIMIT_AS)[1] != resource.RLIM_INFINITY:
        pytest.skip("this process is limited itself")
    before, after = map(float, subprocess.check_output([sys.executable, "-c", code]).split())
    assert 0 < after <= before
    assert after < 12 << 30


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_memory_that_is_not_there_is_told_with_what_to_type(error: Exception) -> None:
    with pytest.raises(LLMError, match=r"out of memory; .*--batch-tokens 1024"), hardware.memory_told():
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), hardware.memory_told():
        raise RuntimeError("size mismatch")


def test_torch_is_understood() -> None:
    """Nobody has 2^60 numbers."""
    with pytest.raises(LLMError, match="out of memory"), hardware.memory_told():
        torch.empty(1 << 60)


def test_a_device_or_type_that_cannot_calculate_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("float32", "bfloat16"):
        hardware.check_dtype(dtype, "cpu")
    with pytest.raises(LLMError, match="finds no cuda device here; use --device cpu"):
        hardware.check_dtype("float32", "cuda")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError('"addmm" not implemented for BFloat16\nand a lot more')

    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(LLMError, match=r"^cpu cannot calculate in bfloat16 here \(.*BFloat16\); use --dtype float32$"):
        hardware.check_dtype("bfloat16", "cpu")
    monkeypatch.setattr(hardware, "pick_device", lambda device: device)  # a driver that is there and does not work
    with pytest.raises(LLMError, match=r"^cuda cannot calculate in float32 here"):
        hardware.check_dtype("float32", "cuda")


def test_threads_that_wait_for_each_other_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated clock: two threads take ten times as long beside another program, half as long without."""
    now, threads = [0.0], [0]
    cost: dict[int, float] = {}

    def relu(x: torch.Tensor) -> torch.Tensor:
        now[0] += cost[threads[0]]
        return x

    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(hardware.torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(hardware.torch, "relu", relu)
    for costs, expected in (({2: 0.010, 1: 0.001}, 1), ({2: 0.001, 1: 0.002}, 2), ({2: 0.001, 1: 0.00095}, 2)):
        cost.update(costs)
        assert hardware.fastest_threads([2, 1]) == expected
