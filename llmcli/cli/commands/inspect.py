"""`llm inspect`: show the contents of a model file."""

from typing import TYPE_CHECKING

from llmcli.cli.options import ResultOptions, argument, flag, model_path, option
from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.formats.header import Header


class _Options(ResultOptions):
    file: str | None = argument(
        "FILE", f"Any model file, or a Hugging Face directory (default: $LLMCLI_MODEL or {DEFAULT_MODEL})."
    )
    tensors: bool = flag("List all tensors.")
    tensor: str | None = option("NAME", "Show statistics and a histogram of one tensor.")
    weights: bool = flag("Show a histogram of each group of weights; reads the whole file.")
    verify: bool = flag("Check the file against the hash that it contains.")


def inspect(options: _Options) -> None:
    """Only the header is read, so a large file takes no longer. --tensor, --weights and --verify also read
    tensors.

    Example: llm inspect model.safetensors
    """
    from llmcli.cli.reports import model, weights
    from llmcli.formats.loading import read_header

    views = ("verify", "tensor", "tensors", "weights")
    options.check({view: " ".join(other for other in views if other != view) for view in views})
    header = read_header(model_path(options.file, option="llm inspect "))
    if options.verify:
        _verify(header, json=options.json)
    elif options.tensor is not None:
        weights.print_tensor(header, options.tensor, json_=options.json)
    elif options.weights:
        weights.print_weights(header, json_=options.json)
    elif options.json:
        from llmcli.pages.model_facts import facts

        console.json_result(facts(header, console.note))
    elif options.tensors:
        weights.print_tensors(header)
    else:
        model.print_overview(header)


def _verify(header: "Header", *, json: bool) -> None:
    from llmcli.formats.safetensors.file import digest

    recorded = header.metadata.get("sha256")
    if recorded is None:
        raise LLMError(f"{header.path} has no hash to verify; only files made by llmcli have one")
    computed = digest(header)
    if computed != recorded:
        raise LLMError(
            f"{header.path} is damaged, or another program changed it or saved it again: its sha256 is "
            f"{computed[:16]}..., the file says {recorded[:16]}...; copy or download it again"
        )
    if json:
        console.json_result({"file": str(header.path), "sha256": computed, "verified": True})
    else:
        console.paragraph(f"{header.path}: intact, its sha256 is the one in the file: {computed}")
