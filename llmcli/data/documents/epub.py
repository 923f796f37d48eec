"""EPUB books: the chapters in the order in which they are read."""

import re
import zipfile

from llmcli.data.documents import packages
from llmcli.data.documents.extracted import Extracted, ExtractionError, File, SkippedParts
from llmcli.data.documents.html import VOID_ELEMENTS, decode, plain_text

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONT_OBFUSCATION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_TEXT_TYPES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_EMPTY_ELEMENT = re.compile(rf"<(?!(?:{VOID_ELEMENTS})\b)([a-zA-Z][\w:-]*)((?:\s[^<>]*)?)/>")


def extract(file: File, skipped: SkippedParts) -> Extracted:
    with packages.open_package(file) as package:
        _refuse_protection(package)
        separator = ""
        for part in _reading_order(package, skipped):
            if text := plain_text(as_html(decode(packages.read_part(package, part)))):
                yield separator + text
                separator = "\n"


def _refuse_protection(package: zipfile.ZipFile) -> None:
    if _ENCRYPTION not in package.namelist():
        return
    methods = packages.elements(package, _ENCRYPTION, "EncryptionMethod")
    if any(attributes.get("Algorithm") not in _FONT_OBFUSCATION for _, attributes in methods):
        raise ExtractionError("is protected (DRM) and cannot be read; get an edition without protection")


def _reading_order(package: zipfile.ZipFile, skipped: SkippedParts) -> list[str]:
    """Return the parts with the chapters."""
    root = next(
        (attributes.get("full-path") for _, attributes in packages.elements(package, _CONTAINER, "rootfile")),
        None,
    )
    if not root:
        raise ExtractionError("is damaged: its container names no book")
    items: dict[str, dict[str, str]] = {}
    chapters: list[str] = []
    for element, attributes in packages.elements(package, root, "item", "itemref"):
        if element == "item":
            items[attributes.get("id", "")] = attributes
            continue
        item = items.get(attributes.get("idref", ""), {})
        if "nav" in item.get("properties", "").split():
            skipped["table of contents"] += 1
        elif attributes.get("linear") == "no":
            skipped["part outside the main text"] += 1
        elif item.get("media-type") not in _TEXT_TYPES:
            skipped["part that is not text"] += 1
        else:
            chapters.append(packages.relative_part(root, item.get("href", "")))
    if not chapters:
        raise ExtractionError("has no chapters")
    return chapters


def as_html(xhtml: str) -> str:
    """Convert XHTML to HTML: elements such as <title/> get an end tag; without it they would hide everything
    that follows."""
    return _EMPTY_ELEMENT.sub(r"<\1\2></\1>", xhtml)
