"""The loss curve as SVG, PNG or PDF. The only module that imports matplotlib, an optional extra."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.terminal.charts import log_range, round_values
from llmcli.errors import LLMError, missing_extra
from llmcli.training.files.summary import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METADATA: dict[str, Any] = {  # without dates and versions, so that equal curves result in equal files
    "svg": {"Date": None, "Creator": "llmcli"},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": "llmcli", "Producer": None},
}
SIZE = (7.0, 4.2)  # inches
DOTS_PER_INCH = 160  # resolution of PNG
TRAINING_COLOR, VALIDATION_COLOR = "#4878a8", "#c44e1b"  # distinguishable with color blindness
STYLE: dict[Any, Any] = {  # the keys are matplotlib's
    "svg.hashsalt": "llmcli", "svg.fonttype": "path", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True,
}  # fmt: skip


def format_of(path: Path) -> str:
    """Return the format of a file name: svg, png or pdf. Raises LLMError for other names."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in METADATA:
        raise LLMError(f"{path} is not in a supported figure format; give a name that ends in .svg, .png or .pdf")
    return suffix


def draw(curve: Curve, title: str, format_: str) -> bytes:
    """Plot the losses by step on a logarithmic scale; return the file. Raises LLMError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("--plot", "matplotlib", "plot") from error
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(curve.steps, curve.training, color=TRAINING_COLOR, linewidth=1.4, label="training")
        if curve.validation:
            axes.plot(
                curve.validation_steps, curve.validation, color=VALIDATION_COLOR, linewidth=1.4, linestyle="--",
                marker="o", markersize=4.5, markerfacecolor="white", label=curve.label,
            )  # fmt: skip
            label, best = f"best: {units.bits_per_byte(min(curve.validation))}", min(curve.validation)
            axes.axhline(best, color=VALIDATION_COLOR, linewidth=0.8, linestyle=":", label=label)
        _set_scales(axes, curve)
        axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=11)  # a dollar would start a formula
        axes.set_xlabel("step")
        axes.set_ylabel("bits per byte (lower is better; log scale)")
        axes.legend(frameon=False)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters of a title that the font lacks
            figure.savefig(file, format=format_, dpi=DOTS_PER_INCH, metadata=METADATA[format_])
    return file.getvalue()


def _set_scales(axes: "Axes", curve: Curve) -> None:
    low, high = log_range([*curve.training, *curve.validation])
    margin = (high / low) ** 0.04
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    axes.set_yticks(round_values(low / margin, high * margin))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    first, last = min(curve.steps), max(curve.steps)
    axes.set_xlim(0 if first < 0.1 * last or first == last else first, last + 0.02 * (last - first))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
