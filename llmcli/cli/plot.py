"""A run's curve -> a picture for papers and pages. The only room that knows matplotlib, an extra of the package.

The same curve gives the same bytes with the same matplotlib: no date, no random ids.
"""

import io
import warnings
from pathlib import Path
from typing import Any

from llmcli import units
from llmcli.cli import charts
from llmcli.errors import LLMError
from llmcli.training.summary import Curve

KINDS = ("svg", "png", "pdf")
INCHES = (7.0, 4.2)
DOTS_PER_INCH = 160  # of a png
TRAINING, HELD_OUT = "#4878a8", "#c44e1b"  # told apart by all eyes, and by line and marks without colour


def kind(path: Path) -> str:
    """What the name of a picture asks for, one of KINDS. Raises LLMError for any other."""
    found = path.suffix.lower().removeprefix(".")
    if found not in KINDS:
        raise LLMError(f"{path} names no kind of picture; let it end in .svg, .png or .pdf")
    return found


def draw(curve: Curve, title: str, kind: str) -> bytes:
    """Training and held-out bits per byte over the steps, as the bytes of a picture of that kind.

    The steep beginning leaves the picture at the top, as in the charts of the terminal. Raises LLMError when
    matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LLMError("drawing needs matplotlib, which is not installed: pip install 'llmcli[plot]'") from error
    look: dict[Any, Any] = {  # matplotlib knows its keys by name
        "svg.hashsalt": "llmcli", "svg.fonttype": "path", "font.size": 10, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **look, "backend": "agg"}):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(curve.steps, curve.training, color=TRAINING, linewidth=1.4, label="training text")
        if curve.held_out:
            axes.plot(
                curve.held_out_steps, curve.held_out, color=HELD_OUT, linewidth=1.4, linestyle="--", marker="o",
                markersize=4.5, markerfacecolor="white", label="held-out text (interim)",
            )  # fmt: skip
            best = min(curve.held_out)
            axes.axhline(best, color=HELD_OUT, linewidth=0.8, linestyle=":", label=f"best: {units.bits_per_byte(best)}")
        low, high = _range(curve)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.02 * (high - low))
        axes.set_xlim(0, max(curve.steps) * 1.02)
        axes.set_title(_plain(title), loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylabel("bits per byte (lower is better)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.legend(frameon=False)
        data = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters in a file's name that the font lacks
            figure.savefig(data, format=kind, dpi=DOTS_PER_INCH, metadata=_metadata(kind))
    return data.getvalue()


def _range(curve: Curve) -> tuple[float, float]:
    """The lowest value, and the highest after the first charts.SETTLE of the steps; apart where they are the same."""
    points = [*zip(curve.steps, curve.training, strict=True), *zip(curve.held_out_steps, curve.held_out, strict=True)]
    start = min(step for step, _ in points) + charts.SETTLE * (
        max(step for step, _ in points) - min(step for step, _ in points)
    )
    low, high = min(bits for _, bits in points), max(bits for step, bits in points if step >= start)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar would begin mathematics."""
    return text.replace("$", r"\$")


def _metadata(kind: str) -> dict[str, str | None]:
    """Nothing that a clock or a version decides."""
    if kind == "svg":
        return {"Date": None, "Creator": "llmcli"}
    return {"CreationDate": None, "Creator": "llmcli", "Producer": None} if kind == "pdf" else {"Software": None}
