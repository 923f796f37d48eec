"""The plots of the documentation: SVG files in light and dark. Needs the extra `benchmarks`.

With one version of matplotlib, equal figures give equal bytes: no date, no random ids. Each file names the hash of the
figures that it shows, so that a test can tell whether it is up to date, whatever version drew it.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmcli.cli.options import parse_duration
from llmcli.errors import LLMError
from tests.benchmarks.figures import Figures, score
from tests.benchmarks.publish import NANOGPT_BUDGET
from tests.benchmarks.texts import SHAKESPEARE, TEST, TEXTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUDGETS = ("20s", "60s", "142s", "5m", "15m", "60m")
COMPRESSORS = {  # label -> kind, key of the result
    "xz": ("xz", "bits_per_byte"),
    "PPM, static": ("ppm", "static_bits_per_byte"),
    "PPM, adapting": ("ppm", "bits_per_byte"),
    "zpaq -m5, adapting": ("zpaq", "bits_per_byte"),
}
THEMES = {  # file name ending -> colours of GitHub's two themes
    "": {"paper": "#ffffff", "ink": "#1f2328", "grid": "#d8dee4"},
    "-dark": {"paper": "#0d1117", "ink": "#e6edf3", "grid": "#30363d"},
}
# Colours that are told apart with any colour vision, on both papers; shapes differ too
OURS, OURS_SHORT = "#d1690e", "#e8a05c"
MARKERS = {
    "xz": ("x", "#8b8f94"), "PPM, static": ("v", "#5b8fc7"), "PPM, adapting": ("^", "#3a6fb0"),
    "zpaq -m5, adapting": ("D", "#2f9e6e"), "nanoGPT's recipe": ("s", "#a05bb5"),
}  # fmt: skip
SIZE = (8.4, 4.6)  # inches; 605 points wide, shown in about 800 pixels
Theme = Mapping[str, str]


def digest(shown: object) -> str:
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode("utf-8")).hexdigest()[:16]


# ---- what is shown


def budget_figures(figures: Figures) -> dict[str, Any]:
    """Bits per byte of tiny Shakespeare by time."""
    return {
        "ours": {budget: [score(run) for run in figures.runs(SHAKESPEARE, budget)] for budget in BUDGETS},
        "nanogpt": [
            [figures.nanogpt(SHAKESPEARE, budget, "seconds"), bits]
            for budget in ("", NANOGPT_BUDGET)
            if (bits := figures.nanogpt(SHAKESPEARE, budget)) is not None
        ],
        "compressors": {
            label: figures.compressor(kind, SHAKESPEARE, key) for label, (kind, key) in COMPRESSORS.items()
        },
    }


def text_figures(figures: Figures) -> dict[str, Any]:
    """Bits per byte of each text, by what predicted it."""
    found: dict[str, dict[str, float | None]] = {}
    for name in TEXTS:
        found[name] = {
            "llm train --time 142s": figures.median(name, "142s"),
            "llm train --time 15m": figures.median(name, "15m"),
            **{label: figures.compressor(kind, name, key) for label, (kind, key) in COMPRESSORS.items()},
            "nanoGPT's recipe": figures.nanogpt(name),
        }
    return found


# ---- drawing


def draw_budgets(axes: "Axes", shown: Mapping[str, Any], theme: Theme) -> None:
    seconds = {budget: parse_duration(budget) for budget in BUDGETS}
    medians = [(seconds[budget], sorted(bits)[len(bits) // 2]) for budget, bits in shown["ours"].items() if bits]
    for budget, bits in shown["ours"].items():
        axes.plot([seconds[budget]] * len(bits), bits, "o", color=OURS, markersize=4, alpha=0.45, markeredgewidth=0)
    if medians:
        axes.plot(*zip(*medians, strict=True), "-o", color=OURS, linewidth=2, markersize=6, label="llm train")
        axes.annotate("llm train", medians[0], (8, 8), textcoords="offset points", color=OURS, weight="bold")
    marker, colour = MARKERS["nanoGPT's recipe"]
    for point in shown["nanogpt"]:
        axes.plot(*point, marker, color=colour, markersize=7)
    if shown["nanogpt"]:
        axes.annotate(
            "nanoGPT's recipe for a CPU", max(shown["nanogpt"]), (10, -4), textcoords="offset points", color=colour
        )
    for label, bits in shown["compressors"].items():
        if bits is not None:
            colour = MARKERS[label][1]
            axes.axhline(bits, color=colour, linewidth=1.3, linestyle="--" if "adapting" in label else ":")
            right = axes.get_yaxis_transform()  # x as a share of the width, so beside the axes
            axes.text(1.01, bits, f"{label}\n{bits:.3f}", color=colour, va="center", fontsize=9.5, transform=right)
    axes.set_xscale("log")
    axes.set_xlim(14, 5400)
    axes.set_xticks(list(seconds.values()), list(seconds), minor=False)
    axes.minorticks_off()
    axes.set_xlabel("training time, two cores")
    axes.set_ylabel("held-out bits per byte (lower is better)")
    axes.set_title("tiny Shakespeare, 1.1 MB of English", loc="left", fontsize=11)


def draw_texts(axes: "Axes", shown: Mapping[str, Any], theme: Theme) -> None:
    names = list(shown)[::-1]
    styles = {"llm train --time 142s": ("o", OURS_SHORT), "llm train --time 15m": ("o", OURS), **MARKERS}
    for label, (marker, colour) in styles.items():
        points = [(shown[name][label], row) for row, name in enumerate(names) if shown[name][label] is not None]
        if points:
            size = 8 if marker == "o" else 6
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=size, label=label, linestyle="none")
    axes.set_yticks(range(len(names)), [f"{name}, {TEXTS[name].bytes / 1e6:.1f} MB" for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    tests = sum(TEXTS[name].role == TEST for name in names)
    axes.axhline(tests - 0.5, color=theme["ink"], linewidth=0.8)
    right = axes.get_yaxis_transform()
    for side, label in (("bottom", "development texts"), ("top", "test texts: no setting was chosen on them")):
        axes.text(0.995, tests - 0.5, label, fontsize=9, style="italic", va=side, ha="right", transform=right)
    axes.set_xlabel("held-out bits per byte (lower is better)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.17), ncols=4, frameon=False, fontsize=9)


PLOTS: dict[str, tuple[Callable[[Figures], Mapping[str, Any]], Callable[["Axes", Mapping[str, Any], Theme], None]]] = {
    "benchmarks-budgets": (budget_figures, draw_budgets),
    "benchmarks-texts": (text_figures, draw_texts),
}


def draw_all(figures: Figures, format_: str = "svg") -> dict[str, bytes]:
    """All plots by the names of their files. Raises LLMError if matplotlib is not installed."""
    return {
        f"{name}{ending}.{format_}": _drawn(draw, select(figures), theme, format_)
        for name, (select, draw) in PLOTS.items()
        for ending, theme in THEMES.items()
    }


def _drawn(
    draw: Callable[["Axes", Mapping[str, Any], Theme], None], shown: Mapping[str, Any], theme: Theme, format_: str
) -> bytes:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LLMError("the plots need matplotlib: pip install -e '.[benchmarks]'") from error
    style: dict[Any, Any] = {
        "svg.hashsalt": "llmcli", "svg.fonttype": "path", "font.size": 10.5, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": theme["grid"],
        "text.color": theme["ink"], "axes.labelcolor": theme["ink"], "axes.edgecolor": theme["ink"],
        "xtick.color": theme["ink"], "ytick.color": theme["ink"], "figure.facecolor": theme["paper"],
        "axes.facecolor": theme["paper"], "backend": "agg",
    }  # fmt: skip
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **style}):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.add_subplot(), shown, theme)
        file = io.BytesIO()
        metadata = {"Date": None, "Description": digest(shown)} if format_ == "svg" else None
        figure.savefig(file, format=format_, dpi=100, metadata=metadata)
    return file.getvalue()
