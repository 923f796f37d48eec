"""`llm inspect`: show what is in a model file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcli.cli.options import JsonOption, QuietOption, check_report_path, model_path, reject_options
from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.formats.safetensors.file_header import Header


def inspect(
    context_: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="Any .safetensors or .gguf file, or a Hugging Face directory (default: $LLMCLI_MODEL or "
            f"{DEFAULT_MODEL}).",
        ),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List all tensors.")] = False,
    tensor: Annotated[
        str | None, typer.Option("--tensor", metavar="NAME", help="Show statistics and a histogram of one tensor.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Show a histogram of each group of weights; reads the whole file.")
    ] = False,
    diff: Annotated[
        str | None,
        typer.Option("--diff", metavar="OTHER", help="Compare config, tokenizer and tensors with another file."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Save the training loss curve as .svg, .png or .pdf."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Save an interactive HTML page.")] = None,
    force: Annotated[bool, typer.Option("--force", help="With --plot or --html: overwrite an existing file.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check the file against the hash that it contains.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what is in a model file: tensors, config, training record.

    Only the header is read, so a large file takes no longer. --tensor, --weights, --diff and --verify also read
    tensors.

    Example: llm inspect model.safetensors
    """
    from llmcli.formats.headers import read_header

    _check_options(
        context_,
        {
            "plot": plot is not None,
            "html": html is not None,
            "verify": verify,
            "tensor": tensor is not None,
            "tensors": tensors,
            "weights": weights,
            "diff": diff is not None,
        },
    )
    header = read_header(model_path(file))
    if plot is not None:
        _save_plot(header, plot, force=force, json_=json_)
    elif html is not None:
        _save_page(header, html, force=force, json_=json_)
    elif verify:
        _verify(header, json_=json_)
    elif diff is not None:
        from llmcli.cli.reports.diff import print_difference

        print_difference(header, read_header(model_path(diff)), json_=json_)
    elif tensor is not None or weights:
        _show_statistics(header, tensor, json_=json_)
    elif json_:
        from llmcli.pages.model_facts import facts

        console.json_result(facts(header, console.note))
    else:
        _show_header(header, all_tensors=tensors)


def _check_options(context: typer.Context, views: dict[str, bool]) -> None:
    """Raise LLMError for more than one view, or an option that has no effect. `views` is option -> whether given."""
    for view in (name for name, is_given in views.items() if is_given):
        reject_options(context, f"with --{view}", *(other for other in views if other != view))
    if not views["plot"] and not views["html"]:
        reject_options(context, "without --plot or --html", "force")


def _show_statistics(header: "Header", tensor: str | None, *, json_: bool) -> None:
    """Statistics of the tensor of that name, or of all groups of weights."""
    from llmcli.cli.reports.weights import print_tensor, print_weights

    if tensor is not None:
        print_tensor(header, tensor, json_=json_)
    else:
        print_weights(header, json_=json_)


def _show_header(header: "Header", *, all_tensors: bool) -> None:
    """The overview, or a list of all tensors."""
    if all_tensors:
        from llmcli.cli.reports.weights import print_tensors

        print_tensors(header)
    else:
        from llmcli.cli.reports.model import print_overview

        print_overview(header)


# ---- files


def _save_page(header: "Header", output: Path, *, force: bool, json_: bool) -> None:
    from llmcli.formats import atomic_io
    from llmcli.pages.html import inspection_page

    check_report_path(output, header.path, "--html", "page.html", force=force)
    page = inspection_page(header, console.note)
    atomic_io.write(output, [page])
    if json_:
        console.json_result({"file": str(header.path), "page": str(output)})
    else:
        console.note(f"saved {output}; open it in a browser")


def _save_plot(header: "Header", output: Path, *, force: bool, json_: bool) -> None:
    from llmcli.cli.terminal import plot
    from llmcli.formats import atomic_io
    from llmcli.pages.model_facts import training_record
    from llmcli.training.files.summary import read_curve

    format_ = plot.format_of(output)
    check_report_path(output, header.path, "--plot", "loss.svg", force=force)
    record = training_record(header)
    try:
        curve = read_curve(record)
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error
    atomic_io.write(output, [plot.draw(curve, f"Training of {atomic_io.name_of(header.path)}", format_)])
    if json_:
        console.json_result({"file": str(header.path), "plot": str(output)})
    else:
        console.note(f"saved {output}")


# ---- --verify


def _verify(header: "Header", *, json_: bool) -> None:
    from llmcli.formats.safetensors.file import digest

    recorded = header.metadata.get("sha256")
    if recorded is None:
        raise LLMError(f"{header.path} has no hash to verify; only files made by llmcli have one")
    computed = digest(header)
    if computed != recorded:
        raise LLMError(
            f"{header.path} is damaged: its sha256 is {computed[:16]}..., the file says {recorded[:16]}...; copy or "
            "download it again"
        )
    if json_:
        console.json_result({"file": str(header.path), "sha256": computed, "verified": True})
    else:
        console.paragraph(f"{header.path}: intact, its sha256 is the one in the file: {computed}")
