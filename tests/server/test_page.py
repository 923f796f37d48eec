"""The page of `llm serve` in a real browser, with real models: chat, text, branches, and what is shown of tokens."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from llmcli.api import train
from tests.platforms import in_full

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUESTIONS = "".join(
    f"Q: What is {a} and {b}?\nA: It is {a + b}, which is a number.\n\n" for a in range(9) for b in range(9)
)
TEXT = "She likes to eat bread. He likes to eat rice. We like to drink green tea in the morning.\n" * 60
HOSTILE = '<img src=x onerror="alert(1)"> &lt; \u202e'

pytest.importorskip("starlette", reason="needs starlette: pip install 'llmcli[serve]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt install chromium")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a model of text and one of conversations."""
    folder = tmp_path_factory.mktemp("served")
    for name, content in (("words", TEXT), ("sums", QUESTIONS)):
        (folder / f"{name}.txt").write_text(content, "utf-8")
        options = {"steps": 30, "layers": 1, "width": 32, "heads": 2, "context": 64}
        list(train(folder / f"{name}.txt", folder / f"{name}.safetensors", **options))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llmcli", "serve", "-m", "words.safetensors", "-m", "sums.safetensors"]
    server = subprocess.Popen([*command, "--port", str(port), "-q"], cwd=folder, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{url}health", timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


@pytest.fixture(scope="module")
def browser() -> "Iterator[playwright.Browser]":
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: "playwright.Browser", address: str) -> "Iterator[playwright.Page]":
    """The page, loaded. Fails if the browser logs a message, such as an error or a violation of the policy."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, reduced_motion="reduce")
    opened, messages = context.new_page(), []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("dialog", lambda dialog: messages.append("an alert"))
    opened.goto(address)
    opened.wait_for_selector("html[data-ready]")
    opened.click(".segments [data-view=both]")
    yield opened
    context.close()
    assert messages == []


def ask(page: "playwright.Page", question: str = "What is 2 and 3?") -> None:
    """Greedily: one sampled answer in thirty is empty."""
    set_up(page, temperature=0)
    page.fill("#message", question)
    page.press("#message", "Enter")
    finished(page, "chat")


def continue_text(page: "playwright.Page", prompt: str, **settings: object) -> None:
    set_up(page, **({"max_tokens": 20, "seed": 1} | settings))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Control+Enter")
    finished(page, "text")


def finished(page: "playwright.Page", pane: str) -> None:
    page.wait_for_selector(f"#{pane} .answer:last-child .regenerate:not(:disabled)")


def set_up(page: "playwright.Page", **settings: object) -> None:
    if "temperature" in settings:
        page.locator(".temperature input").first.fill(str(settings.pop("temperature")))
    page.click("#open-settings")
    for name, value in settings.items():
        page.fill(f"#setting-{name}", str(value))
    page.keyboard.press("Escape")


def answer(page: "playwright.Page", pane: str = "text") -> str:
    return str(page.locator(f"#{pane} .answer .tokens").last.text_content())


def tokens(page: "playwright.Page", pane: str = "text") -> list[str]:
    return list(page.locator(f"#{pane} .answer:last-child .token").all_text_contents())


@in_full
def test_each_pane_begins_with_a_model_that_fits_it(page: "playwright.Page") -> None:
    assert page.input_value("#chat .model") == "sums"
    assert page.input_value("#text .model") == "words"
    page.select_option("#chat .model", "words")
    assert page.is_disabled("#message")
    assert "words cannot chat" in str(page.text_content("#chat .note"))


def test_an_answer_streams_and_can_be_regenerated(page: "playwright.Page") -> None:
    ask(page)
    assert tokens(page, "chat")
    assert answer(page, "chat") == "".join(tokens(page, "chat"))
    page.click("#chat .regenerate")
    finished(page, "chat")
    assert page.locator("#chat .actions").get_by_text("2/2").count() == 1
    page.click("#chat [aria-label='earlier version']")
    assert page.locator("#chat .actions").get_by_text("1/2").count() == 1
    ask(page, "What is 4 and 4?")
    assert page.locator("#chat .answer").count() == 2
    page.click("#new-chat")
    assert page.locator("#chat .answer").count() == 0


def post(url: str, body: dict[str, object]) -> dict[str, Any]:
    """The JSON that a route answers."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return dict(json.load(response))


# at temperature 2, characters are spelled by several tokens
@pytest.mark.parametrize("temperature", [0, pytest.param(2, marks=in_full)])
def test_a_seed_gives_the_text_of_the_completions_route(
    page: "playwright.Page", address: str, temperature: int
) -> None:
    settings = {"temperature": temperature, "max_tokens": 40, "seed": 1, "min_p": 0}
    continue_text(page, "She likes", **settings)
    expected = post(f"{address}v1/completions", {"model": "words", "prompt": "She likes"} | settings)
    assert answer(page) == "She likes" + expected["choices"][0]["text"]


@in_full
def test_what_is_shown_survives_a_reload_and_can_be_cleared(page: "playwright.Page") -> None:
    ask(page)
    page.click("#chat .regenerate")
    finished(page, "chat")
    continue_text(page, "She likes", max_tokens=5, temperature=1.5)
    page.fill("#message", "a draft")
    shown = [page.locator(f"#{pane} .scroll").inner_text() for pane in ("chat", "text")]
    assert "2/2" in shown[0] and "She likes" in shown[1] and "Continue" in shown[1] and "Edit" in shown[1]
    reload(page)
    assert [page.locator(f"#{pane} .scroll").inner_text() for pane in ("chat", "text")] == shown
    assert page.input_value("#message") == "a draft" and page.input_value("#prompt") == "She likes"
    assert page.locator("#text .temperature").text_content() == "Temperature 1.5"
    page.locator("#text .actions").get_by_text("Continue").click()  # from the tokens that were restored
    finished(page, "text")
    assert len(tokens(page)) == 10
    page.locator("#text .actions").get_by_text("Edit").click()
    assert page.input_value("#prompt") == answer(page)
    page.click("#new-chat")
    page.click("#clear-text")
    reload(page)
    assert page.locator(".answer").count() == 0 and page.locator(".start").count() == 2


def reload(page: "playwright.Page") -> None:
    page.reload()
    page.wait_for_selector("html[data-ready]")


@in_full
def test_a_full_store_and_other_models_do_no_harm(page: "playwright.Page") -> None:
    ask(page)
    page.evaluate("void (Storage.prototype.setItem = () => { throw new Error('full') })")
    page.click("#chat .regenerate")
    finished(page, "chat")
    reload(page)
    assert page.locator("#chat .answer").count() == 1  # the last state that was stored
    page.evaluate("""() => {
        const state = JSON.parse(sessionStorage.getItem("llm.chat"));
        state.turns[0].answer.model = "gone";
        chat.save = () => {};
        sessionStorage.setItem("llm.chat", JSON.stringify(state));
    }""")
    reload(page)
    assert page.locator("#chat .answer").count() == 0 and page.locator("#chat .start").count() == 1


def test_a_model_begins_with_examples_from_its_own_texts(browser: "playwright.Browser", address: str) -> None:
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    opened.goto(address)
    opened.wait_for_selector("html[data-ready]")
    assert opened.get_attribute("main", "data-view") == "text" and opened.is_hidden("#chat")
    start = str(opened.text_content("#text .start"))
    assert "words continues a text" in start and "parameters, trained on words.txt" in start
    example = opened.locator("#text .examples button").first
    assert (begins := str(example.text_content())) and begins in TEXT
    example.click()
    finished(opened, "text")
    assert answer(opened).startswith(begins)
    opened.click("[data-view=chat]")
    assert "sums answers messages" in str(opened.text_content("#chat .start"))
    questions = opened.locator("#chat .examples button").all_text_contents()
    assert len(questions) > 1 and all(f"Q: {question}" in QUESTIONS for question in questions)
    opened.locator("#chat .examples button").last.click()
    finished(opened, "chat")
    assert opened.locator(".user").text_content() == questions[-1] and opened.locator("#chat .start").count() == 0
    opened.close()


@in_full
def test_stop_keeps_what_has_arrived(page: "playwright.Page") -> None:
    set_up(page, max_tokens=20000)
    page.fill("#prompt", "She likes")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#text .token:nth-of-type(5)")
    page.dispatch_event("#text .stop", "click")  # a pointer would wait until the page no longer moves
    finished(page, "text")
    assert "stopped" in str(page.text_content("#text .actions"))
    assert 3 <= len(tokens(page)) < 20000


@in_full
def test_a_branch_keeps_the_tokens_before_it(page: "playwright.Page", address: str) -> None:
    continue_text(page, "She likes", temperature=1, min_p=0)
    before = tokens(page)
    page.locator("#text .token").nth(6).focus()
    page.keyboard.press("Enter")
    alternative = page.locator("#details .bars button:not(:disabled)").first
    assert alternative.evaluate("(node) => node === document.activeElement")
    with page.expect_request("**/v1/completions") as sent:
        alternative.click()
    finished(page, "text")
    ids = sent.value.post_data_json["prompt"]
    text = post(f"{address}detokenize", {"model": "words", "tokens": ids})["prompt"]
    assert text == "She likes" + "".join(tokens(page)[:7])
    after = tokens(page)
    assert after[:6] == before[:6]
    assert after[6] != before[6]
    assert page.locator("#text .token.branch").count() == 1
    assert page.locator("#text .actions").get_by_text("2/2").count() == 1


@in_full
def test_a_branch_of_an_answer_is_its_beginning(page: "playwright.Page") -> None:
    set_up(page, temperature=0, max_tokens=12)
    ask(page)
    before = tokens(page, "chat")
    page.locator("#chat .token").nth(1).click()
    with page.expect_request("**/v1/chat/completions") as sent:
        page.locator("#details .bars button:not(:disabled)").first.click()
    finished(page, "chat")
    beginning = "".join(tokens(page, "chat")[:2])
    assert sent.value.post_data_json["messages"][-1] == {"role": "assistant", "content": beginning}
    assert beginning.startswith(before[0]) and answer(page, "chat") != "".join(before)


@in_full
def test_arrow_keys_go_from_token_to_token(page: "playwright.Page") -> None:
    continue_text(page, "She likes")
    page.locator("#text .token").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowRight"):
        page.keyboard.press(key)
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert re.fullmatch(r".*, <?[\d.]+%, token 2 of 20", label)
    assert page.is_visible("#details")
    page.keyboard.press("Escape")
    assert page.is_hidden("#details")


@in_full
def test_colors_show_probability_and_training_text(page: "playwright.Page") -> None:
    continue_text(page, "She likes", max_tokens=60, temperature=0)
    page.select_option("#text .coloring", "probability")
    plain = page.locator("#text .legend .p0").evaluate("(node) => getComputedStyle(node).backgroundColor")
    unlikely = page.locator("#text .legend .p4").evaluate("(node) => getComputedStyle(node).backgroundColor")
    assert plain != unlikely
    page.select_option("#text .coloring", "memory")
    page.wait_for_selector("#text .legend:has-text('% of the characters, in words.txt')")


@in_full
def test_next_words_extend_the_text(page: "playwright.Page") -> None:
    page.fill("#prompt", "She likes to")
    page.click("#next-words")
    word = str(page.locator("#next .name").first.text_content())
    page.locator("#next button").first.click()
    page.wait_for_function("(end) => document.getElementById('prompt').value.endsWith(end)", arg=word.strip("·…"))


@in_full
def test_explain_and_card(page: "playwright.Page") -> None:
    continue_text(page, "She likes")
    page.locator("#text .actions").get_by_text("Explain").click()
    page.wait_for_selector("#explain .seen button")
    assert page.locator("#explain tbody tr").count() == 2  # before and after the only layer
    page.click("#explain [aria-label='next token']")
    page.wait_for_selector("#explain .seen button")
    page.keyboard.press("Escape")
    page.click("#text .card")
    page.wait_for_selector("#card polyline")
    assert "words.txt" in str(page.text_content("#card"))


def test_text_is_never_markup(page: "playwright.Page") -> None:
    continue_text(page, HOSTILE)
    assert answer(page).startswith(HOSTILE)
    ask(page, HOSTILE)
    assert page.locator(".user").text_content() == HOSTILE
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("width", [400, pytest.param(1200, marks=in_full)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_width_and_has_contrast(page: "playwright.Page", width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.get_attribute("html", "data-theme") == scheme
    for view in ("chat", "text"):
        page.click(f".segments [data-view={view}]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for dialog in ("open-settings", "open-help"):
        page.click(f"#{dialog}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("Escape")
    names = ["ink", "faint", "accent", "warm"]
    assert [name for name in names if contrast(page, name, "paper") < 4.5] == []
    grounds = ["panel", "soft", "verbatim", *(f"p{i}" for i in range(1, 5)), *(f"e{i}" for i in range(8))]
    assert [name for name in grounds if contrast(page, "ink", name) < 4.5] == []
    assert contrast(page, "on-accent", "accent") >= 4.5
    assert contrast(page, "control", "paper") >= 3


def contrast(page: "playwright.Page", one: str, other: str) -> float:
    """The contrast ratio of two colours of the page (WCAG 2.2)."""
    style = "getComputedStyle(document.documentElement).getPropertyValue"
    colours = [str(page.evaluate(f"(name) => {style}(name).trim()".replace("Value(name)", "Value('--' + name)"), name))
               for name in (one, other)]  # fmt: skip
    low, high = sorted(luminance(colour) for colour in colours)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """
    >>> luminance("#ffffff"), luminance("#000000")
    (1.0, 0.0)
    """
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@in_full
def test_letters_grow_and_the_choice_stays(page: "playwright.Page") -> None:
    size = "parseFloat(getComputedStyle(document.documentElement).fontSize)"
    before = page.evaluate(size)
    page.click("#larger")
    assert page.evaluate(size) > before
    page.click("#theme")
    theme = page.get_attribute("html", "data-theme")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(size) > before
    assert page.get_attribute("html", "data-theme") == theme


def test_the_file_needs_no_network_and_no_inline_handler() -> None:
    text = (files("llmcli.pages") / "server" / "index.html").read_text("utf-8")
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert not re.search(r"<[^>]+\son\w+=", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert text.count("<style>") == text.count("<script>") == 1
    assert Path(str(files("llmcli.pages") / "server")).is_dir()
