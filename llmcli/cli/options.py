"""Options that several subcommands share, and checks of their values."""

import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL, DEVICES, MAX_VOCAB_SIZE, MIN_VOCAB_SIZE, QUANTIZATIONS, SamplingConfig
from llmcli.errors import LLMError, command_line, usage

if TYPE_CHECKING:
    from llmcli.data.conversations.record_kinds import Reading
    from llmcli.data.text.corpus import Corpus

MAX_SKIPPED_NOTES = 5
MAX_NAMED_MODELS = 3  # that an error offers in place of a missing one
SAMPLING, ANALYSIS = "Sampling", "Analysis"  # panels of the help


# ---- shared options


def vocab_size_option(help: str, panel: str | None = None) -> OptionInfo:
    """--vocab-size, for each subcommand that trains a tokenizer."""
    option: OptionInfo = typer.Option(
        "--vocab-size", metavar="N", min=MIN_VOCAB_SIZE, max=MAX_VOCAB_SIZE, help=help, rich_help_panel=panel
    )
    return option


def speakers_option(panel: str | None = None) -> OptionInfo:
    """--speakers, for each subcommand that reads conversations; `speaker_names` reads its value."""
    option: OptionInfo = typer.Option(
        "--speakers",
        metavar="USER,ASSISTANT",
        help="Names that mark the turns of the user and of the assistant in a text (default: User,Assistant and Q,A).",
        rich_help_panel=panel,
    )
    return option


def pairs_option(panel: str | None = None) -> OptionInfo:
    """--pairs, for each subcommand that reads tables."""
    option: OptionInfo = typer.Option(
        "--pairs", help="Read tables of two columns as prompts and answers.", rich_help_panel=panel
    )
    return option


def column_option(panel: str | None = None) -> OptionInfo:
    """--column, for each subcommand that reads tables."""
    option: OptionInfo = typer.Option(
        "--column",
        metavar="NAME",
        help="Column with the text in a table, JSON or Parquet file, or two: PROMPT,ANSWER.",
        rich_help_panel=panel,
    )
    return option


def plain_option(panel: str | None = None) -> OptionInfo:
    """--plain, for each subcommand that reads files of several kinds."""
    option: OptionInfo = typer.Option(
        "--plain", help="Read files as plain text, whatever they hold.", rich_help_panel=panel
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
NoCacheOption = Annotated[
    bool,
    typer.Option("--no-cache", help="Predict with the network alone, without the n-gram cache of the text so far."),
]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print only results and errors.", callback=console.set_quiet)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


# ---- sampling


MaxTokensOption = Annotated[
    int,
    typer.Option(
        "-n",
        "--max-tokens",
        "--max-new-tokens",
        "--n-predict",
        metavar="N",
        help="Maximum number of tokens to generate.",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "-t",
        "--temperature",
        "--temp",
        metavar="X",
        help="Sampling temperature; 0 always chooses the most likely token.",
        rich_help_panel=SAMPLING,
    ),
]
TopKOption = Annotated[
    int,
    typer.Option(
        "-k",
        "--top-k",
        metavar="N",
        help="Sample from the N most likely tokens only; 0 is off.",
        rich_help_panel=SAMPLING,
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        "-p",
        "--top-p",
        metavar="X",
        help="Sample from the most likely tokens only, as many as reach a total probability of X; 1 is off.",
        rich_help_panel=SAMPLING,
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="X",
        help="Sample only from tokens that are at least X times as likely as the most likely one; 0 is off.",
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenaltyOption = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        "--repeat-penalty",
        metavar="X",
        help="Penalty on tokens that have occurred; above 1 reduces repetition, 1 is off.",
        rich_help_panel=SAMPLING,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "-s",
        "--seed",
        metavar="N",
        help="Random seed; the same seed generates the same text (default: random).",
        rich_help_panel=SAMPLING,
    ),
]
MemoryOption = Annotated[
    bool,
    typer.Option(
        "--memory",
        help="Mark passages that occur verbatim in the training text.",
        rich_help_panel=ANALYSIS,
    ),
]
CorpusOption = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        metavar="FILE",
        help="With --memory: training text, if it is not found automatically; can be repeated.",
        rich_help_panel=ANALYSIS,
    ),
]


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
        from llmcli.formats.open_file import model_files

        others = model_files(Path())[:MAX_NAMED_MODELS]
        advice = f"name another: {' or '.join(command_line(['-m', str(path)]) for path in others)}"
        if not others:
            advice = "train one: llm train corpus.txt, or name a model with -m FILE"
        raise LLMError(f"there is no {DEFAULT_MODEL} here; {advice}")
    return Path(DEFAULT_MODEL)


def text_argument(given: str | None, what: str) -> str:
    """The text given, or standard input for "-" and where stdin is no terminal. Raises LLMError if it is not UTF-8;
    `what` names the text there."""
    if given is None and sys.stdin.isatty():
        raise usage(f"no {what} was given; write it in quotes, or - to read standard input")
    if given is None or given == "-":
        return decoded(sys.stdin.buffer.read(), what)
    return utf8_argument(given, what)


def utf8_argument(given: str, what: str) -> str:
    """A text of the command line. Raises LLMError if it is not UTF-8; `what` names the text there."""
    try:
        return os.fsencode(given).decode("utf-8")  # the bytes that were typed, whatever the locale decoded them as
    except UnicodeError as error:
        position = error.start if isinstance(error, (UnicodeEncodeError, UnicodeDecodeError)) else 0
        raise LLMError(f"the {what} is not UTF-8 text: byte at position {position}; write it in UTF-8") from error


def decoded(data: bytes, what: str) -> str:
    """The text of standard input, or of a part of it. Raises LLMError as `utf8_argument` does."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        from llmcli.data.text import file_types

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


def sampling_config(context: typer.Context) -> SamplingConfig:
    """The sampling that the options of a subcommand describe, with a random seed if none was given. Raises LLMError."""
    names = [field.name for field in fields(SamplingConfig)]
    values = {name: value for name in names if (value := context.params.get(name)) is not None}
    values.setdefault("seed", int.from_bytes(os.urandom(4), "big"))
    return SamplingConfig(**values | {"stop": tuple(values.get("stop", ()))})


def speaker_names(option: str | None) -> tuple[str, str] | None:
    """The two names of --speakers; None if it was not given. Raises LLMError.

    >>> speaker_names("Teacher, Pupil")
    ('Teacher', 'Pupil')
    """
    if option is None:
        return None
    names = [name.strip() for name in option.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise usage(f"--speakers must be two names, as in --speakers User,Assistant; found {option}")
    return names[0], names[1]


def reading(speakers: str | None, pairs: bool, column: str | None, plain: bool) -> "Reading":
    """How --speakers, --pairs, --column and --plain say that files are read. Raises LLMError."""
    from llmcli.data.conversations.record_kinds import Reading

    return Reading.of_options(speaker_names(speakers), pairs, column, plain)


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
