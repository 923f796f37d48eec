"""Driving the page with a model inside: its run program alone in a browser, or the page itself."""

import base64
import gzip
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats import checkpoint, loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.ngram_runtime import with_ngram_cache
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Runtime
from llmcli.pages.live_page import live_page
from llmcli.pages.live_weights import with_page_values
from llmcli.pages.template import LANGUAGES, joined

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None or find_spec("playwright") is None, reason="needs chromium, and playwright: pip install playwright"
)


def browser_test(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that drives a browser."""
    marked: Callable[..., None] = pytest.mark.slow(needs_browser(test))
    return marked


TEXTS = {language: json.loads(joined([f"texts/{language}.json"])) for language in LANGUAGES}
GREEDY = {"temperature": 0, "topP": 1, "minP": 0}
PLAIN = {"temperature": 1, "topP": 1, "minP": 0}
CACHE = {"weights": [[-2.5, 0.3, -0.8, -0.1], [-1.5, 0.4, -0.9, -0.1], [-0.5, 0.5, -1.0, -0.2]]}


def page_of(model: Path, dtype: str | None = "f32", **opening: Any) -> str:
    """The text of the page of a model file."""
    page = live_page(loading.load(model), dtype, lambda note: None, **opening)
    return page.decode("utf-8")


def runtime_of(model: Path, dtype: str = "f32") -> Runtime:
    """The model as its page computes with it, in numpy."""
    loaded = loading.load(model)
    network = NumpyRuntime(with_page_values(loaded, dtype))
    return with_ngram_cache(network, loaded.record.ngram_cache)


def save_with_cache(path: Path, model: Checkpoint, tokenizer: Tokenizer | None = None) -> Path:
    """Write a model with an n-gram cache, whatever it was trained on."""
    json_ = model.tokenizer_json if tokenizer is None else tokenizer.to_json()
    checkpoint.save(
        path, replace(model, record=model.record | {"ngram_cache": CACHE}, tokenizer_source=json_, path=None)
    )
    return path


def switched_off(model: Checkpoint, without: Sequence[str]) -> Checkpoint:
    """Set the output matrices of parts to 0."""
    tensors = {name: np.array(tensor) for name, tensor in model.tensors.items()}
    D = model.config.head_dim
    for part in without:
        layer, _, head = part.partition(".")
        start = f"model.layers.{int(layer) - 1}."
        columns = slice((int(head) - 1) * D, int(head) * D) if head else slice(None)
        tensors[f"{start}self_attn.o_proj.weight"][:, columns] = 0
        for name, tensor in tensors.items():
            is_output = name.rpartition(".")[0].endswith(("o_proj", "down_proj"))
            if name.startswith(start) and is_output and not head:
                tensor[:] = 0
    return replace(model, tensors=tensors)


def element(text: str, id_: str) -> str:
    found = re.search(rf'<script type="[^"]*" id="{id_}">(.*?)</script>', text, re.S)
    assert found
    return found[1]


def worker_of(text: str) -> str:
    """The program of the worker; that of a trainable page is compressed."""
    worker = element(text, "worker")
    return worker if worker.startswith('"use strict"') else gzip.decompress(base64.b64decode(worker)).decode()


def bars(page: "Page", list_: str = "next") -> list[tuple[str, float]]:
    """(name, percent) of the bars."""
    rows = page.locator(f"#{list_} li").evaluate_all(
        "(all) => all.map((one) => [one.children[0].textContent, parseFloat(one.children[1].textContent)])"
    )
    return [tuple(row) for row in rows]


def wait_until_shown(page: "Page") -> None:
    """Wait until the open tab shows all."""
    page.wait_for_selector("[role=tabpanel]:not([hidden]):not([aria-busy=true])")


def settle(page: "Page", list_: str = "next") -> list[tuple[str, float]]:
    """The bars, once all are shown."""
    wait_until_shown(page)
    return bars(page, list_)


def set_slider(page: "Page", name: str, value: float) -> None:
    page.locator(f"#{name}").evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', { bubbles: true })); }", value
    )


class Program:
    """The run program of a page, in a browser, without the page around it."""

    def __init__(self, page: "Page", text: str) -> None:
        self.page = page
        page.goto("about:blank")
        page.add_script_tag(content=worker_of(text))
        page.evaluate(
            "([data, weights]) => open({ data, weights })",
            [json.loads(element(text, "data")), element(text, "weights")],
        )

    def logits(self, ids: list[int]) -> list[list[float]]:
        script = "(ids) => { runtime.rewind(); return runtime.read(ids, { every: true }).map((row) => [...row]); }"
        return self.page.evaluate(script, ids)  # type: ignore[no-any-return]

    def generate(self, text: str, count: int, settings: dict[str, float] = GREEDY) -> str:
        """What the page adds to a text."""
        script = """async ([text, settings, count]) => {
            let written = "";
            const request = { text, ids: null, prefix: 0, settings, count };
            for await (const { piece } of jobs.generate(request, async () => {})) written += piece ?? "";
            return written;
        }"""
        return self.page.evaluate(script, [text, settings, count])  # type: ignore[no-any-return]

    def next(self, text: str, unit: str = "words", settings: dict[str, float] = PLAIN) -> Any:
        """The last answer to what comes next."""
        script = """async ([text, settings, unit]) => {
            let last = null;
            const request = { text, ids: null, prefix: 0, settings, unit };
            for await (const answer of jobs.next(request, async () => {})) last = answer;
            return last;
        }"""
        return self.page.evaluate(script, [text, settings, unit])

    def inside(self, text: str, without: list[str]) -> Any:
        """All answers about a prediction in one; "attention" [L, H, N, N] has zeros after the diagonal."""
        script = """async ([text, without]) => {
            const all = {}, request = { text, ids: null, prefix: 0, without }, { layers, config } = runtime.model;
            for await (const answer of jobs.inside(request, async () => {})) {
                all.quick ??= answer.pairs;
                Object.assign(all, answer);
            }
            const heads = [...Array(config.num_attention_heads).keys()], rows = all.labels.map((_, i) => i);
            const weights = rows.map((position) => atOnce.attention({ position }).attention);
            all.last = all.attention.map((heads) => heads.map((row) => [...row]));
            all.attention = layers.map((_, layer) => heads.map((head) => rows.map((i) =>
                [...(weights[i][layer][head] ?? []), ...rows.slice(i + 1).map(() => 0)])));
            return all;
        }"""
        return self.page.evaluate(script, [text, without])

    def chat(self, messages: list[str], settings: dict[str, float] = GREEDY) -> dict[str, Any]:
        script = """async ([messages, settings]) => {
            const answer = { content: "" };
            for await (const news of jobs.chat({ messages, settings }, async () => {})) Object.assign(answer, news);
            return answer;
        }"""
        return self.page.evaluate(script, [messages, settings])  # type: ignore[no-any-return]
