"""Open a model file for reading, with errors that say how to get a missing file. Standard library only."""

import contextlib
import io
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from llmcli.errors import LLMError

GGUF_MAGIC = b"GGUF"
_EXAMPLE = "for example: hf download HuggingFaceTB/SmolLM2-135M --local-dir SmolLM2-135M"
# models that tutorials name but that have another architecture, or are only available as a service
_NOT_SUPPORTED = frozenset(
    ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt", "gpt-2", "gpt-3", "gpt-3.5-turbo",
     "gpt-4", "gpt-4o", "gpt-4o-mini", "gpt-5", "claude", "gemini", "bert", "bert-base-uncased", "t5-small", "t5-base")
)  # fmt: skip
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
# hf://owner/name, hf:owner/name, hf.co/owner/name, https://huggingface.co/owner/name/..., https://anywhere/else
_URL = re.compile(
    r"(?:(?P<hub>hf:/*(?:models/)?|(?:https?:/+)?(?:www\.)?(?:hf\.co|huggingface\.co)/)(?P<owner>[\w-][\w.-]*)/"
    r"(?P<name>[\w-][\w.-]*)(?P<rest>/.*)?|https?:/+.)"
)
_FILE_SUFFIXES = (".gguf", ".bin", ".pt", ".pth", ".json", ".txt")


@contextlib.contextmanager
def open_for_reading(path: Path) -> Iterator[io.BufferedReader]:
    """The file, open for reading. Raises LLMError if it is missing, is not a regular file, or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a directory" if path.is_dir() else "not a regular file"
            raise LLMError(f"{path} is {what}; name {expected_format(path)}")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise LLMError(_missing_file_message(path)) from error
    except OSError as error:
        raise LLMError(f"cannot read {path}: {error.strerror or error}") from error


def model_files(directory: Path) -> list[Path]:
    """The files in a directory whose names are those of models, sorted; those of stopped runs are none."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".gguf"))
    except OSError:
        return []
    return [path for path in paths if not path.name.endswith(".resume.safetensors")]


def is_gguf(path: Path) -> bool:
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with open(path, "rb") as file:
            return file.read(4) == GGUF_MAGIC
    except OSError:
        return False


def expected_format(path: Path) -> str:
    """The format that the name of a file suggests."""
    return "a GGUF file" if path.suffix.lower() == ".gguf" else "a safetensors file"


def _missing_file_message(path: Path) -> str:
    """Why a file is missing, and how to get it."""
    if url := _URL.match(str(path)):
        return f"{path} is a URL, and this program downloads nothing; get it first: {_download_command(path, url)}"
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is missing"
    for suffix in (".safetensors", ".gguf"):
        with contextlib.suppress(OSError, ValueError):
            if (named := path.with_name(path.name + suffix)).is_file():
                return f"there is no file {path}, but there is {named}; name that one"
    if path.suffix.lower() == ".safetensors":
        return f"there is no file {path}; make one with: llm train corpus.txt -o {path}"
    if _HUB_NAME.fullmatch(str(path)) and not path.parent.exists() and path.suffix.lower() not in _FILE_SUFFIXES:
        return (
            f"there is no {path} here, and this program downloads nothing; if it is a model of the Hugging Face hub, "
            f"get it first: hf download {path} --local-dir {path.name}"
        )
    if str(path).lower() in _NOT_SUPPORTED:
        return (
            f"there is no file {path}, and a model of that name is not supported; Llama, Mistral, SmolLM2, Qwen2, "
            f"Qwen3 and Mixtral are, {_EXAMPLE}"
        )
    if ":" in path.name and path.suffix.lower() not in _FILE_SUFFIXES:  # a name of Ollama: llama3.2:1b
        return (
            f"there is no file {path}, and this program does not download models by name; get a .gguf or Hugging "
            f"Face directory, {_EXAMPLE}"
        )
    return f"there is no file or directory {path}; name a .safetensors, a .gguf or a Hugging Face directory"


def _download_command(path: Path, url: re.Match[str]) -> str:
    """The command that downloads from the Hugging Face hub, or from anywhere else."""
    hub, owner, name, rest = url["hub"], url["owner"], url["name"], url["rest"]
    if hub and owner and name:
        file = re.match(r"/(?:resolve|blob)/[^/]+/(.+)$", rest or "")
        file_name = f" {shlex.quote(file[1])}" if file else ""
        return f"hf download {shlex.quote(f'{owner}/{name}')}{file_name} --local-dir {shlex.quote(name)}"
    if hub:
        return "hf download OWNER/NAME --local-dir NAME"
    return f"curl -LO {shlex.quote(re.sub(':/+', '://', str(path), count=1))}"
