"""The header of a safetensors file, which may be an untrusted file: read and checked before anything in it is used.

Reading takes the same time whatever the size of the file, and memory in proportion to the header.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmcli.errors import LLMError
from llmcli.formats.open_file import expected_format, open_for_reading
from llmcli.formats.safetensors.dtypes import BYTES_PER_ELEMENT
from llmcli.formats.safetensors.file_header import Header, TensorInfo

MAX_HEADER_BYTES = 100_000_000  # the limit of the format
MAX_TENSORS, MAX_METADATA_ENTRIES = 1 << 17, 1 << 12  # several times the most that is published
MAX_INFO_CHARACTERS = 4096  # of the description of one tensor
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_OTHER_FORMATS = (  # (first bytes, description)
    (b"PK\x03\x04", "is a PyTorch pickle or another zip archive"),
    (b"\x80", "is a Python pickle"),
    (b"GGUF", "is a GGUF file"),
    (b"version ", "is a git-lfs pointer: the real file was not downloaded"),
    (b"<", "is a web page"),
)


def read_header(path: str | Path) -> Header:
    """Read and check the header of any safetensors file, without reading tensors.

    Raises LLMError when there is no such file or it is not a complete safetensors file.
    """
    path = Path(path)
    with open_for_reading(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)  # the length of the header, in a safetensors file
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise LLMError(f"{path} {_describe_other_format(start, file_bytes, length, expected_format(path))}")
        text = file.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise LLMError(f"{path} is not {expected_format(path)}: its header does not start with {{")
    try:
        descriptions, metadata = _HeaderParser(text.decode("utf-8")).parse()
        tensors = {name: _tensor_info(name, info, 8 + length) for name, info in descriptions.items()}
        _check_layout(list(tensors.values()), 8 + length, file_bytes)
    except (ValueError, RecursionError) as error:
        raise LLMError(f"{path} is not a complete safetensors file: {error}") from error
    return Header(path, file_bytes, 8 + length, tensors, metadata)


def _describe_other_format(start: bytes, file_bytes: int, length: int, expected: str) -> str:
    """Why a file with these first eight bytes is not a safetensors file."""
    if file_bytes == 0:
        return f"is empty; expected {expected}"
    for signature, description in _OTHER_FORMATS:
        if start.startswith(signature) and (length > MAX_HEADER_BYTES or (file_bytes < 8 and signature.isascii())):
            return f"{description}, not {expected}"
    if file_bytes < 8 or (length <= MAX_HEADER_BYTES and "GGUF" not in expected):
        return f"is cut off: its header needs {length + 8:,} bytes, the file has {file_bytes:,}"
    return f"is not {expected}"


class _HeaderParser:
    """Parses the JSON of a header step by step, and stops at the first violation of the format: no header takes more
    than a few times its size in time and memory. Raises ValueError."""

    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0
        self._decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)

    def parse(self) -> tuple[dict[str, Any], dict[str, str]]:
        """(the description of each tensor by name, not checked yet; the metadata)"""
        descriptions: dict[str, Any] = {}
        metadata: dict[str, str] = {}
        for name in self._keys(MAX_TENSORS):
            if name == "__metadata__":
                metadata = self._metadata()
            else:
                descriptions[name] = self._tensor_description(name)
        if self._peek():
            raise ValueError("extra data after the header's end")
        return descriptions, metadata

    def _keys(self, limit: int) -> Iterator[str]:
        """The keys of an object. The caller must parse the value of each key before it takes the next."""
        self._expect("{")
        keys: set[str] = set()
        if self._accept("}"):
            return
        while True:
            key = self._string()
            if key in keys:
                raise ValueError("a name occurs twice in the header")
            if len(keys) == limit:
                raise ValueError(f"its header has an object with more than {limit:,} keys")
            keys.add(key)
            self._expect(":")
            yield key
            if self._accept("}"):
                return
            self._expect(",")

    def _metadata(self) -> dict[str, str]:
        self._peek()
        if self._text.startswith("null", self._position):
            self._position += 4
            return {}
        if self._peek() != "{":
            raise ValueError("__metadata__ holds something that is not text")
        metadata = {}
        for key in self._keys(MAX_METADATA_ENTRIES):
            if self._peek() != '"':
                raise ValueError("__metadata__ holds something that is not text")
            metadata[key] = self._string()
        return metadata

    def _tensor_description(self, name: str) -> Any:
        """An object without inner objects, of at most MAX_INFO_CHARACTERS."""
        self._peek()
        end = self._text.find("}", self._position, self._position + MAX_INFO_CHARACTERS) + 1
        try:
            description = self._decoder.decode(self._text[self._position : end])
        except (json.JSONDecodeError, RecursionError) as error:
            raise _invalid_description(name) from error
        self._position = end
        return description

    def _string(self) -> str:
        if self._peek() != '"':
            raise ValueError(f"expected a string at character {self._position:,} of its header")
        value, self._position = self._decoder.raw_decode(self._text, self._position)
        return str(value)

    def _peek(self) -> str:
        """The next character that is not white space, to which the position moves; "" at the end."""
        match = _WHITE_SPACE.match(self._text, self._position)
        self._position = match.end() if match else self._position
        return self._text[self._position : self._position + 1]

    def _accept(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._position += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._accept(character):
            raise ValueError(f"expected {character} at character {self._position:,} of its header")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice in the header")
    return value


def _invalid_description(name: str) -> ValueError:
    return ValueError(f"tensor {name[:100]!r} is not described as dtype, shape, data_offsets")


def _tensor_info(name: str, description: Any, data_start: int) -> TensorInfo:
    """Raises ValueError for an invalid description."""
    try:
        dtype, shape, (start, end) = description["dtype"], description["shape"], description["data_offsets"]
        name.encode("utf-8")
        are_sizes = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        raise _invalid_description(name) from None
    if not are_sizes or not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > 64:
        raise ValueError(f"tensor {name[:100]!r} has an invalid dtype, shape or offset")
    if dtype in BYTES_PER_ELEMENT and math.prod(shape) * BYTES_PER_ELEMENT[dtype] != end - start:
        raise ValueError(
            f"tensor {name[:100]!r} of shape {shape} and type {dtype} does not fill its {end - start} bytes"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + end)


def _check_layout(tensors: list[TensorInfo], data_start: int, file_bytes: int) -> None:
    """Raises ValueError unless the tensors follow each other without overlap or gap up to the end of the file."""
    position = data_start
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start != position or tensor.end < tensor.start:
            raise ValueError(f"tensor {tensor.name[:100]!r} overlaps another or leaves a gap")
        position = tensor.end
    if position != file_bytes:
        problem = "cut off" if file_bytes < position else "followed by something else"
        raise ValueError(f"it is {problem}: the tensors end at byte {position:,}, the file at {file_bytes:,}")
