"""Draw the picture of the page of `llm serve` in docs/serve.md: start a server, drive the page in Chromium, and take a
screenshot.

    pip install playwright
    python examples/draw_page.py food.safetensors planets.safetensors

The first model continues a text. It takes some seconds, and needs Chromium (apt install chromium).
"""

import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "serve-page.png"
PORT = 8765
WIDTH, HEIGHT = 1100, 1130  # pixels
PROMPT = "She likes to"


def wait_for(url: str, seconds: float = 60) -> None:
    """Until a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}health", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def draw(page: Any, output: Path) -> None:
    """Continue a text by a few tokens, color them, open the alternatives of one, and save what is shown."""
    page.locator("#more").evaluate("(node) => { node.open = true; }")
    page.fill("[name=max_tokens]", "8")
    page.fill("[name=seed]", "3")
    page.locator("#more").evaluate("(node) => { node.open = false; }")
    page.fill("#text", PROMPT)
    page.click("#run")
    page.wait_for_selector("#step:not(:disabled)")
    page.select_option("#coloring", "probability")
    page.wait_for_selector("#write:not([aria-busy=true])")
    page.locator("#strip button").nth(3).click()
    page.wait_for_selector("#alternatives:not([hidden])")
    page.screenshot(path=output)


def main() -> None:
    """Serve the models that are named on the command line, and draw the page."""
    from playwright.sync_api import sync_playwright

    models = [argument for path in sys.argv[1:3] for argument in ("-m", path)]
    command = [sys.executable, "-m", "llmcli", "serve", *models, "--port", str(PORT), "-q"]
    with subprocess.Popen(command) as server, sync_playwright() as driver:
        url = f"http://127.0.0.1:{PORT}/"
        try:
            wait_for(url)
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            page.goto(url)
            page.wait_for_selector("html[data-ready]")
            draw(page, OUTPUT)
            browser.close()
        finally:
            server.terminate()
    print(f"saved {OUTPUT}, {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
