"""The pages in a real browser: no error, what one points at is shown, hostile text stays text; and their size."""

import base64
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT, random_checkpoint
from typer.testing import Result

from llmcli import explainer, page
from llmcli import words as words_module
from llmcli.checkpoint import load, save
from llmcli.config import ModelConfig
from llmcli.explainer import Explanation, explain
from llmcli.runtime import Runtime
from llmcli.tokenizer import Tokenizer
from llmcli.words import NextWord, NextWords

Llm = Callable[..., Result]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt install chromium")
WORDS = NextWords((NextWord("hat", 0.75),), 0.25, 1)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> &lt; <!-- \x1b[31m \u202e abc \u2028"\\'


def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe([TEXT], 300)


def explained(prompt: str, config: ModelConfig | None = None) -> Explanation:
    config = config or ModelConfig(300, 32, 64, 2, 4, 2, 8, 64)
    return explain(Runtime(random_checkpoint(config)), tokenizer(), prompt, literal=True, everywhere=True)


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]


def opened(path: Path, fragment: str = "", script: str = "", width: int = 1200) -> tuple[str, dict]:
    """The document after it has run, and what `script` returned. Fails on anything that the browser complains of.

    A script needs the page without its policy, which lets nothing but its own program run.
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
         f"{path.resolve().as_uri()}{fragment}"],
        capture_output=True, text=True, timeout=600, encoding="utf-8",
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr, run.stderr
    found = re.search(r'data-result="([^"]*)"', run.stdout)
    return run.stdout, json.loads(html.unescape(found[1])) if found else {}


@pytest.fixture
def explanation(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    found = explained("The cat sat on the mat.")
    path.write_bytes(page.explanation(found, tokenizer(), "The cat sat on the mat.", WORDS, 5, "m.safetensors"))
    return path


# ---- what the file holds


def test_attention_is_kept_to_a_255th_and_the_lens_to_five_digits(explanation: Path) -> None:
    found, data = explained("The cat sat on the mat."), data_of(explanation.read_text("utf-8"))
    L, H, N, _ = found.attention.shape
    bytes_ = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(L, H, -1) / 255
    rows, columns = np.tril_indices(N)
    np.testing.assert_allclose(bytes_, found.attention[:, :, rows, columns], atol=0.5 / 255 + 1e-6)
    chances = np.array([[[chance for _, chance in row] for row in depth] for depth in data["lens"]])
    np.testing.assert_allclose(chances, found.lens.probabilities, atol=1e-5)
    texts = [[[data["texts"][which] for which, _ in row] for row in depth] for depth in data["lens"]]
    assert texts == [[[tokenizer().label(i) for i in row] for row in depth] for depth in found.lens.ids.tolist()]
    assert data["words"] == [["hat", 0.75]] and data["effects"] == [round(bits, 3) for bits in found.effects]


def test_a_page_of_200_tokens_6_layers_and_8_heads_stays_under_2_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explainer, "MOST_WORK", 1e6)
    config = ModelConfig(300, 64, 64, 6, 8, 4, 8, 400)
    found = explained(" cat" * 200, config)
    assert len(found.ids) == 200
    text = page.explanation(found, tokenizer(), " cat" * 200, WORDS, 5, "m.safetensors")
    assert len(text) < 2_000_000 and data_of(text.decode())["heads"] == 8


def test_where_all_heads_are_too_much_their_means_are_shown_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = explained("The cat sat on the mat.")
    L, _, N, _ = found.attention.shape
    monkeypatch.setattr(page, "MOST_ATTENTION", L * N * (N + 1) // 2)
    text = page.explanation(found, tokenizer(), "x", WORDS, 5, "m").decode()
    assert "only the mean of each layer's heads" in html.unescape(text) and data_of(text)["heads"] == 1
    monkeypatch.setattr(page, "MOST_ATTENTION", L * 15)
    text = page.explanation(found, tokenizer(), "x", WORDS, 5, "m").decode()
    kept = len(data_of(text)["tokens"])
    assert kept <= 5 and f"The last {kept} tokens of the prompt are shown; {N - kept} stand before them." in text
    assert [len(depth) for depth in data_of(text)["lens"]] == [kept] * (L + 1)


def test_nothing_is_loaded_from_elsewhere(explanation: Path) -> None:
    text = explanation.read_text("utf-8")
    assert "default-src 'none'" in text and not re.search(r"(?:src|href)=|@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}


# ---- in a browser


@in_a_browser
def test_the_address_says_what_is_shown(explanation: Path) -> None:
    found = explained("The cat sat on the mat.")
    shown, _ = opened(explanation, "#token=3&layer=2&head=1")
    assert 'id="token-3" tabindex="0" aria-selected="true"' in shown
    label = tokenizer().label(int(found.lens.ids[-1, 2, 0])).strip()
    said = re.search(r'id="said"[^>]*>([^<]*)<', shown)[1]  # type: ignore[index]
    assert said.startswith("Token 3, sat. Next: ") and label in html.unescape(said)
    assert "layer 2 of 2, head 1 of 4" in shown
    assert shown.count("<path ") == sum(share >= 0.01 for share in found.attention[1, 0, 2, :2])


@in_a_browser
def test_tokens_answer_to_pointer_and_keys(explanation: Path) -> None:
    _, found = opened(explanation, script="""
        const title = () => document.getElementById("after").textContent, seen = [title()];
        const node = (i) => document.getElementById("token-" + i);
        const key = (name) => document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", { key: name, bubbles: true }));
        const point = (i) => node(i).dispatchEvent(new PointerEvent("pointerenter", { pointerType: "mouse" }));
        point(2); seen.push(title());
        node(2).focus();
        key("ArrowRight"); seen.push(title()); key("Home"); seen.push(title());
        key("ArrowLeft"); seen.push(title());
        node(4).click(); point(5); seen.push(title());
        key("Escape"); point(5); seen.push(title());
        const layer = document.getElementById("layer"); layer.value = "2"; layer.dispatchEvent(new Event("change"));
        const where = document.getElementById("where").textContent;
        document.querySelector('[data-place="0-3"]').click();
        return { seen, where, head: document.getElementById("where").textContent, hash: location.hash,
          options: document.querySelectorAll('[role="option"]').length,
          focusable: document.querySelectorAll('[role="option"][tabindex="0"]').length };
    """)  # fmt: skip
    assert [int(re.search(r"token (\d+)", title)[1]) for title in found["seen"]] == [7, 2, 3, 1, 1, 4, 5]  # type: ignore[index]
    assert found["where"] == "layer 2 of 2, mean of 4 heads" and found["head"] == "layer 1 of 2, head 4 of 4"
    assert found["hash"] == "#token=5&layer=1&head=4"
    assert (found["options"], found["focusable"]) == (7, 1)


@in_a_browser
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(explanation: Path, width: int) -> None:
    _, found = opened(explanation, width=width, script="""
        return { page: document.documentElement.scrollWidth, window: innerWidth,
          named: [...document.querySelectorAll("button, select, [role=region]")].every((node) =>
            node.getAttribute("aria-label") || node.labels?.length || node.textContent) };
    """)  # fmt: skip
    assert found["page"] <= found["window"] and found["named"]


@in_a_browser
def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    words = NextWords((NextWord("\u202e<b>bold</b>", 0.5),), 0.5, 1)
    path.write_bytes(page.explanation(explained(HOSTILE), tokenizer(), HOSTILE, words, 5, "<i>.safetensors"))
    text = path.read_text("utf-8")
    assert text.count("<script") == 2 and "<img" not in text and "<b>" not in text and "\x1b" not in text
    shown, _ = opened(path)
    assert "<img" not in shown and "<b>" not in shown and "⟨U+202E⟩&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "⟨U+001B⟩" in shown and "\x1b" not in shown
    assert re.search(r"<title>&lt;/script&gt;", shown)


# ---- inspect


RECORD = {
    "samples": {"prompt": "The cat", "texts": [[1, "<b>"], [3, "sat\n"]]},
    "corpus": [{"name": "<b>りんご</b>.txt", "bytes": 300, "sha256": "0"}], "train_bytes": 200, "train_tokens": 100,
    "steps": 3, "verdict": ["<i>Good</i>"],
    "curve": {"step": [1, 2, 3], "loss": [5.0, 4.0, 3.0], "eval_step": [2, 3], "eval_bits_per_byte": [2.4, 2.2]},
}  # fmt: skip


@pytest.fixture
def trained(tiny_model: Path) -> Path:
    model = load(tiny_model)
    checkpoint = random_checkpoint(model.config, tokenizer_json=model.tokenizer_json)
    checkpoint.record.update(RECORD)
    save(tiny_model, checkpoint)
    return tiny_model


@in_a_browser
def test_a_file_as_a_page(llm: Llm, trained: Path) -> None:
    assert llm("inspect", "--html", "page.html").exit_code == 0
    shown, found = opened(Path("page.html"), script="""
        const boxes = [...document.querySelectorAll("#map button")];
        const layers = boxes.find((box) => box.textContent.startsWith("layers"));
        layers.focus();
        const top = boxes.filter((box) => box.style.top === "0rem");
        return { said: document.getElementById("part").textContent, boxes: boxes.length,
          whole: top.reduce((sum, box) => sum + parseFloat(box.style.width), 0),
          rows: document.querySelectorAll("#parts tbody tr").length,
          circles: document.querySelectorAll("#curve circle").length,
          samples: [...document.querySelectorAll("#samples li")].map((one) => one.textContent) };
    """)  # fmt: skip
    assert re.match(r"model.layers × 2: [\d,]+ parameters, \d+\.\d%", found["said"])
    assert found["whole"] == pytest.approx(100) and found["rows"] == found["boxes"] > 10 and found["circles"] == 2
    assert found["samples"] == ["step 1 The cat <b>", "step 3 The cat sat⏎"]
    best = "on held-out text the best was 2.200 at step 3"
    assert best in shown and "&lt;b&gt;りんご&lt;/b&gt;.txt" in shown and "&lt;i&gt;Good&lt;/i&gt;" in shown
    opened(Path("page.html"))


@in_a_browser
def test_a_file_without_a_curve_as_a_page(llm: Llm, tiny_model: Path) -> None:
    assert llm("inspect", "--html", "page.html").exit_code == 0
    assert "There is no curve of a training in this file." in opened(Path("page.html"), width=400)[0]


# ---- the command


@pytest.mark.parametrize("words", [("explain", "The cat"), ("inspect",)])
def test_a_page_is_written_whole_and_never_over_another(
    llm: Llm, tiny_model: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words_module, "MOST_LOOKS", 50)
    answer = llm(*words, "--html", "page.html")
    assert answer.exit_code == 0 and answer.stdout == "" and "page.html" in answer.stderr
    first = Path("page.html").read_bytes()
    assert first.startswith(b"<!DOCTYPE html>") and first.endswith(b"</html>\n")
    answer = llm(*words, "--html", "page.html")
    assert answer.exit_code == 1 and "exists already; add --force to replace it" in answer.stderr
    assert "--html" in answer.stderr and "-o" not in answer.stderr and answer.stderr.count("\n") == 1
    answer = llm(*words, "--html", "page.html", "--force", "--json")
    assert json.loads(answer.stdout)["page"] == "page.html" and Path("page.html").read_bytes() == first
    before = tiny_model.read_bytes()
    answer = llm(*words, "--html", tiny_model.name, "--force")
    assert answer.exit_code == 1 and "is the model itself" in answer.stderr and tiny_model.read_bytes() == before
    answer = llm(*words, "--html", "nowhere/page.html")
    assert answer.exit_code == 1 and "there is no directory" in answer.stderr
