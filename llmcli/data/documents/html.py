"""Web pages: the main text of HTML, with headings, lists and tables as lines, without navigation, scripts and styles.

resiliparse parses as browsers do, and finds the main text by rules.
"""

import re
from typing import IO

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import ElementNode, HTMLTree

from llmcli.data.documents.extracted import Extracted, ExtractionError

_MIN_MAIN_SHARE = 0.1  # minimum share of a page's text that counts as its main text
_MAX_LINKED = 0.5  # share of linked text beyond which a list is navigation
_META_BYTES = 4096  # start of a page in which it declares its encoding
_DECLARED = re.compile(rb"""(?:charset|<\?xml[^>]{0,100}encoding)\s*=[\s"']*([\w.:-]{2,40})""", re.I)
# tags of serialized HTML; the last one may be cut off: without a ">", each "<" would search the rest for it
_LINK, _TAG = re.compile(r"<a\b[^>]*>?"), re.compile(r"<[^>]*>?")
_SKIPPED_ELEMENTS = ("rt", "rp", "template")  # pronunciation above characters, which would stand between them
_ITEM = "§§§"  # at the beginning of an item of an unordered list
_LIST_TAG = re.compile(r"<(?:li|(/?)[uo]l)(?=[ >])[^>]*>?")
_LIST_INDENT = re.compile(r"\n  ( *(?:•|[0-9]+\.) )")
# such as の or — between two links, and what makes resiliparse not take it for an icon
_LONE_CHARACTER = re.compile(r"(>\s*(?:[\u0800-\ud7ff\uf900-\uffff]|&#?\w{2,8};))(?=\s*<)")
_KEEP = "\u2063\u2063"


def extract(file: IO[bytes], name: str) -> Extracted:
    if text := main_text(decode(file.read())):
        yield text
    else:
        raise ExtractionError("has no text")


def main_text(html: str) -> str:
    """Return the text of a page without navigation, or all of its text if no main text is found."""
    tree = HTMLTree.parse(_LONE_CHARACTER.sub(rf"\1{_KEEP}", html))
    if tree.body is None:
        return ""
    # resiliparse takes few <ul> for main text: those that are no navigation become ordered lists with marked items
    lists = tree.body.get_elements_by_tag_name("ul")[:]  # fast, unlike its iterator
    for element in reversed([one for one in lists if not _is_navigation(one)]):
        element.outer_html = f"<ol>{_with_marked_items(element.inner_html)}</ol>"
    main = _text(tree, main_content=True)
    least = len(main) / _MIN_MAIN_SHARE
    if least >= len(html) or least >= len(tree.body.text or ""):  # both are longer than the text, and fast
        return main
    everything = _text(tree)
    return main if least >= len(everything) else everything


def plain_text(html: str) -> str:
    """Return all text of a page, ending in "\\n"; "" if there is none."""
    return _text(HTMLTree.parse(html))


def _text(tree: HTMLTree, *, main_content: bool = False) -> str:
    text = extract_plain_text(
        tree, preserve_formatting=True, main_content=main_content, alt_texts=False, skip_elements=_SKIPPED_ELEMENTS
    )
    items = text.split(_ITEM)
    items[1:] = [item.lstrip() for item in items[1:]]
    items[:-1] = [item.rstrip(" .").rstrip("0123456789") for item in items[:-1]]  # the number of the next one
    text = "\n" + "• ".join(items).replace("\t\t", "\t").replace(_KEEP, "")
    text = "\n".join([line.rstrip(" \t") for line in _LIST_INDENT.sub(r"\n\1", text).split("\n")])
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n") + "\n" if text.strip() else ""


def _is_navigation(element: ElementNode) -> bool:
    # faster than the texts of its nodes
    links = (_LINK.split(part, 1) for part in element.html.split("</a>")[:-1])
    linked = sum(len(_TAG.sub("", text)) for _, *texts in links for text in texts)
    return linked > _MAX_LINKED * len(element.text or "")


def _with_marked_items(items: str) -> str:
    """Mark the items of an unordered list, but not those of lists in it."""
    depth = 0

    def mark(tag: re.Match[str]) -> str:
        nonlocal depth
        if tag[1] is None:
            is_empty = tag.string.startswith("</li>", tag.end())
            return tag[0] + _ITEM * (depth == 0 and not is_empty)
        depth += -1 if tag[1] else 1
        return tag[0]

    return _LIST_TAG.sub(mark, items)


def decode(data: bytes, declared: str | None = None) -> str:
    """Decode a page by its byte-order mark, as UTF-8, as `declared` or as it declares itself, or by guessing from its
    bytes. Most pages that declare a wrong encoding are UTF-8; text in another encoding is hardly ever valid UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    if b"\x1b$" not in data[:_META_BYTES]:  # ISO-2022-JP is all ASCII
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    if not declared and (match := _DECLARED.search(data[:_META_BYTES])):
        declared = match[1].decode("ascii")
    encoding = map_encoding_to_html5(declared, fallback_utf8=False) if declared else None
    if not encoding or encoding == "utf-8":
        encoding = detect_encoding(data) or "utf-8"
    return bytes_to_str(data, encoding, errors="replace")
