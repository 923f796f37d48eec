"""The page of a model file: its data, and in a real browser its parts, and hostile text shown as text."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llmcli.formats.checkpoint import load, save
from llmcli.pages import inspection_page
from llmcli.training.files.summary import Curve
from tests.conftest import Llm, random_checkpoint

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt install chromium")


def run_page(path: Path, script: str = "", width: int = 1200) -> tuple[str, dict]:
    """(the document after its scripts have run, the result of `script`). Fails if the browser logs a message.

    With a script the page is loaded without its policy, which would forbid it.
    """
    if script:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text("utf-8"))
        result = f"document.body.dataset.result = JSON.stringify((() => {{ {script} }})());"
        path = path.with_name("driven.html")
        path.write_text(text.replace("</body>", f"<script>{result}</script></body>"), "utf-8")
    assert BROWSER
    run = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"--window-size={width},900", "--virtual-time-budget=2000", f"--user-data-dir={path.parent / 'profile'}",
         path.resolve().as_uri()],
        capture_output=True, text=True, timeout=600, encoding="utf-8",
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr, run.stderr
    match = re.search(r'data-result="([^"]*)"', run.stdout)
    return run.stdout, json.loads(html.unescape(match[1])) if match else {}


def test_the_summary_of_a_curve() -> None:
    data = inspection_page._curve_data(Curve([1, 2000], [5.0, 0.2134999], [2, 1140], [0.5, 0.213499]))
    assert data["summary"] == (
        "The training loss went from 5.000 to 0.213 bits per byte by step 2,000; the lowest validation loss was 0.213."
    )


RECORD = {
    "samples": {"prompt": "The cat", "texts": [[1, "<b>"], [3, "sat\n"]]},
    "corpus": [{"name": "<b>りんご.txt", "bytes": 300, "sha256": "0"}], "train_bytes": 200, "train_tokens": 100,
    "steps": 3, "verdict": ["<i>Good</i>"],
    "curve": {"step": [1, 2, 3], "loss": [5.0, 4.0, 3.0], "eval_step": [2, 3], "eval_bits_per_byte": [2.4, 2.2]},
}  # fmt: skip


@pytest.fixture
def trained(tiny_model: Path) -> Path:
    model = load(tiny_model)
    checkpoint = random_checkpoint(model.config, tokenizer_json=model.tokenizer_json)
    checkpoint.record |= RECORD
    save(tiny_model, checkpoint)
    return tiny_model


@pytest.mark.slow
@needs_browser
def test_the_page_of_a_trained_model(llm: Llm, trained: Path) -> None:
    assert llm("inspect", "--html", "page.html").exit_code == 0
    shown, result = run_page(Path("page.html"), script="""
        const boxes = [...document.querySelectorAll("#tree button")];
        const layers = boxes.find((box) => box.textContent.startsWith("layers"));
        layers.focus();
        const top = boxes.filter((box) => box.style.top === "0rem");
        return { details: document.getElementById("group-details").textContent, boxes: boxes.length,
          total: top.reduce((sum, box) => sum + parseFloat(box.style.width), 0),
          rows: document.querySelectorAll("#group-table tbody tr").length,
          circles: document.querySelectorAll("#curve circle").length,
          samples: [...document.querySelectorAll("#samples li")].map((one) => one.textContent) };
    """)  # fmt: skip
    assert re.match(r"model.layers × 2: [\d,]+ parameters, \d+\.\d%", result["details"])
    assert result["total"] == pytest.approx(100) and result["rows"] == result["boxes"] > 10 and result["circles"] == 2
    assert result["samples"] == ["step 1 The cat <b>", "step 3 The cat sat⏎"]
    best = "the lowest held-out (interim) loss was 2.200"
    assert best in shown and "&lt;b&gt;りんご.txt" in shown and "&lt;i&gt;Good&lt;/i&gt;" in shown
    run_page(Path("page.html"))


@pytest.mark.slow
@needs_browser
def test_the_page_of_a_model_without_a_curve(llm: Llm, tiny_model: Path) -> None:
    assert llm("inspect", "--html", "page.html").exit_code == 0
    assert "This file has no training curve." in run_page(Path("page.html"), width=400)[0]


# ---- the command


@pytest.mark.parametrize("command", [("explain", "The cat"), ("inspect",)])
def test_a_page_replaces_a_file_only_with_force(
    llm: Llm, tiny_model: Path, command: tuple[str, ...], short_search: None
) -> None:
    answer = llm(*command, "--html", "page.html")
    assert answer.exit_code == 0 and answer.stdout == "" and "page.html" in answer.stderr
    first = Path("page.html").read_bytes()
    assert first.startswith(b"<!DOCTYPE html>") and first.endswith(b"</html>\n")
    answer = llm(*command, "--html", "page.html")
    assert answer.exit_code == 1 and "already exists; add --force to replace it" in answer.stderr
    assert "--html" in answer.stderr and "-o" not in answer.stderr and answer.stderr.count("\n") == 1
    answer = llm(*command, "--html", "page.html", "--force", "--json")
    assert json.loads(answer.stdout)["page"] == "page.html" and Path("page.html").read_bytes() == first
    before = tiny_model.read_bytes()
    answer = llm(*command, "--html", tiny_model.name, "--force")
    assert answer.exit_code == 1 and "is the model itself" in answer.stderr and tiny_model.read_bytes() == before
    answer = llm(*command, "--html", "nowhere/page.html")
    assert answer.exit_code == 1 and "there is no directory" in answer.stderr
