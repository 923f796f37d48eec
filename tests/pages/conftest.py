"""A browser for the tests of pages, and models that are small and quick to train."""

from collections.abc import Iterator
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


def _trained(folder: Path, text: str, **options: Any) -> Path:
    from llmcli.api import train

    (folder / "corpus.txt").write_text(text, "utf-8")
    small = {"steps": 60, "layers": 2, "width": 32, "heads": 2, "context": 64} | options
    list(train(folder / "corpus.txt", folder / "model.safetensors", **small))
    return folder / "model.safetensors"


@pytest.fixture(scope="session")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentences in English and Japanese, with emoji and code."""
    return _trained(tmp_path_factory.mktemp("words"), SENTENCES * 40)


@pytest.fixture(scope="session")
def characters_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(tmp_path_factory.mktemp("characters"), SENTENCES * 40, tokenizer="char")


@pytest.fixture(scope="session")
def experts_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(tmp_path_factory.mktemp("experts"), SENTENCES * 40, experts=3, steps=20)


@pytest.fixture(scope="session")
def sums_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of conversations."""
    return _trained(tmp_path_factory.mktemp("sums"), QUESTIONS, layers=1, context=128)
