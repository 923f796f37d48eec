"""Mail: the subject and the text of each message in an mbox file, or of a single message (.eml).

Left out: quoted lines and the line that introduces them, signatures, and attachments.
"""

import re
from collections.abc import Iterator
from email import policy
from email.message import Message
from email.parser import BytesParser
from typing import cast

from llmcli.data.documents.extracted import Extracted, ExtractionError, File, SkippedParts
from llmcli.data.text.encodings import codec_of
from llmcli.errors import LLMError

_SEPARATOR = re.compile(rb"From \S.*\d\d:\d\d")  # before each message of an mbox file, after a blank line
_ESCAPED = re.compile(rb">+From ")
_MAX_MESSAGE = 1 << 25  # bytes that are parsed; a longer message has attachments, which come last
_MAX_LINE = 1 << 16
# bytes of all headers of a message, and of each line if there are more
_MAX_HEADERS = 1 << 18
_MAX_HEADER = 1 << 14
_ANNOUNCEMENT = re.compile(r"(?=.*(?:\d|@|wrote|schrieb|écrit|escribió|scritto|書)).*[:：]\s*")
# the first of two lines: it has a digit, as in a date, and does not end a sentence
_BEGUN_ANNOUNCEMENT = re.compile(r"(?=.*\d).*[^.!?。！？\s]\s*")
_SIGNATURE = "-- "  # the line before a signature (RFC 3676, section 4.3)


def extract(file: File, skipped: SkippedParts) -> Extracted:
    first = file.readline(_MAX_LINE)
    is_mailbox = bool(_SEPARATOR.match(first))
    has_text = False
    for number, data in enumerate(_messages(file) if is_mailbox else [first + file.read(_MAX_MESSAGE)], 1):
        try:
            # this class's policy is much faster than the default one
            message = BytesParser().parsebytes(_with_short_headers(data, skipped))
            subject = _subject(message)
            texts = (_without_signature(_text(part), skipped) for part in _text_parts(message, skipped))
            parts = [text for raw in texts if (text := raw.strip("\n"))]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # the standard library's parser fails on some damaged headers
            skipped["damaged message"] += 1
            continue
        lines = _without_quotes("\n\n".join(parts).split("\n"), skipped)
        text = "\n\n".join(filter(None, [subject and f"Subject: {subject}", "\n".join(lines).strip("\n")]))
        if text:
            has_text = True
            if is_mailbox:
                yield str(number), len(data)
            yield text + "\n"
    if not has_text and not skipped:
        raise ExtractionError("has no messages")


def _messages(file: File) -> Iterator[bytes]:
    """Yield the messages of an mbox file after its first line."""
    lines: list[bytes] = []
    size = 0
    after_blank = False
    while line := file.readline(_MAX_LINE):
        if after_blank and _SEPARATOR.match(line):
            yield b"".join(lines)
            lines = []
            size = 0
        elif size < _MAX_MESSAGE:
            lines.append(line[1:] if _ESCAPED.match(line) else line)
            size += len(line)
        after_blank = not line.strip()
    yield b"".join(lines)


def _with_short_headers(data: bytes, skipped: SkippedParts) -> bytes:
    """Cut long headers: the standard library takes quadratic time and much memory to parse them."""
    head, blank, body = data.partition(b"\n\n")
    if len(head) <= _MAX_HEADERS:
        return data
    skipped["header that is too long"] += 1
    return b"\n".join(line[:_MAX_HEADER] for line in head.split(b"\n"))[:_MAX_HEADERS] + blank + body


def _subject(message: Message) -> str:
    raw = next((value for name, value in message.raw_items() if name.lower() == "subject"), "")
    raw = str(raw)[:_MAX_HEADER]
    return " ".join(str(policy.default.header_fetch_parse("Subject", raw)).split())


def _text_parts(part: Message, skipped: SkippedParts) -> list[Message]:
    """Return the parts that are displayed as text; among alternatives, plain text if there is any, or else
    the first with text."""
    kind = part.get_content_type()
    if part.is_multipart():
        groups = [_text_parts(child, skipped) for child in cast("list[Message]", part.get_payload())]
        if kind != "multipart/alternative":
            return [child for parts in groups for child in parts]
        return min(
            filter(None, groups), key=lambda parts: parts[0].get_content_type() != "text/plain", default=[]
        )
    if kind in ("text/plain", "text/html") and part.get_content_disposition() != "attachment":
        return [part]
    skipped["attachment"] += 1
    return []


def _text(part: Message) -> str:
    data = part.get_payload(decode=True) or b""
    assert isinstance(data, bytes)  # the part has no parts
    charset = (part.get_content_charset() or "").lower()
    if part.get_content_type() == "text/html":
        from llmcli.data.documents import html  # needs an optional package, unlike plain text

        return html.plain_text(html.decode(data, charset or None))
    for encoding in ("utf-8", charset):
        if encoding == "utf-8" and b"\x1b" in data:  # ISO-2022-JP is all ASCII
            continue
        try:
            return data.decode(codec_of(encoding)).replace("\r\n", "\n")
        except (UnicodeError, LLMError):
            pass
    return data.decode("cp1252", "replace").replace("\r\n", "\n")


def _without_signature(text: str, skipped: SkippedParts) -> str:
    before, mark, _ = text.partition(f"\n{_SIGNATURE}\n")
    if mark:
        skipped["signature"] += 1
    return before


def _without_quotes(lines: list[str], skipped: SkippedParts) -> list[str]:
    """Return the lines of a message without quotations and the lines that introduce them ("On Monday, Ana
    wrote:")."""
    kept = list[str]()
    for line in lines:
        if not line.lstrip(" \t").startswith(">"):
            kept.append(line)
            continue
        skipped["quoted line"] += 1
        while kept and not kept[-1].strip():
            kept.pop()
        if kept and _ANNOUNCEMENT.fullmatch(kept[-1]):
            kept.pop()
            if kept and _BEGUN_ANNOUNCEMENT.fullmatch(kept[-1]):
                kept.pop()
    return kept
