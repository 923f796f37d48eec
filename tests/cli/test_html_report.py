"""The pages in a real browser: no error, what one points at is shown, hostile text stays text; and their size."""

import base64
import decimal
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from llmcli.analysis import explain as explain_module
from llmcli.analysis.explain import Explanation, explain
from llmcli.cli import html_report
from llmcli.cli.safe_text import visible_whitespace
from llmcli.config import ModelConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.formats.checkpoint import load, save
from llmcli.generation import next_words as words_module
from llmcli.generation.next_words import NextWord, NextWords
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.training.summary import Curve
from tests.conftest import TEXT, random_checkpoint

Llm = Callable[..., Result]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt install chromium")
LONG = "The cat sat on the mat. The dog ate the hat. The cat ate the dog"  # 18 tokens
DEEP = ModelConfig(300, 36, 64, 30, 9, 3, 4, 64)  # of as many layers and heads as SmolLM2 135M
WORDS = NextWords((NextWord("hat", 0.75),), 0.25, 1)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> &lt; <!-- \x1b[31m \u202e abc \u2028"\\'


def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe([TEXT], 300)


def explained(prompt: str, config: ModelConfig | None = None) -> Explanation:
    config = config or ModelConfig(300, 32, 64, 2, 4, 2, 8, 64)
    return explain(NumpyRuntime(random_checkpoint(config)), tokenizer(), prompt, literal=True, every_position=True)


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]


def opened(path: Path, fragment: str = "", script: str = "", width: int = 1200) -> tuple[str, dict]:
    """The document after it has run, and what `script` returned. Fails on anything that the browser complains of.

    A script needs the page without its policy, which lets nothing but its own program run. No window is narrower than
    500 pixels, so a narrower page is a frame in one.
    """
    if script:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text("utf-8"))
        result = f"document.body.dataset.result = JSON.stringify((() => {{ {script} }})());"
        path = path.with_name("driven.html")
        path.write_text(text.replace("</body>", f"<script>{result}</script></body>"), "utf-8")
    address = path.resolve().as_uri() + fragment
    if script and width < 500:
        frame = path.with_name("frame.html")
        frame.write_text(
            f'<iframe src="{address}" style="width: {width}px; height: 900px; border: 0"></iframe>\n<script>onload = '
            "() => Object.assign(document.body.dataset, frames[0].document.body.dataset)</script>",
            "utf-8",
        )
        address = frame.resolve().as_uri()
    assert BROWSER
    run = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"--window-size={width},900", "--virtual-time-budget=2000", f"--user-data-dir={path.parent / 'profile'}",
         "--allow-file-access-from-files", address],
        capture_output=True, text=True, timeout=600, encoding="utf-8",
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr, run.stderr
    found = re.search(r'data-result="([^"]*)"', run.stdout)
    return run.stdout, json.loads(html.unescape(found[1])) if found else {}


@pytest.fixture
def explanation(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    found = explained("The cat sat on the mat.")
    path.write_bytes(html_report.explanation(found, tokenizer(), "The cat sat on the mat.", WORDS, 5, "m.safetensors"))
    return path


# ---- what the file holds


def test_attention_is_kept_to_a_255th_and_all_else_is_exact(explanation: Path) -> None:
    found, data = explained("The cat sat on the mat."), data_of(explanation.read_text("utf-8"))
    L, H, N, _ = found.attention.shape
    bytes_ = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(L, H, -1) / 255
    rows, columns = np.tril_indices(N)
    np.testing.assert_allclose(bytes_, found.attention[:, :, rows, columns], atol=0.5 / 255 + 1e-6)
    chances = np.array([[[chance for _, chance in row] for row in depth] for depth in data["lens"]])
    np.testing.assert_array_equal(chances, found.logit_lens.probabilities)
    texts = [[[data["texts"][which] for which, _ in row] for row in depth] for depth in data["lens"]]
    assert texts == [[[tokenizer().label(i) for i in row] for row in depth] for depth in found.logit_lens.ids.tolist()]
    assert data["words"] == [["hat", 0.75]] and data["effects"] == found.ablation_effects.tolist()
    assert data["surprises"] == [None, *found.surprisals.tolist()[1:]]


def to_fixed(value: float, digits: int) -> str:
    """JavaScript's toFixed: of the exact value, halves upwards."""
    return str(decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP))


def test_terminal_and_page_have_the_same_figures(llm: Llm, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An effect of 0.0749 was 0.07 in the terminal, and 0.08 on the page, which rounded 0.075."""
    real = explain_module.explain
    effects = [0.0749, -0.0051, 2.0049, 0.00499, -1.23499, 0.99951]
    chances = [0.37249, 0.08549, 0.00049, 0.1234999]

    def explain_as_told(*values: Any, **options: Any) -> Explanation:
        found = real(*values, **options)
        lens = replace(found.logit_lens, probabilities=found.logit_lens.probabilities.copy())
        lens.probabilities[..., :4] = chances
        return replace(found, ablation_effects=np.resize(effects, len(found.ids)), logit_lens=lens)

    monkeypatch.setattr(explain_module, "explain", explain_as_told)
    terminal = llm("explain", "The cat sat on the mat.").stdout
    assert llm("explain", "The cat sat on the mat.", "--html", "page.html").exit_code == 0
    data = data_of(Path("page.html").read_text("utf-8"))
    shown = re.findall(r"^ *\d+ \S+ +([+-]\d+\.\d\d)", terminal, re.M)
    assert shown == [("+" if bits >= 0 else "") + to_fixed(bits, 2) for bits in data["effects"]] and "+0.07" in shown
    [cells] = re.findall(r"^2\t(.*)$", terminal.split("logit lens")[1].split("\n\n")[0], re.M)
    lens = [to_fixed(chance, 3) for _, chance in data["lens"][2][-1]]
    assert [cell.split()[-1] for cell in cells.split("\t")] == lens[: len(cells.split("\t"))]
    answers = dict(re.findall(r"^(\S+)\t(0\.\d{3})", terminal.split("next token: entropy")[1].split("\n\n")[0], re.M))
    for text, chance in data["next"]:
        assert answers[visible_whitespace(text)] == to_fixed(chance, 3)


def test_the_curve_of_a_run_is_told_once() -> None:
    said = html_report._course(Curve([1, 2000], [5.0, 0.2134999], [2, 1140], [0.5, 0.213499]))
    assert said == (
        "Training went from 5.000 to 0.213 bits per byte in 2,000 steps; the best interim figure for held-out text was "
        "0.213 at step 1,140. The final figure is in the record."
    )


def test_a_page_of_200_tokens_6_layers_and_8_heads_stays_under_2_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "MAX_ABLATION_WORK", 1e6)
    config = ModelConfig(300, 64, 64, 6, 8, 4, 8, 400)
    found = explained(" cat" * 200, config)
    assert len(found.ids) == 200
    text = html_report.explanation(found, tokenizer(), " cat" * 200, WORDS, 5, "m.safetensors")
    assert len(text) < 2_000_000 and data_of(text.decode())["heads"] == 8


def test_where_all_heads_are_too_much_their_means_are_shown_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = explained("The cat sat on the mat.")
    L, _, N, _ = found.attention.shape
    monkeypatch.setattr(html_report, "MOST_ATTENTION", L * N * (N + 1) // 2)
    text = html_report.explanation(found, tokenizer(), "x", WORDS, 5, "m").decode()
    assert "only the mean of each layer's heads" in html.unescape(text) and data_of(text)["heads"] == 1
    monkeypatch.setattr(html_report, "MOST_ATTENTION", L * 15)
    text = html_report.explanation(found, tokenizer(), "x", WORDS, 5, "m").decode()
    kept = len(data_of(text)["tokens"])
    assert kept <= 5 and f"The last {kept} tokens of the prompt are shown; {N - kept} stand before them." in text
    assert [len(depth) for depth in data_of(text)["lens"]] == [kept] * (L + 1)


def test_nothing_is_loaded_from_elsewhere(explanation: Path) -> None:
    text = explanation.read_text("utf-8")
    assert "default-src 'none'" in text and not re.search(r"(?:src|href)=|@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_answer_comes_first(explanation: Path) -> None:
    text = explanation.read_text("utf-8")
    places = [text.index(f'id="{name}"') for name in ("title", "words", "next", "strip", "grid", "effects", "layers")]
    assert places == sorted(places)


# ---- in a browser


@in_a_browser
def test_the_address_says_what_is_shown(explanation: Path) -> None:
    found = explained("The cat sat on the mat.")
    shown, _ = opened(explanation, "#token=3&layer=2&head=1")
    assert 'id="token-3" tabindex="0" aria-selected="true"' in shown
    label = tokenizer().label(int(found.logit_lens.ids[-1, 2, 0])).strip()
    said = re.search(r'id="said"[^>]*>([^<]*)<', shown)[1]  # type: ignore[index]
    assert said.startswith("Token 3, sat. Next: ") and label in html.unescape(said)
    assert "layer 2 of 2, head 1 of 4" in shown
    assert shown.count("<path ") == sum(share >= 0.01 for share in found.attention[1, 0, 2, :2])


@in_a_browser
def test_the_answer_stands_beside_the_prompt_and_what_is_left_is_shown(explanation: Path, tmp_path: Path) -> None:
    script = """
        const rows = (id) => [...document.querySelectorAll(`#${id} li`)].map((row) => row.textContent);
        return { title: document.getElementById("title").textContent, words: rows("words"),
          shares: [...document.querySelectorAll("#next .figure")].map((node) => parseFloat(node.textContent)) };
    """
    _, found = opened(explanation, script=script)
    assert found["title"] == "The cat sat on the mat. hat" and found["words"] == ["hat75.0%", "all others25.0%"]
    assert len(found["shares"]) == 6 and sum(found["shares"]) == pytest.approx(100, abs=0.31)
    path = tmp_path / "joined.html"
    words = NextWords((NextWord("s", 0.5, continues=True),), 0.5, 1)
    path.write_bytes(html_report.explanation(explained("The cat"), tokenizer(), "The cat", words, 5, "m"))
    assert opened(path, script=script)[1]["words"] == ["…s50.0%", "all others50.0%"]
    path.write_bytes(
        html_report.explanation(explained("The cat"), tokenizer(), "The cat", NextWords((), 1.0, 1), 5, "m")
    )
    assert opened(path, script=script)[1]["words"] == ["all others100.0%"]


@in_a_browser
def test_figures_are_those_of_the_terminal(tmp_path: Path) -> None:
    """Rounded once, from the same number: 0.08496 is +0.08, also if 0.085 would be +0.09."""
    found, path = explained("The cat sat on the mat."), tmp_path / "figures.html"
    effects = np.array([0.08496, -0.08496, 12.4549, 1.0049999, 0.004, -0.004, 3.14159])
    lens = found.logit_lens
    lens.probabilities[-1, -1] = [0.4004996, 0.2504996, 0.1004996, 0.0504996, 0.0004996]
    found = replace(found, ablation_effects=effects, logit_lens=lens)
    path.write_bytes(html_report.explanation(found, tokenizer(), "The cat sat on the mat.", WORDS, 5, "m"))
    _, shown = opened(path, script="""
        const figures = (id) => [...document.querySelectorAll(`#${id} .figure`)].map((node) => node.textContent);
        return { effects: figures("effects"), lens: figures("candidates") };
    """)  # fmt: skip
    terminal = [f"{bits:+.2f}".replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00") for bits in effects]
    assert shown["effects"] == terminal
    assert shown["lens"][:5] == [f"{100 * float(f'{chance:.3f}'):.1f}%" for chance in lens.probabilities[-1, -1]]


@in_a_browser
def test_the_strongest_five_arcs_unless_all_are_asked_for(tmp_path: Path) -> None:
    path, found = tmp_path / "arcs.html", explained(LONG)
    last = found.attention.mean((0, 1))[-1, :-1]
    assert (last >= 0.011).sum() > 5
    path.write_bytes(html_report.explanation(found, tokenizer(), LONG, WORDS, 5, "m"))
    _, shown = opened(path, script="""
        const weights = [...document.querySelectorAll("#strip .weight")];
        const marked = () => weights.flatMap((node, i) => node.textContent ? [i] : []);
        const seen = () => [document.querySelectorAll("#lines path").length, marked(), location.hash];
        const before = seen(), arcs = document.getElementById("arcs");
        arcs.value = "all"; arcs.dispatchEvent(new Event("change"));
        return { before, after: seen(), options: [...arcs.options].map((option) => option.textContent) };
    """)  # fmt: skip
    assert shown["before"][0] == 5 and shown["options"] == ["strongest 5", "all"]
    assert shown["before"][1] == sorted([*np.argsort(-last)[:5].tolist(), len(last)])
    assert (last >= 0.0101).sum() <= shown["after"][0] <= (last >= 0.0099).sum()
    assert shown["after"][2] == shown["before"][2] + "&arcs=all"
    assert opened(path, "#token=9&arcs=all")[0].count("<path ") > 5


@in_a_browser
def test_layers_beyond_eight_are_folded(tmp_path: Path) -> None:
    path, found = tmp_path / "deep.html", explained("The cat sat", DEEP)
    path.write_bytes(html_report.explanation(found, tokenizer(), "The cat sat", WORDS, 5, "m"))
    _, shown = opened(path, script="""
        const rows = (id) => [...document.querySelectorAll(`#${id} tbody th`)].map((node) => node.textContent);
        const fold = (name) => document.querySelector(`[data-place="fold-${name}"]`);
        const seen = () => [rows("layers"), rows("grid"), fold("grid").textContent, fold("grid").ariaExpanded];
        const folded = seen(), layer = document.getElementById("layer");
        layer.value = "3"; layer.dispatchEvent(new Event("change"));
        const chosen = seen();
        fold("grid").focus(); document.activeElement.click();
        const focus = document.activeElement.dataset.place, open = seen(), hash = location.hash;
        fold("layers").click();
        return { folded, chosen, open, focus, hash, again: seen() };
    """)  # fmt: skip
    last, every = [str(n) for n in range(23, 31)], [str(n) for n in range(1, 31)]
    assert shown["folded"] == [["none", *last], last, "Show layers 1 to 22", "false"]
    assert shown["chosen"][:2] == [["none", "3", *last], ["3", *last]] == shown["again"][:2]
    assert shown["open"] == [["none", *every], every, "Hide layers 1 to 22", "true"]
    assert shown["focus"] == "fold-grid" and shown["hash"].endswith("&layers=all")
    assert ">Hide layers 1 to 22<" in opened(path, "#layers=all")[0]


@in_a_browser
def test_of_many_tokens_the_strongest_effects_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "many.html"
    found = replace(explained(" cat" * 40), ablation_effects=np.random.default_rng(0).normal(0, 1, 40))
    path.write_bytes(html_report.explanation(found, tokenizer(), " cat" * 40, WORDS, 5, "m"))
    _, shown = opened(path, script="""
        const rows = () => [...document.querySelectorAll("#effects .token")].map((node) => parseInt(node.textContent));
        const fold = document.getElementById("effects-fold"), few = rows(), name = fold.textContent;
        fold.click();
        return { few, name, all: rows() };
    """)  # fmt: skip
    assert shown["few"] == sorted((np.argsort(-np.abs(found.ablation_effects))[:12] + 1).tolist())
    assert shown["name"] == "Show all 40 tokens" and shown["all"] == list(range(1, 41))


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
@pytest.mark.parametrize("config", [None, DEEP], ids=["2 layers", "30 layers"])
def test_every_width_is_readable(tmp_path: Path, width: int, config: ModelConfig | None) -> None:
    """18 tokens, whole and apart from each other, centred, in letters no smaller than those of the text."""
    path, found = tmp_path / "wide.html", explained(LONG, config)
    assert len(found.ids) == 18
    path.write_bytes(html_report.explanation(found, tokenizer(), LONG, WORDS, 5, "m"))
    _, shown = opened(path, "#layers=all", width=width, script="""
        const box = (node) => { const b = node.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
        const nodes = [...document.querySelectorAll("#strip .token")];
        return { page: document.documentElement.scrollWidth, window: innerWidth, boxes: nodes.map(box),
          strip: box(document.getElementById("strip")), size: parseFloat(getComputedStyle(nodes[0]).fontSize),
          cut: nodes.filter((node) => node.scrollWidth > node.clientWidth + 1).length,
          named: [...document.querySelectorAll("button, select, [role=region]")].every((node) =>
            ["aria-label", "aria-labelledby"].some((name) => node.hasAttribute(name)) || node.labels?.length ||
            node.textContent) };
    """)  # fmt: skip
    assert (
        shown["window"] == width
        and shown["page"] <= width
        and shown["named"]
        and shown["cut"] == 0
        and shown["size"] >= 16
    )
    rows: dict[float, list[list[float]]] = {}
    for left, top, right, bottom in shown["boxes"]:
        assert shown["strip"][0] - 1 <= left < right <= shown["strip"][2] + 1 and bottom - top >= 24
        rows.setdefault(top, []).append([left, right])
    for row in rows.values():
        assert all(a[1] < b[0] for a, b in pairwise(row))
        assert row[0][0] - shown["strip"][0] == pytest.approx(shown["strip"][2] - row[-1][1], abs=2)


@in_a_browser
def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    words = NextWords((NextWord("\u202e<b>bold</b>", 0.5),), 0.5, 1)
    path.write_bytes(html_report.explanation(explained(HOSTILE), tokenizer(), HOSTILE, words, 5, "<i>.safetensors"))
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
    best = "the best interim figure for held-out text was 2.200 at step 3"
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
    monkeypatch.setattr(words_module, "MAX_EVALUATIONS", 50)
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
