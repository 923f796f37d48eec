"""LLMError, the error shown to users: what was found, what was expected, and what to type.

Errors and notes name a setting as a Python argument in backticks: `kl_weight`. The command line prints the
option.
"""

import json
import os
import re
import reprlib
import shlex
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager

# exit codes; after a signal other than SIGINT, 128 + its number
FAILURE = 1  # caused by what the command names, or by the machine: a missing file, a damaged model
WRONG_USAGE = 2  # caused by the command itself: options out of range, empty or in conflict
INTERRUPTED = 130  # Ctrl-C
OPTIONS = {  # settings whose option is not --name
    "seconds": "--time",
    "base": "--from",
    "lr": "--lr-scale",
    "overwrite=True": "--force",
    "output": "-o",
    "cache=False": "--no-cache",
}
# settings for reading files: commands without these options read the output of `llm text`
READING = ("column", "encoding", "plain", "speakers", "template")
OnNote = Callable[[str], None]  # receives notes for the user
DAMAGED = "its weights are damaged; llm inspect --verify shows whether they were saved like this"


class LLMError(Exception):
    """A problem that the user can solve. The command line prints it as one line and exits with
    `exit_code`."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def command_line(words: Sequence[str], *, windows: bool = os.name == "nt") -> str:
    """Join arguments into a command to paste into this system's shell, quoted where necessary.

    >>> command_line(["llm", "inspect", "my model"], windows=False)
    "llm inspect 'my model'"
    >>> command_line(["llm", "inspect", "my model"], windows=True)
    'llm inspect "my model"'
    """
    if not windows:
        return " ".join(map(_quoted, words))
    import subprocess

    return subprocess.list2cmdline(words)


def as_argument(path: object) -> str:
    """Return a path as an argument of a command, where a name that begins with - would be an option.

    >>> as_argument("-food.txt")
    './-food.txt'
    """
    name = str(path)
    return f"./{name}" if name.startswith("-") and name != "-" else name


def _quoted(word: str) -> str:
    """Quote a word for bash and zsh, with escapes for the bytes of a file name that is not UTF-8.

    >>> _quoted(os.fsdecode(b"m\\xff.gguf")) == r"$'m\\xff.gguf'"
    True
    """
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        printable = set(range(32, 127)) - set(b"'\\")
        escaped = [chr(byte) if byte in printable else f"\\x{byte:02x}" for byte in os.fsencode(word)]
        return f"$'{''.join(escaped)}'"
    return shlex.quote(word)


def option_of(setting: str) -> str:
    return OPTIONS.get(setting) or f"--{setting.replace('_', '-')}"


def with_options(message: str, known: Container[str]) -> str:
    """Replace the names of settings in a message with their options, if these are `known`, or are options of
    `llm text`.

    >>> with_options("`top_k` must be at least 0; see `README`", ["--top-k"])
    '--top-k must be at least 0; see `README`'
    >>> with_options("name it: `encoding` NAME", ["--top-k"])
    'name it: llm text FILE --encoding NAME'
    """

    def shown(setting: re.Match[str]) -> str:
        option = option_of(setting[1])
        if option in known:
            return option
        return f"llm text FILE {option}" if setting[1] in READING else setting[0]

    return re.sub("`([^` ]+)`", shown, message)


def with_hub_names(message: str) -> str:
    """Replace the long paths of models in the cache of the Hugging Face hub by the names that users type.

    >>> with_hub_names(f"/home/me/hub/models--owner--cat/snapshots/{'0' * 40} has no chat template")
    'hf:owner/cat has no chat template'
    """
    # a path begins after one of these characters; names on the hub have at most 96
    path = r"(?<![^\s'\":;,(=])[^\s'\":;,(=]*"
    name = r"[/\\]models--([\w.-]{1,96}?)--([\w.-]{1,96})[/\\]snapshots[/\\][0-9a-f]{40}"
    return re.sub(path + name, r"hf:\1/\2", message)


def usage(message: str) -> LLMError:
    """Return the error for invalid arguments.

    >>> usage("--steps must be at least 1").exit_code
    2
    """
    return LLMError(message, exit_code=WRONG_USAGE)


@contextmanager
def prefixed(prefix: object) -> Iterator[None]:
    """Prefix errors raised in this block with the name of the file at fault; they are no longer usage errors.

    >>> with prefixed("a.safetensors"):
    ...     raise usage("head_dim must be even")
    Traceback (most recent call last):
    llmcli.errors.LLMError: a.safetensors: head_dim must be even
    """
    try:
        yield
    except LLMError as error:
        raise LLMError(f"{prefix}: {error}") from error


def missing_package(error: ImportError) -> LLMError | None:
    """Return the error for a package that is not installed or cannot be loaded; None if it is part of this
    program.

    >>> str(missing_package(ImportError("no module", name="prompt_toolkit.x"))).split("; ")[1]
    'install it: pip install prompt-toolkit'
    """
    name = (error.name or "").partition(".")[0].replace("_", "-")
    if name in ("", "llmcli"):
        return None
    return LLMError(
        f"the required package {name} cannot be imported ({error}); install it: pip install {name}"
    )


def missing_extra(what: str, package: str, extra: str) -> LLMError:
    """Return the error for a feature that needs a package of an optional extra.

    >>> str(missing_extra("reading Parquet", "pyarrow", "parquet"))
    'reading Parquet needs pyarrow, which this installation lacks; install it: pip install "llmcli[parquet]"'
    """
    return LLMError(
        f'{what} needs {package}, which this installation lacks; install it: pip install "llmcli[{extra}]"'
    )


def require_torch() -> None:
    """Raise LLMError if torch is not installed. Called early, because torch itself is imported only after
    work that may take long."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise LLMError(
            "training needs the package torch, which is not installed here; install it: pip install torch"
        )


def require_server(what: str) -> None:
    """Raise LLMError if a package of the HTTP server is not installed; `what` needs it."""
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise missing_extra(what, " and ".join(missing), "serve")


def brief_json(value: object, max_length: int = 60) -> str:
    """Shorten a value from JSON for a message.

    >>> brief_json({"a": [None, "b"]}), brief_json("x" * 99, 10), brief_json([10**5000])
    ('{"a": [null, "b"]}', '"xxxxxxxx…', 'an integer of thousands of digits…')
    """
    text = ""
    # the encoder goes no deeper into a nested value than is read; `default` is for values from Python
    try:
        for part in json.JSONEncoder(ensure_ascii=False, default=repr).iterencode(value):
            text += part[: max_length + 1]
            if len(text) > max_length:
                text = f"{text[: max_length - 1]}…"
                break
    except ValueError:  # the digits of an integer are limited
        text += "an integer of thousands of digits…"
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def brief(value: object, max_length: int = 60) -> str:
    """Shorten the repr of a value from a file for a message.

    >>> brief([1, "a"]), brief("x" * 99, 10)
    ("[1, 'a']", "'xxxxxxxx…")
    """
    if isinstance(value, str):
        text = repr(value[:max_length])
    elif isinstance(value, int) and value.bit_length() > 1000:
        # int to str conversion is limited to 4,300 digits
        text = f"a number of {value.bit_length()} bits"
    else:
        text = reprlib.repr(value)  # safe for large and deeply nested values
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"
