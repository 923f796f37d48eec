"""Declaring options, including those shared by several subcommands; converting and reading values."""

import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import fields
from functools import partial
from inspect import Parameter, Signature, cleandoc
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperOption
from typer.models import OptionInfo

from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL, DEVICES, QUANTIZATIONS, SAMPLING, Grammar, SamplingConfig
from llmcli.errors import LLMError, as_argument, brief, command_line, option_of, usage

if TYPE_CHECKING:
    from typer._click import Parameter as TyperParameter

    from llmcli.data.conversations.record_kinds import ReadOptions

MAX_NAMED_MODELS = 3  # models suggested if the default model is missing
# headings in the help, used by several groups of options
DATA = "Data"
SAMPLING_HEADING = "Sampling"
_KINDS = (bool, str, int, float, Path, list[str])  # annotations of options


# ---- declarations


def argument(metavar: str, help: str, default: Any = None) -> Any:
    """Declare an argument; it is required if `default` is `...`."""
    return typer.Argument(default, metavar=metavar, help=help)


def option(
    metavar: str | None,
    help: str,
    default: Any = None,
    *,
    names: str = "",
    min: float | None = None,
    max: float | None = None,
    callback: Callable[..., Any] | None = None,
) -> Any:
    """Declare an option. `names` lists all its names; the default is the attribute's name: --dry-run for
    dry_run."""
    return typer.Option(
        default,
        *names.split(),
        metavar=metavar,
        help=help,
        min=min,
        max=max,
        callback=callback,
    )


def flag(help: str, *, names: str = "") -> Any:
    """Declare an option without a value, off by default."""
    return option(None, help, False, names=names)


def one_of(*choices: str, help: str, default: str | None = None, metavar: str | None = None) -> Any:
    """Declare an option whose value must be one of the choices."""

    def check(param: typer.CallbackParam, value: str | None) -> str | None:
        if value not in (None, *choices):
            raise usage(f"{param.opts[0]} must be {', '.join(choices[:-1])} or {choices[-1]}, found {value}")
        return value

    return option(metavar or "|".join(choices), help, default, callback=check)


def sampling_option(name: str, metavar: str = "X", *, names: str = "") -> Any:
    """Declare the option of a number in SamplingConfig."""
    return option(metavar, SAMPLING[name].help, getattr(SamplingConfig, name), names=names)


def max_tokens_option(default: int) -> Any:
    names = "-n --max-tokens --max-new-tokens --n-predict"
    return option("N", SAMPLING["max_tokens"].help, default, names=names)


class Options:
    """The options and arguments of a subcommand; an instance has their values.

    A subclass annotates the options of its subcommand, in the order of the help; the options that it inherits
    from a group, such as GenerationOptions, follow. An attribute that is a str is the heading of the options
    below it in its class. The attributes here are declared for all subcommands: a subclass only needs to
    annotate the ones that it has.
    """

    RARE = ""  # names of the options that only --help-all shows

    model: str | None = option(
        "FILE",
        f"Model: a file, a directory or hf:OWNER/NAME (default: $LLMCLI_MODEL or {DEFAULT_MODEL}).",
        names="-m --model",
    )
    device: str = one_of(
        *DEVICES,
        "auto",
        metavar="DEVICE",
        default="cpu",
        help="Device: cpu uses numpy; cuda, mps and auto use torch.",
    )
    quantize: str | None = one_of(
        *QUANTIZATIONS, help="Quantize the weights: faster, slightly less accurate."
    )
    force: bool = flag("Overwrite an existing file.")
    no_cache: bool = flag("Predict with the network alone, without the n-gram cache of the text so far.")
    json: bool = flag("Print the result as JSON.")
    quiet: bool = flag("Print only results and errors.", names="-q --quiet")

    def __init__(self, invocation: typer.Context, /, **values: Any) -> None:
        self.invocation = invocation
        self.params = invocation.command.params
        vars(self).update(values)

    def typed(self, *names: str) -> list[str]:
        """Return the names of the given options that the user typed."""
        source = self.invocation.get_parameter_source
        return [
            _name(param)
            for param in self.params
            if param.name in names and getattr(source(param.name), "name", "") == "COMMANDLINE"
        ]

    def reject(self, condition: str, *names: str) -> None:
        """Raise LLMError if the user typed any of these options, which have no effect `condition`."""
        if typed := self.typed(*names):
            have, pronoun = ("has", "it") if len(typed) == 1 else ("have", "them")
            raise usage(f"{' and '.join(typed)} {have} no effect {condition}; leave {pronoun} out")

    def check(self, conflicts: Mapping[str, str], requirements: Mapping[str, str] | None = None) -> None:
        """Raise LLMError if the user typed an option that has no effect. `conflicts` maps an option to the
        options (separated by spaces) that have no effect with it, `requirements` to those that have no effect
        without it."""
        given = {name for name, value in vars(self).items() if value or value == ""}
        for name in filter(given.__contains__, conflicts):
            self.reject(f"with {option_of(name)}", *conflicts[name].split())
        for name, others in (requirements or {}).items():
            if name not in given:
                self.reject(f"without {option_of(name)}", *others.split())


class ResultOptions(Options):
    """Options of all subcommands that print a result and end."""

    json: bool
    quiet: bool

    def claim(self, output: Path) -> None:
        """Lock an output until the command ends, and remove temporary files left by killed runs. Raises
        LLMError."""
        from llmcli.formats import atomic_io, file_lock

        if problem := self.invocation.with_resource(file_lock.locked(output)):
            console.note(
                f"{output} cannot be locked here ({problem}); make sure that nothing else writes to it"
            )
        else:
            atomic_io.remove_stale(output)

    def claim_model(self, output: Path, *, force: bool) -> None:
        """Lock the model file that a command writes, if it may be written. Raises LLMError."""
        from llmcli.formats import atomic_io

        atomic_io.reject_gguf_name(output)
        atomic_io.check_writable(output, force=force)
        self.claim(output)

    def report(self, record: dict[str, Any], sentence: str) -> None:
        """Report the result: with --json as a record, otherwise as a note."""
        if self.json:
            console.json_result(record)
        else:
            console.note(sentence)


class InputOptions(ResultOptions):
    """Options of subcommands that read text or conversations."""

    _data: str = DATA
    speakers: str | None = option(
        "USER,ASSISTANT", "Names that mark the turns in a text (default: User,Assistant and Q,A)."
    )
    column: str | None = option("NAME", "Column with the text, or two: PROMPT,ANSWER.")
    template: str | None = option("TEXT", "Text with column names in braces, to join several columns.")
    plain: bool = flag("Read files as plain text, whatever they contain.")
    encoding: str | None = option(
        "NAME", "Encoding of text that is not UTF-8, such as Shift_JIS (default: detected, if certain)."
    )
    strip_boilerplate: bool = flag(
        "Remove lines that many documents repeat, and Project Gutenberg's headers and licenses."
    )

    def reading(self) -> "ReadOptions":
        """Return how to read the files. Raises LLMError."""
        from llmcli.data.conversations.record_kinds import ReadOptions

        speakers = None
        if self.speakers is not None:
            user, _, assistant = (name.strip() for name in self.speakers.partition(","))
            if not user or not assistant or user == assistant or "," in assistant:
                raise usage(
                    f"--speakers must be two names, as in --speakers User,Assistant; found {self.speakers}"
                )
            speakers = user, assistant
        return ReadOptions.of_options(
            speakers=speakers,
            column=self.column,
            plain=self.plain,
            template=self.template,
            encoding=self.encoding,
            strip_boilerplate=self.strip_boilerplate,
        )


CONSTRAINTS = "json_schema regex grammar"
SAMPLING_OPTIONS = (  # for `Options.check`
    f"max_tokens temperature top_k top_p min_p min_tokens seed {CONSTRAINTS}"
)
CHOICES_HELP = "a comma-separated list, or a file with one per line"


def read_choices(value: str, *, strips: bool) -> list[str]:
    """Read the value of --choices: a comma-separated list, or the name of a file. `strips` removes spaces
    around each choice."""
    from llmcli.generation.choices import check_choices

    is_file = os.path.exists(value)  # noqa: PTH110 (Path.exists raises if a list is too long for a file name)
    value = utf8_argument(value, "list of choices") if not is_file else _read(value, "choices")
    choices = [line for line in value.splitlines() if line.strip()] if is_file else value.split(",")
    if len(choices) == 1 and not is_file:
        raise usage(
            f"--choices must be at least two texts, such as yes,no: {CHOICES_HELP}; found {brief(value)}, "
            "which is not a file"
        )
    choices = [choice.strip() for choice in choices] if strips else choices
    check_choices(choices, "--choices")
    return choices


def _read(name: str, what: str) -> str:
    """Read the file that --json-schema, --grammar or --choices names. Raises LLMError."""
    if not name:
        raise usage(f"the name of the file with the {what} is empty; give one")
    from llmcli.formats.open_file import read_text

    return read_text(Path(name), f"a file with the {what}").removeprefix("\ufeff")


class GenerationOptions(ResultOptions):
    """Options of subcommands that generate text."""

    max_tokens: int = max_tokens_option(SamplingConfig.max_tokens)
    quantize: str | None
    no_cache: bool
    device: str
    _sampling: str = SAMPLING_HEADING
    temperature: float = sampling_option("temperature", names="-t --temperature --temp")
    top_k: int = sampling_option("top_k", "N", names="-k --top-k")
    top_p: float = sampling_option("top_p", names="-p --top-p")
    min_p: float = sampling_option("min_p")
    min_tokens: int = sampling_option("min_tokens", "N")
    seed: int | None = option("N", "Random seed (default: random).", names="-s --seed")
    _structured: str = "Structured output"
    json_schema: str | None = option("FILE", "Generate JSON that fits the JSON schema in FILE.")
    regex: str | None = option("PATTERN", "Generate text that matches a regular expression.")
    grammar: str | None = option("FILE", "Generate text that fits a grammar, in Lark's notation or GBNF.")
    _batch: str = "Many prompts"
    batch: str | None = option(
        "FILE",
        'File of prompts: lines, JSON Lines with "prompt" or "messages", or a table; prints a line of JSON '
        "for each.",
    )
    output: str | None = option(
        "FILE", "With --batch: file for the results; the same command resumes it.", names="-o --output"
    )
    column: str | None = option("NAME", "With --batch: column of a table with the prompts.")

    def sampling(self) -> SamplingConfig:
        """Return the sampling options, with a random seed by default. Checks the options of this group."""
        self.check({"quantize": "device"}, {"batch": "output column"})
        if self.batch == "":
            raise usage("the name of the file with prompts is empty; give one: --batch prompts.txt")
        values = {field.name: vars(self).get(field.name) for field in fields(SamplingConfig)}
        if values["seed"] is None:
            values["seed"] = int.from_bytes(os.urandom(4), "big")
        given = {name: value for name, value in values.items() if value is not None}
        stop = tuple(utf8_argument(text, "stop sequence") for text in values["stop"] or ())
        sampling = SamplingConfig(**given | {"stop": stop, "grammar": self._grammar()})
        if not vars(self).get("steps"):
            sampling.check_length()
        return sampling

    def _grammar(self) -> Grammar | None:
        """Return the constraint on the generated text, if one was given. Raises LLMError."""
        given = [name for name in CONSTRAINTS.split() if vars(self)[name] is not None]
        Grammar.check_single([*map(option_of, given)])
        if self.regex is not None:
            return Grammar("regex", utf8_argument(self.regex, "regular expression"))
        if self.grammar is not None:
            return Grammar("grammar", _read(self.grammar, "grammar"))
        if self.json_schema is None:
            return None
        import json

        try:
            return Grammar.of_schema(json.loads(_read(self.json_schema, "JSON schema")))
        except (ValueError, RecursionError) as error:
            raise LLMError(f"{self.json_schema} is not JSON: {error}") from error


def as_function(command: Callable[[Any], None], summary: str) -> Callable[..., None]:
    """Return a function with one parameter per option, as Typer requires, which calls `command(options)`. Its
    docstring, the help, begins with the summary."""
    kind = command.__annotations__["options"]

    def run(context_: typer.Context, **values: Any) -> None:
        console.settings.options = {name for param in context_.command.params for name in param.opts}
        console.settings.quiet = values["quiet"]
        command(kind(context_, **values))

    parameters = {
        "context_": Parameter("context_", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    }
    for group in kind.__mro__[: kind.__mro__.index(Options)]:
        heading = None
        for name, annotation in group.__annotations__.items():
            info = copy(getattr(kind, name))
            if isinstance(info, str):
                heading = info
            elif name not in parameters:
                if isinstance(info, OptionInfo):
                    info.param_decls = info.param_decls or (f"--{name.rstrip('_').replace('_', '-')}",)
                    info.hidden = name in kind.RARE.split()
                    info.rich_help_panel = heading
                parameters[name] = Parameter(
                    name, Parameter.KEYWORD_ONLY, default=info, annotation=annotation
                )
    run.__signature__ = Signature([*parameters.values()])  # type: ignore[attr-defined]
    run.__doc__ = f"{summary}\n\n{cleandoc(command.__doc__ or '')}"
    return run


# ---- conversion


def convert_directly(params: "Iterable[TyperParameter]") -> None:
    """Convert values without Typer. Since 0.27 it uses pydantic, and importing pydantic takes a third of the
    time of a short command."""
    for param in params:
        if hasattr(param, "type_descriptor"):  # an older Typer does not use pydantic
            param.process_value = partial(_process_value, param)  # type: ignore[method-assign]


def reject_repeated(typed: "Sequence[TyperParameter]") -> None:
    """Raise LLMError if an option with one value is more than once among the typed ones: all but the last
    value would be ignored."""
    for param in typed:
        if (
            typed.count(param) > 1
            and isinstance(param, TyperOption)
            and not (param.multiple or param.is_flag)
        ):
            raise usage(f"{_name(param)} takes one value, found {typed.count(param)}; give it once")


def _process_value(param: Any, context: typer.Context, value: Any) -> Any:
    """Convert a value and pass it through the option's callback, like Typer's method of this name."""
    kind = param.type_descriptor.annotation
    if kind not in _KINDS or (param.required and not value):
        return type(param).process_value(param, context, value)
    if kind is Path and value == "":
        raise usage(f"{_name(param)} is empty; give the name of a file")
    if param.multiple or param.nargs == -1:
        value = list(value or ())
    elif value is not None:
        value = _number(param, kind, value) if kind in (int, float) else kind(value)
    return value if param.callback is None else param.callback(context, param, value)


def _number(param: Any, kind: type[int] | type[float], text: str) -> float:
    """Parse the number in the value of an option. Raises LLMError if it is not a number or out of range."""
    low = param.type_descriptor.parameter_info.min
    high = param.type_descriptor.parameter_info.max
    with suppress(ValueError):
        number = kind(text)
        if kind is int and number >= 1 << 63:
            raise usage(f"{_name(param)} must be below 2^63, found an integer of {len(text)} digits")
        if (low is None or number >= low) and (high is None or number <= high):
            return number
    bounds = ""
    if low is not None:
        bounds = f" of at least {low}" if high is None else f" from {low} to {high}"
    what = "an integer" if kind is int else "a number"
    raise usage(f"{_name(param)} must be {what}{bounds}, found {text}")


def _name(param: Any) -> str:
    """Return the long name of an option (--max-tokens for -n), or the name of an argument in capitals."""
    return next((name for name in param.opts if name.startswith("--")), param.opts[0].upper())


# ---- values


def model_path(typed: str | None, others: Callable[[], str] | None = None, *, option: str = "-m ") -> Path:
    """Return the path of the model that was typed (after `option`), $LLMCLI_MODEL or the default; if it does
    not exist, `others` suggests models."""
    if typed is not None:
        return local_model(typed)
    if name := os.environ.get("LLMCLI_MODEL"):
        from llmcli.formats.open_file import missing_file_message

        path = local_model(name)
        if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
            raise LLMError(f"$LLMCLI_MODEL: {missing_file_message(path)}")
        return path
    if not Path(DEFAULT_MODEL).exists():
        advice = others() if others else _other_models(option)
        raise LLMError(f"there is no {DEFAULT_MODEL} here; {advice}")
    return Path(DEFAULT_MODEL)


def local_model(name: str) -> Path:
    """Return the path of a model; a model on the Hugging Face hub (hf:OWNER/NAME, or its short name) is
    downloaded if necessary."""
    if not name:
        raise usage("the name of the model is empty; name a .safetensors file")
    from llmcli.formats.huggingface.names import local_path

    return local_path(name, console.note, progress=console.shows_progress())


def _other_models(option: str) -> str:
    from llmcli.formats.checkpoint import holds_adapters
    from llmcli.formats.loading import read_header
    from llmcli.formats.open_file import model_files

    def is_model(path: Path) -> bool:
        try:
            return not holds_adapters(read_header(path))
        except LLMError:
            return False

    if models := [*islice(filter(is_model, model_files(Path())), MAX_NAMED_MODELS)]:
        return f"name another: {' or '.join(option + command_line([as_argument(path)]) for path in models)}"
    return f"train one: llm train corpus.txt, or name a model: {option}FILE"


def text_argument(text: str | None, what: str) -> str:
    """Return the text argument; standard input for "-", or for no argument if stdin is not a terminal. Errors
    call the text `what`."""
    if text is None and sys.stdin.isatty():
        raise usage(f"no {what} was given; write it in quotes, or - to read standard input")
    if text is None or text == "-":
        return decoded(sys.stdin.buffer.read(), what)
    return utf8_argument(text, what)


def utf8_argument(text: str, what: str) -> str:
    """Return a text from the command line. Raises LLMError if it is not UTF-8."""
    # the bytes that were typed, regardless of how the locale decoded them
    return decoded(os.fsencode(text), what, is_input=False)


def decoded(data: bytes, what: str, *, is_input: bool = True) -> str:
    """Decode text from standard input or from the command line. Raises LLMError if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        from llmcli.data.text import file_types

        description = file_types.describe_binary("standard input", data[: file_types.START_BYTES])
        if is_input and description:
            raise LLMError(f"standard input {description}") from error
        advice = "convert it first: iconv -f ENCODING -t UTF-8" if is_input else "write it in UTF-8"
        place = f"byte 0x{data[error.start]:02x} at position {error.start:,}"
        raise LLMError(f"the {what} is not UTF-8 text: {place}; {advice}") from error


def parse_duration(text: str) -> float:
    """Parse a duration such as 90s, 5m, 2h or 1h30m in seconds. Raises LLMError.

    >>> [parse_duration(t) for t in ("90s", "2m20s", "1h30m", "1.5m")]
    [90.0, 140.0, 5400.0, 90.0]
    """
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    match = re.fullmatch(
        rf"(?:{number}d)?(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.replace(" ", ""), re.ASCII
    )
    amounts = [float(part or 0) for part in match.groups()] if match else [0.0]
    total = math.fsum(map(operator.mul, amounts, (86400, 3600, 60, 1)))
    if total <= 0:
        raise usage(f"--time must be a duration, found {text}; write it as 90s, 5m, 2h or 1h30m")
    return total
