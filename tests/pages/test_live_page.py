"""The page with a model inside: the file, and what one does with it in a real browser."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.data.conversations.chat_template import CHATML, ChatTemplate, with_chat_template
from llmcli.data.conversations.example_prompt import example_prompts
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats import checkpoint, loading
from llmcli.formats.loading import open_tokenizer
from llmcli.formats.quantization import quantize_rows
from llmcli.formats.training_stages import AVERAGE, BASE, CACHE, EXPORTED
from llmcli.generation.next_words import next_words
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.pages.live_page import MODEL_SCRIPTS, PAGE_SCRIPTS, SERVED_SCRIPTS, TRAINABLE_SCRIPTS
from llmcli.pages.live_text import chat_data
from llmcli.pages.live_weights import MAX_BYTES, check_size, choose_dtype, pack, with_page_values
from llmcli.pages.training_data import TRAINING_SCRIPTS
from tests.conftest import TEXT, Llm, random_checkpoint
from tests.pages.live import (
    TEXTS,
    bars,
    browser_test,
    element,
    page_of,
    runtime_of,
    set_slider,
    settle,
    switched_off,
    wait_until_shown,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> &lt; <!-- \u202e \u2028"\\${x}'


# ---- the file


def test_each_row_has_its_own_scale() -> None:
    matrix = np.array([[0.5, -1.27, 0.01], [0, 0, 0], [1e-30, 127e-30, -5e-31]], np.float32)
    codes, scales = quantize_rows(matrix)
    assert codes.tolist() == [[50, -127, 1], [0, 0, 0], [1, 127, 0]]
    np.testing.assert_allclose(scales, [0.01, 0, 1e-30], rtol=1e-6)


def test_packed_weights_are_the_values_that_a_page_computes_with() -> None:
    for dtype in ["int8", "f16", "f32"]:
        experts = {"model_type": "mixtral", "num_experts": 3, "num_experts_per_tok": 2}
        model = random_checkpoint(ModelConfig(301, 30, 47, 2, 4, 2, 8, 32, tie_word_embeddings=True, **experts))
        entries, block = pack(model, dtype)
        expected = with_page_values(model, dtype).tensors
        kinds = {"int8": np.int8, "f16": np.float16, "f32": np.float32}
        assert len(entries) == len(expected), dtype
        for entry, (name, values) in zip(entries, expected.items(), strict=True):
            found = np.frombuffer(block, kinds[entry["dtype"]], values.size, entry["offset"]).reshape(values.shape)
            if entry["dtype"] == "int8":
                found = found * np.frombuffer(block, np.float32, len(values), entry["scales"])[:, None]
            np.testing.assert_array_equal(found, values, name)
        names = {entry["name"] for entry in entries}
        assert {"model.layers.1.mlp.gate.weight", "model.layers.0.mlp.experts.2.down_proj.weight"} <= names, dtype


def test_int8_unless_it_costs_too_much() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, 64)
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    dtype, note = choose_dtype(model, tokenizer, None)
    assert dtype == "int8" and note.startswith("int8, one scale per row: the bits per byte are ")
    tensors = {name: np.array(tensor) for name, tensor in model.tensors.items()}
    tensors["model.norm.weight"][0] /= 3000  # one large weight in each row: little precision is left for the others
    tensors["lm_head.weight"][:, 0] *= 3000
    uneven = replace(model, tensors=tensors)
    dtype, note = choose_dtype(uneven, tokenizer, None)
    assert dtype == "f16" and re.fullmatch(r"float16, as int8 weights would raise the bits per byte by \d+\.\d%", note)
    assert choose_dtype(uneven, tokenizer, "int8")[0] == "int8"


def test_a_page_that_is_too_large_is_refused_with_what_would_fit() -> None:
    small, large = (ModelConfig(8192, width, 4 * width, 8, 8, 8, 64, 64) for width in (512, 2048))
    check_size(small, "int8", MAX_BYTES)
    with pytest.raises(LLMError, match=r"^the page would take 128.00 MB with f16 weights; the limit is 64.00 MB"):
        check_size(small, "f16", 2 * MAX_BYTES)
    with pytest.raises(LLMError, match=r"\(24.00 M parameters\); add --dtype int8$"):
        check_size(small, "f16", 2 * MAX_BYTES)
    with pytest.raises(LLMError, match=r"\(48.00 M parameters\); for a model of this size: --to gguf or --to hf$"):
        check_size(large, "int8", 10 * MAX_BYTES)


def test_the_parts_of_a_chat_template() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    start, end = (tokenizer.control_ids[name] for name in ("<|im_start|>", "<|im_end|>"))
    chat = chat_data(ChatTemplate(CHATML, tokenizer), tokenizer)
    assert chat == {
        "begin": [start, "user\n"], "answer": [end, "\n", start, "assistant\n"], "next": [end, "\n", start, "user\n"],
        "prompt": [end, "\n", start, "assistant\n"], "trims": False, "stop_ids": sorted({end, *tokenizer.eos_ids}),
    }  # fmt: skip
    trimming = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"  # noqa: E501
    chat = chat_data(ChatTemplate(trimming, tokenizer), tokenizer)
    assert chat and chat["trims"] and chat["next"] == ["[user]"]
    for other in ("{{ messages | length }}" + CHATML, "{{ raise_exception('no') }}", "{{ messages[-1].content }}"):
        assert chat_data(ChatTemplate(other, tokenizer), tokenizer) is None, other


def test_the_command(llm: Llm, tiny_model: Path) -> None:
    answer = llm("export", "model.safetensors", "page.html", "--to", "html", "--json")
    assert answer.exit_code == 0, answer.stderr
    page = Path("page.html").read_bytes()
    assert json.loads(answer.stdout) == {"file": "page.html", "to": "html", "bytes": len(page)}
    assert "weights: int8, one scale per row" in answer.stderr
    f16 = llm("export", "model.safetensors", "f16.html", "--to", "html", "--dtype", "f16")
    assert f16.exit_code == 0 and "weights: float16" in f16.stderr
    wrong = llm("export", "model.safetensors", "x.html", "--to", "html", "--dtype", "bf16")
    assert wrong.exit_code == 2 and "--dtype must be int8, f16, f32 with --to html, found bf16" in wrong.stderr


def test_a_chat_template_that_pages_do_not_support_is_noted(llm: Llm, tiny_model: Path) -> None:
    model = loading.load(tiny_model)
    config = with_chat_template(model.tokenizer_config_json, "{{ messages | length }}{{ messages[-1].content }}")
    checkpoint.save("other.safetensors", replace(model, tokenizer_config_json=config))
    answer = llm("export", "other.safetensors", "page.html", "--to", "html")
    assert answer.exit_code == 0 and "do not support the model's chat template" in answer.stderr
    assert json.loads(element(Path("page.html").read_text("utf-8"), "data"))["chat"] is None


def test_scripts_that_run_together_declare_each_name_once() -> None:
    worker = [f"live/{name}.js" for name in MODEL_SCRIPTS]
    trainer = [*worker, *(f"training/{name}.js" for name in TRAINING_SCRIPTS)]
    for scripts in [PAGE_SCRIPTS, SERVED_SCRIPTS, ["training/unpack.js", *TRAINABLE_SCRIPTS], worker, trainer]:
        text = "\n".join((files("llmcli.pages") / name).read_text("utf-8") for name in scripts)
        names = re.findall(r"^(?:const|let|class|(?:async )?function\*?) (\w+)", text, re.M)
        assert len(names) > 30 and [name for name, count in Counter(names).items() if count > 1] == [], scripts


# ---- in a browser


@pytest.fixture
def opened(open_html: "Callable[..., Page]") -> "Callable[..., Page]":
    """`opened(model file)`: its page in an offline browser, ready."""

    def open_page(model: Path, *, width: int = 1200, locale: str = "en-US", **opening: Any) -> "Page":
        return open_html(page_of(model, **opening), width=width, locale=locale)

    return open_page


def wait_for_change(page: "Page", text: str) -> None:
    """Wait until the text is another one."""
    for _ in range(200):
        if text_of(page) != text:
            return
        page.wait_for_timeout(20)
    raise AssertionError("the text does not change")


def text_of(page: "Page") -> str:
    return page.input_value("#text")


@browser_test
def test_next_words_follow_each_keystroke_and_can_be_added(opened: Any, words_model: Path) -> None:
    page = opened(words_model)
    page.fill("#text", "I like to")
    first = settle(page)
    assert sum(percent for _, percent in first) == pytest.approx(100, abs=0.6)
    assert {"eat", "drink"} & {name for name, _ in first[:4]}
    page.press("#text", "End")
    page.keyboard.type(" eat")
    assert settle(page) != first
    page.fill("#text", "I like to")
    settle(page)
    page.locator("#next button").first.click()
    assert text_of(page) == "I like to " + first[0][0]
    assert "".join(page.locator("#strip button").all_text_contents()).replace("·", " ") == text_of(page)
    page.click("#undo")
    assert text_of(page) == "I like to" and settle(page) == first
    page.select_option("#unit", "tokens")
    tokens = settle(page)
    assert tokens != first and sum(percent for _, percent in tokens) == pytest.approx(100, abs=0.6)


@browser_test
def test_sliders_move_the_bars(opened: Any, words_model: Path) -> None:
    page = opened(words_model)
    page.fill("#text", "I like to")
    plain = settle(page)
    set_slider(page, "temperature", 2)
    hot = settle(page)
    assert hot[0][1] < plain[0][1]
    set_slider(page, "temperature", 0)
    assert [percent for _, percent in settle(page)] == [100]
    set_slider(page, "temperature", 1)
    assert settle(page) == plain
    set_slider(page, "minP", 0.5)
    assert len(settle(page)) < len(plain)
    set_slider(page, "minP", 0)
    set_slider(page, "topP", 0.05)
    assert len(settle(page)) < len(plain)
    assert page.text_content("#topP-value") == "0.05"


@browser_test
def test_step_run_stop_and_undo(opened: Any, words_model: Path) -> None:
    page = opened(words_model)
    set_slider(page, "temperature", 0)
    page.fill("#text", "I like to")
    settle(page)
    page.focus("#step")
    page.keyboard.press("Enter")
    wait_for_change(page, "I like to")
    page.wait_for_selector("#step:not(:disabled):focus")
    one = text_of(page)
    assert one.startswith("I like to") and len(one) > len("I like to")
    page.click("#run")
    page.wait_for_selector("#run:not(:disabled)")
    assert text_of(page).startswith(one) and len(text_of(page)) > len(one)
    page.click("#undo")
    assert text_of(page) == one
    page.locator("#text").press_sequentially(" x")
    page.click("#undo")  # all that was typed in a row
    assert text_of(page) == one
    page.click("#undo")
    assert text_of(page) == "I like to"
    page.focus("#undo")
    page.keyboard.press("Enter")
    assert text_of(page) == page.evaluate("data.start.text") and page.is_disabled("#undo")
    assert page.evaluate("document.activeElement.id") == "text"  # a disabled button would lose the focus
    page.fill("#text", "I like to")
    page.evaluate("() => { byId('run').click(); byId('undo').click(); }")  # before the run has ended
    settle(page)
    assert text_of(page) == "I like to" and page.is_enabled("#run")
    page.press("#text", "Control+Enter")
    wait_for_change(page, "I like to")
    page.wait_for_selector("#step:not(:disabled)")
    assert text_of(page) == one
    set_slider(page, "temperature", 1)
    page.click("#run")
    page.keyboard.press("Escape")
    page.wait_for_selector("#run:not(:disabled)")
    page.fill("#text", "The cat")
    page.click("#run")
    page.press("#text", "End")
    page.keyboard.type("私は")  # typing ends the run
    settle(page)
    assert text_of(page).endswith("私は") and page.is_enabled("#run") and page.is_disabled("#stop")


@browser_test
def test_a_token_opens_what_else_could_have_stood_there(opened: Any, words_model: Path) -> None:
    page = opened(words_model)
    page.fill("#text", "I like to eat apple.")
    settle(page)
    tokens = page.locator("#strip button")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    place = tokens.count() - 2
    assert page.evaluate("[...document.querySelectorAll('#strip button')].indexOf(document.activeElement)") == place
    page.keyboard.press("Enter")
    page.wait_for_selector("#alternatives:not([hidden])")
    shown = bars(page, "alternatives-bars")
    assert len(shown) >= 5 and shown == sorted(shown, key=lambda row: -row[1])
    assert page.locator("#alternatives-bars b").count() == 1
    chosen = page.locator("#alternatives-bars button").first
    name = str(chosen.text_content()).replace("·", " ")
    start = "".join(tokens.all_text_contents()[:place]).replace("·", " ")
    chosen.click()
    assert text_of(page) == start + name
    page.click("#undo")
    assert text_of(page) == "I like to eat apple."


@browser_test
def test_a_head_is_switched_off(opened: Any, words_model: Path) -> None:
    """The bars of the next words move to their probabilities in the model without the head, and back."""
    page, tokenizer = opened(words_model), open_tokenizer(loading.load(words_model))
    page.click("#tab-inside")
    page.fill("#text", "The cat likes to")
    before = settle(page, "change-bars")
    assert page.is_disabled("#all-on") and page.locator("#parts .pair").count() == 0
    page.click("[data-part='2.1']")
    wait_until_shown(page)
    model = NumpyRuntime(switched_off(loading.load(words_model), ["2.1"]))
    expected = next_words(model, tokenizer, "The cat likes to").words
    rows = page.locator("#change-bars li").evaluate_all(
        "(all) => all.map((one) => [...one.children].map((node) => node.textContent))"
    )
    after = {name: float(q[:-1]) for name, _, _, q, _ in rows}
    for word in expected[:3]:
        assert after[word.text.replace("\n", "⏎")] == pytest.approx(100 * word.probability, abs=0.2)
    assert dict(before).items() <= {row[0]: float(row[1][:-1]) for row in rows}.items()
    assert page.input_value("#head") == "2.1" and page.get_attribute("[data-part='2.1']", "aria-checked") == "false"
    page.click("[data-part='1']")
    wait_until_shown(page)
    assert page.locator("#parts .off").count() == 1  # the MLP of the layer
    assert re.search(r"(lost|gained) \d+\.\d\d bits", str(page.text_content("#change")))
    page.click("[data-part='1.2']")  # switches the layer on, too
    wait_until_shown(page)
    unchecked = page.locator("#parts [aria-checked=false]").evaluate_all(
        "(all) => all.map((node) => node.dataset.part)"
    )
    assert unchecked == ["2.1"] and page.text_content("#announcement") == "Layer 1, head 2 is on."
    page.click("#all-on")
    assert settle(page, "change-bars") == before
    page.click("#tab-write")  # fewer tokens, while no arcs are shown
    page.fill("#text", "I")
    page.click("#tab-inside")
    wait_until_shown(page)
    assert page.locator("#tokens .token").all_text_contents()[-1].startswith("I")


@browser_test
def test_a_reload_keeps_what_was_chosen(opened: Any, words_model: Path) -> None:
    page = opened(words_model)
    page.select_option("#unit", "tokens")
    page.select_option("#coloring", "probability")
    page.locator("#examples button").last.click()
    chosen = text_of(page)
    assert page.locator("#examples [aria-pressed=true]").all_text_contents() == [chosen]
    page.click("#tab-inside")
    page.click("[data-part='2.1']")
    page.click("#language")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.is_visible("#inside") and page.get_attribute("html", "lang") == "ja" and text_of(page) == chosen
    assert page.get_attribute("[data-part='2.1']", "aria-checked") == "false"
    assert (page.input_value("#unit"), page.input_value("#coloring")) == ("tokens", "probability")


@browser_test
def test_inside_by_keyboard(opened: Any, words_model: Path) -> None:
    page = opened(words_model)
    page.focus("#tab-write")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("The cat likes to")
    wait_until_shown(page)
    focused = "document.activeElement.dataset.part ?? document.activeElement.id"
    for _ in range(10):
        if page.evaluate(focused) == "1":
            break
        page.keyboard.press("Tab")
    for key, part in (("ArrowRight", "1.1"), ("ArrowDown", "2.1"), ("End", "2.2"), ("Home", "2")):
        page.keyboard.press(key)
        assert page.evaluate(focused) == part
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    wait_until_shown(page)
    assert page.evaluate(focused) == "2.1" and page.get_attribute("[data-part='2.1']", "aria-checked") == "false"
    page.focus("#head")
    page.select_option("#head", "1.2")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "to"
    page.keyboard.press("ArrowLeft")
    page.locator("#attention-text", has_text="“likes” attends to").wait_for()
    assert page.locator("#tokens [aria-selected=true]").count() == 1 and page.locator("#arc-lines path").count() >= 1
    assert page.locator("#lens tbody tr").count() == 3 and page.locator("#attribution li").count() == 8
    assert page.locator("#effects li").count() == page.locator("#tokens .token").count() - 1


@browser_test
def test_two_prompts(opened: Any, words_model: Path) -> None:
    page = opened(words_model, prompt="The cat likes to", compare="I like to")
    assert page.is_visible("#compare") and page.input_value("#other") == "I like to"
    wait_until_shown(page)
    script = "(all) => all.map((one) => [0, 1, 3].map((i) => one.children[i].textContent))"
    compared = page.locator("#compared li").evaluate_all(script)
    assert page.locator("#lens-0 tbody tr").count() == page.locator("#lens-1 tbody tr").count() == 3
    tokenizer = open_tokenizer(loading.load(words_model))
    for column, prompt in ((1, "The cat likes to"), (2, "I like to")):
        found = {row[0]: float(row[column][:-1]) for row in compared}
        for word in next_words(runtime_of(words_model), tokenizer, prompt).words[:3]:
            assert found[word.text] == pytest.approx(100 * word.probability, abs=0.2)
    page.fill("#other", "The cat likes to eat. The dog likes to run in the big garden")  # the last 40 begin with ". "
    assert page.inner_text("#compared-legend").endswith("…The dog likes to run in the big garden")
    page.fill("#other", "")
    assert page.inner_text("#compared-legend").split("  ")[-1].endswith("⟨no text⟩")
    page.click("#tab-inside")
    for part in ("2.2", "1", "2.1"):
        page.click(f"[data-part='{part}']")
    page.click("#tab-compare")
    assert "Without layer 1 and heads 1 and 2 of layer 2" in page.inner_text("#compared-legend")
    page.click("#language")
    assert "第1層、第2層のヘッド1、2をオフにした場合" in page.inner_text("#compared-legend")
    page.click("#language")
    page.click("#tab-write")
    page.click("#tab-compare")
    assert page.input_value("#other") == "The cat likes to"  # to change a word of it


@browser_test
def test_the_page_opens_at_a_prompt_without_some_parts(opened: Any, words_model: Path, tmp_path: Path) -> None:
    model, path = loading.load(words_model), tmp_path / "planted.safetensors"
    checkpoint.save(path, replace(model, record=model.record | {"train": {"induction": True}}))
    page = opened(path, prompt="私は毎朝", without=["1.2", "2"], locale="ja-JP", width=400)
    assert page.is_visible("#inside") and text_of(page) == "私は毎朝"
    wait_until_shown(page)
    checked = page.locator("#parts [aria-checked=false]").evaluate_all("(all) => all.map((node) => node.dataset.part)")
    assert checked == ["1.2", "2", "2.1", "2.2"] and page.is_enabled("#all-on")
    assert re.search(r"ビットの(減|増)|のままです", str(page.text_content("#change")))
    planted = page.locator("#parts .planted").evaluate_all("(all) => all.map((node) => node.dataset.part)")
    assert planted == ["1.1", "1.2", "2.1"]
    assert re.search(r"1.1、1.2。.*1、2つ前.*誘導ヘッド：2.1。", str(page.text_content("#planted")))
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@browser_test
def test_a_conversation(opened: Any, sums_model: Path) -> None:
    page = opened(sums_model)
    assert page.is_visible("#chat") and not page.is_visible("#write")
    assert page.input_value("#temperature") == "0.8" and page.is_visible("#temperature")
    set_slider(page, "temperature", 0)
    page.fill("#message", "What is 2 and 3?")
    page.press("#message", "Enter")
    page.wait_for_selector("#send:not(:disabled)")
    answers = page.locator("#messages .from-model span")
    assert len(str(answers.first.text_content())) > 2
    page.fill("#message", HOSTILE)
    page.click("#send")
    page.wait_for_selector("#send:not(:disabled)")
    assert answers.count() == 2 and page.locator("img").count() == 0
    assert '<img src=x onerror="alert(2)">' in str(page.locator("#messages .from-user span").last.text_content())
    page.click("#chat-undo")
    assert answers.count() == 1 and page.input_value("#message") == HOSTILE
    for enter in ("{ isComposing: true }", "{ keyCode: 229 }"):  # it ends a composition, in Chromium and in Safari
        page.evaluate(
            f"""byId("message").dispatchEvent(new KeyboardEvent("keydown", {{ key: "Enter", ...{enter} }}))"""
        )
    assert answers.count() == 1 and page.is_enabled("#send")
    page.fill("#message", "What? " * 500)
    page.press("#message", "Enter")
    page.locator("#problem", has_text="the message is longer than the context of the model (128 tokens)").wait_for()
    assert answers.count() == 1 and page.input_value("#message").startswith("What? What?")
    assert page.locator("#problem").bounding_box()["y"] >= 0
    answer = str(answers.first.text_content())
    page.click("#tab-inside")
    assert page.is_visible("#outside-chat")
    page.click("#tab-chat")
    page.click("#look-inside")  # the whole conversation, up to the answer
    page.wait_for_selector("#inside[aria-busy=false]")
    assert not page.is_visible("#problem") and not page.is_visible("#outside-chat")
    lens = page.locator("#lens").text_content()
    page.click("#tab-compare")
    wait_until_shown(page)
    assert str(page.locator("#lens-0").text_content()).endswith(str(lens).removeprefix("Most likely tokens"))
    page.click("#tab-inside")
    page.wait_for_selector("#inside[aria-busy=false]")
    tokens = "".join(page.locator("#tokens .token > span:first-child").all_text_contents()).replace("·", " ")
    assert "What is 2 and 3?" in tokens and answer not in tokens
    page.click("#step")
    page.wait_for_selector("#step:not(:disabled)")
    assert text_of(page).strip() and answer.startswith(text_of(page).strip())


@browser_test
def test_a_conversation_longer_than_the_context(opened: Any, sums_model: Path) -> None:
    page = opened(sums_model, width=400)
    for count in range(1, 9):
        page.fill("#message", f"What is {count} and 3?")
        page.press("#message", "Enter")
        page.wait_for_selector("#send:not(:disabled)")
        box = page.locator("#copy").bounding_box()
        assert page.locator("#messages .from-model").count() == count
        assert box["y"] + box["height"] <= page.viewport_size["height"]  # the view follows
    unread = page.locator("#messages .unread").count()
    assert unread > 0 and unread % 2 == 0
    assert page.locator("#messages p").nth(unread).text_content() == (
        "The context is full: the model answers without reading what is above this line."
    )
    page.focus("#again")
    for _ in range(2):
        page.keyboard.press("Enter")
        page.wait_for_selector("#again:not(:disabled)")
        page.wait_for_selector("#send:not(:disabled)")
        assert page.evaluate("document.activeElement.id") == "again"
    page.click("#look-inside")
    page.wait_for_selector("#inside[aria-busy=false]")
    tokens = "".join(page.locator("#tokens .token > span:first-child").all_text_contents()).replace("·", " ")
    assert tokens.count("What is") == 8 - unread // 2


@browser_test
def test_widths_and_languages(opened: Any, sums_model: Path) -> None:
    """Nothing is wider than the window, all controls have names, and all texts follow the language."""
    for width, locale in [(400, "ja-JP"), (1200, "de-DE")]:
        page = opened(sums_model, width=width, locale=locale)
        texts = {}
        for _ in range(2):
            language = page.get_attribute("html", "lang")
            texts[language] = []
            for tab in ("tab-chat", "tab-write", "tab-inside", "tab-compare", "tab-record"):
                page.click(f"#{tab}")
                page.fill("#text", "What is 2") if tab == "tab-write" else None
                page.fill("#other", "What is 3") if tab == "tab-compare" else None
                if tab == "tab-inside":
                    wait_until_shown(page)
                page.wait_for_timeout(50)
                assert page.locator("#lens th").evaluate_all(
                    "(all) => all.every((one) => one.scrollWidth <= one.clientWidth)"
                )
                assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
                texts[language] += page.locator("[data-text]:visible").all_text_contents()
            page.click("#language")
        assert list(texts) == (["ja", "en"] if locale == "ja-JP" else ["en", "ja"]), locale
        assert len(texts["ja"]) == len(texts["en"]) > 20, locale
        assert all(re.search(r"[\u3040-\u30ff\u4e00-\u9fff]|^(Top|Min)-p$", text) for text in texts["ja"]), locale
        unnamed = """[...document.querySelectorAll("button, input, select, textarea")].filter((node) =>
        !node.hidden && !node.textContent.trim() && !node.labels?.length && !node.ariaLabel).map((node) => node.id)"""
        assert page.evaluate(unnamed) == [], locale


@browser_test
def test_the_record_in_japanese(opened: Any, words_model: Path, tmp_path: Path) -> None:
    """Names and units are translated; data, such as names of files, is not."""
    model, path = loading.load(words_model), tmp_path / "record.safetensors"
    record = model.record | {
        "corpus": [{"name": "100 steps, 5 bytes.txt", "bytes": 3000}],
        "expert_shares": [[0.25, 0.75]], "interrupted": True, "clock": {"seconds": 3750, "tokens_per_second": 1234},
        "memorised": {"share": 0.5, "strings": 9, "held_out_share": 0.25}, "validation": {"tokens": 1000},
        "conversations": {"training": 1200, "held_out": 30, "from_step": 1000},
        "answers": {"questions": 30, "exact": 0.5, "near": 0.1, "seen": 0.5, "garbled": 0.1},
        "plain_text": {"from": "base.txt", "tokens": 5, "before": 1.5, "after": 1.25},
        "earlier_stages": [{"stage": "base model", "file": "b", "corpus": [{"name": "base.txt", "bytes": 7}]}],
    }  # fmt: skip
    checkpoint.save(path, replace(model, record=record))
    page = opened(path, locale="ja-JP")
    page.focus("#tab-write")
    for _ in range(3):
        page.keyboard.press("ArrowRight")  # there is no chat
    assert page.is_hidden("#write") and page.get_attribute("#tab-record", "aria-selected") == "true"
    assert page.locator("#curve svg polyline.training").count() == 1 and page.locator("#plan dt").count() > 3
    names = page.locator("#record-view dt").all_text_contents()
    untranslated = [name for name in names if not re.search(r"[\u3040-\u30ff\u4e00-\u9fff]|SHA-256", name)]
    assert len(names) > 30 and untranslated == []
    rows = dict(zip(names, page.locator("#record dd").all_text_contents(), strict=False))
    expected = {
        "形式": "llmcli のモデル", "コーパス": "100 steps, 5 bytes.txt、3,000バイト",
        "元のモデル": "b: base.txt、7バイト",
        "会話": "学習用1,200件、評価用30件",
        "温度0での答え": "評価用の質問30問のうち、正確15問、ほぼ正確（80%以上一致）3問、"
        "学習データの別の答え9問、文の乱れ3問",
        "会話以外の文章": "ネットワーク 前 1.500、後 1.250ビット/バイト",
        "最良の重み": f"ステップ{record.best_step}",
        "検証": "学習用の文章のうち1,000トークン（学習には使わない）",
        "丸暗記": "生成した30文字の並びの50%が、学習用の文章にそのままあります（評価用の文章では25%）",
        "第1層の各エキスパートへのトークン": "25.0% 75.0%", "時間": "1時間 2分 30秒、毎秒1,234トークン",
    }  # fmt: skip
    assert rows | expected == rows
    assert re.fullmatch(rf"{record.steps}（[\d.]+エポック）、中断", rows["ステップ数"])
    assert re.fullmatch(
        r"ネットワーク [\d.]+ビット/バイト（学習の終わりに[\d,]+バイトで、float32 で測定）"
        "。その100%は、学習用の文章にもあります",
        rows["評価用データ"],
    )
    units = re.compile(r"bytes|tokens|steps|bits|layer|head|parameters|epoch|network")
    kept = {"コーパス", "設定"}
    values = page.locator("#record-view dd").evaluate_all("(all) => all.map((one) => one.firstChild.data)")
    shown = zip(names, values, strict=True)
    assert [value for name, value in shown if units.search(value) and name not in kept] == []
    assert re.fullmatch(
        r"ステップ[\d,]+までに、学習損失は[\d.]+から[\d.]+ビット/バイトになりました。"
        r"(検証損失は最小で[\d.]+でした。)?",
        page.inner_text("#curve > p >> nth=1"),
    )


def test_the_rows_of_plans_and_records_have_japanese_names() -> None:
    package = files("llmcli")
    sources = ["training/data/prepare.py", "training/data/conversations.py", "training/planning/plan_table.py"]
    text = "".join((package / name).read_text("utf-8") for name in sources).partition("def overview")[0]
    names = set(re.findall(r'PlanRow\(\s*"([^"]+)"', text))
    text = "".join((package / "pages" / name).read_text("utf-8") for name in ("model_facts.py", "record_data.py"))
    names |= set(re.findall(r'\("([\w -]+)", (?!str)', text)) | {BASE, AVERAGE, CACHE, EXPORTED}
    assert len(names) > 40 and names - {"name", "seed"} - TEXTS["ja"]["record"]["recordNames"].keys() == set()


@browser_test
def test_hostile_names_and_texts_are_shown_as_text(opened: Any, words_model: Path, tmp_path: Path) -> None:
    model = loading.load(words_model)
    record = model.record | {
        "verdict": [HOSTILE], "plan": [{"name": HOSTILE, "value": HOSTILE, "reason": HOSTILE}, 5, {"name": 7}],
        "samples": {"prompt": HOSTILE, "texts": [[1, HOSTILE]]},
        "probe": {"prompt": HOSTILE, "predictions": [[1, [[HOSTILE, 0.5]]]]},
        "corpus": [{"name": HOSTILE, "bytes": 3}],
    }  # fmt: skip
    path = tmp_path / "<img src=x onerror=alert(3)> &amp;.safetensors"
    checkpoint.save(path, replace(model, record=record))
    text = page_of(path)
    assert text.count("<script") == 4 and "<img" not in text.replace("&lt;img", "")
    page = opened(path)
    settle(page)
    assert text_of(page) == next(iter(example_prompts(HOSTILE)), HOSTILE)
    assert page.text_content("h1") == path.stem == page.title()
    page.click("#tab-record")
    for id_ in ("verdict", "samples", "record", "plan", "probe-prompt", "probe-bars"):
        assert '<img src=x onerror="alert(2)">' in str(page.text_content(f"#{id_}")).replace("·", " "), id_
    assert page.locator("img").count() == 0 and "⟨U+202E⟩" in str(page.text_content("#plan"))


@browser_test
def test_damaged_weights_are_reported(opened: Any, tiny_model: Path) -> None:
    model = loading.load(tiny_model)
    tensors = {name: np.array(tensor) for name, tensor in model.tensors.items()}
    tensors["model.norm.weight"][:] = 3e38
    checkpoint.save(tiny_model, replace(model, tensors=tensors))
    page = opened(tiny_model)
    page.fill("#text", "The cat")
    page.wait_for_selector("#problem:not([hidden])")
    assert "its weights are damaged" in str(page.text_content("#problem"))
    page.click("#language")
    page.locator("#problem", has_text="重みが壊れています").wait_for()
