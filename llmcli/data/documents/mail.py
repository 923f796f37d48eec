"""Mail: the subject and the text of each message of an mbox file, or of a single message (.eml).

Quoted lines that occur in an earlier message are left out with the line that announces them, and so are
signatures and attachments.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator
from email import policy
from email.message import Message
from email.parser import BytesFeedParser
from typing import IO, cast

from llmcli.data.documents.extracted import Extracted, ExtractionError, Part, Skipped

_SEPARATOR = re.compile(rb"From \S.*\d\d:\d\d")  # before each message of an mbox file, after a blank line
_ESCAPED = re.compile(rb">+From ")
_MAX_MESSAGE = 1 << 25  # bytes that are parsed; attachments make a message long, and come last
_FED_BYTES, _MAX_SECONDS = 1 << 14, 20.0  # parsed at once, and the time for all
_MAX_LINE = 1 << 16
# bytes of all headers of a message, and of each line, if there are more
_MAX_HEADERS, _MAX_HEADER = (
    1 << 18,
    1 << 14,
)
_QUOTED = re.compile(r"[ \t]*>[> \t]*")
_ANNOUNCEMENT = re.compile(r"(?=.*(?:\d|@|wrote|schrieb|écrit|escribió|scritto|書)).*[:：]\s*")
_BEGUN_ANNOUNCEMENT = re.compile(r"(?=.*\d).*[^.!?。！？\s]\s*")  # with a date, and no end of a sentence
_SIGNATURE = "-- "  # the line before a signature (RFC 3676, section 4.3)
_REMEMBERED = 500_000  # lines, at least, that are compared with quoted ones
# What mail declares, and the superset of it that mail programs write
_ENCODINGS = {
    "us-ascii": "utf-8",
    "iso-8859-1": "cp1252",
    "shift_jis": "cp932",
    "iso-2022-jp": "iso2022_jp_ext",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
}


def extract(file: IO[bytes], name: str) -> Extracted:
    is_mailbox = bool(_SEPARATOR.match(file.readline(_MAX_LINE)))
    file.seek(0)
    earlier, skipped, has_text = _EarlierLines(), Counter[str](), False
    for number, data in enumerate(_messages(file), 1):
        try:
            message = _parsed(data, skipped)
            subject = _subject(message)
            texts = (_without_signature(_text(part), skipped) for part in _text_parts(message, skipped))
            parts = [text for one in texts if (text := one.strip("\n"))]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # the standard library's parser fails on some damaged headers
            skipped["damaged message"] += 1
            continue
        lines = earlier.without_quotes("\n\n".join(parts).split("\n"), skipped)
        text = "\n\n".join(filter(None, [subject and f"Subject: {subject}", "\n".join(lines).strip("\n")]))
        if text:
            has_text = True
            if is_mailbox:
                yield Part(str(number), len(data))
            yield text + "\n"
            yield from (Skipped(reason, count) for reason, count in skipped.items())
            skipped.clear()
    if not has_text and not skipped:
        raise ExtractionError("has no messages")
    yield from (Skipped(reason, count) for reason, count in skipped.items())


def _messages(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the messages of an mbox file; any other file is one message."""
    first = file.readline(_MAX_LINE)
    if not _SEPARATOR.match(first):
        yield first + file.read(_MAX_MESSAGE)
        return
    lines: list[bytes] = []
    size, after_blank = 0, False
    while line := file.readline(_MAX_LINE):
        if after_blank and _SEPARATOR.match(line):
            yield b"".join(lines)
            lines, size = [], 0
        elif size < _MAX_MESSAGE:
            lines.append(line[1:] if _ESCAPED.match(line) else line)
            size += len(line)
        after_blank = not line.strip()
    yield b"".join(lines)


def _parsed(data: bytes, skipped: Counter[str]) -> Message:
    """Parse a message, or as much of it as can be parsed in some time: deeply nested parts take long."""
    head, blank, body = data.partition(b"\n\n")
    if len(head) > _MAX_HEADERS:  # the standard library takes quadratic time for long ones
        skipped["header that is too long"] += 1
        head = b"\n".join(line[:_MAX_HEADER] for line in head.split(b"\n"))[:_MAX_HEADERS]
        data = head + blank + body
    parser, started = BytesFeedParser(), time.monotonic()  # its policy is much faster than the default one
    for start in range(0, len(data), _FED_BYTES):
        if time.monotonic() - started > _MAX_SECONDS:
            skipped["rest of a message that takes long to parse"] += 1
            break
        parser.feed(data[start : start + _FED_BYTES])
    return parser.close()


def _subject(message: Message) -> str:
    raw = next((value for name, value in message.raw_items() if name.lower() == "subject"), "")
    return " ".join(str(policy.default.header_fetch_parse("Subject", raw)).split())


def _text_parts(part: Message, skipped: Counter[str]) -> list[Message]:
    """Return the parts that are shown as text; among alternatives, the plain one, or else the first that has
    text."""
    kind = part.get_content_type()
    if part.is_multipart():
        found = [_text_parts(one, skipped) for one in cast("list[Message]", part.get_payload())]
        if kind != "multipart/alternative":
            return [one for parts in found for one in parts]
        return min(
            filter(None, found), key=lambda parts: parts[0].get_content_type() != "text/plain", default=[]
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
        from llmcli.data.documents import html  # needs the extra, plain text does not

        return html.plain_text(html.decode(data, charset or None))
    for encoding in ("utf-8", _ENCODINGS.get(charset, charset)):
        if encoding == "utf-8" and b"\x1b" in data:  # ISO-2022-JP is all ASCII
            continue
        try:
            return data.decode(encoding).replace("\r\n", "\n")
        except (UnicodeError, LookupError):
            pass
    return data.decode("cp1252", "replace").replace("\r\n", "\n")


def _without_signature(text: str, skipped: Counter[str]) -> str:
    before, mark, _ = text.partition(f"\n{_SIGNATURE}\n")
    if mark:
        skipped["signature"] += 1
    return before


def _drop_announcement(lines: list[str]) -> None:
    """Remove the last lines of a text if they announce a quotation: "On Monday, Ana wrote:", also over two
    lines."""
    start = len(lines) - 1
    while start >= 0 and not lines[start].strip():
        start -= 1
    if start >= 0 and _ANNOUNCEMENT.fullmatch(lines[start]):
        if start and _BEGUN_ANNOUNCEMENT.fullmatch(lines[start - 1]):
            start -= 1
        del lines[start:]


class _EarlierLines:
    """Hashes of the lines in the messages so far, or of the most recent ones."""

    def __init__(self) -> None:
        self._lines: set[int] = set()
        self._older: set[int] = set()

    def without_quotes(self, lines: list[str], skipped: Counter[str]) -> list[str]:
        """Return the lines of a message without quotations of earlier messages; these are counted."""
        kept, own, was_left_out = list[str](), set[int](), False
        for line in lines:
            quote = _QUOTED.match(line)
            content = _hash(line[quote.end() if quote else 0 :])
            if quote:
                began = not was_left_out
                was_left_out = (
                    content in self._lines or content in self._older or (was_left_out and content == _EMPTY)
                )
                if was_left_out:
                    if began:
                        _drop_announcement(kept)
                    skipped["quoted line"] += 1
                    continue
            else:
                was_left_out = False
            own.add(content)
            kept.append(line)
        self._lines |= own - {_EMPTY}
        if len(self._lines) > _REMEMBERED:
            self._lines, self._older = set(), self._lines
        return kept


def _hash(line: str) -> int:
    return hash(" ".join(line.split()))


_EMPTY = _hash("")
