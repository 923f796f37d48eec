"""Encoding rendered chat templates. In these, the names of control tokens are written as text.

User text must never become a control token. Therefore each name of a control token in a message is replaced
by a placeholder before the template is rendered: a private-use character that occurs nowhere else. All names
in the rendered text then come from the template, and the placeholders are turned back into text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice

from llmcli.data.conversations.messages import Message, Messages, Span
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError

# Unicode's private use areas
PRIVATE_USE = (
    range(0xF0000, 0xFFFFE),
    range(0x100000, 0x10FFFE),
    range(0xE000, 0xF900),
)


def unused_characters(count: int, texts: Iterable[str]) -> list[str]:
    """Find private-use characters that occur in none of the texts. Raises LLMError if there are fewer than
    `count`."""
    used = set().union(*texts)
    unused = (chr(code) for codes in PRIVATE_USE for code in codes if chr(code) not in used)
    characters = list(islice(unused, count))
    if len(characters) < count:
        raise LLMError(
            "the messages use nearly all private-use characters of Unicode; remove these characters"
        )
    return characters


class ControlTokens:
    """The control tokens of a tokenizer, which a template writes by name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        longest_first = sorted(tokenizer.control_ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """Return (first character, one past the last, id) of each control token in a text."""
        return [(m.start(), m.end(), self._tokenizer.control_ids[m[0]]) for m in self._pattern.finditer(text)]

    def hide(self, messages: Messages, template: str) -> tuple[list[Message], dict[str, str]]:
        """Return (messages with placeholders for names of control tokens, placeholder -> name); placeholders
        are unique."""
        texts = [message.content for message in messages]
        names = sorted({name for text in texts for name in self._pattern.findall(text)})
        if not names:
            return list(messages), {}
        placeholders = dict(zip(names, unused_characters(len(names), [*texts, template]), strict=True))

        def hidden(text: str) -> str:
            return self._pattern.sub(lambda match: placeholders[match[0]], text)

        changed = [replace(message, content=hidden(message.content)) for message in messages]
        return changed, {placeholder: name for name, placeholder in placeholders.items()}

    def encode(
        self, text: str, names: Mapping[str, str], marked: Sequence[Span] = ()
    ) -> tuple[list[int], list[bool]]:
        """Return (ids of a rendered text, whether each token overlaps one of the ascending `marked` spans).
        `names` maps placeholders to names, as returned by `hide`."""
        controls = self.find(text)
        if names:
            parts = [names.get(character, character) for character in text]
            moved = [0, *accumulate(map(len, parts))]  # position of each character in the joined parts
            text = "".join(parts)
            controls = [(moved[start], moved[end], control) for start, end, control in controls]
            marked = [(moved[start], moved[end]) for start, end in marked]
        ends = [end for _, end in marked]
        ids = []
        is_marked = []
        for token, (start, end) in self._tokens(text, controls):
            ids.append(token)
            following = bisect_right(ends, start)  # the first marked span that ends after the token begins
            is_marked.append(following < len(marked) and marked[following][0] < end)
        return ids, is_marked

    def _tokens(self, text: str, controls: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, Span]]:
        """Yield (id, span) of each token of a text, with control tokens only at `controls`."""
        start = 0
        before = None
        for control in (*controls, None):
            end = control[0] if control else len(text)
            first = start
            part = text[start:end]
            if before is not None and self._tokenizer.strips(before)[1]:
                part = part.lstrip()
                first = end - len(part)
            if control and self._tokenizer.strips(control[2])[0]:
                part = part.rstrip()
            ids, spans = self._tokenizer.encode_part(part, after_control_token=before is not None)
            yield from ((token, (first + a, first + b)) for token, (a, b) in zip(ids, spans, strict=True))
            if control:
                yield control[2], control[:2]
                start = control[1]
                before = control[2]
