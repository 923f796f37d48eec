"""The tensors of a safetensors file: read, compared, hashed and written. Knows nothing of models.

A file that is written gets a hash of its whole content into its metadata. (The `safetensors` library, 0.8, writes the
entries of the metadata in random order, so that the same run has other bytes, and needs all tensors in memory at once.
It reads no bfloat16 into numpy, and a file that is cut off meanwhile kills the process: tests/benchmarks/LOG.md.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from llmcli.formats.open_file import open_for_reading
from llmcli.formats.safetensors import dtypes
from llmcli.formats.safetensors.header import Header, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_BYTES = 1 << 20  # per read: what is decoded stays in the cache of the processor
# how the hash is written in our headers, and zeros in its place while it is computed
_HASH_FIELD, _ZERO_HASH = b'"sha256":"%s"', b"0" * 64


def read_values(header: Header, tensor: TensorInfo) -> Iterator[NDArray[Any]]:
    """The elements of any tensor, in flat arrays of bounded size, those of a `view` in one; bfloat16 becomes float32.
    Raises LLMError for a type that is not supported, and for a file that is cut off."""
    if header.decode:
        yield from header.decode(tensor)
        return
    if not dtypes.is_readable(tensor.dtype):
        raise LLMError(f"{tensor.name} is of type {tensor.dtype}, which this program does not read")
    arrays = (dtypes.decode(data, tensor.dtype) for data in _blocks(header.path, tensor))
    for values in arrays if tensor.view is None else [_viewed([*arrays], tensor.view)]:
        yield values if tensor.is_raw else values.astype("float32") * tensor.factor + tensor.offset


def _viewed(arrays: list[NDArray[Any]], view: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    import numpy as np

    return np.ascontiguousarray(view(np.concatenate(arrays))).reshape(-1)


def _blocks(path: Path, tensor: TensorInfo) -> Iterator[bytes]:
    """Yield the bytes of a tensor in blocks. Raises LLMError for a file that is cut off."""
    with open_for_reading(tensor.path or path) as file:
        file.seek(tensor.start)
        for position in range(tensor.start, tensor.end, BLOCK_BYTES):
            size = min(BLOCK_BYTES, tensor.end - position)
            data = file.read(size)
            if len(data) < size:
                raise cut_off_error(path, tensor)
            yield data


def read_tensor(header: Header, tensor: TensorInfo) -> NDArray[Any]:
    """Read a whole tensor, with the elements of `read_values`."""
    import numpy as np

    pieces = [*read_values(header, tensor)]
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)).reshape(tensor.shape)


def read_into(header: Header, tensor: TensorInfo, out: NDArray[np.float32]) -> None:
    """Fill the contiguous array `out` with a tensor, without a second copy in memory."""
    flat = out.reshape(-1)
    if tensor.dtype != "F32" or not tensor.is_raw or tensor.view or header.decode:
        done = 0
        for values in read_values(header, tensor):
            flat[done : done + len(values)] = values
            done += len(values)
        return
    with open_for_reading(tensor.path or header.path) as file:
        file.seek(tensor.start)
        if file.readinto(flat.data) < flat.nbytes:
            raise cut_off_error(header.path, tensor)


def cut_off_error(path: Path, tensor: TensorInfo) -> LLMError:
    """Return the error for a file that ends inside a tensor, although its header was complete when it was read."""
    return LLMError(f"{path} ends inside {tensor.name}; it was cut off while being read")


def tensors_equal(first: TensorInfo, other: TensorInfo) -> bool:
    """Return whether two tensors, each with the path of its file, have the same values."""
    assert first.path is not None and other.path is not None
    if first.shape != other.shape:
        return False
    if first.dtype != other.dtype:
        values = (read_tensor(Header(t.path, 0, 0, {}, {}), t) for t in (first, other) if t.path)
        return bool((next(values) == next(values)).all())
    blocks = itertools.zip_longest(_blocks(first.path, first), _blocks(other.path, other))
    return all(ours == theirs for ours, theirs in blocks)


def digest(header: Header) -> str:
    """Return the sha256, in hexadecimal, of the file with zeros in place of the hash in its own metadata."""
    file_hash = hashlib.sha256()
    own = _HASH_FIELD % header.metadata.get("sha256", "").encode("utf-8", "replace")
    with open_for_reading(header.path) as file:
        file_hash.update(file.read(header.data_start).replace(own, _HASH_FIELD % _ZERO_HASH, 1))
        while block := file.read(BLOCK_BYTES):
            file_hash.update(block)
    return file_hash.hexdigest()


def write_tensors(path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of float32 and float64 arrays, as `write` does."""
    stored = {name: ("F64" if a.dtype.name == "float64" else "F32", a.shape) for name, a in tensors.items()}
    write(path, tensors, stored, metadata)


def write(
    path: str | Path,
    tensors: Mapping[str, NDArray[Any]],
    stored: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file of the tensors that `stored` names, in its order: name -> (dtype, shape). The metadata
    gets a hash of the whole file (see `digest`).

    The bytes depend on the arguments alone. Each tensor is accessed twice, for the hash and for the file, and only one
    is in memory at a time. Raises LLMError when the disk is full or fails.
    """
    entries: dict[str, Any] = {"__metadata__": {**metadata, "sha256": _ZERO_HASH.decode()}}
    position = 0
    for name, (dtype, shape) in stored.items():
        end = position + dtypes.stored_bytes([(dtype, shape)])
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    header += b" " * (-len(header) % 8)  # so that the tensors are aligned
    start = len(header).to_bytes(8, "little")

    def body() -> Iterator[memoryview]:
        for name, (dtype, _) in stored.items():
            yield dtypes.encode(tensors[name], dtype).data

    file_hash = hashlib.sha256(start + header)
    for part in body():
        file_hash.update(part)
    header = header.replace(_HASH_FIELD % _ZERO_HASH, _HASH_FIELD % file_hash.hexdigest().encode(), 1)
    atomic_io.write(path, itertools.chain((start, header), body()), 8 + len(header) + position)
