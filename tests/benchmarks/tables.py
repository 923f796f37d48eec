"""Write the tables and plots of the documentation from the stored results.

    python -m tests.benchmarks.tables [--results DIR]

In README.md, README.ja.md and docs/benchmarks.md everything between `<!-- begin NAME -->` and `<!-- end NAME -->` is
generated; the rest is written by hand. What is not measured yet is shown as a dash. A test holds that the documents
agree with the results.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from tests.benchmarks import load, plots, results
from tests.benchmarks.figures import WITHOUT_CACHE, Figures, median, planned_epochs, score
from tests.benchmarks.llm_command import ROOT
from tests.benchmarks.publish import FIXED_BUDGET, MIXTURES_BUDGET
from tests.benchmarks.results import machine_name
from tests.benchmarks.texts import DEVELOPMENT, SHAKESPEARE, TEST, TEXTS

DOCUMENTS = ("README.md", "README.ja.md", "docs/benchmarks.md")
BUDGETS = ("20s", "60s", "142s", "5m", "15m", "60m")
DASH = "–"


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
    cached = ["without cache"] if figures.have_cache else []
    rows = []
    for budget in BUDGETS:
        runs = figures.runs(SHAKESPEARE, budget)
        row = [budget, f"**{cell(figures.median(SHAKESPEARE, budget))}**" if runs else DASH]
        row += [" ".join(cell(score(run)) for run in runs) or DASH]
        row += [cell(figures.median(SHAKESPEARE, budget, WITHOUT_CACHE)) for _ in cached]
        row += [cell(median(run[key] for run in runs), form) for key, form in _COSTS.items()]
        rows.append(row)
    return table(
        ["`--time`", "median", "each seed", *cached, "parameters", "total seconds", "peak memory, MB"], rows
    )  # fmt: skip


_COSTS = {"parameters": ",.0f", "seconds": ",.1f", "megabytes": ",.0f"}


def plan(figures: Figures) -> str:
    """What the plan assumed, and what came."""
    rows = []
    for budget in BUDGETS:
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
    return table(head, rows)


def compressors(figures: Figures) -> str:
    """One sentence on tiny Shakespeare."""
    xz, static, adapting, zpaq = _compressors(figures, SHAKESPEARE)
    return (
        "Compressors on the same held-out text, primed with the training text: "
        f"xz {cell(xz)}, PPM {cell(static)}; adaptive compressors: PPM {cell(adapting)}, "
        f"`zpaq -m5` {cell(zpaq)}."
    )


def compressors_ja(figures: Figures) -> str:
    xz, static, adapting, zpaq = _compressors(figures, SHAKESPEARE)
    return (
        f"同じ学習データを先に読み込ませた圧縮プログラムでは、xz が {cell(xz)}、PPM が {cell(static)} です。"
        f"評価用データにも適応し続けるものでは、PPM が {cell(adapting)}、`zpaq -m5` が {cell(zpaq)} です。"
    )


def _compressors(figures: Figures, text: str) -> tuple[float | None, ...]:
    """xz, PPM static, PPM adapting, zpaq adapting."""
    return (
        figures.compressor("xz", text), figures.compressor("ppm", text, "static_bits_per_byte"),
        figures.compressor("ppm", text), figures.compressor("zpaq", text),
    )  # fmt: skip


def texts(figures: Figures, role: str) -> str:
    """All texts of one role."""
    cached = ["142s without cache", "15m without cache"] if figures.have_cache else []
    head = [
        "text", "MB", "142s", "15m", *cached, "xz", "PPM, static", "PPM, adapting", "`zpaq -m5`, adapting",
        "nanoGPT's steps", "nanoGPT, 142 s",
    ]  # fmt: skip
    rows = []
    for name, text in TEXTS.items():
        if text.role == role:
            found = [figures.median(name, budget) for budget in ("142s", "15m")]
            found += [figures.median(name, label.split()[0], WITHOUT_CACHE) for label in cached]
            found += _compressors(figures, name)
            found += [figures.nanogpt(name, ""), figures.nanogpt(name)]
            rows.append([f"{name}: {text.kind}", f"{text.bytes / 1e6:.1f}", *(cell(value) for value in found)])
    return table(head, rows)


def busy(figures: Figures) -> str:
    """Each time budget alone, beside another process, and three times at once; the same seed."""
    rows = []
    for budget in BUDGETS:
        alone = figures.runs(SHAKESPEARE, budget)[:1]
        beside = figures.runs(SHAKESPEARE, budget, load.BUSY)
        three = figures.runs(SHAKESPEARE, budget, load.THREE)
        row = [budget, *(" ".join(cell(score(run)) for run in runs) or DASH for runs in (alone, beside, three))]
        row += [cell(max((run["seconds"] for run in runs), default=None), ",.1f") for runs in (alone, beside, three)]
        rows.append(row)
    head = ["`--time`", "alone", "beside a busy process", "three at once"]
    return table([*head, "seconds, alone", "beside a busy process", "three at once"], rows)


def fixed(figures: Figures) -> str:
    """The speed of a fixed shape beside other processes."""
    names = {
        load.NOTHING: "alone", load.BUSY: "another process busy throughout", "first half": "busy in the first half",
        "second half": "busy in the second half", load.THREE: "three runs at once, together",
    }  # fmt: skip
    rows, first = [], None
    for scenario, name in names.items():
        runs = figures.runs(SHAKESPEARE, FIXED_BUDGET, scenario, "fixed")
        speed = sum(run["record"]["clock"]["tokens_per_second"] for run in runs) if runs else None
        first = speed if scenario == load.NOTHING else first
        rows.append([
            name, cell(speed, ",.0f"), cell(speed / first if speed and first else None, ".0%"),
            cell(max((run["seconds"] for run in runs), default=None), ",.1f"),
            " ".join(cell(score(run)) for run in runs) or DASH,
        ])  # fmt: skip
    return table(["", "tokens/s", "relative speed", "seconds", "bits per byte"], rows)


def engines(figures: Figures) -> str:
    """The speed of generation."""
    result = figures.result("engines")
    if not result:
        return "Not measured yet."
    names = list(result["parameters"])
    rows = [
        [engine, *(cell(speeds.get(name), ",.0f") for name in names)] for engine, speeds in result["speeds"].items()
    ]
    return table(["tokens/s", *(f"{name}, {result['parameters'][name]:,} parameters" for name in names)], rows)


def mixtures(figures: Figures) -> str:
    """Dense, sparse and ensemble at equal time."""
    result = figures.result("mixtures", "", MIXTURES_BUDGET)
    if not result:
        return "Not measured yet."
    names = list(result["models"][0]["bits_per_byte"])
    rows = [
        [
            model["model"], *(cell(model["bits_per_byte"][name]) for name in names), f"{model['parameters']:,}",
            f"{model['active']:,}", cell(model["tokens_per_second"], ",.0f"),
        ]
        for model in result["models"]
    ]  # fmt: skip
    return table(["model", *names, "parameters", "active", "tokens/s"], rows)


def short(figures: Figures, head: Sequence[str], seeds: Callable[[int], str]) -> str:
    """The small table of a README: the budgets that are measured."""
    measured = [(budget, len(figures.runs(SHAKESPEARE, budget))) for budget in BUDGETS]
    rows = [[budget, cell(figures.median(SHAKESPEARE, budget)), seeds(runs)] for budget, runs in measured if runs] or [
        [BUDGETS[0], DASH, DASH]
    ]
    return table(head, rows)


def commit(figures: Figures) -> str:
    return ", ".join(sorted({stored["commit"] for stored in figures.trained()})) or DASH


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
    "summary": lambda figures: "\n\n".join([
        short(figures, ["`--time`", "bits per byte", "seeds"], str), f"Commit {commit(figures)}. {compressors(figures)}"
    ]),
    "summary-ja": lambda figures: "\n\n".join([
        short(figures, ["`--time`", "1バイトあたりのビット数", "シードの数"], str),
        f"コミット：{commit(figures)}。{compressors_ja(figures)}",
    ]),
}  # fmt: skip


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
        part = f"<!-- begin {name} -->\n\n{SECTIONS[name](figures)}\n\n<!-- end {name} -->"
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
            atomic_io.write(path, [text.encode("utf-8")])
        for name, content in plots.draw_all(figures).items():
            atomic_io.write(options.root / "docs" / name, [content])
    except LLMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
