"""Web pages: the main text of HTML, with headings, lists and tables as lines, without navigation, scripts and
styles.

resiliparse parses pages as browsers do, and finds the main text by rules.
"""

import re

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from llmcli.data.documents.extracted import Extracted, File, SkippedParts

_MIN_MAIN_SHARE = 0.1  # minimum share of a page's text that counts as its main text
_MAX_LINKED = 0.5  # share of linked text beyond which a list is navigation
_META_BYTES = 4096  # start of a page in which it declares its encoding
_DECLARED = re.compile(rb"""(?:charset|<\?xml[^>]{0,100}encoding)\s*=[\s"']*([\w.:-]{2,40})""", re.I)
# tags of serialized HTML. A last tag without ">" also matches: otherwise each "<" would search the whole rest
_TAG = re.compile(r"<(/?)([\w:-]*)[^>]*>?")
_LIST_TAG = re.compile(r"<(/?)(li|[uo]l)(?=[ >])[^>]*>?")
# rt and rp: ruby, the pronunciation above characters, which would be inserted between them
_SKIPPED_ELEMENTS = ("rt", "rp", "template")
_ITEM = "§§§"  # at the beginning of an item of an unordered list
_MAX_LISTS = 50  # nested lists that are indented
# finding the main text takes quadratic time for many nested elements; above both numbers, it takes seconds
_MANY = 5000
_MAX_DEPTH = 512
VOID_ELEMENTS = "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
_VOID = frozenset(VOID_ELEMENTS.split("|"))
_LIST_INDENT = re.compile(r"\n  ( *(?:•|[0-9]+\.) )")
# a single character between two links, such as の or —, and a marker that stops resiliparse from treating it
# as an icon
_LONE_CHARACTER = re.compile(r"(>\s*(?:[\u0800-\ud7ff\uf900-\uffff]|&#?\w{2,8};))(?=\s*<)")
_KEEP = "\u2063\u2063"


def extract(file: File, skipped: SkippedParts) -> Extracted:
    if text := main_text(decode(file.read())):
        yield text


def main_text(html: str) -> str:
    """Return the text of a page without navigation, or all of its text if no main text is found."""
    tree = HTMLTree.parse(_LONE_CHARACTER.sub(rf"\1{_KEEP}", html))
    if tree.body is None:
        return ""
    body = tree.body.inner_html
    if "<ul" in body or "<ol" in body:
        tree.body.inner_html = _with_marked_lists(body)
        body = tree.body.inner_html
    if body.count("</") > _MANY and _depth(body) > _MAX_DEPTH:
        return _text(tree)
    main = _text(tree, main_content=True)
    shortest = len(main) / _MIN_MAIN_SHARE
    # both lengths are upper bounds for the length of all text, and fast to compute
    if shortest >= len(html) or shortest >= len(tree.body.text or ""):
        return main
    everything = _text(tree)
    return main if shortest >= len(everything) else everything


def plain_text(html: str) -> str:
    """Return all text of a page, ending in "\\n"; "" if there is none."""
    return _text(HTMLTree.parse(html))


def _text(tree: HTMLTree, *, main_content: bool = False) -> str:
    text = extract_plain_text(
        tree,
        preserve_formatting=True,
        main_content=main_content,
        alt_texts=False,
        skip_elements=_SKIPPED_ELEMENTS,
    )
    items = text.split(_ITEM)
    items[1:] = [item.lstrip() for item in items[1:]]
    # the number of the next item
    items[:-1] = [item.rstrip(" .").rstrip("0123456789") for item in items[:-1]]
    text = "\n" + "• ".join(items).replace("\t\t", "\t").replace(_KEEP, "")
    text = "\n".join([line.rstrip(" \t") for line in _LIST_INDENT.sub(r"\n\1", text).split("\n")])
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n") + "\n" if text.strip() else ""


def _depth(html: str) -> int:
    """Return the maximum nesting depth of the elements."""
    depth = deepest = 0
    for end, name in _TAG.findall(html):
        if end:
            depth -= 1
        elif name and name not in _VOID:
            depth += 1
            deepest = max(deepest, depth)
    return deepest


def _with_marked_lists(html: str) -> str:
    """Turn unordered lists that are not navigation into ordered lists with marked items, because resiliparse
    rarely counts <ul> as main text. Lists that are nested too deeply are merged with the list around them."""
    navigation = _navigation(html)
    opened: list[bool] = []  # whether each list around a tag was turned into an ordered one

    def replace(tag: re.Match[str]) -> str:
        end, name = tag.groups()
        if name == "li":
            is_item = not end and opened and opened[-1] and not tag.string.startswith("</li>", tag.end())
            return tag[0] + _ITEM if is_item else tag[0]
        if end:
            is_turned = bool(opened) and opened.pop()
        else:
            is_turned = name == "ul" and tag.start() not in navigation
            opened.append(is_turned)
        if len(opened) + bool(end) > _MAX_LISTS:
            return ""
        return f"<{end}ol>" if is_turned else tag[0]

    return _LIST_TAG.sub(replace, html)


def _navigation(html: str) -> set[int]:
    """Return the positions of unordered lists whose text is mostly links."""
    navigation: set[int] = set()
    opened: list[tuple[int, int, int]] = []  # (position of a list, text before it, linked text before it)
    text = linked = position = 0
    is_link = False
    for tag in _TAG.finditer(html):
        size = tag.start() - position
        position = tag.end()
        text += size
        linked += size if is_link else 0
        end, name = tag.groups()
        if name == "a":
            is_link = not end
        elif name == "ul" and not end:
            opened.append((tag.start(), text, linked))
        elif name == "ul" and opened:
            start, text_before, linked_before = opened.pop()
            if linked - linked_before > _MAX_LINKED * (text - text_before):
                navigation.add(start)
    return navigation


def decode(data: bytes, declared: str | None = None) -> str:
    """Decode a page by its byte-order mark, as UTF-8, by the `declared` encoding or its own declaration, or
    by detection from its bytes, in this order. Most pages that declare a wrong encoding are UTF-8, and text
    in other encodings is hardly ever valid UTF-8."""
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
