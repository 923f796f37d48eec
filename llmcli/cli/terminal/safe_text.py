"""Making untrusted text safe to print.

Control characters and bidirectional overrides could move the cursor, change colors or reorder a line, so they
are replaced by visible marks. In JSON they are escaped, which preserves the value.
"""

import json
import math
import re

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROL}]")
_UNSAFE_IN_LINE = re.compile(f"[{_CONTROL}\t\n\u2028\u2029]")
_UNSAFE_IN_JSON = re.compile(f"[{_CONTROL}\u2028\u2029]")  # they occur only inside JSON strings


def visible(text: str) -> str:
    """Replace control characters by visible marks; line ends and tabs are kept.

    >>> visible("a\\x1b[31mb\\u202e\\tc\\n")
    'a␛[31mb⟨U+202E⟩\\tc\\n'
    """
    return _UNSAFE.sub(_mark, text)


def visible_line(text: str) -> str:
    """Replace control characters, line ends and tabs by visible marks."""
    return _UNSAFE_IN_LINE.sub(_mark, text)


def one_line(text: str) -> str:
    """Replace control characters and line ends by visible marks; spaces are kept."""
    return visible(text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍"))


def visible_whitespace(text: str) -> str:
    """Replace control characters and all white space by visible marks, for a token whose spaces matter."""
    return one_line(text).replace(" ", "·")


def _mark(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xD800 <= code <= 0xDFFF:  # surrogates represent bytes of file names that are not UTF-8
        return f"\\u{code:04x}"
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def json_line(value: object) -> str:
    """Return one line of JSON: NaN and infinity become null, control characters are escaped."""
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_without_nan(value), ensure_ascii=False)
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
