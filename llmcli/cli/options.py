"""Options that several subcommands share, and checks of their values."""

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from llmcli.cli import console
from llmcli.config import DEFAULT_MODEL, DEVICES, QUANTIZATIONS
from llmcli.data.vocabulary_limits import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE
from llmcli.errors import LLMError, usage

if TYPE_CHECKING:
    from llmcli.data.corpus import Corpus

MAX_SKIPPED_NOTES = 5
# how much of the corpus is searched for JSON: bytes of each file, and files
JSON_SEARCH_BYTES, JSON_SEARCH_FILES = 1 << 16, 256


# ---- shared options


def vocab_size_option(help: str, panel: str | None = None) -> OptionInfo:
    """--vocab-size, for each subcommand that trains a tokenizer."""
    option: OptionInfo = typer.Option(
        "--vocab-size", metavar="N", min=MIN_VOCAB_SIZE, max=MAX_VOCAB_SIZE, help=help, rich_help_panel=panel
    )
    return option


def one_of(option: str, *choices: str) -> Callable[[str | None], str | None]:
    """A callback that checks the value of an option; None passes."""
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"

    def check(value: str | None) -> str | None:
        if value not in (None, *choices):
            raise usage(f"{option} must be {listed}, found {value}")
        return value

    return check


ModelOption = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="FILE",
        help="Model: .safetensors or .gguf file, or Hugging Face directory "
        f"(default: $LLMCLI_MODEL or {DEFAULT_MODEL}).",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device: cpu uses numpy; cuda, mps and auto use torch.",
        callback=one_of("--device", *DEVICES, "auto"),
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="int8|int4",
        help="Quantize the weights: faster, slightly less accurate.",
        callback=one_of("--quantize", *QUANTIZATIONS),
    ),
]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print only results and errors.", callback=console.set_quiet)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


# ---- which options were given


def typed_options(context: typer.Context, *parameters: str) -> list[str]:
    """The options that were typed, of the function's parameters of these names; arguments in capitals.

    Long names are preferred: "--max-tokens" for -n.
    """
    return [
        next((name for name in param.opts if name.startswith("--")), param.opts[0].upper())
        for param in context.command.params
        if param.name in parameters and _source(context, param.name) == "COMMANDLINE"
    ]


def is_default(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter has its default value because it was not given."""
    return _source(context, parameter) == "DEFAULT"


def _source(context: typer.Context, parameter: str) -> str:
    source = context.get_parameter_source(parameter)
    return source.name if source else ""


def reject_options(context: typer.Context, condition: str, *parameters: str) -> None:
    """Raise LLMError if any of these parameters was typed; `condition` says when they have no effect, as in
    "with --next"."""
    options = typed_options(context, *parameters)
    if options:
        have, them = ("has", "it") if len(options) == 1 else ("have", "them")
        raise usage(f"{' and '.join(options)} {have} no effect {condition}; leave {them} out")


# ---- values of options


def model_path(given: str | None) -> Path:
    """The model that -m names, else $LLMCLI_MODEL, else the default. Raises LLMError if there is none."""
    if given == "":
        raise usage("the name of the model is empty; name a .safetensors file")
    name = given or os.environ.get("LLMCLI_MODEL")
    if name:
        return Path(name)
    if not Path(DEFAULT_MODEL).exists():
        raise LLMError(
            f"there is no {DEFAULT_MODEL} here; train one: llm train corpus.txt, or name a model with -m FILE"
        )
    return Path(DEFAULT_MODEL)


def text_argument(given: str | None, what: str) -> str:
    """The text given, or standard input for "-" and where stdin is no terminal. Raises LLMError if it is not UTF-8;
    `what` names the text there."""
    if given is None and sys.stdin.isatty():
        raise usage(f"no {what} was given; write it in quotes, or - to read standard input")
    if given is None or given == "-":
        return _decoded(sys.stdin.buffer.read(), what)
    try:
        return os.fsencode(given).decode("utf-8")  # the bytes that were typed, whatever the locale decoded them as
    except UnicodeError as error:
        position = error.start if isinstance(error, (UnicodeEncodeError, UnicodeDecodeError)) else 0
        raise LLMError(f"the {what} is not UTF-8 text: byte at position {position}; write it in UTF-8") from error


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        from llmcli.data import file_types

        start, end = data[: file_types.START_BYTES], data[-file_types.END_BYTES :]
        message = file_types.describe_binary("standard input", start, end) or (
            f"the {what} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start:,}; "
            "convert it first: iconv -f ENCODING -t UTF-8"
        )
        raise LLMError(message) from error


def parse_duration(text: str) -> float:
    """Seconds of a time such as 90s, 5m, 2h or 1h30m. Raises LLMError.

    >>> [parse_duration(t) for t in ("90s", "2m20s", "1h30m", "1.5m")]
    [90.0, 140.0, 5400.0, 90.0]
    """
    match = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().replace(" ", ""))
    try:
        amounts = [float(part or 0) for part in match.groups()] if match else []
    except ValueError:
        amounts = []
    total = math.fsum(a * b for a, b in zip(amounts, (86400, 3600, 60, 1), strict=True)) if amounts else 0.0
    if total <= 0:
        raise usage(f"--time must be a duration, found {text}; write it as 90s, 5m, 2h or 1h30m")
    return total


# ---- outputs


def check_report_path(output: Path, model: Path, option: str, example: str, *, force: bool) -> None:
    """Raise LLMError if the page or plot that `option` names cannot be written, or would replace the model."""
    from llmcli.formats import atomic_io

    if output.resolve() == model.resolve():
        raise LLMError(f"{output} is the model itself; give another name: {option} {example}")
    atomic_io.check_writable(output, force=force, by=f" with {option}", example=example)


# ---- notes on a corpus


def note_skipped_files(corpus: "Corpus") -> None:
    """Say which files in directories were not read, and why."""
    for line in corpus.skipped[:MAX_SKIPPED_NOTES]:
        console.note(f"skipped: {line}")
    if len(corpus.skipped) > MAX_SKIPPED_NOTES:
        console.note(f"skipped: {len(corpus.skipped) - MAX_SKIPPED_NOTES} more files")


def note_json_files(corpus: "Corpus") -> None:
    """Say which files are JSON or JSON Lines: the model would also be trained on their keys and braces."""
    from llmcli.data.json_text import json_notes

    beginnings = (
        (document.name, "".join(document.text(0, JSON_SEARCH_BYTES)), document.text_bytes <= JSON_SEARCH_BYTES)
        for document in corpus.documents[:JSON_SEARCH_FILES]
    )
    for line in json_notes(beginnings):
        console.note(line)
