"""A safetensors file, whoever made it: its header, checked before anything is believed, its tensors, and writing one.

Reading starts with our own bounded look at the header, before any tensor: `read_header` opens any file of any size at
once. Writing puts a hash of the whole file into its metadata. Knows numpy, not torch, and nothing of models.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from llmcli.formats.atomic_io import Buffer

HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
MOST_TENSORS, MOST_METADATA = 1 << 17, 1 << 12  # in a file: several times as many as any that is known has
LONGEST_INFO = 4096  # characters that describe a tensor
_HASH, _ZEROS = b'"sha256":"%s"', b"0" * 64  # how a hash stands in a header, in our metadata and nowhere else
BLOCK = 1 << 24  # bytes read at once
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it; `start` and `end` are positions in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    path: Path | None = None  # of the file that holds it, where a model has several

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself before its tensors."""

    path: Path
    file_bytes: int
    data_start: int
    tensors: dict[str, TensorInfo]  # in the order of the file
    metadata: dict[str, str]
    form: str = "safetensors file"
    decode: Callable[[TensorInfo], Iterator[NDArray[Any]]] | None = None  # for a form with types of its own
    problem: str = ""  # why this program can show the file but not run it, if so

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def is_ours(self) -> bool:
        return "llmcli" in self.metadata


class Stored(Protocol):
    """Tensors by name, as a file holds them."""

    def __getitem__(self, name: str, /) -> NDArray[Any]: ...


# ---- reading


def read_header(path: str | Path) -> Header:
    """Read and check the header of any safetensors file; no tensor is read, whatever the file's size.

    Raises LLMError when there is no such file or it is not a whole safetensors file.
    """
    path = Path(path)
    with reading(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(HEADER_LIMIT, file_bytes - 8):
            raise LLMError(f"{path} {_what_it_is(start, file_bytes, length, _wanted(path))}")
        text = file.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise LLMError(f"{path} is not {_wanted(path)}: its header does not start with {{")
    try:
        found, metadata = _Scanner(text.decode("utf-8")).header()
        tensors = {name: _tensor_info(name, info, 8 + length) for name, info in found.items()}
        _check_layout(list(tensors.values()), 8 + length, file_bytes)
    except (ValueError, RecursionError) as error:
        raise LLMError(f"{path} is not a whole safetensors file: {error}") from error
    return Header(path, file_bytes, 8 + length, tensors, metadata)


def read_values(header: Header, tensor: TensorInfo) -> Iterator[NDArray[Any]]:
    """The elements of any tensor in flat pieces of bounded size; bfloat16 comes as float32."""
    if header.decode:
        yield from header.decode(tensor)
        return
    if tensor.dtype not in _NUMPY:
        raise LLMError(f"{tensor.name} is of type {tensor.dtype}, which this program does not read")
    with reading(tensor.path or header.path) as file:
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while left:
            data = file.read(min(BLOCK, left))
            if not data:
                raise LLMError(f"{header.path} ends inside {tensor.name}; it was cut off while being read")
            left -= len(data)
            values = np.frombuffer(data, _NUMPY[tensor.dtype])
            if tensor.dtype == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            yield values


def read_tensor(header: Header, tensor: TensorInfo) -> NDArray[Any]:
    """A tensor at once, as `read_values` gives it."""
    found = [*read_values(header, tensor)]
    return (np.concatenate(found) if found else np.zeros(0, np.float32)).reshape(tensor.shape)


def read_into(header: Header, tensor: TensorInfo, out: NDArray[np.float32]) -> None:
    """Fill `out`, contiguous, with a tensor, so that nothing is held twice in memory."""
    if tensor.dtype != "F32" or header.decode:
        flat = out.reshape(-1)
        done = 0
        for values in read_values(header, tensor):
            flat[done : done + len(values)] = values
            done += len(values)
        return
    view = out.reshape(-1).view(np.uint8).data
    with reading(tensor.path or header.path) as file:
        file.seek(tensor.start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done : done + BLOCK])
            if not count:
                raise LLMError(f"{header.path} ends inside {tensor.name}; it was cut off while being read")
            done += count


def equal(first: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors, each with the path of its file, hold the same numbers. Reads up to the first block that
    differs."""
    assert first.path is not None and other.path is not None
    if first.shape != other.shape:
        return False
    if first.dtype != other.dtype:
        values = (read_tensor(Header(t.path, 0, 0, {}, {}), t) for t in (first, other) if t.path)
        return bool(np.equal(*values).all())
    with reading(first.path) as one, reading(other.path) as two:
        one.seek(first.start)
        two.seek(other.start)
        left = first.end - first.start
        while left:
            size = min(BLOCK, left)
            data = one.read(size)
            if len(data) != size or data != two.read(size):
                return False
            left -= size
    return True


def digest(header: Header) -> str:
    """The sha256, in hexadecimal, of the whole file with zeros where this hash itself stands in its metadata."""
    found = hashlib.sha256()
    own = _HASH % header.metadata.get("sha256", "").encode("utf-8", "replace")
    with reading(header.path) as file:
        found.update(file.read(header.data_start).replace(own, _HASH % _ZEROS, 1))
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The file, open to be read; the operating system's refusals become one line."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            what = "a directory" if path.is_dir() else "not a regular file"
            raise LLMError(f"{path} is {what}; name {_wanted(path)}")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise LLMError(_absent(path)) from error
    except OSError as error:
        raise LLMError(f"cannot read {path}: {error.strerror or error}") from error


def _absent(path: Path) -> str:
    """Why a file is not there, and how to come by it."""
    if address := _ADDRESS.match(str(path)):
        return _download(path, address)
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is not there"
    if path.suffix.lower() == ".safetensors":
        return f"there is no file {path}; make one with: llm train corpus.txt -o {path}"
    if _HUB_NAME.fullmatch(str(path)) and not path.parent.exists() and path.suffix.lower() not in _SUFFIXES:
        return (
            f"there is no {path} here, and this program downloads nothing; if it is a model of the Hugging Face hub, "
            f"get it first: hf download {path} --local-dir {path.name}"
        )
    if str(path).lower() in _NOT_RUN:
        return (
            f"there is no file {path}, and a model of that name would not run here: Llama, Mistral, SmolLM2, Qwen2, "
            f"Qwen3 and Mixtral do, {_SMALL}"
        )
    if ":" in path.name and path.suffix.lower() not in _SUFFIXES:  # llama3.2:1b
        return (
            f"there is no file {path}, and this program does not download by such names; get a .gguf or a Hugging Face "
            f"directory, {_SMALL}"
        )
    return f"there is no file {path} and no such directory; name a .safetensors, a .gguf or a Hugging Face directory"


def _download(path: Path, address: re.Match[str]) -> str:
    """What to type for an address on the Hugging Face hub, or anywhere else."""
    start = f"{path} is an address, and this program downloads nothing; get it first: "
    hub, owner, name, rest = address["hub"], address["owner"], address["name"], address["rest"]
    if hub and owner and name:
        file = re.match(r"/(?:resolve|blob)/[^/]+/(.+)$", rest or "")
        one = f" {shlex.quote(file[1])}" if file else ""
        return f"{start}hf download {shlex.quote(f'{owner}/{name}')}{one} --local-dir {shlex.quote(name)}"
    if hub:
        return f"{start}hf download OWNER/NAME --local-dir NAME"
    return f"{start}curl -LO {shlex.quote(re.sub(':/+', '://', str(path), count=1))}"


# hf://owner/name, hf:owner/name, hf.co/owner/name, https://huggingface.co/owner/name/..., https://anywhere/else
_ADDRESS = re.compile(
    r"(?:(?P<hub>hf:/*(?:models/)?|(?:https?:/+)?(?:www\.)?(?:hf\.co|huggingface\.co)/)(?P<owner>[\w-][\w.-]*)/"
    r"(?P<name>[\w-][\w.-]*)(?P<rest>/.*)?|https?:/+.)"
)
_SMALL = "for example: hf download HuggingFaceTB/SmolLM2-135M --local-dir SmolLM2-135M"
# models that people name as in a tutorial, and that have another architecture or are on somebody's server
_NOT_RUN = frozenset(
    ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt", "gpt-2", "gpt-3", "gpt-3.5-turbo",
     "gpt-4", "gpt-4o", "gpt-4o-mini", "gpt-5", "claude", "gemini", "bert", "bert-base-uncased", "t5-small", "t5-base")
)  # fmt: skip
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SUFFIXES = (".gguf", ".bin", ".pt", ".pth", ".json", ".txt")


def _wanted(path: Path) -> str:
    """What a file should be, by its name."""
    return "a GGUF file" if path.suffix.lower() == ".gguf" else "a safetensors file"


def _what_it_is(start: bytes, file_bytes: int, length: int, wanted: str) -> str:
    """Why eight bytes cannot begin a safetensors file, in words that help."""
    if file_bytes == 0:
        return f"is empty; {wanted} is wanted"
    signs = (
        (b"PK\x03\x04", "is a PyTorch pickle or another zip archive"),
        (b"\x80", "is a Python pickle"),
        (b"GGUF", "is a GGUF file"),
        (b"version ", "is a git-lfs pointer: the real file was not downloaded"),
        (b"<", "is a web page"),
    )
    for sign, what in signs:
        if start.startswith(sign) and (length > HEADER_LIMIT or (file_bytes < 8 and sign.isascii())):
            return f"{what}, not {wanted}"
    if file_bytes < 8 or (length <= HEADER_LIMIT and "GGUF" not in wanted):
        return f"is cut off: its header needs {length + 8:,} bytes, the file has {file_bytes:,}"
    return f"is not {wanted}"


class _Scanner:
    """Reads a header step by step and gives up at the first thing that is out of place, so that no header costs more
    than a few times its size, whatever it claims. Raises ValueError."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._decoder = json.JSONDecoder(object_pairs_hook=_unique)

    def header(self) -> tuple[dict[str, Any], dict[str, str]]:
        """(the description of each tensor, not yet checked, by name; the metadata)"""
        infos: dict[str, Any] = {}
        metadata: dict[str, str] = {}
        for name in self._names(MOST_TENSORS):
            if name == "__metadata__":
                metadata = self._metadata()
            else:
                infos[name] = self._info(name)
        if self._next():
            raise ValueError("Extra data after the header's end")
        return infos, metadata

    def _names(self, most: int) -> Iterator[str]:
        """The names of an object's members; whoever takes one takes its value before the next."""
        self._expect("{")
        names: set[str] = set()
        if self._took("}"):
            return
        while True:
            name = self._string()
            if name in names:
                raise ValueError("a name occurs twice in the header")
            if len(names) == most:
                raise ValueError(f"it names more than {most:,} things at once")
            names.add(name)
            self._expect(":")
            yield name
            if self._took("}"):
                return
            self._expect(",")

    def _metadata(self) -> dict[str, str]:
        self._next()
        if self._text.startswith("null", self._at):
            self._at += 4
            return {}
        if self._next() != "{":
            raise ValueError("__metadata__ holds something that is not text")
        found = {}
        for name in self._names(MOST_METADATA):
            if self._next() != '"':
                raise ValueError("__metadata__ holds something that is not text")
            found[name] = self._string()
        return found

    def _info(self, name: str) -> Any:
        """A flat object of few characters."""
        self._next()
        end = self._text.find("}", self._at, self._at + LONGEST_INFO) + 1
        try:
            found = self._decoder.decode(self._text[self._at : end])
        except (json.JSONDecodeError, RecursionError) as error:
            raise _undescribed(name) from error
        self._at = end
        return found

    def _string(self) -> str:
        if self._next() != '"':
            raise ValueError(f"a text is missing at character {self._at:,} of its header")
        found, self._at = self._decoder.raw_decode(self._text, self._at)
        return str(found)

    def _next(self) -> str:
        """The next character that is no white space; "" at the end."""
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._text[self._at : self._at + 1]

    def _took(self, sign: str) -> bool:
        if self._next() != sign:
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._took(sign):
            raise ValueError(f"a {sign} is missing at character {self._at:,} of its header")


_SPACE = re.compile(r"[ \t\n\r]*")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in the header")
    return found


def _undescribed(name: str) -> ValueError:
    return ValueError(f"tensor {name[:100]!r} is not described as dtype, shape, data_offsets")


def _tensor_info(name: str, info: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = info["dtype"], info["shape"], info["data_offsets"]
        name.encode("utf-8")
        whole = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        raise _undescribed(name) from None
    if not whole or not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > 64:
        raise ValueError(f"tensor {name[:100]!r} has a shape or offsets that are no sizes")
    if dtype in DTYPE_BYTES and math.prod(shape) * DTYPE_BYTES[dtype] != end - start:
        raise ValueError(
            f"tensor {name[:100]!r} of shape {shape} and type {dtype} does not fill its {end - start} bytes"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + end)


def _check_layout(tensors: list[TensorInfo], data_start: int, file_bytes: int) -> None:
    """Tensors must follow each other without overlap or gap up to the end of the file."""
    position = data_start
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start != position or tensor.end < tensor.start:
            raise ValueError(f"tensor {tensor.name[:100]!r} overlaps another or leaves a gap")
        position = tensor.end
    if position != file_bytes:
        less = "cut off" if file_bytes < position else "followed by something else"
        raise ValueError(f"it is {less}: the tensors end at byte {position:,}, the file at {file_bytes:,}")


# ---- writing


def write_tensors(path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of float32 and float64 arrays, as `write` does."""
    dtypes = {name: "F64" if array.dtype == np.float64 else "F32" for name, array in tensors.items()}
    write(path, tensors, {name: array.shape for name, array in tensors.items()}, dtypes, metadata)


def write(
    path: str | Path,
    tensors: Stored,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file; to the metadata comes a hash of it all (see `digest`). Its bytes are a function of what
    is given. Each tensor is taken twice, for the hash and for the file, and never all of them at once. Raises LLMError
    when the disk refuses."""
    entries: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * DTYPE_BYTES[dtypes[name]]
        entries[name] = {"dtype": dtypes[name], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    metadata = {**metadata, "sha256": _ZEROS.decode()}
    header = json.dumps({"__metadata__": metadata, **entries}, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )
    header += b" " * (-len(header) % 8)
    start = len(header).to_bytes(8, "little")

    def body() -> Iterator[Buffer]:
        for name in entries:
            yield encode(tensors[name], dtypes[name]).data

    content = hashlib.sha256(start + header)
    for part in body():
        content.update(part)
    header = header.replace(_HASH % _ZEROS, _HASH % content.hexdigest().encode(), 1)
    atomic_io.write(path, itertools.chain((start, header), body()), 8 + len(header) + position)


def encode(array: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """Numbers as a file holds them; to BF16 they are rounded to the nearest, halves to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint32)
        rounded = (bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16
        kept = np.where((bits & 0x7FFFFFFF) > 0x7F800000, bits >> 16 | 0x40, rounded)  # NaN stays NaN
        return kept.astype("<u2").view(np.uint8)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, _NUMPY[dtype]).reshape(-1).view(np.uint8)
