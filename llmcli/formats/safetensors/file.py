"""The tensors of a safetensors file, read and written with the `safetensors` library. Independent of models.

The metadata of a written file contains a hash of the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.config import Shape
from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.open_file import open_for_reading, update_hash
from llmcli.formats.safetensors import dtypes
from llmcli.formats.safetensors.header import read_header

if TYPE_CHECKING:
    from llmcli.formats.safetensors.dtypes import Array, Values

BLOCK_VALUES = 1 << 18  # converted at once, so that they stay in the processor's cache
# the hash as it is written in our headers, and the zeros in its place while it is computed
_HASH_FIELD = '"sha256":"%s"'
_ZERO_HASH = "0" * 64


def read_values(header: Header, tensor: TensorInfo) -> Iterator[Values]:
    """Yield the elements of any tensor in flat arrays of bounded size; bfloat16 becomes float32. Raises
    LLMError for a type that is not supported, and for a file that changes while it is read."""
    if header.decode:
        yield from header.decode(tensor)
        return
    values = _read_stored(header, tensor)
    values = (values if tensor.view is None else tensor.view(values)).reshape(-1)
    if len(values) != tensor.size:  # the shape of a stacked tensor is not checked when it is read
        raise LLMError(f"{tensor.path or header.path} was replaced while it was read")
    for start in range(0, len(values), BLOCK_VALUES):
        block = values[start : start + BLOCK_VALUES]
        if not tensor.is_raw:
            block = block.astype("float32") * tensor.factor + tensor.offset
        yield block.astype("float32") if tensor.dtype == "BF16" else block


def _read_stored(header: Header, tensor: TensorInfo) -> Values:
    """Read a tensor as stored. Its file stays open for the next tensor; a tensor that is read in parts stays
    in memory."""
    from safetensors import SafetensorError, safe_open

    if not dtypes.is_readable(tensor.dtype):
        raise LLMError(f"{tensor.name} is of type {tensor.dtype}, which this program does not read")
    path = tensor.path or header.path
    dtypes.numpy_dtype(tensor.dtype)  # the library needs numpy's bfloat16
    try:
        read = header.open_files.get(path)
        if read is None:
            with open_for_reading(path):
                # not "mmap", since truncating a mapped file while it is read would kill the process
                file = safe_open(path, framework="np", backend="pread")
            read = header.open_files[path] = lru_cache(maxsize=1)(file.get_tensor)
        values = (read if tensor.view else read.__wrapped__)(tensor.stored_name)
    except SafetensorError as error:
        if path.stat().st_size < tensor.end:
            raise cut_off_error(path, tensor) from error
        raise LLMError(f"cannot read {path}: {error}") from error
    if tensor.view is None and values.shape != tensor.shape:
        raise LLMError(f"{path} was replaced while it was read")
    return values


def read_tensor(header: Header, tensor: TensorInfo) -> Values:
    """Read a whole tensor, with the same values as `read_values` yields."""
    import numpy as np

    if not header.decode and tensor.is_raw and tensor.view is None and tensor.dtype != "BF16":
        return _read_stored(header, tensor)
    out = np.empty(tensor.shape, np.float32)
    read_into(header, tensor, out)
    return out


def read_into(header: Header, tensor: TensorInfo, out: Array) -> None:
    """Fill the contiguous array `out` with a tensor."""
    flat = out.reshape(-1)
    done = 0
    for values in read_values(header, tensor):
        flat[done : done + len(values)] = values
        done += len(values)


def cut_off_error(path: Path, tensor: TensorInfo) -> LLMError:
    """Return the error for a file that ends inside a tensor, although its header was complete when it was
    read."""
    return LLMError(f"{path} ends inside {tensor.name}; it was cut off while being read")


def tensors_equal(first: TensorInfo, other: TensorInfo) -> bool:
    """Return whether two tensors, each with the path of its file, have the same values."""
    import numpy as np

    if first.shape != other.shape:
        return False
    blocks = (
        read_values(Header(tensor.path, 0, 0, {}, {}), tensor) for tensor in (first, other) if tensor.path
    )
    return all(np.array_equal(ours, theirs, equal_nan=True) for ours, theirs in zip(*blocks, strict=True))


def digest(header: Header, names: Iterable[str] | None = None) -> str:
    """Return the sha256, in hexadecimal, of the file with zeros in place of the hash in its own metadata.
    With `names`, the header is hashed as `write` writes it for tensors in this order and sorted metadata."""
    import hashlib  # not needed to read tensors

    file_hash = hashlib.sha256()
    with open_for_reading(header.path) as file:
        head = file.read(header.data_start)
        if names is None:
            own = _HASH_FIELD % header.metadata.get("sha256", "")
            head = head.replace(own.encode("utf-8", "replace"), (_HASH_FIELD % _ZERO_HASH).encode(), 1)
        else:
            head = _ordered(head, names, dict(sorted((header.metadata | {"sha256": _ZERO_HASH}).items())))
        file_hash.update(head)
        update_hash(file_hash, file)
    return file_hash.hexdigest()


def write_tensors(path: str | Path, tensors: Mapping[str, Values], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of float32 and float64 arrays, as `write` does."""
    stored = {name: ("F64" if a.dtype.name == "float64" else "F32", a.shape) for name, a in tensors.items()}
    write(path, tensors, stored, metadata)


def write(
    path: str | Path,
    tensors: Mapping[str, Values],
    stored: Mapping[str, tuple[str, Shape]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file of the tensors that `stored` names, listed in its order: name -> (dtype,
    shape). The metadata gets a hash of the whole file (see `digest`) as "sha256".

    The bytes depend on the arguments alone: the library writes the tensors by type and name, but the metadata
    in random order. It first writes zeros, which takes the file's space on the disk; then one tensor at a
    time is computed and written in their place. Raises LLMError when the disk is full or fails.
    """
    import numpy as np
    from safetensors import SafetensorError, TensorSpec, serialize_file

    entries = {**metadata, "sha256": _ZERO_HASH}
    texts = {key: text.encode("utf-8", "replace").decode() for key, text in entries.items()}
    sizes = {name: dtypes.stored_bytes([entry]) for name, entry in stored.items()}
    zeros = np.zeros(max(sizes.values(), default=0), np.uint8)
    specs = {
        name: TensorSpec(
            dtype=dtypes.NUMPY_NAMES[dtype], shape=shape, data_ptr=zeros.ctypes.data, data_len=sizes[name]
        )
        for name, (dtype, shape) in stored.items()
    }

    def write_file(temporary: Path) -> None:
        try:
            serialize_file(specs, temporary, texts)
        except SafetensorError as error:
            raise LLMError(f"cannot write {path}: {error}; nothing there was changed") from error
        header = read_header(temporary)
        with open(temporary, "r+b") as file:
            head = _ordered(file.read(header.data_start), stored, texts)
            file.seek(0)
            file.write(head)
            for name, (dtype, _) in stored.items():
                file.seek(header.tensors[name].start)
                file.write(dtypes.encode(tensors[name], dtype).data)
            file.flush()
            file.seek(head.index((_HASH_FIELD % _ZERO_HASH).encode()) + _HASH_FIELD.index("%"))
            file.write(digest(header).encode())

    atomic_io.check_space(path, sum(sizes.values()) + sum(map(len, texts.values())))
    atomic_io.write_with(path, write_file)


def _ordered(head: bytes, names: Iterable[str], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the tensors of a file, with the tensors and the metadata listed in this
    order."""
    entries = json.loads(head[8:])
    ordered = {"__metadata__": metadata, **{name: entries[name] for name in names}}
    text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
    return head[:8] + text.encode("utf-8", "replace").ljust(len(head) - 8)
