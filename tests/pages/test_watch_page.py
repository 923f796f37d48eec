"""The page of a run in progress, in a real browser."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from llmcli.pages.watch_page import watch_page
from llmcli.server.http.watch import WatchServer
from tests.pages.live import browser_test

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '<img src=x onerror="alert(1)">'
STATE: dict[str, Any] = {
    "phase": "running", "file": "m.safetensors", "verdict": [], "plan": [["steps", "20", HOSTILE]], "prompt": "The",
    "step": {"progress": 0.5, "percent": "50%", "step": "10", "epoch": "1.0", "speed": "9,000", "left": "0:09"},
    "curve": {"steps": [5, 10], "training": [3.0, 2.0], "validation_steps": [10], "validation": [2.5]},
    "samples": [[5, " cat"], [10, HOSTILE]],
    "probe": {"prompt": "The", "points": [[5, None, [[" a", 0.5]]], [10, 2.5, [[" b", 0.75]]]]},
}  # fmt: skip


@pytest.fixture
def watch() -> Iterator[WatchServer]:
    server = WatchServer(watch_page(f"{HOSTILE}.safetensors"), "127.0.0.1", 0)
    server.state = json.dumps(STATE).encode()
    yield server
    server.stop()


def bars(page: "Page") -> list[list[str]]:
    return [text.split("\n") for text in page.locator("#probe-bars li").all_inner_texts()]


@browser_test
def test_two_tabs_follow_the_run_and_show_its_end(browser: "Browser", watch: WatchServer) -> None:
    [address] = watch.urls
    pages = [browser.new_page(locale=locale, viewport={"width": 400, "height": 800}) for locale in ("en-US", "ja-JP")]
    messages: list[str] = []
    for page in pages:
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#probe-bars li")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.locator("img").count() == 0 and HOSTILE in page.inner_text("#samples li >> nth=0")
    english, japanese = pages
    assert english.title() == f"{HOSTILE}.safetensors"
    assert english.inner_text("#figures") == "50% · step 10 · epoch 1.0 · 9,000 tokens per second · 0:09 left"
    assert japanese.inner_text("#phase") == "学習しています。"
    assert japanese.locator("#plan dt").all_text_contents() == ["ステップ数"]
    assert HOSTILE in str(japanese.text_content("#plan [lang=en]"))
    assert english.inner_text("#curve p >> nth=1") == "Training loss 2.000 bits per byte, validation loss 2.500"
    newest = [["·b", "75.0%"], ["·a", "< 25.0%"], ["all others", "25.0%"]]
    assert bars(english) == newest
    english.focus("#probe-step")
    english.keyboard.press("ArrowLeft")
    earlier = [["·b", "< 50.0%"], ["·a", "50.0%"], ["all others", "50.0%"]]
    assert bars(english) == earlier
    assert english.inner_text("#probe-value") == "Step 5: training loss 3.000 bits per byte"

    probe = {"prompt": "The", "points": [*STATE["probe"]["points"], [20, 1.0, [[" c", 1.0]]]]}
    watch.state = json.dumps(STATE | {"phase": "saved", "verdict": ["Good."], "model": True, "probe": probe}).encode()
    japanese.wait_for_selector("#model:not([hidden])")
    english.wait_for_selector("#model:not([hidden])")
    assert english.inner_text("#phase") == "The model is saved in m.safetensors."
    assert english.inner_text("#verdict") == "Good."
    assert bars(japanese)[0] == ["·c", "100.0%"]  # it follows; a slider that was moved stays
    assert english.input_value("#probe-step") == "0" and ["·a", "50.0%"] in bars(english)
    english.reload()
    english.wait_for_selector("#probe-bars li")
    assert bars(english)[0] == ["·c", "100.0%"]
    assert messages == []
    japanese.close()
    watch.state = json.dumps(STATE | {"samples": [[20, " dog"]]}).encode()
    watch.stop()
    english.locator("#phase", has_text="There is no connection to the run").wait_for()
    assert english.inner_text("#samples") == "step 20 The dog"
    assert english.inner_text("#figures") == "" and english.is_hidden("#model")
    assert english.evaluate("roundValues(1.48, 4.53)") == [2, 3, 4]
    assert english.evaluate("roundValues(0.5, 100)") == [0.5, 1, 2, 5, 10, 20, 50, 100]
    english.close()


@browser_test
def test_a_class_watches_with_the_code(browser: "Browser") -> None:
    server = WatchServer(watch_page("m.safetensors"), "0.0.0.0", 0)
    address = server.urls[-1]
    classroom = server.classroom
    assert classroom
    server.state = json.dumps(STATE | {"phase": "saved", "model": True, "class": classroom.invitation}).encode()
    server.offer("m.html", lambda: b"<title>The model</title>")
    page = browser.new_page(locale="en-US")
    page.goto(address)
    page.wait_for_selector("#problem:text('Type the class code')")
    for typed in ("CCCCCC", classroom.code.lower()):
        page.fill("#api-key", typed)
        page.press("#api-key", "Enter")
        page.wait_for_selector("#class" if typed != "CCCCCC" else "#problem:text('This is not the class code')")
    assert page.is_hidden("#key") and page.is_hidden("#problem")
    assert page.locator("#class b").text_content() == classroom.code
    assert len(str(page.get_attribute("#class path", "d"))) > 1000
    with page.expect_popup() as opened:
        page.click("#model a >> nth=0")
    assert opened.value.title() == "The model"
    with page.expect_download() as download:
        page.click("#model a >> nth=1")
    assert download.value.suggested_filename == "m.html"
    page.close()
    server.stop()
