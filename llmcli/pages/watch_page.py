"""The page of a run in progress (`llm train --watch`), which asks its server for the state of the run every second."""

import html
from importlib.resources import files
from string import Template

from llmcli.pages.html import printable, source_hash


def watch_page(title: str) -> bytes:
    """Write the page. Its texts, charts and bars are those of the page with a model inside."""

    def joined(*names: str) -> str:
        return "\n".join((files("llmcli.pages") / name).read_text("utf-8") for name in names)

    style = joined("templates/page.css", "live/page.css", "live/watch.css")
    script = joined("templates/shared.js", "templates/curve.js", "live/texts.js", "live/record.js", "live/watch.js")
    page = Template(joined("live/watch.html")).substitute(
        style_hash=source_hash(style), script_hash=source_hash(script), title=html.escape(printable(title)),
        style=style, script=script,
    )  # fmt: skip
    return page.encode("utf-8", "backslashreplace")
