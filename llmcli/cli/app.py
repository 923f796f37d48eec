"""The door: the app, the list of verbs, the one place where an error becomes a line and an exit code."""

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import llmcli
from llmcli.cli import console, name_conflict, suggestions
from llmcli.cli.commands.eval import eval_
from llmcli.cli.commands.explain import explain
from llmcli.cli.commands.export import export
from llmcli.cli.commands.generate import generate
from llmcli.cli.commands.import_ import import_
from llmcli.cli.commands.inspect import inspect
from llmcli.cli.commands.mix import mix
from llmcli.cli.commands.tokenize import tokenize
from llmcli.cli.commands.train import train
from llmcli.cli.options import ending_signals
from llmcli.errors import LLMError, usage
from llmcli.formats import atomic_io

OUTPUT = "the output"  # what errors of standard output name


class Door(TyperGroup):
    """Runs a verb; what it raises becomes one line on stderr and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Ends the process; also what goes wrong outside of a verb, as where help is printed, is one line."""
        try:
            sys.exit(self._exit_code(*args, **extra))
        except OSError as error:
            _fail_by_system(error)
            sys.exit(1)

    def _exit_code(self, *args: Any, **extra: Any) -> int:
        """Wrong usage that the command-line library finds is told like every other error."""
        words = list(next(iter(args), extra.get("args")) or sys.argv[1:])
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except Exception as error:
            message = getattr(error, "format_message", None)  # what its errors have in common
            if message is None:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                console.result(message())
                return 0
            context = getattr(error, "ctx", None)
            unknown = error.option_name if type(error).__name__ == "NoSuchOption" else None  # type: ignore[attr-defined]
            if context and (hint := _option_hint(context, unknown, words)):
                console.fail(hint)
                return 2
            path = context.command_path if context else "llm"
            quotes = path.endswith(("generate", "explain", "tokenize")) and "unexpected extra argument" in message()
            advice = "a text of several words needs quotes" if quotes else f"see: {path} --help"
            console.fail(f"{message().rstrip('.')}; {advice}")
            return 2
        return code if isinstance(code, int) else 0

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A subcommand that does not exist is answered with where the same is done here."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise usage(suggestions.command_hint(args[0], self.shown_commands()))
        return super().resolve_command(ctx, args)

    def shown_commands(self) -> list[str]:
        return [name for name, command in self.commands.items() if not command.hidden]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LLMError as error:
            console.fail(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            console.note("interrupted")
            raise typer.Exit(130) from error
        except MemoryError as error:
            console.fail("out of memory; take a smaller model, batch or context")
            raise typer.Exit(1) from error
        except OSError as error:
            _fail_by_system(error)
            raise typer.Exit(1) from error


def _option_hint(context: Any, unknown: str | None, words: list[str]) -> str | None:
    """What to say of an option that does not exist, or else of a long one with one dash among the words of a command
    that was not understood; None where neither is the reason."""
    group = (context.parent or context).command
    options = {
        command: [option for param in group.commands[command].params for option in (*param.opts, *param.secondary_opts)]
        for command in group.shown_commands()
    }
    command = context.info_name
    if context.parent is None:
        return suggestions.top_option_hint(unknown, options) if unknown else None
    if hint := suggestions.misspelled_long_option(command, words, options):
        return hint
    return suggestions.option_hint(command, unknown, options) if unknown else None


class Verb(TyperCommand):
    """A verb whose help is plain text, its options under their headings: that shows at once, and in any terminal."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                other = "Arguments" if param.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(param, "rich_help_panel", None) or other, []).append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


app = typer.Typer(
    cls=Door,
    rich_markup_mode=None,
    name="llm",
    help="Train and query small language models: any text in, one file out, and the file answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (train, generate, eval_, explain, inspect, tokenize, mix, import_, export):
    app.command(verb.__name__.rstrip("_"), cls=Verb)(verb)


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit()


@app.command(hidden=True)
def version() -> None:
    """Print the version."""
    console.result(f"llmcli {llmcli.__version__}")


@app.command("help", hidden=True)
def help_(
    context: typer.Context,
    command: Annotated[str | None, typer.Argument(metavar="COMMAND", help="A subcommand.")] = None,
) -> None:
    """Print the help of llm, or of a subcommand."""
    top: Any = context.parent
    if command is None:
        console.result(top.get_help(), raw=True)
        return
    found = top.command.get_command(top, command)
    if found is None:
        raise usage(suggestions.command_hint(command, top.command.shown_commands()))
    with typer.Context(found, info_name=command, parent=top) as inner:
        console.result(found.get_help(inner), raw=True)


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the verb."""


def main() -> None:
    """The installed command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w":
            setattr(sys, name, _utf8(getattr(sys, name), _Output if name == "stdout" else _Lossy))
    if atomic_io.WINDOWS:
        _enable_escape_codes()
    kinds = ending_signals()
    for kind in kinds:
        signal.signal(kind, _terminated)
    try:
        name_conflict.note_once(sys.argv[1:])
        app()
    finally:
        for kind in (*kinds, signal.SIGINT):  # it ends already: no signal may break into that
            signal.signal(kind, signal.SIG_IGN)


def _utf8(stream: Any, kind: type[io.FileIO]) -> Any:
    """A standard stream that writes UTF-8, with line ends as they are, whatever the locale, to a file of this kind."""
    if atomic_io.WINDOWS and stream.isatty():  # a console there takes text, not bytes
        stream.reconfigure(errors="backslashreplace")
        return stream
    file = io.BufferedWriter(kind(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="\n", line_buffering=True)


def _enable_escape_codes() -> None:
    """Have the consoles of Windows take colours, as its documentation says; where one cannot, there are none."""
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetStdHandle.restype = ctypes.c_void_p
    for stream in (-11, -12):  # STD_OUTPUT_HANDLE, STD_ERROR_HANDLE
        handle, mode = ctypes.c_void_p(kernel.GetStdHandle(stream)), ctypes.c_uint32()
        is_console = kernel.GetConsoleMode(handle, ctypes.byref(mode))
        if is_console and not kernel.SetConsoleMode(handle, mode.value | 4):  # ENABLE_VIRTUAL_TERMINAL_PROCESSING
            os.environ["NO_COLOR"] = "1"


class _Output(io.FileIO):
    """Standard output; errors say that it could not be written, and so do not look like those of other files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            closed = atomic_io.WINDOWS and error.errno == errno.EINVAL  # what it says of a pipe whose reader has gone
            raise OSError(errno.EPIPE if closed else error.errno, error.strerror, OUTPUT) from error


class _Lossy(io.FileIO):
    """Notes that nobody takes (the log's disk is full, the pipe's reader gone) are no reason to lose a run."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _terminated(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _fail_by_system(error: OSError) -> None:
    """Say what the system refused, but for a result whose reader has gone; a refused output is written no more."""
    if error.errno != errno.EPIPE:
        console.fail(_explained(error))
    if error.errno == errno.EPIPE or error.filename == OUTPUT:
        _drop_output()


def _explained(error: OSError) -> str:
    """What the system refused, in a line."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    try:
        Path.cwd()
    except OSError:
        return "the working directory is no longer there; go to another: cd DIRECTORY"
    return f"the operating system refused: {error.strerror or error}"


def _drop_output() -> None:
    """Let nothing more be written to a closed or full output, not even at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None
