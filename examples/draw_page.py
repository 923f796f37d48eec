"""Draw the picture of the page of `llm serve` in docs/serve.md: start a server, drive the page in Chromium, and take a
screenshot.

    pip install playwright
    python examples/draw_page.py planets.safetensors food.safetensors

The first model answers, the second continues text. It takes some seconds, and needs Chromium (apt install chromium).
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
WIDTH, HEIGHT = 1200, 760  # pixels
QUESTION, PROMPT = "Which planet is the largest?", "She likes to"


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
    """Ask a question, continue a text, open the alternatives of a token, and save what is shown."""
    page.click("[data-view=both]")
    set_up(page, temperature=0, max_tokens=30, seed=3)
    page.fill("#message", QUESTION)
    page.press("#message", "Enter")
    page.wait_for_selector("#chat .regenerate:not(:disabled)")
    set_up(page, temperature=0.8)
    page.fill("#prompt", PROMPT)
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#text .regenerate:not(:disabled)")
    for pane in ("chat", "text"):
        page.select_option(f"#{pane} .coloring", "probability")
    page.locator("#text .token").nth(1).click()
    page.wait_for_selector("#details.pinned")
    page.screenshot(path=output)


def set_up(page: Any, temperature: float, **settings: object) -> None:
    """Move the slider, and fill fields of the settings."""
    page.locator(".temperature input").first.fill(str(temperature))
    page.click("#open-settings")
    for name, value in settings.items():
        page.fill(f"#setting-{name}", str(value))
    page.keyboard.press("Escape")


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
