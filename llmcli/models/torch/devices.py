"""The device for torch: choosing it, checking that it works, detecting out-of-memory errors."""

import contextlib
import re
from collections.abc import Iterator

from llmcli.errors import LLMError

# out-of-memory messages of torch, cuBLAS, cuDNN and MPS (whose buffers have a maximum size)
OUT_OF_MEMORY = "(not enough|out of|allocate) memory|std::bad_alloc|STATUS_ALLOC_FAILED|Invalid buffer size"


def pick_device(name: str) -> str:
    """Resolve "auto" to a GPU if torch sees one, otherwise to the CPU. Raises LLMError if a named device is
    missing."""
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if not _missing(device))
    if missing := _missing(name):
        raise LLMError(f"{missing}; use `device` cpu or auto")
    return name


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def check_dtype(dtype: str, device: str) -> None:
    """Raise LLMError if this machine cannot multiply matrices of `dtype` on `device`."""
    pick_device(device)
    if problem := find_problem(dtype, device):
        raise LLMError(f"{problem}; use {'`device` cpu' if dtype == 'float32' else '`dtype` float32'}")


def find_problem(dtype: str, device: str) -> str:
    """Return the reason why this machine cannot multiply matrices of `dtype` on `device`; "" if it can."""
    import torch

    if missing := _missing(device):
        return missing
    try:
        x = torch.ones(8, 8, dtype=getattr(torch, dtype), device=device)
        (x @ x).sum().item()
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        return f"{device} cannot compute in {dtype} here ({reason})"
    return ""


def _missing(device: str) -> str:
    """Return an error message if torch does not see the device; "" if it does."""
    import torch  # slow to import, and not needed on the CPU

    seen = (
        torch.cuda.is_available()
        if device == "cuda"
        else device == "cpu" or torch.backends.mps.is_available()
    )
    return "" if seen else f"torch {torch.__version__} finds no {device} device here"


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's out-of-memory errors into MemoryError. Other errors propagate."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        is_of_group = isinstance(error, DistError)  # the other processes are waiting
        if re.search(OUT_OF_MEMORY, str(error)) and not is_of_group:
            raise MemoryError(str(error).splitlines()[0]) from error
        raise
