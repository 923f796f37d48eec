"""Draw the pictures of the page with a model inside in docs/explain.md: open it in Chromium, light and dark.

    pip install playwright
    python examples/draw_live_page.py food.safetensors

It takes some seconds, and needs Chromium (apt install chromium).
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


def draw(page: Any, output: Path) -> None:
    """Save what the page shows inside the model once all of it is computed."""
    page.wait_for_selector("html[data-ready]")
    page.wait_for_selector("#effects li")
    page.screenshot(path=output)


def main() -> None:
    """Draw the page of the model that is named on the command line."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as directory, sync_playwright() as driver:
        file = Path(directory, "page.html")
        without = [word for part in WITHOUT for word in ("--without", part)]
        options = ["-m", sys.argv[1], *without, "--html", str(file), "-q"]
        subprocess.run([sys.executable, "-m", "llmcli", "explain", PROMPT, *options], check=True)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme, name in SCHEMES.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page.goto(file.as_uri())
            draw(page, DOCS / name)
            print(f"saved {DOCS / name}, {(DOCS / name).stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
