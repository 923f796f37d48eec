"""The values of any safetensors file."""

import math
import struct
from typing import Any

import pytest

from llmcli.errors import LLMError
from llmcli.formats.safetensors.file import read_tensor, read_values
from llmcli.formats.safetensors.header import read_header
from tests.reliability.malformed import put, tensor


@pytest.mark.parametrize(
    ("dtype", "code", "values"),
    [
        ("BOOL", "?", [True, False]), ("U8", "B", [0, 255]), ("I8", "b", [-128, 127]), ("U16", "H", [1, 65535]),
        ("I16", "h", [-2, 32767]), ("U32", "I", [1, 2**32 - 1]), ("I32", "i", [-(2**31), 5]), ("F32", "f", [0.5, -3]),
        ("U64", "Q", [1, 2**64 - 1]), ("I64", "q", [-(2**63), 7]), ("F64", "d", [math.pi, -1e300]),
    ],
)  # fmt: skip
def test_values_of_every_readable_type(dtype: str, code: str, values: list[Any]) -> None:
    data = struct.pack(f"<2{code}", *values)
    header = read_header(put({"a": tensor("U8", [3], 0, 3), "b": tensor(dtype, [2], 3, 3 + len(data))}, b"abc" + data))
    assert [v for piece in read_values(header, header.tensors["b"]) for v in piece.tolist()] == values


def test_a_tensor_without_elements_is_read() -> None:
    header = read_header(put({"a": tensor("F32", [0, 3], 0, 0)}))
    assert read_tensor(header, header.tensors["a"]).shape == (0, 3)


def test_the_error_names_a_type_that_numpy_lacks() -> None:
    header = read_header(put({"a": tensor("F8_E4M3", [2], 0, 2)}, b"ab"))
    with pytest.raises(LLMError, match="a is of type F8_E4M3"):
        list(read_values(header, header.tensors["a"]))
