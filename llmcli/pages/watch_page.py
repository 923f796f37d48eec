"""The page of a run in progress (`llm train --watch`), which requests the state of the run every second."""

from llmcli.pages.template import fill, script_of

STYLES = ("templates/page.css", "live/page.css", "live/watch.css", "live/class.css")
SCRIPTS = (
    "templates/shared.js",
    "templates/curve.js",
    "live/texts.js",
    "live/record.js",
    "live/class.js",
    "live/watch.js",
)


def watch_page(title: str) -> bytes:
    """Return the page, which shares texts, charts and bars with the page with a model inside."""
    script = script_of(SCRIPTS, ("page", "record", "class", "watch"))
    return fill("live/watch.html", STYLES, script, title, "; connect-src 'self'; img-src data:")
