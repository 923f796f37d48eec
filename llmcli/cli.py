"""The door: the app, the list of verbs, the one place where an error becomes a line and an exit code."""

import errno
import io
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import llmcli
from llmcli import console
from llmcli.commands.eval import eval_
from llmcli.commands.explain import explain
from llmcli.commands.export import export
from llmcli.commands.generate import generate
from llmcli.commands.import_ import import_
from llmcli.commands.inspect import inspect
from llmcli.commands.mix import mix
from llmcli.commands.tokenize import tokenize
from llmcli.commands.train import train
from llmcli.errors import LLMError


class Door(TyperGroup):
    """Runs a verb; what it raises becomes one line on stderr and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Wrong usage that the command-line library finds is told like every other error."""
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except Exception as error:
            message = getattr(error, "format_message", None)  # what its errors have in common
            if message is None:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                print(message())
                sys.exit(0)
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "llm"
            quotes = path.endswith(("generate", "explain", "tokenize")) and "unexpected extra argument" in message()
            advice = "a text of several words needs quotes" if quotes else f"see: {path} --help"
            console.fail(f"{message().rstrip('.')}; {advice}")
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)

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
        except BrokenPipeError as error:  # who read the result has gone: no words
            _drop_output()
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                _drop_output()
            else:
                console.fail(f"{error.filename or 'the output'}: {error.strerror or error}")
                _drop_output()
            raise typer.Exit(1) from error


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
        console.result(f"llmcli {llmcli.__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the verb."""


def main() -> None:
    """The installed command."""
    if sys.stderr is not None:
        notes = io.BufferedWriter(_Lossy(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(notes, "utf-8", "backslashreplace", line_buffering=True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    kinds = [kind for name in ("SIGTERM", "SIGHUP") if (kind := getattr(signal, name, None))]
    for kind in kinds:
        signal.signal(kind, _terminated)
    try:
        app()
    finally:
        for kind in (*kinds, signal.SIGINT):  # it ends already: no signal may break into that
            signal.signal(kind, signal.SIG_IGN)


class _Lossy(io.FileIO):
    """Notes that nobody takes (the log's disk is full, the pipe's reader gone) are no reason to lose a run."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _terminated(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _drop_output() -> None:
    """Let nothing more be written to a closed or full output, not even at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None
