"""Files compressed by gzip, bzip2, xz or zstd: the stream of their content."""

import contextlib
import importlib
import os
from typing import IO, Any, cast

from llmcli.errors import LLMError, as_argument, command_line, missing_extra

_MODULES = {"gzip": "gzip", "bzip2": "bz2", "xz": "lzma"}  # program -> module of the standard library
_MAX_GZIP_RATIO = 1032  # size of the content / size of the file


def decompressed(name: str, file: IO[bytes], program: str) -> IO[bytes]:
    """Return the content of a file compressed by `program`. Raises LLMError if a package is missing."""
    module: Any = _import_zstd(name) if program == "zstd" else importlib.import_module(_MODULES[program])
    return cast(IO[bytes], module.open(file))


def content_size(name: str, file: IO[bytes], program: str) -> int:
    """Return the size of the content that the file states (modulo 4 GiB in gzip); 0 if missing or
    implausible."""
    size = 0
    with contextlib.suppress(Exception):  # OSError, ZstdError: reading the file raises them again
        if program == "zstd":
            size = _import_zstd(name).get_frame_info(file.read(18)).decompressed_size or 0
        elif program == "gzip":
            packed = file.seek(0, os.SEEK_END)
            file.seek(max(0, packed - 4))
            stored = int.from_bytes(file.read(), "little")
            size = stored if stored <= _MAX_GZIP_RATIO * packed else 0
    file.seek(0)
    return size


def _import_zstd(name: str) -> Any:
    """Import Python's module (3.14 and later) or its backport for older versions."""
    with contextlib.suppress(ImportError):
        from compression import zstd

        return zstd
    try:
        from backports import zstd
    except ImportError as error:
        problem = missing_extra(f"reading {name}", "backports.zstd", "zstd")
        raise LLMError(
            f"{problem}; or unpack it: {command_line(['zstd', '-d', as_argument(name)])}"
        ) from error
    return zstd
