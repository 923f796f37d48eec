"""Options that several verbs share, and how their values are written."""

import math
import os
import re
import signal
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli.cli import console
from llmcli.config import DEFAULT_MODEL, DEVICES, QUANTIZATIONS
from llmcli.data.vocabulary_limits import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE
from llmcli.errors import LLMError, usage

if TYPE_CHECKING:
    from llmcli.data.corpus import Corpus

LARGEST_TOKENIZER = 100_000_000  # bytes of a tokenizer.json: three times the largest that are published
STRUCTURE_BYTES, STRUCTURE_FILES = 1 << 16, 256  # of each file, and files, in which JSON is looked for


def vocabulary_option(help: str, panel: str | None = None) -> Any:
    """--vocab-size, wherever a tokenizer is learned."""
    return typer.Option(
        "--vocab-size", metavar="N", min=MIN_VOCAB_SIZE, max=MAX_VOCAB_SIZE, help=help, rich_help_panel=panel
    )


def _device(name: str) -> str:
    if name not in (*DEVICES, "auto"):
        raise usage(f"--device must be cpu, cuda, mps or auto, found {name}")
    return name


def _quantize(kind: str | None) -> str | None:
    if kind not in (None, *QUANTIZATIONS):
        raise usage(f"--quantize must be {' or '.join(QUANTIZATIONS)}, found {kind}")
    return kind


ModelOption = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="FILE",
        help=f"The model: a .safetensors of ours, a .gguf, a Hugging Face directory; else $LLMCLI_MODEL, "
        f"else {DEFAULT_MODEL} here.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="cpu (numpy), or cuda, mps, auto (torch).", callback=_device),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option("--quantize", metavar="int8|int4", help="Weights in few bits, which run faster.", callback=_quantize),
]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Only results and errors.", callback=console.set_quiet)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs to read.")]


def model_path(given: str | None) -> Path:
    """The model file that is meant; raises LLMError when nothing was named and none is here."""
    if given == "":
        raise usage("the name of the model is empty; name a .safetensors file")
    named = given or os.environ.get("LLMCLI_MODEL")
    if named:
        return Path(named)
    if not Path(DEFAULT_MODEL).exists():
        raise LLMError(f"there is no {DEFAULT_MODEL} here; make one with: llm train corpus.txt, or name another file")
    return Path(DEFAULT_MODEL)


def note_left_out(corpus: "Corpus") -> None:
    """Say which files in directories were not read, and why."""
    for line in corpus.skipped[:5]:
        console.note(f"left out: {line}")
    if len(corpus.skipped) > 5:
        console.note(f"left out: {len(corpus.skipped) - 5} more files")


def note_structured(corpus: "Corpus") -> None:
    """Say which files are JSON or JSON Lines, whose keys and braces the model is trained on too."""
    from llmcli.data.json_text import json_notes

    beginnings = (
        (document.name, "".join(document.text(0, STRUCTURE_BYTES)), document.text_bytes <= STRUCTURE_BYTES)
        for document in corpus.documents[:STRUCTURE_FILES]
    )
    for line in json_notes(beginnings):
        console.note(line)


def refuse_with(context: typer.Context, option: str, *names: str, without: bool = False) -> None:
    """Refuse parameters, by their names, that say nothing with `option` (or `without` it) and yet were typed."""
    typed = [
        next((o for o in param.opts if o.startswith("--")), param.opts[0].upper())
        for param in context.command.params
        if param.name in names and (source := context.get_parameter_source(param.name)) and source.name == "COMMANDLINE"
    ]
    if typed:
        have, them = ("has", "it") if len(typed) == 1 else ("have", "them")
        beside = "without" if without else "with"
        raise usage(f"{' and '.join(typed)} {have} no effect {beside} {option}; leave {them} out")


def tokenizer_file(path: str, wanted: str = "a tokenizer.json") -> tuple[str, Any]:
    """(text, tokenizer) of a tokenizer.json."""
    from llmcli.data.tokenizer import Tokenizer

    if not path:
        raise usage(f"--tokenizer is empty; give {wanted}")
    try:
        file = Path(path)
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise LLMError(f"--tokenizer {path} is not a regular file; give {wanted}")
        if found.st_size > LARGEST_TOKENIZER:
            raise LLMError(
                f"--tokenizer {path} has over {LARGEST_TOKENIZER:,} bytes, too many to be one; give {wanted}"
            )
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise LLMError(f"--tokenizer {path}: there is no such file; give {wanted}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LLMError(f"--tokenizer {path} cannot be read as text: {error}") from error
    try:
        return text, Tokenizer.from_json(text)
    except LLMError as error:
        raise LLMError(f"--tokenizer {path}: {error}") from error


def refuse_gguf(output: Path) -> None:
    """A name must not promise another form than is written."""
    if output.suffix.lower() == ".gguf":
        raise usage(
            f"{output}: a .safetensors file is written here; a .gguf is made by: llm export MODEL {output} --to gguf"
        )


def refuse_overwriting(output: Path, made: str, inputs: Iterable[Path], what: str, by: str = " with -o") -> None:
    """A command never writes over what it reads, nor replaces a directory that holds it."""
    target = output.resolve()
    for path in inputs:
        found = path.resolve()
        if found == target or (path.exists() and output.exists() and path.samefile(output)):
            raise LLMError(f"{output} is {what}; give the {made} another name{by}")
        if target in (*found.parents, *path.absolute().parents):
            raise LLMError(f"{output} holds {path}, {what}; give the {made} another name{by}")


def termination_signals() -> list[signal.Signals]:
    """The signals besides SIGINT that ask a process of this system to end, without those that the parent process set
    to be ignored, as nohup does."""
    names = ("SIGTERM", "SIGHUP", "SIGBREAK")  # the last is Ctrl-Break and a closed window on Windows
    signals = [number for name in names if (number := getattr(signal, name, None)) is not None]
    return [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]


def text_argument(given: str | None, what: str) -> str:
    """The text given, or standard input for "-" and where it is no terminal. Raises LLMError when it is no text."""
    if given is None and sys.stdin.isatty():
        raise usage(f"no {what} was given; write it in quotes, or - to read standard input")
    if given is None or given == "-":
        data = sys.stdin.buffer.read()
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            from llmcli.data import file_types

            start, end = data[: file_types.START_BYTES], data[-file_types.END_BYTES :]
            if description := file_types.describe_binary("standard input", start, end):
                raise LLMError(description) from error
            raise LLMError(
                f"the {what} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start:,}; "
                f"convert it first: iconv -f ENCODING -t UTF-8"
            ) from error
    try:
        return os.fsencode(given).decode("utf-8")  # as it was typed, whatever the locale took it for
    except UnicodeError as error:
        at = error.start if isinstance(error, (UnicodeEncodeError, UnicodeDecodeError)) else 0
        raise LLMError(f"the {what} is not UTF-8 text: byte at position {at}; write it in UTF-8") from error


def seconds(text: str) -> float:
    """A time such as 90s, 5m, 2h or 1h30m, in seconds.

    >>> [seconds(t) for t in ("90s", "2m20s", "1h30m", "1.5m")]
    [90.0, 140.0, 5400.0, 90.0]
    """
    found = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().replace(" ", ""))
    try:
        amounts = [float(part or 0) for part in found.groups()] if found else []
    except ValueError:
        amounts = []
    total = math.fsum(a * b for a, b in zip(amounts, (86400, 3600, 60, 1), strict=True)) if amounts else 0.0
    if total <= 0:
        raise usage(f"--time {text} is no time; write it as 90s, 5m, 2h or 1h30m")
    return total
