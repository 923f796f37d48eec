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
from llmcli.evaluation.figures import ADAPTING, NETWORK
from tests.benchmarks.figures import Figures, median
from tests.benchmarks.measure import score
from tests.benchmarks.publish import NANOGPT_BUDGET
from tests.benchmarks.texts import SHAKESPEARE, TEST, TEXTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUDGETS = ("20s", "60s", "142s", "5m", "15m", "60m")
COMPRESSORS = {  # label -> kind, key of the result
    "xz": ("xz", "bits_per_byte"),
    "PPM, static": ("ppm", "static_bits_per_byte"),
    "PPM, adaptive": ("ppm", "bits_per_byte"),
    "zpaq -m5, adaptive": ("zpaq", "bits_per_byte"),
}
THEMES = {  # file name ending -> colours of GitHub's two themes
    "": {"paper": "#ffffff", "ink": "#1f2328", "grid": "#d8dee4"},
    "-dark": {"paper": "#0d1117", "ink": "#e6edf3", "grid": "#30363d"},
}
# Colours that are told apart with any colour vision, on both papers; shapes differ too
OURS = {NETWORK: ("o", "#d1690e"), ADAPTING: ("P", "#c2a100")}  # figure -> marker, colour
MARKERS = {
    "xz": ("x", "#8b8f94"), "PPM, static": ("v", "#5b8fc7"), "PPM, adaptive": ("^", "#3a6fb0"),
    "zpaq -m5, adaptive": ("D", "#2f9e6e"), "nanoGPT's recipe": ("s", "#a05bb5"),
}  # fmt: skip
SIZE = (8.4, 4.6)  # inches; 605 points wide, shown in about 800 pixels
Theme = Mapping[str, str]


def digest(shown: object) -> str:
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode("utf-8")).hexdigest()[:16]


# ---- what is shown


def budget_figures(figures: Figures) -> dict[str, Any]:
    """Bits per byte of tiny Shakespeare by time."""
    return {
        "ours": {
            figure: {budget: [score(run, figure) for run in figures.runs(SHAKESPEARE, budget)] for budget in BUDGETS}
            for figure in OURS
        },
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
            **{figure: figures.median(name, "142s", figure) for figure in OURS},
            **{label: figures.compressor(kind, name, key) for label, (kind, key) in COMPRESSORS.items()},
            "nanoGPT's recipe": figures.nanogpt(name),
        }
    return found


# ---- drawing


def draw_budgets(axes: "Axes", shown: Mapping[str, Any], theme: Theme) -> None:
    seconds = {budget: parse_duration(budget) for budget in BUDGETS}
    for figure, (marker, colour) in OURS.items():
        runs = {seconds[budget]: found for budget, found in shown["ours"][figure].items() if any(found)}
        medians = [(at, median(found)) for at, found in runs.items()]
        for at, found in runs.items():
            axes.plot([at] * len(found), found, marker, color=colour, markersize=4, alpha=0.45, markeredgewidth=0)
        if medians:
            axes.plot(*zip(*medians, strict=True), f"-{marker}", color=colour, linewidth=2, markersize=6)
            axes.annotate(
                f"llm train, {figure}",
                medians[0],
                (8, 8) if figure == NETWORK else (-4, -26),
                textcoords="offset points",
                color=colour,
                weight="bold",
            )
    marker, colour = MARKERS["nanoGPT's recipe"]
    for point in shown["nanogpt"]:
        axes.plot(*point, marker, color=colour, markersize=7)
    if shown["nanogpt"]:
        axes.annotate(
            "nanoGPT's recipe for a CPU",
            max(shown["nanogpt"]),
            (-10, -4),
            textcoords="offset points",
            color=colour,
            ha="right",
        )
    for label, bits in shown["compressors"].items():
        if bits is not None:
            colour = MARKERS[label][1]
            axes.axhline(bits, color=colour, linewidth=1.3, linestyle="--" if "adaptive" in label else ":")
            right = axes.get_yaxis_transform()  # x as a share of the width, so beside the axes
            axes.text(1.01, bits, f"{label}\n{bits:.3f}", color=colour, va="center", fontsize=9.5, transform=right)
    axes.set_xscale("log")
    shown_seconds = {budget: at for budget, at in seconds.items() if shown["ours"][NETWORK][budget]} or seconds
    axes.set_xlim(14, 1.5 * max(shown_seconds.values()))
    axes.set_xticks(list(shown_seconds.values()), list(shown_seconds), minor=False)
    axes.minorticks_off()
    axes.set_xlabel("training time, two cores")
    axes.set_ylabel("held-out bits per byte (lower is better)")
    axes.set_title("tiny Shakespeare, 1.1 MB of English", loc="left", fontsize=11)


def draw_texts(axes: "Axes", shown: Mapping[str, Any], theme: Theme) -> None:
    names = [name for name in reversed(shown) if shown[name][NETWORK] is not None]
    for label, (marker, colour) in (OURS | MARKERS).items():
        points = [(shown[name][label], row) for row, name in enumerate(names) if shown[name][label] is not None]
        if points:
            name = f"llm train, {label}" if label in OURS else label
            size = 8 if label in OURS else 6
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=size, label=name, linestyle="none")
    axes.set_yticks(range(len(names)), [f"{name}, {TEXTS[name].bytes / 1e6:.1f} MB" for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    tests = sum(TEXTS[name].role == TEST for name in names)
    axes.axhline(tests - 0.5, color=theme["ink"], linewidth=0.8)
    right = axes.get_yaxis_transform()
    for side, label in (("bottom", "development texts"), ("top", "test texts: no setting was chosen on them")):
        axes.text(0.995, tests - 0.5, label, fontsize=9, style="italic", va=side, ha="right", transform=right)
    axes.set_xlabel("held-out bits per byte (lower is better), models after 142 s of training")
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
