"""The pages: their data and size, and in a real browser selection, layout, and hostile text shown as text."""

import base64
import decimal
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.analysis import explain as explain_module
from llmcli.analysis.explain import Explanation, explain
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import load, save
from llmcli.generation.next_words import NextWord, NextWords
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.pages import html as html_report
from llmcli.training.files.summary import Curve
from tests.conftest import TEXT, Llm, random_checkpoint

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt install chromium")
LONG = "The cat sat on the mat. The dog ate the hat. The cat ate the dog"  # 18 tokens
DEEP = ModelConfig(300, 36, 64, 30, 9, 3, 4, 64)  # as many layers and heads as SmolLM2 135M
WORDS = NextWords((NextWord("hat", 0.75),), 0.25, 1)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> &lt; <!-- \x1b[31m \u202e abc \u2028"\\'


def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe([TEXT], 300)


def explained(prompt: str, config: ModelConfig | None = None) -> Explanation:
    config = config or ModelConfig(300, 32, 64, 2, 4, 2, 8, 64)
    return explain(NumpyRuntime(random_checkpoint(config)), tokenizer(), prompt, literal=True, every_position=True)


def write_page(path: Path, explanation: Explanation, prompt: str, words: NextWords = WORDS, name: str = "m") -> str:
    """The page, written to the path."""
    path.write_bytes(html_report.explanation_page(explanation, tokenizer(), prompt, words, 5, name))
    return path.read_text("utf-8")


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]


def run_page(path: Path, fragment: str = "", script: str = "", width: int = 1200) -> tuple[str, dict]:
    """(the document after its scripts have run, the result of `script`). Fails if the browser logs a message.

    With a script the page is loaded without its policy, which would forbid it. Browser windows are at least 500 pixels
    wide, so a narrower page is loaded in a frame.
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
    match = re.search(r'data-result="([^"]*)"', run.stdout)
    return run.stdout, json.loads(html.unescape(match[1])) if match else {}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    write_page(path, explained("The cat sat on the mat."), "The cat sat on the mat.")
    return path


# ---- the file


@pytest.mark.slow
def test_attention_is_rounded_to_a_255th_and_all_else_is_exact(page: Path) -> None:
    explanation, data = explained("The cat sat on the mat."), data_of(page.read_text("utf-8"))
    L, H, N, _ = explanation.attention.shape
    bytes_ = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(L, H, -1) / 255
    rows, columns = np.tril_indices(N)
    np.testing.assert_allclose(bytes_, explanation.attention[:, :, rows, columns], atol=0.5 / 255 + 1e-6)
    chances = np.array([[[chance for _, chance in row] for row in depth] for depth in data["lens"]])
    np.testing.assert_array_equal(chances, explanation.logit_lens.probabilities)
    texts = [[[data["texts"][which] for which, _ in row] for row in depth] for depth in data["lens"]]
    assert texts == [
        [[tokenizer().label(i) for i in row] for row in depth] for depth in explanation.logit_lens.ids.tolist()
    ]
    assert data["words"] == [["hat", 0.75]] and data["effects"] == [*explanation.ablation_effects.tolist()[:-1], None]
    assert data["surprisals"] == [None, *explanation.surprisals.tolist()[1:]]


def to_fixed(value: float, digits: int) -> str:
    """JavaScript's toFixed: of the exact value, halves upwards."""
    return str(decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP))


@pytest.mark.slow
@pytest.mark.usefixtures("short_search")
def test_terminal_and_page_show_the_same_figures(llm: Llm, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both round once: a page that got 0.0749 as 0.075 would show 0.08, the terminal 0.07."""
    real = explain_module.explain
    effects = [0.0749, -0.0051, 2.0049, 0.00499, -1.23499, 0.99951]
    chances = [0.37249, 0.08549, 0.00049, 0.1234999]

    def explain_with_known_figures(*values: Any, **options: Any) -> Explanation:
        explanation = real(*values, **options)
        lens = replace(explanation.logit_lens, probabilities=explanation.logit_lens.probabilities.copy())
        lens.probabilities[..., :4] = chances
        return replace(explanation, ablation_effects=np.resize(effects, len(explanation.ids)), logit_lens=lens)

    monkeypatch.setattr(explain_module, "explain", explain_with_known_figures)
    terminal = llm("explain", "The cat sat on the mat.").stdout
    assert llm("explain", "The cat sat on the mat.", "--html", "page.html").exit_code == 0
    data = data_of(Path("page.html").read_text("utf-8"))
    shown = re.findall(r"^ *\d+ \S+ +([+-]?\d+\.\d\d)(?: [█▏▎▍▌▋▊▉░]+)?$", terminal, re.M)
    known = [("+" if bits >= 0 else "") + to_fixed(bits, 2) for bits in data["effects"][:-1]]
    assert shown == [{"+0.00": "0.00"}.get(figure, figure) for figure in known]
    assert "+0.07" in shown and "0.00" in shown and data["effects"][-1] is None  # the last token is not left out
    [cells] = re.findall(r"^2\t(.*)$", terminal.split("logit lens")[1].split("\n\n")[0], re.M)
    lens = [to_fixed(chance, 3) for _, chance in data["lens"][2][-1]]
    assert [cell.split()[-1] for cell in cells.split("\t")] == lens[: len(cells.split("\t"))]
    answers = dict(re.findall(r"^(\S+)\t(0\.\d{3})", terminal.split("next token: entropy")[1].split("\n\n")[0], re.M))
    for text, chance in data["next"]:
        assert answers[visible_whitespace(text)] == to_fixed(chance, 3)


def test_the_summary_of_a_curve() -> None:
    data = html_report._curve_data(Curve([1, 2000], [5.0, 0.2134999], [2, 1140], [0.5, 0.213499]))
    assert data["summary"] == (
        "The training loss went from 5.000 to 0.213 bits per byte by step 2,000; the lowest validation loss was 0.213."
    )


def test_a_page_of_200_tokens_6_layers_and_8_heads_stays_under_2_megabytes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(explain_module, "MAX_ABLATION_WORK", 1e6)
    config = ModelConfig(300, 64, 64, 6, 8, 4, 8, 400)
    explanation = explained(" cat" * 200, config)
    assert len(explanation.ids) == 200
    text = write_page(tmp_path / "page.html", explanation, " cat" * 200)
    assert len(text.encode()) < 2_000_000 and data_of(text)["heads"] == 8


def test_if_all_heads_are_too_large_the_page_shows_their_mean_and_says_so(tmp_path: Path, monkeypatch) -> None:
    explanation = explained("The cat sat on the mat.")
    L, _, N, _ = explanation.attention.shape
    monkeypatch.setattr(html_report, "MAX_ATTENTION", L * N * (N + 1) // 2)
    text = write_page(tmp_path / "page.html", explanation, "x")
    assert "the mean of each layer's heads" in html.unescape(text) and data_of(text)["heads"] == 1
    assert [len(depth) for depth in data_of(text)["lens"]] == [N] * (L + 1)


def test_a_page_loads_nothing(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "default-src 'none'" in text and not re.search(r"(?:src|href)=|@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_prediction_comes_first(page: Path) -> None:
    text = page.read_text("utf-8")
    places = [
        text.index(f'id="{name}"')
        for name in ("title", "next-words", "next-tokens", "tokens", "heads", "effects", "layers")
    ]
    assert places == sorted(places)


# ---- in a browser


@pytest.mark.slow
@needs_browser
def test_the_address_selects_token_layer_and_head(page: Path) -> None:
    explanation = explained("The cat sat on the mat.")
    shown, _ = run_page(page, "#token=3&layer=2&head=1")
    assert 'id="token-3" tabindex="0" aria-selected="true"' in shown
    label = tokenizer().label(int(explanation.logit_lens.ids[-1, 2, 0])).strip()
    announcement = re.search(r'id="announcement"[^>]*>([^<]*)<', shown)[1]  # type: ignore[index]
    assert announcement.startswith("Token 3, sat. Next: ") and label in html.unescape(announcement)
    assert "layer 2 of 2, head 1 of 4" in shown
    assert shown.count("<path ") == sum(share >= 0.01 for share in explanation.attention[1, 0, 2, :2])


@pytest.mark.slow
@needs_browser
def test_the_next_word_follows_the_prompt_and_the_remaining_probability_is_shown(page: Path, tmp_path: Path) -> None:
    script = """
        const rows = (id) => [...document.querySelectorAll(`#${id} li`)].map((row) => row.textContent);
        return { title: document.getElementById("title").textContent, words: rows("next-words"),
          shares: [...document.querySelectorAll("#next-tokens .figure")].map((node) => parseFloat(node.textContent)) };
    """
    _, result = run_page(page, script=script)
    assert result["title"] == "The cat sat on the mat. hat" and result["words"] == ["hat75.0%", "all others25.0%"]
    assert len(result["shares"]) == 6 and sum(result["shares"]) == pytest.approx(100, abs=0.31)
    path = tmp_path / "joined.html"
    words = NextWords((NextWord("s", 0.5, continues=True),), 0.5, 1)
    write_page(path, explained("The cat"), "The cat", words)
    assert run_page(path, script=script)[1]["words"] == ["…s50.0%", "all others50.0%"]
    write_page(path, explained("The cat"), "The cat", NextWords((), 1.0, 1))
    assert run_page(path, script=script)[1]["words"] == ["all others100.0%"]


@pytest.mark.slow
@needs_browser
def test_figures_are_rounded_as_in_the_terminal(tmp_path: Path) -> None:
    """Rounded once, from the exact number: 0.08496 is +0.08, although 0.085 would be +0.09."""
    explanation, path = explained("The cat sat on the mat."), tmp_path / "figures.html"
    effects = np.array([0.08496, -0.08496, 12.4549, 1.0049999, 0.004, -0.004, 3.14159])
    lens = explanation.logit_lens
    lens.probabilities[-1, -1] = [0.4004996, 0.2504996, 0.1004996, 0.0504996, 0.0004996]
    explanation = replace(explanation, ablation_effects=effects, logit_lens=lens)
    write_page(path, explanation, "The cat sat on the mat.")
    _, shown = run_page(path, script="""
        const figures = (id) => [...document.querySelectorAll(`#${id} .figure`)].map((node) => node.textContent);
        const empty = [...document.querySelectorAll("#effects .bar")].map((bar) => bar.style.width === "0%");
        return { effects: figures("effects"), empty, lens: figures("prediction-bars") };
    """)  # fmt: skip
    assert shown["empty"] == [False] * 4 + [True] * 2  # an effect of 0.00 has no bar
    terminal = [
        f"{bits:+.2f}".replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00") for bits in effects[:-1]
    ]
    assert shown["effects"] == terminal
    assert shown["lens"][:5] == [f"{100 * float(f'{chance:.3f}'):.1f}%" for chance in lens.probabilities[-1, -1]]


@pytest.mark.slow
@needs_browser
def test_five_arcs_are_shown_or_all(tmp_path: Path) -> None:
    path, explanation = tmp_path / "arcs.html", explained(LONG)
    last = explanation.attention.mean((0, 1))[-1, :-1]
    assert (last >= 0.011).sum() > 5
    write_page(path, explanation, LONG)
    _, shown = run_page(path, script="""
        const weights = [...document.querySelectorAll("#tokens .weight")];
        const marked = () => weights.flatMap((node, i) => node.textContent ? [i] : []);
        const seen = () => [document.querySelectorAll("#arc-lines path").length, marked(), location.hash];
        const before = seen(), arcs = document.getElementById("arcs");
        arcs.value = "all"; arcs.dispatchEvent(new Event("change"));
        return { before, after: seen(), options: [...arcs.options].map((option) => option.textContent) };
    """)  # fmt: skip
    assert shown["before"][0] == 5 and shown["options"] == ["strongest 5", "all"]
    assert shown["before"][1] == sorted([*np.argsort(-last)[:5].tolist(), len(last)])
    assert (last >= 0.0101).sum() <= shown["after"][0] <= (last >= 0.0099).sum()
    assert shown["after"][2] == shown["before"][2] + "&arcs=all"
    assert run_page(path, "#token=9&arcs=all")[0].count("<path ") > 5


@pytest.mark.slow
@needs_browser
def test_tables_show_the_last_eight_layers_or_all(tmp_path: Path) -> None:
    path, explanation = tmp_path / "deep.html", explained("The cat sat", DEEP)
    write_page(path, explanation, "The cat sat")
    _, shown = run_page(path, script="""
        const rows = (id) => [...document.querySelectorAll(`#${id} tbody th`)].map((node) => node.textContent);
        const fold = (name) => document.querySelector(`[data-key="fold-${name}"]`);
        const seen = () => [rows("layers"), rows("heads"), fold("heads").textContent, fold("heads").ariaExpanded];
        const folded = seen(), layer = document.getElementById("layer");
        layer.value = "3"; layer.dispatchEvent(new Event("change"));
        const chosen = seen();
        fold("heads").focus(); document.activeElement.click();
        const focus = document.activeElement.dataset.key, open = seen(), hash = location.hash;
        fold("layers").click();
        return { folded, chosen, open, focus, hash, again: seen() };
    """)  # fmt: skip
    last, every = [str(n) for n in range(23, 31)], [str(n) for n in range(1, 31)]
    assert shown["folded"] == [["none", *last], last, "Show layers 1 to 22", "false"]
    assert shown["chosen"][:2] == [["none", "3", *last], ["3", *last]] == shown["again"][:2]
    assert shown["open"] == [["none", *every], every, "Hide layers 1 to 22", "true"]
    assert shown["focus"] == "fold-heads" and shown["hash"].endswith("&layers=all")
    assert ">Hide layers 1 to 22<" in run_page(path, "#layers=all")[0]


@pytest.mark.slow
@needs_browser
def test_of_many_tokens_the_largest_effects_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "many.html"
    explanation = replace(explained(" cat" * 40), ablation_effects=np.random.default_rng(0).normal(0, 1, 40))
    write_page(path, explanation, " cat" * 40)
    _, shown = run_page(path, script="""
        const rows = () => [...document.querySelectorAll("#effects .token")].map((node) => parseInt(node.textContent));
        const fold = document.getElementById("effects-fold"), largest = rows(), name = fold.textContent;
        fold.click();
        return { largest, name, all: rows() };
    """)  # fmt: skip
    assert shown["largest"] == sorted((np.argsort(-np.abs(explanation.ablation_effects[:-1]))[:12] + 1).tolist())
    assert shown["name"] == "Show all 39 tokens" and shown["all"] == list(range(1, 40))


@pytest.mark.slow
@needs_browser
def test_tokens_are_selected_by_pointer_and_keys(page: Path) -> None:
    _, result = run_page(page, script="""
        const title = () => document.getElementById("prediction-title").textContent, seen = [title()];
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
        const where = document.getElementById("attention-source").textContent;
        document.querySelector('[data-key="0-3"]').click();
        return { seen, where, head: document.getElementById("attention-source").textContent, hash: location.hash,
          options: document.querySelectorAll('[role="option"]').length,
          focusable: document.querySelectorAll('[role="option"][tabindex="0"]').length };
    """)  # fmt: skip
    assert [int(re.search(r"token (\d+)", title)[1]) for title in result["seen"]] == [7, 2, 3, 1, 1, 4, 5]  # type: ignore[index]
    assert result["where"] == "layer 2 of 2, mean of 4 heads" and result["head"] == "layer 1 of 2, head 4 of 4"
    assert result["hash"] == "#token=5&layer=1&head=4"
    assert (result["options"], result["focusable"]) == (7, 1)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("config", [None, DEEP], ids=["2 layers", "30 layers"])
def test_a_page_is_readable_at_any_width(tmp_path: Path, width: int, config: ModelConfig | None) -> None:
    """18 tokens that are complete, do not overlap, are centred, and at least as large as the text."""
    path, explanation = tmp_path / "wide.html", explained(LONG, config)
    assert len(explanation.ids) == 18
    write_page(path, explanation, LONG)
    _, shown = run_page(path, "#layers=all", width=width, script="""
        const box = (node) => { const b = node.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
        const nodes = [...document.querySelectorAll("#tokens .token")];
        return { page: document.documentElement.scrollWidth, window: innerWidth, boxes: nodes.map(box),
          strip: box(document.getElementById("tokens")), size: parseFloat(getComputedStyle(nodes[0]).fontSize),
          cut: nodes.filter((node) => node.scrollWidth > node.clientWidth + 1).length,
          named: [...document.querySelectorAll("button, select, [role=region]")].every((node) =>
            ["aria-label", "aria-labelledby"].some((name) => node.hasAttribute(name)) || node.labels?.length ||
            node.textContent) };
    """)  # fmt: skip
    assert shown["window"] == width and shown["page"] <= width
    assert shown["named"] and shown["cut"] == 0 and shown["size"] >= 16
    rows: dict[float, list[list[float]]] = {}
    for left, top, right, bottom in shown["boxes"]:
        assert shown["strip"][0] - 1 <= left < right <= shown["strip"][2] + 1 and bottom - top >= 24
        rows.setdefault(top, []).append([left, right])
    for row in rows.values():
        assert all(a[1] < b[0] for a, b in pairwise(row))
        assert row[0][0] - shown["strip"][0] == pytest.approx(shown["strip"][2] - row[-1][1], abs=2)


@pytest.mark.slow
@needs_browser
def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    words = NextWords((NextWord("\u202e<b>bold</b>", 0.5),), 0.5, 1)
    text = write_page(path, explained(HOSTILE), HOSTILE, words, "<i>.safetensors")
    assert text.count("<script") == 2 and "<img" not in text and "<b>" not in text and "\x1b" not in text
    shown, _ = run_page(path)
    assert "<img" not in shown and "<b>" not in shown and "⟨U+202E⟩&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "⟨U+001B⟩" in shown and "\x1b" not in shown
    assert re.search(r"<title>&lt;/script&gt;", shown)


# ---- the page of a file


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
    assert best in shown and "&lt;b&gt;りんご&lt;/b&gt;.txt" in shown and "&lt;i&gt;Good&lt;/i&gt;" in shown
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
