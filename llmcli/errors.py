"""The one error a user can meet. It says what was found, what was wanted and what to type."""

import os
import reprlib
import shlex
from collections.abc import Sequence
from typing import Any


class LLMError(Exception):
    """A problem that the user can act on; the door prints it as one line and exits with `exit_code`.

    `exit_code` is 1 for facts about the world (a missing file, a damaged model) and 2 for wrong usage
    (options out of range or at odds with each other).
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def command_line(words: Sequence[str], *, windows: bool = os.name == "nt") -> str:
    """A command to type: its words, in quotes where the shell of this system needs them.

    >>> command_line(["llm", "inspect", "my model"], windows=False)
    "llm inspect 'my model'"
    >>> command_line(["llm", "inspect", "my model"], windows=True)
    'llm inspect "my model"'
    """
    if not windows:
        return shlex.join(words)
    import subprocess

    return subprocess.list2cmdline(words)


def usage(message: str) -> LLMError:
    """An error in how the command was typed.

    >>> usage("--steps must be at least 1").exit_code
    2
    """
    return LLMError(message, exit_code=2)


def brief(value: Any, most: int = 60) -> str:
    """A value from a file as it may stand in a message.

    >>> brief([1, "a"]), brief("x" * 99, 10)
    ("[1, 'a']", "'xxxxxxxx…")
    """
    if isinstance(value, str):
        text = repr(value[:most])
    elif isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write very long ones
        text = f"a number of {value.bit_length()} bits"
    else:
        text = reprlib.repr(value)  # of anything, however large or deep
    return text if len(text) <= most else f"{text[: most - 1]}…"
