"""The kind of lines in a text: entries of a list, or of a log."""

import re
from typing import Literal

LineKind = Literal["list", "log"]

MIN_LINES = 20  # minimum of nonempty lines
MIN_LINE_SHARE = 0.9  # minimum share of the lines that are of the kind
MAX_ITEM = 40  # characters in an item of a list
# "2026-01-31", "31.1.2026", "12:00:06", "Jan 31 12:00", possibly in brackets, or a web server's "::1 - -
# [31/Jan/2026"
_TIME = re.compile(
    r"\W?(\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{4}|"
    r"\d\d?:\d\d:\d\d|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d)"
    r"|\S+ \S+ \S+ \[\d\d/[A-Z][a-z]{2}/\d{4}"
)
_SENTENCE_END = (".", "!", "?", ",", ";", ":", "。", "！", "？", "、")


def line_kind(text: str) -> LineKind | None:
    """Return the kind of most lines in a text: log entries with a time, or list items (short, distinct, and
    not sentences). None if the lines are neither, or too few.

    >>> line_kind("".join(f"12:00:{second} GET /\\n" for second in range(10, 60)))
    'log'
    >>> line_kind("".join(f"Item {i}\\n" for i in range(50))), line_kind("I like tea.\\nI like soup.\\n" * 25)
    ('list', None)
    """
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if len(lines) < MIN_LINES:
        return None
    if sum(bool(_TIME.match(line)) for line in lines) >= MIN_LINE_SHARE * len(lines):
        return "log"
    items = [line for line in lines if len(line) <= MAX_ITEM and not line.endswith(_SENTENCE_END)]
    return "list" if min(len(items), len(set(lines))) >= MIN_LINE_SHARE * len(lines) else None
