"""The reader of safetensors headers.

A file may be untrusted; its header is checked before anything in it is used. The time to read it does not
depend on the size of the file. The `safetensors` library then reads the tensors. (It does not read the
header, because it accepts repeated names, takes 1.5 GB of memory for a header of 93 MB, and imports numpy,
which `llm inspect` does not need.)
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.data.text.json_records import unique_keys
from llmcli.errors import LLMError
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.metadata import Json
from llmcli.formats.open_file import expected_format, open_for_reading
from llmcli.formats.safetensors.dtypes import BYTES_PER_ELEMENT

if TYPE_CHECKING:
    import io

MAX_HEADER_BYTES = 100_000_000  # the limit of the format
# several times the published maximum
MAX_TENSORS = 1 << 17
MAX_METADATA_ENTRIES = 1 << 12
_LIMITS = (
    ("{", "objects", MAX_TENSORS + 2),
    ("[", "lists", 2 * MAX_TENSORS),
    (",", "values", 8 * MAX_TENSORS),
)
_OTHER_FORMATS = {  # first bytes -> description
    b"PK\x03\x04": "is a PyTorch pickle or another zip archive",
    b"\x80": "is a Python pickle",
    b"GGUF": "is a GGUF file",
    b"version ": "is a git-lfs pointer: the real file was not downloaded",
    b"<": "is a web page",
}
_PICKLES = (b"PK\x03\x04", b"\x80")
_CONVERT_PICKLES = (
    "; pickles can run code and are not read: save the weights as safetensors "
    "(nanoGPT: examples/nanogpt_to_hf.py)"
)


def read_header(path: str | Path) -> Header:
    """Read and check the header of any safetensors file. Raises LLMError if the file is damaged."""
    path = Path(path)
    with open_for_reading(path) as file:
        return parse_header(path, file)


def parse_header(path: Path, file: io.BufferedReader) -> Header:
    """Like `read_header`, for an open file."""
    file_bytes = os.fstat(file.fileno()).st_size
    start = file.read(8)  # the length of the header, in a safetensors file
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise LLMError(f"{path} {_describe_other_format(start, file_bytes, length, expected_format(path))}")
    text = file.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise LLMError(f"{path} is not {expected_format(path)}: its header does not start with {{")
    try:
        descriptions, metadata = _parse(text.decode("utf-8"))
        tensors = {name: _tensor_info(name, info, 8 + length) for name, info in descriptions.items()}
        position = 8 + length
        for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
            if tensor.start != position or tensor.end < tensor.start:
                raise ValueError(f"tensor {tensor.name[:100]!r} overlaps another or leaves a gap")
            position = tensor.end
        if position != file_bytes:
            problem = "cut off" if file_bytes < position else "followed by something else"
            raise ValueError(
                f"it is {problem}: the tensors end at byte {position:,}, but the file ends at {file_bytes:,}"
            )
    except (ValueError, RecursionError) as error:
        raise LLMError(f"{path} is not a complete safetensors file: {error}") from error
    return Header(path, file_bytes, 8 + length, tensors, metadata)


def _describe_other_format(start: bytes, file_bytes: int, length: int, expected: str) -> str:
    """Explain why a file with these first eight bytes is not a safetensors file."""
    if file_bytes == 0:
        return f"is empty; expected {expected}"
    for signature, description in _OTHER_FORMATS.items():
        if start.startswith(signature) and (length > MAX_HEADER_BYTES or file_bytes < 8):
            advice = _CONVERT_PICKLES if signature in _PICKLES else ""
            return f"{description}, not {expected}{advice}"
    if length <= MAX_HEADER_BYTES:
        return f"is cut off: its header needs {length + 8:,} bytes, but the file has {file_bytes:,}"
    return f"is not {expected}"


def _parse(text: str) -> tuple[Json, dict[str, str]]:
    """Return (description of each tensor by name, metadata). Raises ValueError if the text is not the JSON of
    a header, or would take much more memory than its size."""
    if _excess(text):  # the characters may be inside strings, such as a tokenizer.json
        outside_strings = re.sub('"[^"]*"', "", text.replace("\\\\", "").replace('\\"', ""))
        if problem := _excess(outside_strings):
            raise ValueError(f"its header has more than {problem}")
    descriptions = json.loads(text, object_pairs_hook=unique_keys)
    metadata = descriptions.pop("__metadata__", None)
    if metadata is None:
        return descriptions, {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ has a value that is not text")
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise ValueError(f"its metadata has more than {MAX_METADATA_ENTRIES:,} entries")
    return descriptions, metadata


def _excess(text: str) -> str:
    """Return the limit that a header exceeds; "" if there is none."""
    return next(
        (f"{limit:,} {kind}" for character, kind, limit in _LIMITS if text.count(character) > limit), ""
    )


def _tensor_info(name: str, description: Any, data_start: int) -> TensorInfo:
    """Raises ValueError for an invalid description."""
    try:
        dtype = description["dtype"]
        shape = description["shape"]
        start, end = description["data_offsets"]
        name.encode("utf-8")
        are_sizes = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end))
        valid = are_sizes and isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= 64
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"tensor {name[:100]!r} is not described as dtype, shape, data_offsets")
    if dtype in BYTES_PER_ELEMENT and math.prod(shape) * BYTES_PER_ELEMENT[dtype] != end - start:
        raise ValueError(
            f"tensor {name[:100]!r} of shape {shape} and type {dtype} does not fill its {end - start} bytes"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + end, stored_name=name)
