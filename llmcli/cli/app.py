"""The app and its subcommands; an exception becomes one line on stderr and an exit code."""

import importlib
import keyword
import sys
from collections.abc import Callable
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from llmcli.cli.error_report import report
from llmcli.cli.options import as_function, convert_directly, reject_repeated
from llmcli.cli.terminal import console
from llmcli.errors import WRONG_USAGE, LLMError, usage
from llmcli.version import __version__

# Typer ships its own copy of Click and exports only one usage error, BadParameter; the base class of usage
# errors is next in its method resolution order. The private modules are imported for type checking only.
if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter
    from typer._click.exceptions import UsageError
else:
    UsageError = typer.BadParameter.__mro__[1]

SUBCOMMANDS = {  # name -> first line of its help; the docstring of its function has the rest
    "train": "Train a model on text or conversations and save it as one file.",
    "generate": "Continue a prompt, or list the most likely next words.",
    "chat": "Talk with a model that was trained on conversations.",
    "serve": "Serve models over HTTP, with OpenAI's API and a web page.",
    "eval": "Measure bits per byte and perplexity on text or answers.",
    "explain": "Show how a model arrives at its prediction for a prompt.",
    "inspect": "Show what is in a model file: tensors, config, training record.",
    "text": "Print the text that llm train would read from files.",
    "tokenize": "Show the tokens of a text.",
    "mix": "Combine several models into an ensemble.",
    "import": "Convert a published model to one file.",
    "export": "Convert a model to GGUF, Hugging Face or HTML, or quantize it.",
    "models": "List the models on this machine.",
    "cache": "List the tokens of long texts kept for later runs.",
}
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

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([*SUBCOMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run and exit. Also handles errors outside a subcommand, such as one while printing help."""
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except UsageError as error:  # raised by Typer
            from llmcli.cli import suggestions

            options = {
                name: [option for param in subcommand(name).params for option in param.opts]
                for name in SUBCOMMANDS
            }
            console.fail(suggestions.usage_message(error, options))
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
        typed = ["--help"] if ctx.meta[HELP_ALL] else args
        try:
            rest = super().parse_args(ctx, [*typed])
        except UsageError as error:
            error.ctx = error.ctx or ctx  # Typer leaves it out if an option lacks its value
            raise
        if not ctx.resilient_parsing:  # as in completion
            reject_repeated(self.make_parser(ctx).parse_args([*typed])[-1])
        return rest

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
            panels["Options"].append((HELP_ALL, f"Show all options, including {rare} rare ones, and exit."))
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


def _function(name: str) -> Callable[[Any], None]:
    """Load the function of a subcommand from its module in `cli/commands/`. If the name is a Python keyword,
    the module's ends in "_"."""
    module = importlib.import_module(f"llmcli.cli.commands.{name}{'_' if keyword.iskeyword(name) else ''}")
    return vars(module).get(name) or vars(module)[f"{name}_"]


@cache
def subcommand(name: str) -> "Command":
    app_of_one = typer.Typer(rich_markup_mode=None, add_completion=False)
    app_of_one.command(name, cls=Subcommand)(as_function(_function(name), SUBCOMMANDS[name]))
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
