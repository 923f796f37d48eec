"""Any safetensors file: its header is read as it stands, believed only when all of it fits; values come as they are."""

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy

from llmcli.errors import LLMError
from llmcli.formats.checkpoint import load
from llmcli.formats.safetensors_file import digest, read_tensor, read_values
from llmcli.formats.safetensors_header import read_header
from tests.reliability.malformed import FOUR, MALFORMED, ONE, put, tensor


@pytest.mark.parametrize(
    ("dtype", "code", "values"),
    [
        ("BOOL", "?", [True, False]), ("U8", "B", [0, 255]), ("I8", "b", [-128, 127]), ("U16", "H", [1, 65535]),
        ("I16", "h", [-2, 32767]), ("U32", "I", [1, 2**32 - 1]), ("I32", "i", [-(2**31), 5]), ("F32", "f", [0.5, -3]),
        ("U64", "Q", [1, 2**64 - 1]), ("I64", "q", [-(2**63), 7]), ("F64", "d", [math.pi, -1e300]),
    ],
)  # fmt: skip
def test_any_plain_type_is_read_by_value(dtype: str, code: str, values: list[Any]) -> None:
    data = struct.pack(f"<2{code}", *values)
    header = read_header(put({"a": tensor("U8", [3], 0, 3), "b": tensor(dtype, [2], 3, 3 + len(data))}, b"abc" + data))
    assert [v for piece in read_values(header, header.tensors["b"]) for v in piece.tolist()] == values


def test_a_tensor_without_elements_is_read() -> None:
    header = read_header(put({"a": tensor("F32", [0, 3], 0, 0)}))
    assert read_tensor(header, header.tensors["a"]).shape == (0, 3)


def test_a_type_that_numpy_lacks_is_named() -> None:
    header = read_header(put({"a": tensor("F8_E4M3", [2], 0, 2)}, b"ab"))
    with pytest.raises(LLMError, match="a is of type F8_E4M3"):
        list(read_values(header, header.tensors["a"]))


def test_a_header_is_read_as_it_stands() -> None:
    body = bytes(range(24))
    path = put(
        {
            "b": tensor("F32", [2, 2], 8, 24),
            "a": tensor("I64", [], 0, 8),
            "none": tensor("F16", [0, 5], 8, 8),
            "__metadata__": {"k": "v é"},
        },
        body,
    )
    header = read_header(path)
    start = path.stat().st_size - 24
    assert (header.path, header.file_bytes, header.data_start) == (path, start + 24, start)
    assert header.metadata == {"k": "v é"}
    assert not header.is_ours
    assert [(t.name, t.dtype, t.shape, t.size, t.start - start, t.end - start) for t in header.tensors.values()] == [
        ("b", "F32", (2, 2), 4, 8, 24),
        ("a", "I64", (), 1, 0, 8),
        ("none", "F16", (0, 5), 0, 8, 8),
    ]
    assert header.parameters == 5
    assert safetensors.numpy.load_file(path).keys() == header.tensors.keys()
    assert digest(header) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("header", [b"{}", b"{}      ", b'{"__metadata__":{}}', b'{"__metadata__":null}'], ids=repr)
def test_a_file_without_tensors_is_a_file(header: bytes) -> None:
    path = put(header)
    assert safetensors.numpy.load_file(path) == {}
    assert read_header(path).tensors == {}


@pytest.mark.parametrize("length", [0x80, 0x3C, 0x280])
def test_a_file_cut_off_in_its_header_is_not_taken_for_something_else(length: int) -> None:
    """0x80 begins a pickle and 0x3C is "<", but both begin lengths too."""
    whole = put(b"{}" + b" " * (length - 2)).read_bytes()
    assert read_header("x.safetensors").tensors == {}
    Path("x.safetensors").write_bytes(whole[:50])
    with pytest.raises(LLMError, match=f"is cut off: its header needs {length + 8} bytes, the file has 50"):
        read_header("x.safetensors")


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_refused_here_as_it_is_by_the_library(kind: str) -> None:
    header, body, message = MALFORMED[kind]
    path = put(header, body)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.numpy.load_file(path)
    with pytest.raises(LLMError, match=rf"^x\.safetensors .*{message}") as caught:
        read_header(path)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2),
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"x":"1","x":"2"},"a":%b}' % json.dumps(ONE).encode(),
    ],
    ids=["two tensors", "inside a tensor", "in the metadata"],
)
def test_a_name_that_occurs_twice_is_refused(text: bytes) -> None:
    with pytest.raises(LLMError, match="a name occurs twice"):
        read_header(put(text, FOUR))


def test_every_shorter_file_is_refused() -> None:
    whole = put({"__metadata__": {"k": "v"}, "a": ONE}, FOUR).read_bytes()
    assert read_header("x.safetensors").parameters == 1
    for length in range(len(whole)):
        Path("x.safetensors").write_bytes(whole[:length])
        with pytest.raises(LLMError):
            read_header("x.safetensors")


def llama_2_70b() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, 8192)}
    for i in range(80):
        shapes |= {
            f"model.layers.{i}.self_attn.q_proj.weight": (8192, 8192),
            f"model.layers.{i}.self_attn.k_proj.weight": (1024, 8192),
            f"model.layers.{i}.self_attn.v_proj.weight": (1024, 8192),
            f"model.layers.{i}.self_attn.o_proj.weight": (8192, 8192),
            f"model.layers.{i}.mlp.gate_proj.weight": (28672, 8192),
            f"model.layers.{i}.mlp.up_proj.weight": (28672, 8192),
            f"model.layers.{i}.mlp.down_proj.weight": (8192, 28672),
            f"model.layers.{i}.input_layernorm.weight": (8192,),
            f"model.layers.{i}.post_attention_layernorm.weight": (8192,),
        }
    return shapes | {"model.norm.weight": (8192,), "lm_head.weight": (32000, 8192)}


def test_a_file_of_140_gigabytes_is_read_from_its_header_alone(no_hang: None) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in llama_2_70b().items():
        size = 2 * math.prod(shape)
        header[name] = tensor("BF16", list(shape), position, position + size)
        position += size
    path = put(header)
    start = path.stat().st_size
    try:
        try:
            os.truncate(path, start + position)
        except OSError:
            pytest.skip("this file system has no files of 140 GB")
        if path.stat().st_blocks * 512 > 1 << 24:
            pytest.skip("this file system has no sparse files")
        found = read_header(path)
        assert found.parameters == 68_976_648_192
        assert found.file_bytes == start + 137_953_296_384
        assert len(found.tensors) == 3 + 9 * 80
        with pytest.raises(LLMError, match="llm inspect"):
            load(path)
        os.truncate(path, start + position - 1)
        with pytest.raises(LLMError, match="cut off"):
            read_header(path)
    finally:
        path.unlink()
