"""Size and speed of the page with a model inside (llm export --to html), in Chromium.

    python -m tests.benchmarks.live_page [MODEL.safetensors] [--tokens 300] [--rounds 3]

Without a model, one of 1.7M parameters with random weights. Prints the size of the page, the time until the model is
ready, and the median tokens per second at temperature 0, in the page's worker; and those of the numpy runtime.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats import checkpoint, loading
from llmcli.generation.generator import generate
from llmcli.pages.live_page import live_page
from tests.conftest import TEXT, random_checkpoint
from tests.pages.live import BROWSER, runtime_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

GENERATE = """(count) => new Promise((resolve) => {
    const started = performance.now(), settings = { temperature: 0, topP: 1, minP: 0 };
    let first = 0, tokens = 0;
    request("generate", { text: "The cat", ids: null, prefix: 0, settings, count }, ({ ids, done }) => {
        if (ids) first ||= performance.now();
        if (ids) tokens++;
        if (done) resolve([tokens, (performance.now() - first) / 1000, (first - started) / 1000]);
    });
})"""


def random_model(path: Path) -> Path:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = ModelConfig(1024, 192, 512, 4, 6, 3, 32, 512, tie_word_embeddings=True)
    checkpoint.save(path, random_checkpoint(config, tokenizer_json=tokenizer.to_json()))
    return path


def measure(page: "Page", path: Path, tokens: int, rounds: int) -> None:
    started = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    print(f"ready after {time.perf_counter() - started:.2f} s")
    results = [page.evaluate(GENERATE, tokens) for _ in range(rounds)]
    speeds = [(count - 1) / seconds for count, seconds, _ in results if count > 1]
    print(f"page: {statistics.median(speeds):.0f} tokens/s, first token after {results[0][2]:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder) / "random.safetensors")
        loaded = loading.load(model)
        text = live_page(loaded, options.dtype, print)
        path = Path(folder) / "page.html"
        path.write_bytes(text)
        print(f"{loaded.parameters:,} parameters, page {len(text):,} bytes")
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            measure(browser.new_page(), path, options.tokens, options.rounds)
            browser.close()
        runtime, sampling = runtime_of(model), SamplingConfig(max_tokens=options.tokens, temperature=0)
        from llmcli.formats.loading import open_tokenizer

        began, count = 0.0, 0
        for _ in generate(runtime, open_tokenizer(loaded), "The cat", sampling):
            began, count = began or time.perf_counter(), count + 1
        print(f"numpy: {(count - 1) / (time.perf_counter() - began):.0f} tokens/s")


if __name__ == "__main__":
    main()
