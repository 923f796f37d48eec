"""The commands of `llm chat`, such as /save FILE: names, help, parsing and completion."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace

from llmcli.cli.terminal.text_layout import truncate
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError, usage

SETTINGS = ("temperature", "top-p", "top-k", "min-p", "max-tokens", "seed")  # names for /set

COMMANDS = {  # usage -> help
    "/help": "List the commands.",
    "/reset": "Start a new conversation; the system message stays.",
    "/system [TEXT]": "Show or set the system message; - removes it.",
    "/save FILE": "Write the conversation to a new JSON Lines file, which llm train reads.",
    "/load FILE [N]": "Continue a saved conversation; N selects one if the file has several.",
    "/retry": "Answer the last question again, with another seed.",
    "/undo": "Take the last question back, to edit and send it again.",
    "/set [NAME VALUE]": f"Show or change {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]}.",
    "/stats": "Show the figures of the last answer: tokens, speed, context.",
    "/why [N or WORD]": "Explain the first or Nth token of the last answer, or the token of a word.",
    "/exit": "Leave, as Ctrl-D does.",
}
FILE_COMMANDS = ("/save ", "/load ")
USAGE = {usage.split()[0][1:]: usage for usage in COMMANDS}
_ALIASES = {
    "?": "help",
    "clear": "reset",
    "regenerate": "retry",
    "redo": "retry",
    "again": "retry",
    "quit": "exit",
    "q": "exit",
    "bye": "exit",
}

# input that is probably an attempt to leave, or a shell command
_NO_MESSAGE = re.compile(
    r"(?i:(exit|quit)(\(\))?|logout|:w?q!?)|clear|help|"
    r"llm( -.*| (chat|explain|generate|inspect|train)( .*)?)?"
)

INPUT_HELP = (
    "Enter sends a message. Alt-Enter (or Esc, then Enter), or a backslash at the end of a line, begins "
    "another line. The arrow keys bring back earlier messages. Ctrl-C stops an answer, Ctrl-D at an empty "
    "prompt leaves. A line that begins with a space is always a message, even if / follows."
)


def parse(line: str) -> tuple[str, str] | None:
    """Parse a line as (command name, argument); None for a message. Raises LLMError for an unknown
    command."""
    if not line.startswith("/"):
        return None
    word, *rest = line[1:].split(maxsplit=1) or [""]
    name = _ALIASES.get(word.lower(), word.lower())
    if name not in USAGE:
        close = difflib.get_close_matches(name, [*USAGE, *_ALIASES], n=1)
        advice = f"did you mean /{close[0]}?" if close else "/help lists the commands;"
        raise usage(
            f"there is no command /{word}; {advice} a message that begins with / needs a space before it"
        )
    return name, rest[0].strip() if rest else ""


def hint(line: str) -> str:
    """Return advice for a line that is probably not meant as a message; "" for other lines."""
    typed = line.rstrip()
    if not _NO_MESSAGE.fullmatch(typed):
        return ""
    return (
        "To leave, type /exit or press Ctrl-D. /help lists the commands. To send "
        f"{truncate(typed, 30)} as a message, type a space before it."
    )


def set_option(sampling: SamplingConfig, text: str) -> SamplingConfig:
    """Apply /set NAME VALUE to the sampling settings. Raises LLMError for an unknown name or invalid
    value."""
    name, value = (*text.replace("=", " ").split(maxsplit=1), "")[:2]
    name = name.lower().lstrip("-").replace("_", "-")
    if name not in SETTINGS:
        raise usage(f"/set has no {name}; it has {', '.join(SETTINGS)}")
    field = name.replace("-", "_")
    kind = type(getattr(SamplingConfig(), field))
    try:
        number = kind(value)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        example = f"/set {name} {dict(settings(sampling))[name]}"
        raise usage(f"/set {name} needs {what}, found {value or 'nothing'}; for example: {example}") from None
    try:
        changed = replace(sampling, **{field: number})
        changed.check_length()
        return changed
    except LLMError as error:
        raise usage(str(error).replace(f"`{field}`", name)) from None


def settings(sampling: SamplingConfig) -> list[tuple[str, str]]:
    """Return (name, value) for each setting of /set."""
    values = [getattr(sampling, name.replace("-", "_")) for name in SETTINGS]
    texts = [str(value) if isinstance(value, int) else f"{value:g}" for value in values]
    return list(zip(SETTINGS, texts, strict=True))


def completions(text: str) -> Iterator[tuple[str, int, str]]:
    """Complete the text before the cursor: yields (completion, number of replaced characters, meaning)."""
    if not text.startswith("/"):
        return
    name, space, rest = text.partition(" ")
    if not space:
        words = ((usage.split()[0], help) for usage, help in COMMANDS.items())
        yield from ((word, len(name), help) for word, help in words if word.startswith(name))
    elif name == "/set" and " " not in rest:
        yield from ((f"{setting} ", len(rest), "") for setting in SETTINGS if setting.startswith(rest))
