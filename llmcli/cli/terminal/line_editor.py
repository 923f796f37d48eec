"""Input of `llm chat`: in a terminal with editing, history, several lines and completion, else line by line.

prompt_toolkit does the work; this module is imported only where a person types. What it draws goes to standard error.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.styles import Style

from llmcli.cli.terminal import styles

PROMPT, CONTINUATION = "> ", "  "
MENU_LINES = 6  # of completions
# (text before the cursor) -> (completion, how many characters before the cursor it replaces, what it means)
Complete = Callable[[str], Iterable[tuple[str, int, str]]]


class Reader(Protocol):
    """Reads what the user types."""

    def read(self, draft: str = "") -> str:
        """Read one input, possibly of several lines, beginning with `draft` for the user to edit.

        Raises KeyboardInterrupt for Ctrl-C without any text, EOFError at the end of the input (Ctrl-D).
        """


def open_reader(complete: Complete) -> Reader:
    """Return a reader for standard input, a terminal; it reads line by line if neither output is a terminal."""
    drawing = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
    return LineEditor(complete, drawing) if drawing else LineReader(sys.stdin)


class LineReader:
    """Reads one input per line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self, draft: str = "") -> str:
        line = self._stream.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class LineEditor:
    """A line editor in a terminal. Enter sends, Alt-Enter and a backslash at the end begin another line."""

    def __init__(self, complete: Complete, drawing: TextIO) -> None:
        """`drawing` is the stream of the terminal to draw on."""
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", PROMPT)],
            prompt_continuation=CONTINUATION,
            multiline=True,
            completer=_Commands(complete),
            complete_while_typing=Condition(_is_command),
            reserve_space_for_menu=MENU_LINES,
            key_bindings=_key_bindings(),
            enable_suspend=True,
            style=Style.from_dict({"prompt": "bold"}),
            color_depth=None if styles.has_colors(drawing) else ColorDepth.DEPTH_1_BIT,
            output=create_output(stdout=drawing),
        )

    def read(self, draft: str = "") -> str:
        return self._session.prompt(default=draft)


class _Commands(Completer):
    """Completions of commands; none in a message."""

    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        for text, length, meaning in self._complete(document.text_before_cursor):
            yield Completion(text, start_position=-length, display_meta=meaning)


def _is_command() -> bool:
    return get_app().current_buffer.text.startswith("/")


def _key_bindings() -> KeyBindings:
    keys = KeyBindings()
    is_message = has_focus(DEFAULT_BUFFER)  # not the line of a search through the history

    @keys.add("enter", filter=is_message)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=is_message)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=is_message)
    @keys.add("<sigint>", filter=is_message)
    def _(event: KeyPressEvent) -> None:
        """Clear the input; leave an empty one."""
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys
