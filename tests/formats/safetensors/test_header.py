"""The header of any safetensors file is read; a malformed one is an error, as it is in the reference library."""

import hashlib
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import safetensors
import safetensors.numpy

from llmcli.errors import LLMError
from llmcli.formats.loading import load
from llmcli.formats.safetensors.file import digest
from llmcli.formats.safetensors.header import read_header
from tests.reliability.malformed import FOUR, MALFORMED, ONE, put, tensor


def test_all_parts_of_a_header_are_read() -> None:
    body = bytes(range(24))
    tensors = {"b": tensor("F32", [2, 2], 8, 24), "a": tensor("I64", [], 0, 8), "none": tensor("F16", [0, 5], 8, 8)}
    path = put(tensors | {"__metadata__": {"k": "v é"}}, body)
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


def test_a_file_without_tensors_is_valid() -> None:
    for header in [b"{}", b"{}      ", b'{"__metadata__":{}}', b'{"__metadata__":null}']:
        path = put(header)
        assert safetensors.numpy.load_file(path) == {}, header
        assert read_header(path).tensors == {}, header


def test_a_file_cut_off_in_its_header_is_not_mistaken_for_another_format() -> None:
    """0x80 begins a pickle and 0x3C is "<", but both begin lengths too."""
    for length in [0x80, 0x3C, 0x280]:
        whole = put(b"{}" + b" " * (length - 2)).read_bytes()
        assert read_header("x.safetensors").tensors == {}, length
        Path("x.safetensors").write_bytes(whole[:50])
        with pytest.raises(LLMError, match=f"is cut off: its header needs {length + 8} bytes, but the file has 50"):
            read_header("x.safetensors")


def test_a_malformed_file_is_an_error_here_and_in_the_reference_library() -> None:
    for kind in MALFORMED:
        header, body, message = MALFORMED[kind]
        path = put(header, body)
        with pytest.raises(safetensors.SafetensorError):
            safetensors.numpy.load_file(path)
        with pytest.raises(LLMError, match=rf"^x\.safetensors .*{message}") as caught:
            read_header(path)
        assert caught.value.exit_code == 1, kind


def test_a_name_that_occurs_twice_is_an_error() -> None:
    cases = [
        b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2),
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"x":"1","x":"2"},"a":%b}' % json.dumps(ONE).encode(),
    ]
    for text in cases:
        with pytest.raises(LLMError, match="is repeated in one object"):
            read_header(put(text, FOUR))


def test_a_header_of_too_many_values_is_an_error_before_it_takes_memory() -> None:
    cases = [
        (b"a", b"[]", 300_000, "262,144 lists"),
        (b"a", b"{}", 140_000, "131,074 objects"),
        (b"a", b"0", 1_100_000, "1,048,576 values"),
        (b'\\"a\\\\', b'""', 1_100_000, "1,048,576 values"),
    ]
    for name, value, count, limit in cases:
        path = put(b'{"%b":[%b]}' % (name, b",".join([value] * count)))
        error = pytest.raises(LLMError, match=f"its header has more than {limit}$")
        with mock.patch.object(json, "loads") as loads, error:
            read_header(path)
        assert not loads.called, (name, value, count, limit)


def test_more_metadata_than_any_file_has_is_an_error() -> None:
    with pytest.raises(LLMError, match="its metadata has more than 4,096 entries"):
        read_header(put({"__metadata__": {str(i): "" for i in range(4097)}}))


def test_metadata_may_have_any_text() -> None:
    text = json.dumps({"vocab": ['[{,"\\'] * 1_100_000})
    assert read_header(put({"__metadata__": {"tokenizer.json": text}})).metadata == {"tokenizer.json": text}


def test_every_truncated_file_is_an_error() -> None:
    whole = put({"__metadata__": {"k": "v"}, "a": ONE}, FOUR).read_bytes()
    assert read_header("x.safetensors").parameters == 1
    for length in range(len(whole)):
        Path("x.safetensors").write_bytes(whole[:length])
        with pytest.raises(LLMError):
            read_header("x.safetensors")


def test_a_header_is_read_without_the_140_gigabytes_after_it(no_hang: None) -> None:
    size = 2 * 8192**2
    path = put({f"{i}": tensor("BF16", [8192, 8192], i * size, (i + 1) * size) for i in range(1000)})
    start = path.stat().st_size
    try:
        try:
            os.truncate(path, start + 1000 * size)
        except OSError:
            pytest.skip("this file system has no files of 140 GB")
        if path.stat().st_blocks * 512 > 1 << 24:
            pytest.skip("this file system has no sparse files")
        result = read_header(path)
        assert (result.parameters, result.file_bytes, len(result.tensors)) == (500 * size, start + 1000 * size, 1000)
        with pytest.raises(LLMError, match="llm inspect"):
            load(path)
        os.truncate(path, start + 1000 * size - 1)
        with pytest.raises(LLMError, match="cut off"):
            read_header(path)
    finally:
        path.unlink()
