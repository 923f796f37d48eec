"""A catalogue of invalid safetensors files: how each is made, and what its error message must match."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any


def tensor(dtype: str, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def made(header: Any, body: bytes = b"") -> bytes:
    """The bytes of a safetensors file: eight bytes of length, the header, the tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def put(header: Any, body: bytes = b"", name: str | Path = "x.safetensors") -> Path:
    """Write such a file; its path."""
    path = Path(name)
    path.write_bytes(made(header, body))
    return path


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": [1, 2, 3]}))
    return data.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHERS = {
    "empty": (lambda: b"", "is empty"),
    "5 bytes": (lambda: b"\x10\0\0\0\0", "is cut off: .* but the file has 5$"),
    "zip": (zipped, "PyTorch pickle or another zip archive"),
    "pickle": (lambda: pickle.dumps({"weights": list(range(999))}), "Python pickle"),
    "GGUF": (lambda: b"GGUF" + struct.pack("<IQQ", 3, 291, 24) + bytes(99), "GGUF file"),
    "HTML": (lambda: b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
    "a short web page": (lambda: b"<p>", "web page"),
    "git-lfs": (lambda: LFS, "git-lfs pointer: the real file was not downloaded"),
    "text": (lambda: b"Once upon a time there was a king.", "is not a safetensors file"),
    "zeros": (lambda: bytes(100), "is not a safetensors file"),
    "a header longer than the file": (
        lambda: struct.pack("<Q", 200) + b"{" * 92,
        "needs 208 bytes, but the file has 100",
    ),
}


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
FOUR, EIGHT = bytes(4), bytes(8)
MALFORMED = {
    "not JSON": (b"{hello}", b"", "not a complete safetensors file"),
    "a list": (b"[]", b"", "does not start with {"),
    "not UTF-8": (b'{"\xff":1}', b"", "utf-8"),
    "nested too deep": (b'{"a":' + b"[" * 100_000, b"", "not a complete safetensors file"),
    "a tensor is a number": ({"a": 1}, b"", "'a' is not described"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, FOUR, "'a' is not described"),
    "three offsets": ({"a": ONE | {"data_offsets": [0, 4, 4]}}, FOUR, "'a' is not described"),
    "dtype is a number": ({"a": ONE | {"dtype": 32}}, FOUR, "is not described as dtype, shape, data_offsets"),
    "shape is a number": ({"a": ONE | {"shape": 1}}, FOUR, "'a' is not described"),
    "two negative sizes": ({"a": ONE | {"shape": [-1, -1]}}, FOUR, "is not described as dtype, shape, data_offsets"),
    "broken size": ({"a": ONE | {"shape": [1.0]}}, FOUR, "is not described as dtype, shape, data_offsets"),
    "size that is true": ({"a": ONE | {"shape": [True]}}, FOUR, "is not described as dtype, shape, data_offsets"),
    "huge size": ({"a": ONE | {"shape": [10**30]}}, FOUR, "is not described as dtype, shape, data_offsets"),
    "sizes whose product wraps to 1": ({"a": ONE | {"shape": [2**32 + 1, 2**32 - 1]}}, FOUR, "does not fill"),
    "negative offset": ({"a": ONE | {"data_offsets": [-4, 0]}}, FOUR, "is not described as dtype, shape, data_offsets"),
    "offsets turned round": ({"a": ONE | {"data_offsets": [4, 0]}}, FOUR, "does not fill"),
    "shape smaller than its bytes": ({"a": ONE | {"data_offsets": [0, 8]}}, EIGHT, "does not fill its 8 bytes"),
    "shape larger than its bytes": ({"a": ONE | {"shape": [3]}}, FOUR, "does not fill its 4 bytes"),
    "overlap": ({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [1], 4, 8)}, EIGHT, "overlaps"),
    "gap": ({"a": ONE, "b": tensor("F32", [1], 8, 12)}, bytes(12), "gap"),
    "gap at the start": ({"a": tensor("F32", [1], 4, 8)}, EIGHT, "gap"),
    "cut off body": ({"a": ONE}, bytes(3), r"cut off: the tensors end at byte \d+, but the file ends at \d+"),
    "something after": ({"a": ONE}, bytes(5), "followed by something else"),
    "metadata is a number": ({"__metadata__": 5, "a": ONE}, FOUR, "__metadata__"),
    "metadata is an empty list": ({"__metadata__": [], "a": ONE}, FOUR, "__metadata__"),
    "metadata holds a number": ({"__metadata__": {"x": 1}, "a": ONE}, FOUR, "__metadata__"),
    "shape is an object": ({"a": ONE | {"shape": {}}}, FOUR, "'a'"),
    "a name that is not Unicode": (b'{"\\ud800":' + json.dumps(ONE).encode() + b"}", FOUR, ""),
}
