"""Self-contained HTML pages from the templates, styles and scripts in this package.

Text from models and users is embedded as data, never as markup, and displayed as text by the scripts; a
Content-Security-Policy forbids all other scripts.
"""

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template

LANGUAGES = ("en", "ja")  # of texts/


def fill(
    template: str, styles: Sequence[str], script: str, title: str, sources: str = "", **values: str
) -> bytes:
    """Fill a page template. `styles` are file names, `sources` follow the hash of the script in the
    Content-Security-Policy, and `values` are markup, or JSON from `json_for_script`."""
    style = joined(styles)
    title = html.escape(printable(title))
    head = Template(joined(["templates/head.html"])).substitute(
        style_hash=source_hash(style),
        script_hash=source_hash(script),
        sources=sources,
        title=title,
        style=style,
    )
    page = Template(joined([template])).substitute(head=head, title=title, script=script, **values)
    return page.encode("utf-8", "backslashreplace")


def joined(names: Sequence[str]) -> str:
    """Return the text of files in this package."""
    return "\n".join((files("llmcli.pages") / name).read_text("utf-8") for name in names)


def script_of(names: Sequence[str], sections: Sequence[str], **constants: object) -> str:
    """Join scripts, after some constants: the texts that they show, from sections of texts/, and others."""
    texts = {}
    for language in LANGUAGES:
        document = json.loads(joined([f"texts/{language}.json"]))
        texts[language] = {name: text for section in sections for name, text in document[section].items()}
    values = {"TEXTS": texts, **constants}.items()
    declarations = (f"const {name} = {json_for_script(value)};" for name, value in values)
    return "\n".join(['"use strict";', *declarations, joined(names)])


def printable(text: str) -> str:
    """Replace control characters, line ends and bidirectional overrides by spaces."""
    return "".join(c if c.isprintable() else " " for c in text)


def json_for_script(data: object) -> str:
    """Format JSON for a script element, so that no text can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def compressed(text: str) -> str:
    """Compress a script, as base64."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode()


def source_hash(text: str) -> str:
    """Hash a style or script for a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
