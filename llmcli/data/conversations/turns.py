"""Conversations in plain text. Each turn begins with a name and a colon: User:/Assistant: or Q:/A:.

A text contains conversations if its first nonblank line begins with the name of a speaker, both speakers have
turns, and there are at least two answers or the text is short. There must not be a third speaker, as in a
play (another name with a colon that begins lines in the turns of both), and A: must not be a choice next to
B:, as in a quiz.

A turn continues until the next speaker. Names are at the very beginning of a line: words in any case, or
capital Q and A, optionally with a number (Q1:). The colon may be full-width, and a space may precede it.

In Q:/A: text, each question begins a conversation. In User:/Assistant: text, a conversation begins after a
blank line, with the speaker who begins the text; if blank lines separate all turns, it begins after two blank
lines or a line such as ---. Consecutive turns of one speaker are one message. "System:" at the beginning of a
conversation is its system message.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from llmcli.data.conversations.messages import ROLES, Conversation, Message
from llmcli.data.text.decoding import Document
from llmcli.errors import LLMError, usage

_COLON = r"[ \t\u00a0\u202f]?[:：](?![:/\\])[ \t\u3000]*(?P<text>.*)"
_SHORT_TEXT = 10_000  # characters; one answer is enough in a shorter text
_OTHER_NAME = re.compile(r"(?P<name>[^\W\d_][\w.'-]{0,30}(?: [\w.'-]{1,30}){0,2})" + _COLON)
_TURNS_PER_OTHER = 8  # a name that begins fewer lines than one per this many turns is not a third speaker
_RULE = re.compile(r"[ \t]*([-=*])([ \t]*\1){2,}[ \t]*")  # a rule: three or more of a character


@dataclass
class _Turn:
    line: int
    role: str
    gap: int  # blank lines before the turn; a line such as --- counts as 2
    lines: list[str]

    def end(self) -> int:
        """Remove blank lines and rules at the end of the turn, and return the gap before the next turn."""
        gap = 0
        while len(self.lines) > 1 and (not self.lines[-1].strip() or _RULE.fullmatch(self.lines[-1])):
            gap += 2 if self.lines.pop().strip() else 1
        return gap


def _label(user: str, assistant: str, system: str) -> re.Pattern[str]:
    """Compile the pattern of a line that begins a turn; the names are regular expressions."""
    return re.compile(rf"(?:(?P<user>{user})|(?P<assistant>{assistant})|(?P<system>{system})){_COLON}")


_QUESTIONS = "Q:/A: turns"  # each question begins a conversation
# (name for users, pattern of a line that begins a turn; its groups are ROLES and "text")
_KNOWN = (
    (
        "User:/Assistant: turns",
        _label(
            "(?i:user|human)|ユーザー?|人間", "(?i:assistant|ai|bot)|アシスタント", "(?i:system)|システム"
        ),
    ),
    (
        _QUESTIONS,
        _label(r"(?:Q|(?i:question)|質問|問)[ ]?\d{0,4}", r"(?:A|(?i:answer)|回答|答え?)[ ]?\d{0,4}", "(?!)"),
    ),
)


def named_speakers(user: str, assistant: str) -> tuple[str, re.Pattern[str]]:
    """Return (name for users, pattern), as in _KNOWN, for speakers with these names. Raises LLMError unless
    the names are different and not empty."""
    user = user.strip().rstrip(":：")
    assistant = assistant.strip().rstrip(":：")
    if not user or not assistant or user == assistant:
        raise usage(
            f"the speakers are {user!r} and {assistant!r}; wanted two different names: the user's and the "
            "assistant's"
        )
    return f"{user}:/{assistant}: turns", _label(re.escape(user), re.escape(assistant), "System")


def speakers_in(shape: str) -> tuple[str, str] | None:
    """Return the names of the user and the assistant in the name of a shape; None for the built-in names.

    >>> speakers_in("Ann:/Bob: turns"), speakers_in("Q:/A: turns"), speakers_in("messages")
    (('Ann', 'Bob'), None, None)
    """
    user, _, assistant = shape.removesuffix(": turns").rpartition(":/")
    return (user, assistant) if user and shape not in dict(_KNOWN) else None


def read_turns(
    document: Document, names: tuple[str, str] | None, start: str
) -> tuple[str, list[Conversation], list[str]] | None:
    """Return (shape, conversations, notes for the user); None for other text, which `start` usually shows.
    `names` replace the built-in names. Raises LLMError for two answers to one question."""
    first_line = next(filter(str.strip, start.split("\n")), "")
    known = (named_speakers(*names),) if names else _KNOWN
    found = next(((shape, label) for shape, label in known if label.match(first_line)), None)
    if found is None:
        return None
    shape, label = found
    questions = shape == _QUESTIONS and not names
    turns, others = _read(document.lines(), label)
    answers = sum(turn.role == "assistant" for turn in turns)
    if not answers or not any(turn.role == "user" for turn in turns):
        return None
    is_enough = answers > 1 or sum(len(line) for turn in turns for line in turn.lines) <= _SHORT_TEXT
    third = sum(sum(count.values()) for count in others.values() if {"user", "assistant"} <= count.keys())
    if not names and (
        not is_enough
        or (questions and (turns[0].role != "user" or 2 * sum(others["B"].values()) >= answers))
        or (third >= 3 and third * _TURNS_PER_OTHER >= len(turns))
    ):
        return None
    groups = list(_split(turns, questions))
    notes = []
    if not questions and any(is_spaced for _, is_spaced in groups):
        notes.append(
            f"{document.name}: blank lines separate turns; two of them, or ---, begin a new conversation"
        )
    conversations = [
        Conversation(
            tuple(_messages(document.name, group, questions)),
            f"{document.name} line {group[0].line:,}",
        )
        for group, _ in groups
    ]
    return shape, conversations, notes


# ---- reading turns


def _read(lines: Iterable[str], label: re.Pattern[str]) -> tuple[list[_Turn], defaultdict[str, Counter[str]]]:
    """Return (turns, other name -> role -> number of lines that begin with the name in turns of the role)."""
    turns: list[_Turn] = []
    others: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if match := label.match(line):
            gap = turns[-1].end() if turns else 0
            role = next(role for role in ROLES if match[role] is not None)
            if role != "system" or gap or not turns:
                turns.append(_Turn(number, role, gap, [match["text"]]))
                continue
        if turns:
            turns[-1].lines.append(line)
            if (other := _OTHER_NAME.match(line)) and not other["name"][0].islower():
                others[other["name"]][turns[-1].role] += 1
    if turns:
        turns[-1].end()
    return turns, others


# ---- conversations


def _split(turns: list[_Turn], questions: bool) -> Iterator[tuple[list[_Turn], bool]]:
    """Yield (turns of a conversation, whether a blank line precedes the first turn of its second speaker)."""
    opening = next(turn.role for turn in turns if turn.role != "system")
    group: list[_Turn] = []
    spaced: bool | None = None
    for turn in turns:
        min_gap = 0 if questions else 2 if spaced else 1
        if group and (
            turn.role == "system"
            or (turn.role == opening and turn.gap >= min_gap and group[-1].role != "system")
        ):
            yield group, bool(spaced)
            group = []
            spaced = None
        group.append(turn)
        if spaced is None and turn.role not in ("system", opening):
            spaced = turn.gap > 0
    yield group, bool(spaced)


def _messages(name: str, turns: list[_Turn], questions: bool) -> Iterator[Message]:
    """Yield one message for consecutive turns of one speaker."""
    for role, same in groupby(turns, key=lambda turn: turn.role):
        first, *more = same
        if more and role == "assistant" and questions:
            raise LLMError(
                f"{name} line {more[0].line:,}: a second answer to the question in line {turns[0].line:,}; "
                f"wanted the question before each answer; or `plain` to read the file as plain text"
            )
        texts = ("\n".join(turn.lines).strip("\n").rstrip() for turn in (first, *more))
        yield Message(role, "\n".join(texts))
