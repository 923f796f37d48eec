"""A browser for the tests of pages, and models that are small and quick to train."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SENTENCES = (
    "I like to eat apple. I like to drink green tea. The cat likes to sleep on the mat.\n"
    "私は毎朝リンゴを食べます。猫はマットの上で寝ます。🍎🐱\n"
    "def add(a, b):\n    return a + b  # the sum\n"
)
QUESTIONS = "".join(
    f"Q: What is {a} and {b}?\nA: It is {a + b}, which is a number.\n\n" for a in range(9) for b in range(9)
)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    from tests.pages.live import BROWSER

    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def blank(browser: "Browser") -> "Iterator[Page]":
    """An empty page, which fails if the browser logs a message."""
    opened, messages = browser.new_page(), []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    yield opened
    opened.close()
    assert messages == []


@pytest.fixture
def open_html(browser: "Browser", tmp_path: Path) -> "Iterator[Callable[..., Page]]":
    """`open_html(text)`: the page with this text in an offline browser, ready. Fails if the browser logs a message, or
    asks for any address but that of the page and its workers."""
    messages: list[str] = []
    contexts = []

    def open_page(text: str, *, width: int = 1200, locale: str = "en-US") -> "Page":
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(text, "utf-8")
        size = {"width": width, "height": 800}
        context = browser.new_context(viewport=size, locale=locale, offline=True, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append("an alert"))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or messages.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


def trained(folder: Path, text: str, name: str = "model", **options: Any) -> Path:
    """The file of a model of this name, trained on a file of the same name."""
    from llmcli.api import train

    (folder / f"{name}.txt").write_text(text, "utf-8")
    small = {"steps": 60, "layers": 2, "width": 32, "heads": 2, "context": 64} | options
    list(train(folder / f"{name}.txt", folder / f"{name}.safetensors", **small))
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="session")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentences in English and Japanese, with emoji and code. It is trained until few tokens are likely:
    among equally likely ones, each search for next words takes 1,000 evaluations."""
    return trained(tmp_path_factory.mktemp("words"), SENTENCES * 40, steps=200)


@pytest.fixture(scope="session")
def characters_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("characters"), SENTENCES * 40, tokenizer="char")


@pytest.fixture(scope="session")
def experts_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("experts"), SENTENCES * 40, experts=3, steps=20)


@pytest.fixture(scope="session")
def sums_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of conversations."""
    return trained(tmp_path_factory.mktemp("sums"), QUESTIONS, layers=1, context=128)
