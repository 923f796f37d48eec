"""Write the tables and plots of the documentation from the stored results.

    python -m tests.benchmarks.tables [--results DIR]

In README.md, README.ja.md and docs/benchmarks.md everything between `<!-- begin NAME -->` and `<!-- end NAME -->` is
generated; the rest is written by hand. Rows and columns that are not measured yet are left out, single results are a
dash. A test holds that the documents agree with the results.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcli.errors import LLMError
from llmcli.evaluation.figures import ADAPTING, NETWORK
from llmcli.formats import atomic_io
from tests.benchmarks import load, plots, results
from tests.benchmarks.figures import Figures, median, planned_epochs
from tests.benchmarks.llm_command import ROOT
from tests.benchmarks.measure import score
from tests.benchmarks.publish import FIXED_BUDGET, MIXTURES_BUDGET
from tests.benchmarks.results import machine_name
from tests.benchmarks.texts import DEVELOPMENT, SHAKESPEARE, TEST, TEXTS

DOCUMENTS = ("README.md", "README.ja.md", "docs/benchmarks.md")
BUDGETS = ("20s", "60s", "142s", "5m", "15m", "60m")
DASH = "–"
FIGURES = (NETWORK, ADAPTING)
COMPARED = (  # columns: a figure, then what stands beside it, for both
    f"{NETWORK}, 142s", "xz", "PPM, static", "nanoGPT, 142 s", f"{ADAPTING}, 142s", "PPM, adaptive", "`zpaq -m5`",
)  # fmt: skip
NOT_YET = "Not measured yet."


# ---- cells


def cell(value: float | None, form: str = ".3f") -> str:
    """
    >>> cell(1.2345), cell(12345, ",.0f"), cell(None)
    ('1.234', '12,345', '–')
    """
    return DASH if value is None else format(value, form)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


# ---- what stands between the markers


def environment(figures: Figures) -> str:
    """Commit, machine and versions of the trained models."""
    trained = figures.trained()
    if not trained:
        return "Nothing has been trained yet."
    commits = ", ".join(sorted({stored["commit"] for stored in trained}))
    versions = trained[0]["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy", "tokenizers"))
    return f"Commit {commits}; {machine_name(trained[0]['machine'])}; Python {versions['python']}, {named}."


def budgets(figures: Figures) -> str:
    """Each time budget on tiny Shakespeare."""
    rows = []
    for budget in _measured(figures):
        runs = figures.runs(SHAKESPEARE, budget)
        row = [budget]
        for figure in FIGURES:
            row += [f"**{cell(figures.median(SHAKESPEARE, budget, figure))}**"]
            row += [" ".join(cell(score(run, figure)) for run in runs)]
        row += [cell(median(run[key] for run in runs), form) for key, form in _COSTS.items()]
        rows.append(row)
    head = ["`--time`", *(name for figure in FIGURES for name in (figure, f"{figure}, each seed"))]
    return table([*head, "parameters", "total seconds", "peak memory, MB"], rows) if rows else NOT_YET


def _measured(figures: Figures) -> list[str]:
    """The budgets that were measured on tiny Shakespeare."""
    return [budget for budget in BUDGETS if figures.runs(SHAKESPEARE, budget)]


_COSTS = {"parameters": ",.0f", "seconds": ",.1f", "megabytes": ",.0f"}


def plan(figures: Figures) -> str:
    """What the plan assumed, and what came."""
    rows = []
    for budget in _measured(figures):
        runs = figures.runs(SHAKESPEARE, budget)
        planned = median(run["planned_tokens_per_second"] for run in runs)
        reached = median(run["record"]["clock"]["tokens_per_second"] for run in runs)
        rows.append([
            budget, cell(planned, ",.0f"), cell(reached, ",.0f"),
            cell(reached / planned if planned and reached else None, ".0%"),
            cell(median(planned_epochs(run) for run in runs), ".1f"),
            cell(median(run["record"]["epochs"] for run in runs), ".1f"),
        ])  # fmt: skip
    head = ["`--time`", "tokens/s planned", "tokens/s reached", "reached / planned", "epochs planned", "epochs"]
    return table(head, rows) if rows else NOT_YET


def compressors(figures: Figures) -> str:
    """One sentence on tiny Shakespeare."""
    xz, static, adaptive, zpaq = _compressors(figures, SHAKESPEARE)
    return (
        f"On the same held-out text, to compare with the network: xz {cell(xz)}, static PPM {cell(static)}, nanoGPT's "
        f"recipe in 142 s {cell(figures.nanogpt(SHAKESPEARE))}; to compare with adapting: adaptive PPM "
        f"{cell(adaptive)}, `zpaq -m5` {cell(zpaq)}. (The compressors read the training text first.)"
    )


def summary(figures: Figures) -> str:
    """Two sentences for README: tiny Shakespeare, and the medians over the texts that no setting was chosen on."""
    facts = _summary_facts(figures)
    if facts is None:
        return NOT_YET
    sentences = (
        "After 142 s of training on two cores, with no option but `--time`, the network has **{network}** bits per"
        " byte on held-out text of tiny Shakespeare (*network*; nanoGPT's recipe has **{nanogpt}** in the same "
        "time, the compressor xz {xz}), and **{adapting}** with its n-gram cache (*adapting*; `zpaq -m5` {zpaq}). "
        "The medians over {count} texts that the program was not developed on are **{network_2}** (nanoGPT's "
        "recipe **{nanogpt_2}**, xz {xz_2}) and **{adapting_2}** (`zpaq -m5` {zpaq_2}; commit {commit})."
    )
    return textwrap.fill(sentences.format(**facts), 120)


def summary_ja(figures: Figures) -> str:
    facts = _summary_facts(figures)
    if facts is None:
        return NOT_YET
    return (
        "2コアの CPU で142秒、`--time` のほかはオプションなしで学習すると、tiny Shakespeare（英語）の評価用データでの"
        "1バイトあたりのビット数は、ニューラルネットワークだけで **{network}**（*network*。同じ時間の nanoGPT の設定は "
        "**{nanogpt}**、圧縮プログラムの xz は {xz}）、n-gram キャッシュを加えると **{adapting}**（*adapting*。"
        "`zpaq -m5` は {zpaq}）です。開発に使わなかった{count}つのテキストでの中央値は、**{network_2}**"
        "（nanoGPT の設定は **{nanogpt_2}**、xz は {xz_2}）と **{adapting_2}**"
        "（`zpaq -m5` は {zpaq_2}）です（コミット {commit}）。"
    ).format(**facts)


def _summary_facts(figures: Figures) -> dict[str, str] | None:
    """The figures in `summary`; those of the medians end in _2. None if no model was trained on such texts."""
    medians, count = _medians(figures, TEST)
    if not count:
        return None
    names = ("network", "xz", "static", "nanogpt", "adapting", "adaptive", "zpaq")
    shown = {"": _columns(figures, SHAKESPEARE), "_2": medians}
    facts = {
        name + end: cell(values[column])
        for end, values in shown.items()
        for name, column in zip(names, COMPARED, strict=True)
    }
    commits = {stored["commit"] for stored in figures.trained()}
    return facts | {"count": str(count), "commit": ", ".join(sorted(commits))}


def _compressors(figures: Figures, text: str) -> tuple[float | None, ...]:
    """xz and static PPM, which stand beside the network; adaptive PPM and zpaq, which stand beside adapting."""
    return (
        figures.compressor("xz", text), figures.compressor("ppm", text, "static_bits_per_byte"),
        figures.compressor("ppm", text), figures.compressor("zpaq", text),
    )  # fmt: skip


def _columns(figures: Figures, name: str) -> dict[str, float | None]:
    """The results on a text: the figure of the network and what stands beside it, then the same for adapting."""
    xz, static, adaptive, zpaq = _compressors(figures, name)
    return {
        "network, 142s": figures.median(name, "142s", NETWORK), "network, 15m": figures.median(name, "15m", NETWORK),
        "xz": xz, "PPM, static": static,
        "nanoGPT, 142 s": figures.nanogpt(name), "nanoGPT's steps": figures.nanogpt(name, ""),
        "adapting, 142s": _adapting(figures, name, "142s"), "adapting, 15m": _adapting(figures, name, "15m"),
        "PPM, adaptive": adaptive, "`zpaq -m5`": zpaq,
    }  # fmt: skip


def _adapting(figures: Figures, name: str, budget: str) -> float | None:
    """The figure of the network alone where the run stored no cache, since it did not help on the validation slice."""
    adapting = figures.median(name, budget, ADAPTING)
    return figures.median(name, budget, NETWORK) if adapting is None else adapting


def _of_role(figures: Figures, role: str) -> dict[str, dict[str, float | None]]:
    """The results on the texts of one role that a model was trained on."""
    names = [name for name, text in TEXTS.items() if text.role == role and figures.runs(name, "142s")]
    return {name: _columns(figures, name) for name in names}


def _medians(figures: Figures, role: str) -> tuple[dict[str, float | None], int]:
    """(the median of each column over the texts of a role, how many texts)."""
    found = list(_of_role(figures, role).values())
    return {column: median(each[column] for each in found) for column in _columns(figures, SHAKESPEARE)}, len(found)


def texts(figures: Figures, role: str) -> str:
    """All texts of one role that were measured, and their median; the columns that were measured."""
    found = _of_role(figures, role)
    medians, _ = _medians(figures, role)
    columns = [column for column, value in medians.items() if value is not None]
    rows = [
        [f"{name}: {TEXTS[name].kind}", f"{TEXTS[name].bytes / 1e6:.1f}", *(cell(values[column]) for column in columns)]
        for name, values in found.items()
    ]
    if role == TEST and len(rows) > 1:
        rows.append(["**median**", "", *(f"**{cell(medians[column])}**" for column in columns)])
    return table(["text", "MB", *columns], rows) if rows else NOT_YET


BUSY_HEAD = """## Training beside other processes

On two cores: one run alone, beside a process that keeps one core busy throughout, and three runs at once. Held-out
bits per byte on tiny Shakespeare, network / adapting, one seed:

"""
FIXED_HEAD = """## Speed of a fixed model beside other processes

3 layers, hidden size 128, batches of 2,048 tokens, in 60 s on two cores:

"""
MIXTURES_HEAD = """## Mixtures

One dense model, one with eight sparse experts, and an [ensemble](mixtures.md#which-is-better) of one model per text,
in three minutes each; held-out bits per byte, network / adapting:

"""


def busy(figures: Figures) -> str:
    """Each time budget alone, beside another process, and three times at once; the same seed. Empty without results."""
    rows = []
    for budget in BUDGETS:
        alone = figures.runs(SHAKESPEARE, budget)[:1]
        beside = figures.runs(SHAKESPEARE, budget, load.BUSY)
        three = figures.runs(SHAKESPEARE, budget, load.THREE)
        if not beside and not three:
            continue
        row = [budget, *(", ".join(map(_both, runs)) or DASH for runs in (alone, beside, three))]
        row += [cell(max((run["seconds"] for run in runs), default=None), ",.1f") for runs in (alone, beside, three)]
        rows.append(row)
    head = ["`--time`", "alone", "beside a busy process", "three at once"]
    return BUSY_HEAD + table([*head, "seconds, alone", "beside a busy process", "three at once"], rows) if rows else ""


def _both(run: Mapping[str, Any]) -> str:
    """network / adapting of a run."""
    return " / ".join(cell(score(run, figure)) for figure in FIGURES)


def fixed(figures: Figures) -> str:
    """The speed of a fixed shape beside other processes. Empty without results."""
    names = {
        load.NOTHING: "alone", load.BUSY: "another process busy throughout", "first half": "busy in the first half",
        "second half": "busy in the second half", load.THREE: "three runs at once, together",
    }  # fmt: skip
    rows, first = [], None
    for scenario, name in names.items():
        runs = figures.runs(SHAKESPEARE, FIXED_BUDGET, scenario, "fixed")
        if not runs:
            continue
        speed = sum(run["record"]["clock"]["tokens_per_second"] for run in runs)
        first = speed if scenario == load.NOTHING else first
        rows.append([
            name, cell(speed, ",.0f"), cell(speed / first if first else None, ".0%"),
            cell(max(run["seconds"] for run in runs), ",.1f"), ", ".join(map(_both, runs)),
        ])  # fmt: skip
    head = ["", "tokens/s", "relative speed", "seconds", "network / adapting"]
    return FIXED_HEAD + table(head, rows) if rows else ""


def engines(figures: Figures) -> str:
    """The speed of generation."""
    result = figures.result("engines")
    if not result:
        return NOT_YET
    names = list(result["parameters"])
    rows = [
        [engine, *(cell(speeds.get(name), ",.0f") for name in names)] for engine, speeds in result["speeds"].items()
    ]
    return table(["tokens/s", *(f"{name}, {result['parameters'][name]:,} parameters" for name in names)], rows)


def mixtures(figures: Figures) -> str:
    """Dense, sparse and ensemble at equal time. Empty without results."""
    result = figures.result("mixtures", "", MIXTURES_BUDGET)
    if not result:
        return ""
    names = list(result["models"][0]["bits_per_byte"])
    rows = [
        [
            model["model"], *(_both_of_mixture(model, name) for name in names), f"{model['parameters']:,}",
            f"{model['active']:,}", cell(model["tokens_per_second"], ",.0f"),
        ]
        for model in result["models"]
    ]  # fmt: skip
    return MIXTURES_HEAD + table(["model", *names, "parameters", "active", "tokens/s"], rows)


def _both_of_mixture(model: Mapping[str, Any], name: str) -> str:
    """network / adapting of a text."""
    network, as_it_runs = (model.get(key, {}).get(name) for key in ("network_bits_per_byte", "bits_per_byte"))
    return f"{cell(network)} / {cell(as_it_runs)}"


SECTIONS: dict[str, Callable[[Figures], str]] = {
    "environment": environment,
    "budgets": budgets,
    "plan": plan,
    "compressors": compressors,
    "development-texts": lambda figures: texts(figures, DEVELOPMENT),
    "test-texts": lambda figures: texts(figures, TEST),
    "busy": busy,
    "fixed-shape": fixed,
    "generation": engines,
    "mixtures": mixtures,
    "summary": summary,
    "summary-ja": summary_ja,
}


# ---- documents


def generated(document: str) -> Iterator[re.Match[str]]:
    """The parts between markers: name, content."""
    return re.finditer(r"<!-- begin ([\w-]+) -->\n(.*?)<!-- end \1 -->", document, re.S)


def updated(document: str, figures: Figures) -> str:
    """A document with all its generated parts as the results say."""
    for match in reversed(list(generated(document))):
        name = match[1]
        if name not in SECTIONS:
            raise LLMError(f"a document has a part called {name}; expected one of {', '.join(SECTIONS)}")
        content = SECTIONS[name](figures)
        part = "\n\n".join(filter(None, [f"<!-- begin {name} -->", content, f"<!-- end {name} -->"]))
        document = document[: match.start()] + part + document[match.end() :]
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results.DIRECTORY, metavar="DIR")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="where the documents are")
    options = parser.parse_args(arguments)
    try:
        stored = results.load(options.results)
        results.check_consistent(stored)
        figures = Figures(stored)
        for name in DOCUMENTS:
            path = options.root / name
            text = updated(path.read_text("utf-8"), figures)
            atomic_io.write(path, text.encode("utf-8"))
        for name, content in plots.draw_all(figures).items():
            atomic_io.write(options.root / "docs" / name, content)
    except LLMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
