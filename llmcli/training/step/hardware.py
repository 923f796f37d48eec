"""The hardware of this machine: the faster data type, the best number of threads, free memory."""

import contextlib
import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

from llmcli.errors import LLMError
from llmcli.models.torch.devices import memory_errors

# bfloat16 is chosen if matrix products take less than this fraction of the time in float32
BFLOAT16_GAIN = 0.8
PRODUCTS_TIMED = 16  # per data type
THREADS_GAIN = 0.9  # fewer threads are chosen if they take less than this fraction of the time with more
# duration of measuring the share of a core; shorter measurements depend on the scheduler's time slices
SHARE_SECONDS = 0.1
# share of a core below which a thread is waiting for other processes. Measured on two cores: 0.97 while one
# other process is busy, 0.48 to 0.87 while two are
FREE_SHARE = 0.92
# memory.high is not a hard limit, but the kernel throttles a group that exceeds it
LIMITS = (
    "memory.max",
    "memory.high",
)
PAGE_CACHE = ("inactive_file", "active_file")  # keys in memory.stat; the kernel frees it when necessary
# parameters of mallopt, from glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def pick_dtype(requested: str, device: str, threads: int) -> tuple[str, str]:
    """Return (dtype, reason). "auto" chooses bfloat16 if its matrix products are faster than those of
    float32."""
    if requested != "auto":
        return requested, "as requested"
    if device == "cuda":
        # emulation is slower than float32
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            ("bfloat16", "the fastest on this GPU") if supported else ("float32", "this GPU has no bfloat16")
        )
    if device != "cpu":
        return "float32", f"the default on {device}"
    torch.set_num_threads(threads)
    faster = _product_seconds(torch.bfloat16) < BFLOAT16_GAIN * _product_seconds(torch.float32)
    # does not mention measured times: the reason is saved in the file, which must not depend on a clock
    reason = f"bfloat16 matrix products are {'faster' if faster else 'not faster'} than float32 here"
    return "bfloat16" if faster else "float32", reason


@cache
def _product_seconds(dtype: torch.dtype) -> float:
    """Measure, once per process, the processor time of a typical matrix product on one core, in seconds: the
    minimum of several."""
    # thread_time is too coarse there
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, y = (torch.ones(512, 256, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(PRODUCTS_TIMED):
        began = clock()
        x @ y.mT
        times.append(clock() - began)
    torch.set_num_threads(threads)
    return min(times)


def fastest_threads(counts: Sequence[int]) -> int:
    """Choose the number of threads, from descending `counts`, that currently makes small operations fastest.

    Threads wait for each other, so fewer threads than cores are much faster if another process is busy. If
    even a single thread has to wait for a core, the smallest number is chosen: more threads would only take
    time from other processes.
    """
    # measured twice, to ignore a momentary load
    if len(counts) == 1 or (_core_share() < FREE_SHARE and _core_share() < FREE_SHARE):
        return counts[-1]
    best = math.inf
    fastest = counts[0]
    for count in counts:
        if (seconds := _chain_seconds(count)) < THREADS_GAIN * best:
            best = seconds
            fastest = count
    return fastest


def _core_share() -> float:
    """Measure the share of a core, 0 to 1, that a thread gets now; 1 if the system's clock is too coarse."""
    if sys.platform == "win32":
        return 1.0
    began = time.perf_counter()
    worked = time.thread_time()
    while (seconds := time.perf_counter() - began) < SHARE_SECONDS:
        pass
    return (time.thread_time() - worked) / seconds


def _chain_seconds(threads: int) -> float:
    """Measure the seconds for ten small products; each depends on the previous one."""
    torch.set_num_threads(threads)
    x = torch.ones(512, 256)
    y = torch.ones(256, 256) / 256
    began = time.perf_counter()
    rounds = 0
    while rounds < 2 or time.perf_counter() - began < 0.03:
        for _ in range(10):
            x = torch.relu(x @ y)
        rounds += 1
    return (time.perf_counter() - began) / rounds


def check_can_shard() -> None:
    """Raise LLMError if this version of torch cannot shard weights."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise LLMError(
            f"sharded weights need torch 2.6 or later, found {torch.__version__}; update it: "
            "pip install -U torch"
        )


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step; mapping it again would take a twentieth of a step's
    time."""
    if libc := _glibc():  # which accepts a threshold of at most 32 MB
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Make glibc return freed memory to the system, for instance after measuring the speed of models."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    is_glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if is_glibc else None


def free_memory(device: str) -> float:
    """Return the bytes that a run may use on a device. MPS shares the CPU's memory, but not all of it may be
    used."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    host = min(_system_memory(), available_memory(), _process_memory())
    return min(host, float(torch.mps.recommended_max_memory())) if device == "mps" else host


def _system_memory() -> float:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(AttributeError, OSError):
        return _windows_memory()
    return math.inf


def _windows_memory() -> float:
    """Return ullAvailPhys in MEMORYSTATUSEX (two 32-bit numbers, then seven of 64 bits), from
    GlobalMemoryStatusEx."""
    # dwLength first; all are little-endian
    status = (ctypes.c_uint64 * 8)(ctypes.sizeof(ctypes.c_uint64) * 8)
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return float(status[2])


def _process_memory() -> float:
    """Return the bytes left within the limit on this process's address space (ulimit -v); infinite without a
    limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            return float(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def available_memory(cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes left within the limits of this process's control groups (version 2), such as those of
    a container; infinite without limits. The file `cgroup` names the groups. A container may see the names on
    its host, in which case the limits of `root` count."""
    groups = [root / line.removeprefix("0::/") for line in _lines(cgroup) if line.startswith("0::/")]
    return min((_available(each) for group in groups for each in (group, *group.parents)), default=math.inf)


def _available(group: Path) -> float:
    limit = min(_number(group / name) for name in LIMITS)
    used = _number(group / "memory.current")
    if math.isinf(limit) or math.isinf(used):
        return math.inf
    stat = {key: value for key, _, value in (line.partition(" ") for line in _lines(group / "memory.stat"))}
    reclaimable = sum(int(value) for key in PAGE_CACHE if (value := stat.get(key, "0")).isdecimal())
    return max(0.0, limit - max(0.0, used - reclaimable))


def _number(path: Path) -> float:
    """Read the number in a file; infinite if there is none or the file does not exist."""
    text = "".join(_lines(path)[:1])
    return float(text) if text.isdecimal() else math.inf


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text("utf-8").splitlines()
    return []


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn out-of-memory errors into an LLMError that says what to type. Other errors propagate."""
    try:
        with memory_errors():
            yield
    except MemoryError as error:
        raise LLMError(
            "out of memory; use a smaller batch, context or model: `batch_tokens` 1024, `context` 128, "
            "or a smaller `width` or fewer `layers`"
        ) from error
