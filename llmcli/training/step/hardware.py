"""What this machine offers: devices, the faster data type, threads, free memory."""

import contextlib
import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from llmcli.errors import LLMError
from llmcli.models.torch.devices import is_out_of_memory
from llmcli.training.step.cgroups import available_memory
from llmcli.training.step.thread_tuner import ThreadTuner

BFLOAT16_GAIN = 0.8  # bfloat16 is chosen if products take less than this fraction of their time in float32
PRODUCTS_TIMED = 16  # in each data type
THREADS_GAIN = 0.9  # fewer threads are chosen if they take less than this fraction of the time with more
SHARE_SECONDS = 0.1  # in which the share of a core is measured: less is misled by how the system deals out time
# of a core; a thread that gets less waits for others. Measured on two cores: .97 beside one busy process, .48 to .87
# beside two
FREE_SHARE = 0.92
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h


def pick_dtype(
    requested: str, device: str, threads: int, product_seconds: Callable[[torch.dtype], float] | None = None
) -> tuple[str, str]:
    """(dtype, reason). For "auto": bfloat16 where matrix products are faster in it than in float32."""
    if requested != "auto":
        return requested, "as requested"
    if device == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)  # that is slower than float32
        return ("bfloat16", "the fastest on this GPU") if supported else ("float32", "this GPU has no bfloat16")
    if device != "cpu":
        return "float32", f"the default on {device}"
    torch.set_num_threads(threads)
    measure = product_seconds or _product_seconds
    times = {dtype: measure(dtype) for dtype in (torch.float32, torch.bfloat16)}
    faster = times[torch.bfloat16] < BFLOAT16_GAIN * times[torch.float32]
    # no measured figure in the reason: it is part of the file, whose bytes must not depend on a clock
    reason = f"bfloat16 matrix products are {'faster' if faster else 'not faster'} than float32 here"
    return "bfloat16" if faster else "float32", reason


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds of one core for a matrix product of a size that is usual in training: processor time, and the minimum of
    several, so that other processes matter little."""
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time  # which is too coarse there
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


def fastest_threads(
    counts: Sequence[int],
    chain_seconds: Callable[[int], float] | None = None,
    core_share: Callable[[], float] | None = None,
) -> int:
    """The number of threads, of `counts` in descending order, with which small operations are fastest now.

    While another process is busy, fewer threads than cores are much faster, since threads wait for each other. Where
    even one thread waits for a core, the smallest number is returned: more threads could take time from other
    processes, and so seem faster, until these do the same.

    `chain_seconds` measures one number of threads. A later number wins only by THREADS_GAIN. `core_share` measures the
    share of a core that a thread gets.
    """
    share = core_share or _core_share
    if len(counts) == 1 or (share() < FREE_SHARE and share() < FREE_SHARE):  # twice: not for a moment
        return counts[-1]
    measure = chain_seconds or _chain_seconds
    best, fastest = math.inf, counts[0]
    for count in counts:
        seconds = measure(count)
        if seconds < THREADS_GAIN * best:
            best, fastest = seconds, count
    return fastest


def _core_share() -> float:
    """The share of a core, 0 to 1, that a thread gets now; 1 where the system's clock is too coarse to know."""
    if sys.platform == "win32":
        return 1.0
    began, worked = time.perf_counter(), time.thread_time()
    while (seconds := time.perf_counter() - began) < SHARE_SECONDS:
        pass
    return (time.thread_time() - worked) / seconds


def _chain_seconds(threads: int) -> float:
    """Seconds for ten small products, each of which needs the one before."""
    torch.set_num_threads(threads)
    x, y = torch.ones(512, 256), torch.ones(256, 256) / 256
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - began < 0.03:
        for _ in range(10):
            x = torch.relu(x @ y)
        rounds += 1
    return (time.perf_counter() - began) / rounds


def torch_thread_tuner(threads: int) -> ThreadTuner:
    """A tuner that sets torch's number of threads, at most `threads`."""
    return ThreadTuner(threads, torch.set_num_threads, fastest_threads)


def can_shard() -> bool:
    """Whether this version of torch has FSDP2: 2.6 or later."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 6)


def check_can_shard() -> None:
    """Raises LLMError if this version of torch does not have FSDP2."""
    if not can_shard():
        raise LLMError(
            f"sharded weights need torch 2.6 or later, found {torch.__version__}; update it: pip install -U torch"
        )


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of returning it to the system.

    Otherwise the kernel has to map the same memory again in each step: 5,000 page faults, a twentieth of its time.
    Blocks above 32 MB, the largest threshold that glibc accepts, are returned all the same.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Have glibc return to the system what is freed now, such as the memory of the models whose speed was measured."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    is_glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if is_glibc else None


def free_memory(device: str) -> float:
    """Bytes that a run may use on a device. For the CPU the least of the system's free memory and of what the limits of
    this process and of its control groups leave; MPS shares that memory, but may not use all of it."""
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
    """ullAvailPhys of MEMORYSTATUSEX (two 32-bit numbers, then seven of 64 bits), from GlobalMemoryStatusEx."""
    status = (ctypes.c_uint64 * 8)(ctypes.sizeof(ctypes.c_uint64) * 8)  # dwLength first; all are little-endian
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined,unused-ignore]
        raise OSError("GlobalMemoryStatusEx failed")
    return float(status[2])


def _process_memory() -> float:
    """Bytes left of the limit on this process's address space (ulimit -v); infinite without one."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            return float(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Inside, an error for lack of memory becomes an LLMError that says what to type. Other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise LLMError(
                "out of memory; use a smaller batch, context or model: --batch-tokens 1024, --context 128, or a "
                "smaller --width or fewer --layers"
            ) from error
        raise
