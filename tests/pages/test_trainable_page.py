"""The page in which one trains: the file, and a student's session in a real browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmcli.formats import loading
from llmcli.formats.loading import open_tokenizer
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.pages.live_page import served_page, training_page
from tests.conftest import Llm
from tests.pages.conftest import SENTENCES
from tests.pages.live import Program, bars, browser_test, element, needs_browser, page_of, wait_until_shown

if TYPE_CHECKING:
    from playwright.sync_api import Page

MAX_BYTES = 200_000  # of the page without a model
TEXT = SENTENCES * 20
HOSTILE = "</script><script>alert(1)</script><!-- & \u2028 <b>" * 20 + TEXT


# ---- the file


def test_only_trainable_pages_have_the_tab(tiny_model: Path) -> None:
    plain, served = page_of(tiny_model), served_page().decode()
    trainable, empty = page_of(tiny_model, trainable=True), training_page().decode()
    for mark in ('id="tab-train"', 'id="train"', "#train-", "wasm-unsafe-eval", "DecompressionStream"):
        assert [mark in text for text in (plain, served, trainable, empty)] == [False, False, True, True], mark
    for name in ("trainHint", "EXAMPLES", "crossEntropy"):  # of its texts, examples and trainer
        assert name not in plain + served
    policies = [re.search(r"script-src (.*?); worker-src blob:; base-uri", text) for text in (plain, trainable)]
    sources = [policy and re.sub(r"'sha256-\S+'", "hash", policy[1]) for policy in policies]
    assert sources == ["hash", "hash hash 'wasm-unsafe-eval'"]


def test_the_page_without_a_model_is_small() -> None:
    assert len(training_page()) < MAX_BYTES and training_page() == training_page()


def test_the_command(llm: Llm, tiny_model: Path) -> None:
    answer = llm("export", "--to", "html", "--trainable", "--json")
    page = Path("train.html").read_bytes()
    assert json.loads(answer.stdout) == {"file": "train.html", "to": "html", "bytes": len(page)}
    assert page == training_page()
    assert llm("export", "lesson.html", "--to", "html", "--trainable").exit_code == 0
    assert Path("lesson.html").read_bytes() == page
    assert llm("export", "model.safetensors", "--to", "html", "--trainable", "--dtype", "f32").exit_code == 0
    assert Path("model.html").read_text("utf-8") == page_of(tiny_model, trainable=True)
    wrong = {
        ("export", "--to", "html", "--trainable", "--dtype", "f16", "--force"): "--dtype has no effect without a model",
        ("export", "model.safetensors", "--to", "gguf", "--trainable"): "--trainable has no effect with --to gguf",
        ("export", "other.html", "more.html", "--to", "html", "--trainable"): "other.html",
    }
    for words, message in wrong.items():
        refused = llm(*words)
        assert refused.exit_code and message in refused.stderr, words


# ---- a session


@pytest.fixture
def opened(open_html: "Callable[..., Page]") -> "Callable[..., Page]":
    """`opened()`: the page without a model."""
    return lambda **options: open_html(training_page().decode(), **options)


def plan(page: "Page", text: str, kind: str = "char") -> None:
    """Paste a text, and wait for its plan."""
    page.select_option("#train-kind", kind)
    page.fill("#train-text", text)
    page.locator("#train-plan", has_text="Proposed plan: ").wait_for()


def train(page: "Page", seconds: int) -> None:
    """Start, and wait for the first prediction."""
    script = (
        "(node, value) => { node.min = 1; node.step = 1; node.value = value; node.dispatchEvent(new Event('input')); }"
    )
    page.eval_on_selector("#train-seconds", script, seconds)
    page.click("#train-start")
    page.wait_for_selector("#train-bars li")


def wait_for_end(page: "Page") -> None:
    page.locator("#train-phase", has_text="finished").wait_for()
    page.wait_for_selector("#train-start:not(:disabled)")


def wait_for_other_bars(page: "Page", before: list[tuple[str, float]]) -> None:
    for _ in range(500):
        if bars(page, "train-bars") != before:
            return
        page.wait_for_timeout(20)
    raise AssertionError("the bars stay")


def download(page: "Page", button: str, folder: Path) -> Path:
    with page.expect_download() as info:
        page.click(button)
    info.value.save_as(folder / info.value.suggested_filename)
    return folder / info.value.suggested_filename


@browser_test
def test_a_session(opened: Any, open_html: Any, blank: "Page", tmp_path: Path) -> None:
    """Paste, train, look at it, save both files: they have the same logits, and the page trains anew."""
    page = opened()
    assert page.locator("#tabs button:visible").count() == 1 and page.is_disabled("#save-page")
    plan(page, HOSTILE)
    train(page, 4)
    assert page.is_disabled("#train-start") and page.evaluate("document.activeElement.id") == "train-pause"
    page.fill("#train-prompt", "The cat likes")
    wait_for_other_bars(page, bars(page, "train-bars"))
    page.click("#train-pause")
    page.locator("#train-phase", has_text="Paused").wait_for()
    page.locator("#train-sample i", has_text="The cat likes").wait_for()
    assert page.locator("#tabs button:visible").count() == 5
    for tab, shown in {"write": "#next li", "inside": "#effects li", "compare": "#compared li"}.items():
        page.click(f"#tab-{tab}")
        page.wait_for_selector(shown)
    page.click("#tab-write")
    prompts = page.locator("#examples button").all_text_contents()
    assert prompts[0] == "The cat likes" and len(prompts) == page.evaluate("data.examples.prompts.length") == 2
    page.click("#step")
    page.wait_for_selector("#step:not(:disabled)")
    assert page.input_value("#text") not in (*prompts, "")
    page.click("#tab-record")
    page.wait_for_selector("#probe-bars li")
    assert "The cat likes" in str(page.text_content("#probe-prompt")) and page.locator("#curve svg").is_visible()
    page.click("#tab-train")
    paused = page.text_content("#train-figures")
    download(page, "#save-model", tmp_path)
    assert page.text_content("#train-figures") == paused and page.evaluate("isSaved")
    page.click("#train-pause")
    wait_for_end(page)
    assert not page.evaluate("isSaved")  # what was trained since
    assert "100%" in str(page.text_content("#train-figures")) and page.input_value("#train-text") == HOSTILE

    model = loading.load(download(page, "#save-model", tmp_path))
    saved = download(page, "#save-page", tmp_path).read_text("utf-8")
    ids = open_tokenizer(model).encode("The cat likes to sleep.")
    logits = NumpyRuntime(model).logits(ids)
    np.testing.assert_allclose(Program(blank, saved).logits(ids), logits, atol=1e-4)
    assert model.record.probe and model.record.probe.prompt == "The cat likes"
    data = json.loads(element(saved, "data"))
    assert data["record"]["probe"]["prompt"] == "The cat likes" and data["start"]["text"] == "The cat likes"

    again = open_html(saved)
    wait_until_shown(again)
    assert again.is_visible("#write") and again.text_content("#title") == "script script alert" and len(bars(again)) > 3
    again.click("#tab-train")
    plan(again, TEXT, "bpe")
    train(again, 1)
    wait_for_end(again)
    second = download(again, "#save-page", tmp_path).read_text("utf-8")
    assert [element(second, name) for name in ("worker", "page")] == [
        element(saved, name) for name in ("worker", "page")
    ]
    assert json.loads(element(second, "data"))["tokenizer"]["kind"] == "bpe"


@browser_test
def test_the_tabs_of_a_model_stay_until_there_is_a_new_one(open_html: Any, words_model: Path) -> None:
    page = open_html(page_of(words_model, trainable=True))
    page.fill("#text", "I like to")
    wait_until_shown(page)
    before = bars(page)
    page.set_viewport_size({"width": 400, "height": 800})
    for _ in range(2):
        page.click("#tab-record")
        assert page.get_attribute("#curve svg", "viewBox").split()[2] == "376"
        page.reload()
        page.wait_for_selector("html[data-ready]")
    page.click("#tab-train")
    plan(page, TEXT)
    page.click("#tab-write")
    wait_until_shown(page)
    assert bars(page) == before
    page.click("#tab-train")
    train(page, 1)
    wait_for_end(page)
    page.click("#tab-write")
    wait_until_shown(page)
    assert page.input_value("#text") == "I like to" and bars(page) != before
    assert page.inner_text("#title") == page.title() == "I like to"


@browser_test
def test_by_keyboard_in_japanese(opened: Any) -> None:
    page = opened(width=400, locale="ja-JP")
    page.keyboard.press("Tab")  # the language
    focused: list[str] = []
    while "train-choose" not in focused:
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the second example
    page.locator("#train-plan", has_text="計画：").wait_for()
    assert page.input_value("#train-text").count("。") > 100
    while page.evaluate("document.activeElement.id") != "train-start":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#train-bars li")
    page.keyboard.press("Enter")  # Pause has the focus
    page.locator("#train-phase", has_text="一時停止中").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.focus("#tab-train")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#next li")


@browser_test
def test_errors_are_one_line_and_the_text_stays(opened: Any) -> None:
    page, problem = opened(), "#problem:not([hidden])"
    for text, message in {"short": "at least 300", "a" * 400: "“a”", "ab" * 400: "tokens; at least"}.items():
        page.fill("#train-text", text)
        page.locator(problem, has_text=message).wait_for()
        assert page.input_value("#train-text") == text
    plan(page, TEXT)
    assert page.is_hidden("#problem")
    for data, message in ((b"", "has 0"), (bytes(1000), "not text"), (b"a" * 1_000_001, "1,000,001 bytes")):
        page.set_input_files("#train-file", {"name": "x", "mimeType": "", "buffer": data})
        page.locator(problem, has_text=message).wait_for()
        assert page.input_value("#train-text") == TEXT
        page.locator("#train-plan", has_text="Proposed plan: ").wait_for()
        assert page.is_visible(problem)
    data = ("私は毎朝リンゴを食べます。\n" * 30).encode("shift_jis")
    page.set_input_files("#train-file", {"name": "朝.txt", "mimeType": "", "buffer": data})
    page.locator("#train-plan", has_text="朝.txt").wait_for()
    assert page.input_value("#train-text") == "私は毎朝リンゴを食べます。\n" * 30
    page.evaluate(
        """(text) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([text], "dropped.txt"));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }""",
        TEXT,
    )
    page.locator("#train-plan", has_text="dropped.txt").wait_for()
    page.reload()
    page.locator("#train-plan", has_text="dropped.txt").wait_for()
    assert page.input_value("#train-text") == TEXT
    page.fill("#train-text", TEXT + "x")
    page.locator("#train-plan", has_text="I like to.txt").wait_for()
    train(page, 60)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert "keep it in front" in str(page.locator("#train-background:not([hidden])").text_content())
    for message in ("Array buffer allocation failed", "out of memory"):  # of Chromium and Firefox
        assert page.evaluate("(error) => shownError(['failed', { error }])", message) == ["outOfMemory"]
    page.evaluate("run.trainer.dispatchEvent(new ErrorEvent('error', { message: 'out of memory', cancelable: true }))")
    page.locator(problem, has_text="no memory left").wait_for()
    assert page.is_enabled("#save-page") and page.is_disabled("#save-model") and page.is_enabled("#train-start")
    train(page, 1)
    wait_for_end(page)
    assert page.is_hidden("#problem")


@browser_test
def test_a_megabyte_of_emoji(opened: Any) -> None:
    page = opened()
    text = "🍎🐱🦊🐻🍌🚀🌳🎵" * 31_000
    page.set_input_files("#train-file", {"name": "emoji.txt", "mimeType": "", "buffer": text.encode()})
    page.locator("#train-plan", has_text="992,000 bytes").wait_for()
    assert page.input_value("#train-text") == text
    train(page, 1)
    wait_for_end(page)


@needs_browser
def test_an_older_browser_is_told(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "train.html").write_bytes(training_page())
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "train.html").as_uri())
    page.locator("#problem:not([hidden])", has_text="needs a newer browser").wait_for()
    page.close()
