"""The worksheets of the lesson, in a real browser."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.pages.live import browser_test

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DOCS = Path(__file__).parents[2] / "docs"


@browser_test
def test_a_worksheet_is_printed_on_one_page(browser: "Browser") -> None:
    for name in ("worksheet.html", "worksheet.ja.html"):
        page = browser.new_page()
        page.goto((DOCS / name).as_uri())
        printed = page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1, name
        page.close()
