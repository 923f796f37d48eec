"""The values of any safetensors file, read and written."""

import math
import struct
import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from llmcli.errors import LLMError
from llmcli.formats.checkpoint import ComputedTensors
from llmcli.formats.safetensors import file as safetensors_file
from llmcli.formats.safetensors.dtypes import NUMPY_NAMES, numpy_dtype
from llmcli.formats.safetensors.file import read_tensor, write
from llmcli.formats.safetensors.header import read_header
from tests.reliability.malformed import ONE, put, tensor


def test_the_error_names_a_type_that_numpy_or_the_library_lacks() -> None:
    unread = put({"a": tensor("F8_E4M3", [4], 0, 4)}, bytes(4)), r"a is of type F8_E4M3"
    unknown = put({"a": ONE, "b": tensor("F999", [1], 4, 8)}, bytes(8), "y.safetensors"), r"cannot read y\.s.*F999"
    for path, message in (unread, unknown):
        header = read_header(path)
        with pytest.raises(LLMError, match=message):
            read_tensor(header, header.tensors["a"])


SHAPES = {"": (2, 3), "scalar": (), "empty": (0, 3), "one": (1,), "é 🍎": (5,), "several blocks": (2, 20)}


def test_the_library_reads_what_is_written_and_what_it_writes_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "BLOCK_VALUES", 16)
    for dtype in NUMPY_NAMES:
        stored_dtype = numpy_dtype(dtype)
        tensors = {
            name: (np.arange(math.prod(shape)) / 3).reshape(shape).astype(stored_dtype)
            for name, shape in SHAPES.items()
        }
        if "F" in dtype:
            tensors["several blocks"][1, 1:6] = math.inf, -math.inf, 2.0**-24, -(2.0**-133), -0.0
        write("ours", tensors, {name: (dtype, shape) for name, shape in SHAPES.items()}, {"k": "v é"})
        safetensors.numpy.save_file(tensors, "theirs", {"k": "v é"})
        assert list(read_header("ours").tensors) == list(SHAPES), dtype
        for path in ("ours", "theirs"):
            header, found = read_header(path), safetensors.numpy.load_file(path)
            assert header.metadata["k"] == "v é" and found.keys() == header.tensors.keys() == SHAPES.keys()
            for name, array in tensors.items():
                result = read_tensor(header, header.tensors[name])
                assert found[name].dtype == stored_dtype and found[name].tobytes() == array.tobytes()
                assert result.dtype == (np.float32 if dtype == "BF16" else stored_dtype) and result.shape == array.shape
                assert np.array_equal(result, array.astype(result.dtype))


def test_values_are_rounded_to_nearest() -> None:
    cases = [
        ("BF16", 1 + 2**-8, 0x3F80), ("BF16", 1 + 3 * 2**-8, 0x3F82),  # ties: to even
        ("BF16", 1 + 2**-8 + 2**-20, 0x3F81), ("BF16", 3.4e38, 0x7F80),
        ("F16", 1 + 2**-11, 0x3C00), ("F16", 1e6, 0x7C00), ("F16", -1e-9, 0x8000),
    ]  # fmt: skip
    for dtype, value, bits in cases:
        write("m", {"a": np.array([value, math.nan], np.float32)}, {"a": (dtype, (2,))}, {})
        header = read_header("m")
        assert struct.unpack("<H", Path("m").read_bytes()[-4:-2]) == (bits,), (dtype, value, bits)
        assert math.isnan(read_tensor(header, header.tensors["a"])[1]), (dtype, value, bits)


def test_one_computed_tensor_at_a_time_is_in_memory() -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def compute(name: str) -> np.ndarray:
        assert all(earlier() is None for earlier in made)
        array = np.full(1000, int(name), np.float32)
        made.append(weakref.ref(array))
        return array

    names = [str(number) for number in range(20)]
    for dtype in ("F32", "BF16"):
        write("m", ComputedTensors(names, compute), dict.fromkeys(names, (dtype, (1000,))), {})
    assert len(made) == 40 and all((safetensors.numpy.load_file("m")[name] == int(name)).all() for name in names)
