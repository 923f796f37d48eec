"""Draw the pictures of the page with a model inside, and of the page that trains a model: open them in Chromium,
light and dark.

    pip install playwright
    python examples/draw_live_page.py food.safetensors

It takes about a minute, and needs Chromium (apt install chromium).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH, HEIGHT = 1100, 820  # pixels
PROMPT, WITHOUT = "The cat likes to", ("1.2", "2")
SCHEMES = {"light": "live-page.png", "dark": "live-page-dark.png"}
TRAINING_SCHEMES = {"light": "train-page.png", "dark": "train-page-dark.png"}
TRAINING_HEIGHT = 1270  # pixels
TRAINING_PROMPT = "The cat likes to"


def draw(page: Any, output: Path) -> None:
    """Save what the page shows inside the model once all of it is computed."""
    page.wait_for_selector("html[data-ready]")
    page.wait_for_selector("#effects li")
    page.screenshot(path=output)


def draw_training(page: Any, output: Path) -> None:
    """Train on the English example to the end, and save what the page shows."""
    page.wait_for_selector("html[data-ready]")
    page.click("#train-examples button")
    page.wait_for_selector("#train-start:enabled")
    page.wait_for_function("document.getElementById('train-plan').textContent.includes('Plan')")
    page.click("#train-start")
    page.wait_for_selector("#tab-write", state="visible", timeout=60_000)
    page.fill("#train-prompt", TRAINING_PROMPT)
    page.wait_for_selector("#train-pause:disabled", timeout=120_000)
    page.wait_for_timeout(2000)  # the bars and the sample of the last model
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=output)


def main() -> None:
    """Draw the page of the model that is named on the command line, and the page without a model."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as directory, sync_playwright() as driver:
        file = Path(directory, "page.html")
        without = [word for part in WITHOUT for word in ("--without", part)]
        options = ["-m", sys.argv[1], *without, "--html", str(file), "-q"]
        subprocess.run([sys.executable, "-m", "llmcli", "explain", PROMPT, *options], check=True)
        training_file = Path(directory, "train.html")
        options = ["--to", "html", "--trainable", str(training_file)]
        subprocess.run([sys.executable, "-m", "llmcli", "export", *options, "-q"], check=True)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for shown, height, schemes, draw_page in [
            (file, HEIGHT, SCHEMES, draw),
            (training_file, TRAINING_HEIGHT, TRAINING_SCHEMES, draw_training),
        ]:
            for scheme, name in schemes.items():
                page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
                page.goto(shown.as_uri())
                draw_page(page, DOCS / name)
                print(f"saved {DOCS / name}, {(DOCS / name).stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
