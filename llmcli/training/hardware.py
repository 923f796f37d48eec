"""What this computer can do: the device, the faster type of number, the memory that is free."""

import contextlib
import ctypes
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from llmcli.config import DTYPES
from llmcli.errors import LLMError
from llmcli.models.devices import pick_device
from llmcli.training.cgroups import available_memory

OUT_OF_MEMORY = ("not enough memory", "out of memory", "allocate memory", "std::bad_alloc")  # how torch says it


def check_dtype(dtype: str, device: str) -> None:
    """Raises LLMError when this computer cannot multiply matrices of that type on that device."""
    pick_device(device)
    try:
        x = torch.ones(8, 8, dtype=getattr(torch, dtype), device=device)
        (x @ x).sum().item()
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise LLMError(f"{device} cannot calculate in {dtype} here ({reason}); use --dtype float32") from error


def pick_dtype(wanted: str, device: str, threads: int) -> tuple[str, str]:
    """(type, why). "auto" is bfloat16 where the machine can and a product takes less time in it than in float32."""
    if wanted != "auto":
        return wanted, "as asked"
    if device == "cuda":
        able = torch.cuda.is_bf16_supported()
        return ("bfloat16", "it is the fastest here") if able else ("float32", "no bfloat16 here")
    if device != "cpu":
        return "float32", "what is here"
    torch.set_num_threads(threads)
    times = {name: _product_seconds(getattr(torch, name)) for name in DTYPES}
    fastest = "bfloat16" if times["bfloat16"] < 0.8 * times["float32"] else "float32"
    quicker = fastest == "bfloat16"  # no figure: what a clock says must not go into a file that steps decide
    return fastest, f"products in bfloat16 are {'faster' if quicker else 'no faster'} here than in float32"


def _product_seconds(dtype: torch.dtype) -> float:
    """Of a product as training has them: the least of a few, so that other work on the machine matters little."""
    x, y = (torch.ones(512, 256, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        began = time.perf_counter()
        x @ y.mT
        times.append(time.perf_counter() - began)
    return min(times)


def fastest_threads(counts: Sequence[int]) -> int:
    """The number of threads with which a chain of small operations takes the least time at present; the first of some
    that are as good. Beside another program fewer than all are much faster: the threads wait for each other."""
    x, y = torch.ones(512, 256), torch.ones(256, 256) / 256
    best, fastest = math.inf, counts[0]
    for count in counts:
        torch.set_num_threads(count)
        began, rounds = time.perf_counter(), 0
        while rounds < 2 or time.perf_counter() - began < 0.03:
            for _ in range(10):
                x = torch.relu(x @ y)
            rounds += 1
        seconds = (time.perf_counter() - began) / rounds
        if seconds < 0.9 * best:
            best, fastest = seconds, count
    return fastest


def free_memory(device: str) -> float:
    """Bytes that a run may use: the least of what the system has, what it lets this group of processes have, and what
    it lets this one have, as far as it tells."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return min(_system_memory(), available_memory(), _process_memory())


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
    """What GlobalMemoryStatusEx calls ullAvailPhys, of MEMORYSTATUSEX: two 32-bit numbers, then seven of 64 bits."""
    status = (ctypes.c_uint64 * 8)(ctypes.sizeof(ctypes.c_uint64) * 8)  # dwLength first; all are little-endian
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined,unused-ignore]
        raise OSError("GlobalMemoryStatusEx failed")
    return float(status[2])


def _process_memory() -> float:
    """What is left of the addresses that this process may have (ulimit -v)."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            return float(most - pages * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """What torch says when memory is not there becomes one line with what to type."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise LLMError(
                "out of memory; take a smaller batch, context or model: --batch-tokens 1024, --context 128, or a "
                "smaller --width or fewer --layers"
            ) from error
        raise
