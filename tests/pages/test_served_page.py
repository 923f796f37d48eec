"""The page of `llm serve` in a real browser, with real models: what the page with a model inside does, answered by a
server."""

import itertools
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmcli.api import train
from llmcli.pages.live_page import served_page
from tests.pages.conftest import QUESTIONS, trained
from tests.pages.live import needs_browser, page_of, set_slider, settle, wait_until_shown
from tests.platforms import in_full
from tests.sample_models import run as run_llm
from tests.server.processes import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

TEXT = "She likes to eat bread. He likes to eat rice. We like to drink green tea in the morning. 🍎を食べます。\n" * 60
KEY = "secret"
ASK = """([type, body]) => new Promise((resolve) => {
    const all = {};
    request(type, body, (answer) => {
        Object.assign(all, answer);
        if (answer.done) resolve(all);
    });
})"""

pytest.importorskip("starlette", reason='needs starlette: pip install "llmcli[serve]"')
pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text, and one of conversations."""
    folder = tmp_path_factory.mktemp("served")
    # so many steps that "words" gives less than 1% to bytes that are no text, which only Inside in the worker omits
    trained(folder, TEXT, "words", steps=200)
    trained(folder, QUESTIONS, "sums", steps=30)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(*(folder / f"{name}.safetensors" for name in ("words", "sums"))) as served:
        yield served.url


@pytest.fixture
def page(browser: "Browser", address: str) -> "Iterator[Page]":
    """The page, loaded. Fails if the browser logs a message, such as an error or a violation of the policy."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, reduced_motion="reduce", locale="en-US")
    opened, messages = context.new_page(), []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("dialog", lambda dialog: messages.append("an alert"))
    opened.on("request", lambda request: request.url.startswith((address, "data:")) or messages.append(request.url))
    load(opened, address)
    yield opened
    context.close()
    assert messages == []


def load(page: "Page", address: str) -> None:
    page.goto(address)
    page.wait_for_selector("html[data-ready]")


def choose(page: "Page", model: str) -> None:
    page.select_option("#models", model)
    page.wait_for_selector("html[data-ready]")
    assert page.title() == model


def set_up(page: "Page", **settings: Any) -> None:
    """Move sliders, and fill further settings."""
    for name, value in settings.items():
        if name in ("temperature", "topP", "minP"):
            set_slider(page, name, value)
        else:
            page.locator("#more").evaluate("(node) => { node.open = true; }")
            page.fill(f"[name={name}]", str(value))


def ask(page: "Page", question: str = "What is 2 and 3?") -> str:
    """The answer, which is greedy: one sampled answer in thirty is empty."""
    set_up(page, temperature=0)
    page.fill("#message", question)
    page.press("#message", "Enter")
    return answer(page)


def answer(page: "Page") -> str:
    page.wait_for_selector("#answer-tokens:not(:disabled)")
    page.wait_for_selector("#send:not(:disabled)")
    return str(page.locator("#messages .from-model span").last.text_content())


def run(page: "Page", text: str, **settings: object) -> str:
    """The text that the page makes of a text."""
    set_up(page, **({"max_tokens": 20, "seed": 1} | settings))
    page.fill("#text", text)
    page.click("#run")
    page.wait_for_selector("#step:not(:disabled)")
    return page.input_value("#text")


# ---- the two run programs


def assert_close(one: Any, other: Any, place: str = "") -> None:
    """Numbers to a thousandth, all else exactly."""
    match one:
        case dict():
            assert one.keys() == other.keys(), place
            for key, value in one.items():
                assert_close(value, other[key], f"{place}.{key}")
        case list():
            assert len(one) == len(other), (place, one, other)
            for i, value in enumerate(one):
                assert_close(value, other[i], f"{place}[{i}]")
        case float() | int() if not isinstance(one, bool):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2, err_msg=place)
        case _:
            assert one == other, place


@pytest.mark.parametrize(
    "text", ["She likes to", pytest.param("", marks=in_full), pytest.param("She likes to ea", marks=in_full)]
)
def test_a_server_answers_as_the_model_in_the_page(
    page: "Page", browser: "Browser", folder: Path, tmp_path: Path, text: str
) -> None:
    """The same requests to both run programs: the worker's are compared with numpy in tests/pages."""
    exported = exported_page(browser, folder / "words.safetensors", tmp_path)
    choose(page, "words")
    typed = {"text": text, "ids": None, "prefix": 0, "written": 0}
    plain, shaped = {"temperature": 1, "topP": 1, "minP": 0}, {"temperature": 0.7, "topP": 0.9, "minP": 0.02}
    keys = {"id", "done", "choices", "rest", "tokens"}
    for settings in (plain, shaped):
        for unit in ("words", "tokens"):
            body = typed | {"settings": settings, "unit": unit}
            served, own = (one.evaluate(ASK, ["next", body]) for one in (page, exported))
            assert served["tokens"] == own["tokens"] and served.keys() <= keys
            for found in (served, own):
                found["choices"] = {one["text"]: [one["added"], one["probability"]] for one in found["choices"]}
                found["choices"] = {name: value for name, value in found["choices"].items() if value[1] > 0.005}
            assert_close({**served["choices"]}, {**own["choices"]})
    ids, prefix = served["tokens"]["ids"], served["tokens"]["prefix"]
    greedy = {"settings": plain | {"temperature": 0}, "count": 12}
    wrote = {"text": "", "ids": ids * 9, "prefix": prefix, "written": len(ids)}  # longer than the context
    requests: list[tuple[str, dict[str, Any]]] = [
        ("generate", typed | greedy), ("generate", {"text": "", "ids": ids, "prefix": prefix, "written": 1} | greedy),
        ("inside", typed | {"without": []}), ("inside", typed | {"without": ["1.1"], "target": "eat"}),
        ("inside", wrote | {"without": []}),
        ("attention", {"position": min(1, len(text))}), ("inside", typed | {"without": ["1.2"]}),
        ("attention", {"position": min(1, len(text))}), ("inside", typed | {"without": ["1"]}),
        ("attention", {"position": 0}),
        ("compare", {"texts": [typed, typed | {"text": ""}], "without": ["2"]}),
        ("alternatives", {"ids": ids, "prefix": prefix, "written": 0, "position": len(ids) - 1}),
        ("color", {"ids": ids, "prefix": prefix, "written": 0, "kind": "probability"}),
        ("alternatives", wrote | {"position": 9 * len(ids) - 1}), ("color", wrote | {"kind": "probability"}),
    ]  # fmt: skip
    for type_, body in requests:
        served, own = (one.evaluate(ASK, [type_, body]) for one in (page, exported))
        for found in (served, own):
            for key in ("id", "expert", "count", "rest"):
                found.pop(key, None)
            for key in ("pairs", "choices"):  # the order of equally likely ones, and the least likely, may differ
                rows = [one for one in found.get(key, []) if one.get("p", one.get("probability")) > 0.01]
                found[key] = sorted(rows, key=lambda one: str(one.get("text")))
            for row in (*found["pairs"], found.get("chosen", {})):
                for key in ("bits", "id", "place"):
                    row.pop(key, None)
        assert "error" not in served, served
        assert_close(served, own, type_)
    exported.close()


def exported_page(browser: "Browser", model: Path, directory: Path) -> "Page":
    """The page with this model inside."""
    file = directory / "page.html"
    file.write_text(page_of(model), "utf-8")
    page = browser.new_page(locale="en-US", reduced_motion="reduce")
    load(page, file.as_uri())
    return page


# ---- chat


def test_an_answer_streams_and_can_be_written_again(page: "Page", folder: Path) -> None:
    choose(page, "sums")
    assert page.is_visible("#chat") and page.input_value("#temperature") == "0.8"
    questions = page.locator("#questions button").all_text_contents()
    assert len(questions) > 1 and all(f"Q: {question}" in QUESTIONS for question in questions)
    page.locator("#questions button").last.click()
    answer(page)
    assert page.locator("#messages .from-user span").text_content() == questions[-1]
    page.click("#new-chat")
    assert page.locator("#messages p").count() == 0 and page.locator("#questions button").count() == len(questions)
    first = ask(page)
    set_up(page, temperature=2, seed=5)
    page.focus("#again")
    page.keyboard.press("Enter")
    assert answer(page) != first and page.locator("#messages p").count() == 2
    assert page.evaluate("document.activeElement.id") == "again"
    page.click("#chat-undo")
    assert answer(page) == first


def test_an_answer_that_was_cut_off_or_stopped(page: "Page") -> None:
    choose(page, "sums")
    set_up(page, max_tokens=2)
    ask(page)
    assert "cut off" in str(page.locator("#messages .from-model + .hint").text_content())
    set_up(page, max_tokens="")
    ask(page, "What is 4 and 4?")
    assert page.locator("#messages p").count() == 5  # the second answer is complete
    page.route("**/v1/chat/completions", lambda route: None)  # no token arrives
    page.fill("#message", "And 5 and 5?")
    page.press("#message", "Enter")
    page.locator("#messages .from-model", has_text="…").wait_for()
    page.click("#chat-stop")
    page.wait_for_selector("#send:not(:disabled)")
    assert page.locator("#messages p").count() == 5 and page.input_value("#message") == "And 5 and 5?"


@in_full
def test_a_system_message_is_sent(page: "Page") -> None:
    choose(page, "sums")
    set_up(page, system="Be brief.", max_tokens=3)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page)
    body = sent.value.post_data_json
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 and 3?"},
    ]  # fmt: skip
    assert body["max_tokens"] == 3 and body["temperature"] == 0


# ---- the models


@in_full
def test_each_model_opens_with_what_it_can_do(page: "Page", address: str) -> None:
    assert page.title() == "words" and page.is_hidden("#tab-chat") and page.is_visible("#write")
    assert page.input_value("#text") in TEXT and "llm serve" in str(page.text_content("#summary"))
    prompts = page.locator("#examples button").all_text_contents()
    assert prompts and prompts[0] in TEXT  # the others are from a sample
    page.locator("#examples button").last.click()
    assert page.input_value("#text") == prompts[-1]
    page.click("#tab-record")
    assert page.locator("#curve polyline").count() == 2 and "words.txt" in str(page.text_content("#record"))
    choose(page, "sums")
    assert page.is_visible("#chat")
    page.click("#tab-record")
    assert "sums.txt" in str(page.text_content("#record"))


@in_full
def test_colors_show_probability_and_training_text(page: "Page") -> None:
    choose(page, "words")
    run(page, "She likes", max_tokens=40, temperature=0)
    wait_until_shown(page)
    shares = "(all) => all.map((one) => Number(one.style.getPropertyValue('--share')))"
    for kind, legend in (("probability", "the less likely"), ("memory", r"\d+% of the characters. .*words.txt")):
        page.select_option("#coloring", kind)
        page.wait_for_function("() => document.getElementById('coloring-legend').textContent")
        assert re.search(legend, str(page.text_content("#coloring-legend")))
        assert sum(page.locator("#strip button").evaluate_all(shares)) > 0
    page.select_option("#coloring", "")
    assert sum(page.locator("#strip button").evaluate_all(shares)) == 0


@in_full
def test_an_ensemble(browser: "Browser", folder: Path, tmp_path: Path) -> None:
    """Its parts have no switches, and the page says which model it shows."""
    like = folder / "words.safetensors"
    list(train(folder / "words.txt", tmp_path / "more.safetensors", steps=10, layers=1, width=32, heads=2, like=like))
    run_llm("mix", like, tmp_path / "more.safetensors", "-o", tmp_path / "both.safetensors")
    with serving(tmp_path / "both.safetensors") as served:
        page = browser.new_page(locale="en-US")
        load(page, served.url)
        page.fill("#text", "She likes to")
        assert settle(page)
        page.select_option("#coloring", "experts")
        page.wait_for_function("() => document.getElementById('coloring-legend').textContent.includes('words')")
        page.click("#tab-inside")
        assert settle(page, "change-bars") and page.locator("#parts button").count() == 0
        assert "cannot be switched off" in str(page.text_content("#parts-hint"))
        assert "which has the largest weight here" in str(page.text_content("#expert"))
        page.click("#tab-compare")
        page.fill("#other", "We like to")
        assert settle(page, "compared") and page.is_hidden("#problem")
        page.close()


@in_full
def test_a_key_is_asked_for(browser: "Browser", folder: Path) -> None:
    with serving(folder / "words.safetensors", options=("--api-key", KEY)) as served:
        page = browser.new_page(locale="ja-JP", viewport={"width": 400, "height": 800})
        page.goto(served.url)
        page.wait_for_selector("#key:not([hidden])")
        assert page.locator("h1").text_content() == "llm serve"
        assert "API キーが必要です" in str(page.text_content("#problem"))
        for key, opens in (("wrong", False), (KEY, True)):
            page.fill("#api-key", key)
            page.press("#api-key", "Enter")
            page.wait_for_selector("html[data-ready]" if opens else "#problem:text('API キーが違います')")
        assert settle(page) and page.is_hidden("#key") and page.is_hidden("#problem")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        page.close()


def test_a_class_joins_with_the_code_or_the_qr_code(browser: "Browser", folder: Path) -> None:
    segno = pytest.importorskip("segno", reason="needs segno: pip install segno")
    options, limits = ("--host", "0.0.0.0"), {"CLASS_WRONG_CODES": 2}
    with serving(folder / "words.safetensors", options=options, limits=limits) as served:
        pages = [browser.new_page(locale=locale, viewport={"width": 400, "height": 800}) for locale in ("ja", "en")]
        typing, scanning = pages
        typing.goto(served.url)
        typing.wait_for_selector("#key:not([hidden])")
        code, link = re.findall(r"class code (\w+), or open (\S+)", served.log)[0]  # printed after the address
        assert typing.inner_text("#key label").strip() == "クラスコード"
        assert "入力してください" in typing.inner_text("#problem")
        full_width = "".join(chr(ord(character) + 0xFEE0) for character in code.lower())
        for typed, opens in (("CCCCCC", False), (f"{full_width[:3]} {full_width[3:]}", True)):
            typing.fill("#api-key", typed)
            typing.press("#api-key", "Enter")
            typing.wait_for_selector("html[data-ready]" if opens else "#problem:text('クラスコードが違います')")
        scanning.goto(link)
        scanning.wait_for_selector("html[data-ready]")
        assert scanning.url == link.partition("#")[0] and settle(scanning)[:3] == settle(typing)[:3]
        for page in pages:
            assert page.is_hidden("#key") and page.is_hidden("#problem")
            page.click("#class summary")
            shown = page.locator("#class .big").all_inner_texts()
            assert shown == [link.partition("/#")[0].removeprefix("http://"), code]
            drawn = re.findall(r"M(\d+) (\d+)h1v1h-1z", str(page.get_attribute("#class path", "d")))
            matrix = segno.make(link, micro=False).matrix_iter(border=4)
            dark = {(x, y) for y, row in enumerate(matrix) for x, module in enumerate(row) if module}
            assert {(int(x), int(y)) for x, y in drawn} == dark
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
        for _ in range(3):  # a minute may end between the first two wrong codes
            typing.evaluate("(store('llm.api_key', 'CCCCCC'), openModel())")
            typing.wait_for_selector("#problem:text-matches('違います|1分待って')")
            typing.evaluate("showProblem('')")
        typing.reload()
        typing.wait_for_selector("#problem:text('1分待って')")
        assert typing.is_visible("#key")
        for page in pages:
            page.close()


def test_what_a_busy_server_refuses_is_sent_again(browser: "Browser", address: str) -> None:
    page, refused = browser.new_page(), []

    def refuse_once(route: "Route") -> None:
        refused.append(route.request.post_data)
        if len(refused) > 1:
            route.continue_()
        else:
            route.fulfill(status=429, json={"error": {"code": "queue_full", "message": "8 analyses are in progress"}})

    page.route("**/v1/next", refuse_once)
    load(page, address)
    assert settle(page) and refused[0] == refused[1] and page.is_hidden("#problem")
    page.close()


# ---- the page


def test_text_has_contrast(page: "Page") -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name, background in itertools.product(("--ink", "--faint"), ("--paper", "--panel")):
            assert contrast(page, name, background) >= 4.5, (scheme, name, background)


def contrast(page: "Page", one: str, other: str) -> float:
    """The contrast ratio of two colors of the page (WCAG 2.2)."""
    style = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
    low, high = sorted(luminance(str(page.evaluate(style, name))) for name in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """
    >>> luminance("#ffffff"), luminance("#000000")
    (1.0, 0.0)
    """
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_needs_no_other_site_and_no_inline_handler(address: str) -> None:
    text = served_page().decode()
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert not re.search(r"<[^>]+\son\w+=", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and re.fullmatch(
        r"default-src .none.; style-src .sha256-\S+.; script-src .sha256-\S+.; connect-src .self.; img-src data:; "
        r"base-uri .none.; form-action .none.", policy[1],
    )  # fmt: skip
    with urllib.request.urlopen(address) as response:
        assert response.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert response.read().decode() == text
