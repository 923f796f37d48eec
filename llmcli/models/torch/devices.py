"""The device that torch runs on: its choice, whether it works, and its lack of memory."""

import contextlib
from collections.abc import Iterator

from llmcli.errors import LLMError

OUT_OF_MEMORY = (  # in messages of torch
    "not enough memory",
    "out of memory",
    "allocate memory",
    "std::bad_alloc",
    "STATUS_ALLOC_FAILED",  # of cuBLAS and cuDNN
    "Invalid buffer size",  # of MPS: larger than its largest buffer
)


def pick_device(name: str) -> str:
    """Resolve "auto" to a GPU if torch sees one, else to the CPU. Raises LLMError when a named device is missing."""
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if _is_available(device))
    if not _is_available(name):
        raise LLMError(f"{_missing(name)}; use --device cpu or auto")
    return name


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def check_dtype(dtype: str, device: str) -> None:
    """Raises LLMError if this machine cannot multiply matrices of `dtype` on `device`."""
    pick_device(device)
    if problem := find_problem(dtype, device):
        raise LLMError(f"{problem}; use {'--device cpu' if dtype == 'float32' else '--dtype float32'}")


def find_problem(dtype: str, device: str) -> str:
    """The reason why this machine cannot multiply matrices of `dtype` on `device`; "" if it can."""
    import torch

    if not _is_available(device):
        return _missing(device)
    try:
        x = torch.ones(8, 8, dtype=getattr(torch, dtype), device=device)
        (x @ x).sum().item()
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        return f"{device} cannot compute in {dtype} here ({reason})"
    return ""


def _is_available(device: str) -> bool:
    import torch  # slow to import, and not needed on the CPU

    if device == "cuda":
        return torch.cuda.is_available()
    return device == "cpu" or torch.backends.mps.is_available()


def _missing(device: str) -> str:
    import torch

    return f"torch {torch.__version__} finds no {device} device here"


def return_freed_memory(device: str) -> None:
    """Give back memory that torch keeps for later tensors, so that other programs can use it."""
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch, whose types differ by device, says that memory is short."""
    return isinstance(error, MemoryError) or any(message in str(error) for message in OUT_OF_MEMORY)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Inside, an error of torch for lack of memory becomes a MemoryError. Other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise
