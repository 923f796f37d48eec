"""Command-line entry point: the app and its subcommands; an exception becomes one line on stderr and an exit
code."""

import errno
import importlib
import io
import keyword
import os
import signal
import sys
import warnings
from copy import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from llmcli.cli.options import as_function, convert_directly
from llmcli.cli.terminal import console
from llmcli.cli.terminal.signals import end_process, termination_signals
from llmcli.errors import FAILURE, INTERRUPTED, WRONG_USAGE, LLMError, missing_package, usage
from llmcli.formats import atomic_io
from llmcli.version import __version__

# Typer ships its own copy of Click and exports only one usage error, BadParameter; their base class is next
# in its method resolution order. The private modules are imported for type checking only.
if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter
    from typer._click.exceptions import UsageError
else:
    UsageError = typer.BadParameter.__mro__[1]

SUBCOMMANDS = (
    "train",
    "generate",
    "chat",
    "serve",
    "eval",
    "explain",
    "inspect",
    "text",
    "tokenize",
    "mix",
    "import",
    "export",
    "models",
    "cache",
)
OUTPUT = "the output"  # file name in errors of standard output
HELP_ALL = "--help-all"


class ErrorHandlingGroup(TyperGroup):
    """Imports and runs a subcommand; an exception becomes one line on stderr and an exit code."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        convert_directly(self.get_params(ctx))
        if args[:1] in (["--show-completion"], ["--install-completion"]) and len(args) > 1:  # flags in Typer
            raise usage(
                f"{args[0]} is for the shell that runs the command; in {args[1]}, type: llm {args[0]}"
            )
        if args[:1] == ["help"]:
            args = [*args[1:2], "--help"]
        return super().parse_args(ctx, ["--version"] if args[:1] == ["version"] else args)

    def list_commands(self, ctx: "Context") -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        return subcommand(cmd_name) if cmd_name in SUBCOMMANDS else None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run and exit. Also handles errors outside of a subcommand, for example while help is printed."""
        words = list(next(iter(args), extra.get("args")) or sys.argv[1:])
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except UsageError as error:  # raised by Typer
            from llmcli.cli import suggestions

            options = {
                name: [option for param in subcommand(name).params for option in param.opts]
                for name in SUBCOMMANDS
            }
            console.fail(suggestions.usage_message(error, words, options))
            code = WRONG_USAGE
        except (LLMError, OSError) as error:
            code = report(error)
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(
        self, ctx: "Context", args: list[str]
    ) -> "tuple[str | None, Command | None, list[str]]":
        """Like Typer, but with a suggestion for an unknown subcommand."""
        if args[0] not in SUBCOMMANDS and not args[0].startswith("-"):
            from llmcli.cli import suggestions

            raise usage(suggestions.command_hint(args[0], SUBCOMMANDS))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: "Context") -> Any:
        try:
            return super().invoke(ctx)
        except (LLMError, KeyboardInterrupt, ImportError, MemoryError, OSError) as error:
            raise typer.Exit(report(error)) from error


class Subcommand(TyperCommand):
    """A subcommand with plain-text help, options grouped by panel, and argument names without Python
    types."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        convert_directly(self.get_params(ctx))
        ctx.meta[HELP_ALL] = HELP_ALL in args
        return super().parse_args(ctx, ["--help"] if ctx.meta[HELP_ALL] else args)

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        return [
            "[OPTIONS]",
            *(_usage_name(param) for param in self.params if isinstance(param, TyperArgument)),
        ]

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        rare = 0
        for param in self.get_params(ctx):
            if getattr(param, "hidden", False):
                rare += 1
                param = copy(param)
                param.hidden = not ctx.meta.get(HELP_ALL)  # type: ignore[attr-defined]
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if isinstance(param, TyperArgument):
                panels["Arguments"].append((str(param.metavar), record[1]))
            else:
                panel = getattr(param, "rich_help_panel", None) or "Options"
                panels.setdefault(panel, []).append(record)
        if rare:
            panels["Options"].append((HELP_ALL, f"Show all options, also {rare} rare ones, and exit."))
        for name, records in panels.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def _usage_name(argument: TyperArgument) -> str:
    """Format an argument for the usage line: "CORPUS...", "[PROMPT]"; a metavar of several words is kept
    unchanged."""
    name = str(argument.metavar)
    if not argument.required:
        return f"[{name}]"
    return name if argument.nargs == 1 or " " in name else f"{name}..."


# ---- the app


app = typer.Typer(
    cls=ErrorHandlingGroup,
    rich_markup_mode=None,
    name="llm",
    help="Train and query small language models. A model is one file.",
    invoke_without_command=True,  # prints the help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@cache
def subcommand(name: str) -> "Command":
    """Load a subcommand from its module in `cli/commands/`, whose name ends in "_" if it is a Python
    keyword."""
    module = importlib.import_module(f"llmcli.cli.commands.{name}{'_' if keyword.iskeyword(name) else ''}")
    function = vars(module).get(name) or vars(module)[f"{name}_"]
    app_of_one = typer.Typer(rich_markup_mode=None, add_completion=False)
    app_of_one.command(name, cls=Subcommand)(as_function(function))
    return typer.main.get_command(app_of_one)


@app.callback()
def _top(
    context: typer.Context,
    version_: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options before the subcommand; without a subcommand the help is printed."""
    if version_:
        console.result(f"llmcli {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        console.result(context.get_help(), raw=True)


def main() -> None:
    """Entry point of the installed command."""
    is_closed = sys.stdout is None
    _prepare_streams()
    # the results would be lost after the work, or written into a file that takes its descriptor
    if is_closed:
        console.fail("standard output is closed; to keep the results: > FILE, to discard them: > /dev/null")
        sys.exit(FAILURE)
    # numpy's warnings about damaged weights: the logits are checked, and the error says what is wrong
    warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning, r"llmcli\.")
    if atomic_io.WINDOWS:
        _enable_escape_codes()
    signals = termination_signals()
    for number in signals:
        signal.signal(number, end_process)
    try:
        app()
    finally:
        for number in (*signals, signal.SIGINT):  # the process is ending: no signal may interrupt that
            signal.signal(number, signal.SIG_IGN)


# ---- standard streams


def _prepare_streams() -> None:
    """Make stdout and stderr write UTF-8 regardless of the locale; open those that the caller closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w":
            kind = _StandardOutput if name == "stdout" else _BestEffortStream
            setattr(sys, name, _utf8(getattr(sys, name), kind))


def _utf8(stream: TextIO, kind: type[io.FileIO]) -> TextIO:
    """Return a standard stream that writes UTF-8 and keeps line ends; `kind` is the class of the underlying
    file."""
    if atomic_io.WINDOWS and stream.isatty():  # a Windows console takes text, not bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    file = io.BufferedWriter(kind(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="\n", line_buffering=True)


def _enable_escape_codes() -> None:
    """Make Windows consoles interpret ANSI escape codes; one that cannot do that gets no colors."""
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetStdHandle.restype = ctypes.c_void_p
    for stream in (-11, -12):  # STD_OUTPUT_HANDLE, STD_ERROR_HANDLE
        handle, mode = ctypes.c_void_p(kernel.GetStdHandle(stream)), ctypes.c_uint32()
        is_console = kernel.GetConsoleMode(handle, ctypes.byref(mode))
        # ENABLE_VIRTUAL_TERMINAL_PROCESSING
        if is_console and not kernel.SetConsoleMode(handle, mode.value | 4):
            os.environ["NO_COLOR"] = "1"


class _StandardOutput(io.FileIO):
    """Standard output, whose errors carry the name OUTPUT to distinguish them from errors of other files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # Windows' error for a pipe without a reader
            closed = atomic_io.WINDOWS and error.errno == errno.EINVAL
            raise OSError(errno.EPIPE if closed else error.errno, error.strerror, OUTPUT) from error


class _BestEffortStream(io.FileIO):
    """Standard error: notes that cannot be written (disk full, pipe closed) are dropped instead of ending a
    run."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


# ---- errors


def report(error: BaseException) -> int:
    """Print an error as one line and return the exit code. An error in this program is raised again."""
    if isinstance(error, KeyboardInterrupt):
        console.note("interrupted")
        return INTERRUPTED
    if isinstance(error, ImportError):
        if (missing := missing_package(error)) is None:
            raise error
        error = missing
    if isinstance(error, LLMError):
        console.fail(str(error))
        return error.exit_code
    if isinstance(error, MemoryError):
        console.fail("out of memory; use a smaller model, batch size or context length")
    elif isinstance(error, OSError):
        if error.errno != errno.EPIPE:  # a closed pipe is not an error
            console.fail(_os_error_message(error))
        if error.errno == errno.EPIPE or error.filename == OUTPUT:
            _discard_output()
    else:
        raise error
    return FAILURE


def _os_error_message(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    try:
        Path.cwd()
    except OSError:
        return "the working directory no longer exists; change to another: cd DIRECTORY"
    return f"the operating system reported an error: {error.strerror or error}"


def _discard_output() -> None:
    """Redirect standard output to the null device, so that flushing it at exit cannot fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None
