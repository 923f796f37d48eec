"""The notebook in examples/ runs from its first cell to its last."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import llmcli

ROOT = Path(__file__).parent.parent
STEPS = "steps=30, layers=2, width=64"  # instead of a time budget
CELLS = json.loads((ROOT / "examples" / "notebook.ipynb").read_text("utf-8"))["cells"]


def test_it_holds_no_output_and_no_execution_count() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(code) > 5 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_it_runs(own_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    shown: list[int] = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(len(pyplot.gcf().axes)))
    (own_directory / "food.txt").symlink_to(ROOT / "examples" / "food.txt")
    variables: dict[str, object] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("seconds=SECONDS", STEPS), variables)
    printed = capsys.readouterr().out
    assert (own_directory / "notebook.safetensors").exists() and len(shown) == 3
    sentences = [line for line in printed.splitlines() if re.match(r" *\d+\.\d\d  ", line)]
    scores = [float(line.split()[0]) for line in sentences]
    assert len(scores) == 3 and scores[0] < scores[1] < scores[2]


def test_results_are_short_in_a_notebook(tiny_model: Path, short_search: None) -> None:
    model = llmcli.load(tiny_model)
    explanation = model.explain("The cat sat on the")
    comparison = model.explain("The cat sat on the", without=["2"])
    assert len(repr(explanation)) < 300 and len(repr(comparison)) < 700
    words = model.next_words("The cat", 3)
    assert words == list(words) and len(words) == 3
    for result in (explanation, comparison, model.score("The cat sat."), words, model.choose("The", [" cat", " dog"])):
        page = result._repr_html_()
        assert page.startswith("<table><tr><th>") and len(page) < 3_000
    [token] = explanation.most_likely(1)
    cells = f"<td>{html.escape(model.tokenizer.label(token))}</td><td>{np.exp(explanation.logprobs[token]):.3f}</td>"
    assert f"<tr>{cells}</tr>" in explanation._repr_html_()
