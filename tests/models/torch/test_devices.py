"""The device of torch: whether it works, and how its lack of memory is recognized."""

from typing import Any

import pytest
import torch

from llmcli.errors import LLMError
from llmcli.models.torch import devices

SHORT_OF_MEMORY = [
    "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "CUDA out of memory. Tried to allocate 20.00 MiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "MPS backend out of memory (MPS allocated: 18.50 GiB, other allocations: 448.00 KiB, max allowed: 18.72 GiB)",
    "Invalid buffer size: 38.15 GiB",
    "std::bad_alloc",
]


def refuse(monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype) -> None:
    """Have a GPU that cannot compute in these types."""
    ones = torch.ones

    def refused(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        if dtype in dtypes:
            raise RuntimeError('"addmm" not implemented for BFloat16\nand a lot more')
        return ones(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "ones", refused)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_missing_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LLMError, match=r"finds no cuda device here; use `device` cpu or auto$"):
        devices.check_dtype("bfloat16", "cuda")
    assert devices.find_problem("bfloat16", "cuda") == f"torch {torch.__version__} finds no cuda device here"


def test_a_data_type_that_does_not_work_is_an_error_that_names_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("float32", "bfloat16"):
        devices.check_dtype(dtype, "cpu")
        assert devices.find_problem(dtype, "cpu") == ""
    with monkeypatch.context() as patch:
        refuse(patch, torch.bfloat16)
        devices.check_dtype("float32", "cuda")
        with pytest.raises(LLMError, match=r"^cuda cannot compute in bfloat16 .*BFloat16\); use `dtype` float32$"):
            devices.check_dtype("bfloat16", "cuda")
    refuse(monkeypatch, torch.float32)
    with pytest.raises(LLMError, match=r"^cuda cannot compute in float32 here .*; use `device` cpu$"):
        devices.check_dtype("float32", "cuda")


def test_only_an_error_for_lack_of_memory_becomes_a_memory_error() -> None:
    for message in SHORT_OF_MEMORY:
        with pytest.raises(MemoryError), devices.memory_errors():
            raise RuntimeError(message)
    error: Any
    for error in (RuntimeError("size mismatch"), ValueError("out of memory")):
        with pytest.raises(type(error), match=str(error)), devices.memory_errors():
            raise error
