"""Opening model files, with errors that say how to get a missing file. Standard library only."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.data.regular_file import open_regular, read_file, reading_error
from llmcli.errors import LLMError

if TYPE_CHECKING:
    import hashlib

GGUF_MAGIC = b"GGUF"
HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"  # owner/name
# hf://owner/name, hf:owner/name, hf.co/owner/name, https://huggingface.co/owner/name/..., owner/name
_ON_HUB = (
    r"(?i)(?P<hub>hf:/*|(?:https?:/+)?(?:www\.)?(?:hf\.co|huggingface\.co)/)?(?!datasets/|spaces/)"
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?P<rest>[/:?#@].*)?"
)
_BLOCK_BYTES = 1 << 20  # hashed at once
_FILE_SUFFIXES = (".gguf", ".bin", ".pt", ".pth", ".json", ".txt")


def name_in_cache(path: Path) -> str | None:
    """Return OWNER/NAME for a directory in the hub's cache, or for a file to which a link there points.

    >>> name_in_cache(Path("hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/93efa2f0"))
    'HuggingFaceTB/SmolLM2-135M'
    """
    place = path.parent.parent.name
    is_hub = path.parent.name in ("snapshots", "blobs") and place.startswith("models--")
    return place.removeprefix("models--").replace("--", "/", 1) if is_hub else None


@contextlib.contextmanager
def open_for_reading(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading. Raises LLMError if it is missing, not a regular file, or unreadable."""
    try:
        with open_regular(path) as file:
            yield file
    except FileNotFoundError as error:
        raise LLMError(missing_file_message(path)) from error
    except OSError as error:
        raise reading_error(error, path, expected_format(path)) from error


def update_hash(content_hash: "hashlib._Hash", file: io.BufferedReader) -> None:
    """Add the rest of a file to a hash."""
    while block := file.read(_BLOCK_BYTES):
        content_hash.update(block)


def read_text(path: Path, wanted: str = "") -> str:
    """Read a small text file, such as a config. Raises LLMError; its message names what is `wanted`."""
    try:
        text = read_file(path, wanted).decode("utf-8")  # takes a quarter of the time of `Path.read_text`
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        expected = f"; expected {wanted}" if wanted else ""
        raise LLMError(
            f"{path} is not UTF-8 text: byte 0x{byte:02x} at position {error.start:,}{expected}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def model_files(directory: Path) -> list[Path]:
    """List the files in a directory that are named like models, sorted, without the files of stopped runs."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".gguf"))
    except OSError:
        return []
    return [path for path in paths if not path.name.endswith(".resume.safetensors")]


def expected_format(path: Path) -> str:
    """Return the format that a file name suggests."""
    return "a GGUF file" if path.suffix.lower() == ".gguf" else "a safetensors file"


def missing_file_message(path: Path) -> str:
    """Explain why a file is missing and how to get it."""
    text = re.sub("^([a-z]{2,}):/+", r"\1://", path.as_posix())  # Path drops one of two slashes
    hub = re.fullmatch(_ON_HUB, text)
    rest = re.sub(r"^/(?:resolve|blob)/[^/]+", "", (hub and hub["rest"]) or "")  # "/FILE" or "@REVISION"
    name = hub["name"] + (rest if re.fullmatch(r"/.+\.gguf|@.+", rest) else "") if hub else ""
    if hub and hub["hub"]:
        return f"{text} is on the Hugging Face hub; use its name there: hf:{name}"
    if text.startswith(("https://", "http://")):
        return (
            f"{text} is a URL, which llm does not download; download it first: curl -LO {shlex.quote(text)}"
        )
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is missing"
    for suffix in (".safetensors", ".gguf"):
        with contextlib.suppress(OSError, ValueError):
            if (named := path.with_name(path.name + suffix)).is_file():
                return f"there is no file {path}, but there is {named}; name that one"
    if path.suffix.lower() == ".safetensors":
        return f"there is no file {path}; make one with: llm train corpus.txt -o {path}"
    if hub and rest[:1] != "/" and not path.parent.exists() and path.suffix.lower() not in _FILE_SUFFIXES:
        return f"there is no {path} here; if it is a model on the Hugging Face hub, name it hf:{name}"
    return (
        f"there is no file or directory {path}; "
        "name a .safetensors, a .gguf, a Hugging Face directory, or a model on the hub: hf:OWNER/NAME"
    )
