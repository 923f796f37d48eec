"""Interactive input for `llm chat`. Imported only in a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.styles import Style

from llmcli.cli.terminal import styles

PROMPT = "> "
CONTINUATION = "  "
MENU_LINES = 6  # height of the menu of completions
# (text before the cursor) -> (completion, number of characters before the cursor that it replaces, meaning)
Complete = Callable[[str], Iterable[tuple[str, int, str]]]


def open_reader(complete: Complete, before_a_path: Sequence[str]) -> Callable[[str], str]:
    """Return a function that reads one input, starting with a draft to edit. It raises KeyboardInterrupt for
    Ctrl-C on an empty line and EOFError at the end of input. Paths are completed after each command in
    `before_a_path`."""
    drawing = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
    if drawing is None:
        return lambda draft: input()
    session: PromptSession[str] = PromptSession(
        [("class:prompt", PROMPT)],
        prompt_continuation=CONTINUATION,
        multiline=True,
        completer=_Commands(complete, before_a_path),
        complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
        reserve_space_for_menu=MENU_LINES,
        key_bindings=_key_bindings(),
        enable_suspend=True,
        style=Style.from_dict({"prompt": "bold"}),
        color_depth=None if styles.has_colors(drawing) else ColorDepth.DEPTH_1_BIT,
        output=create_output(stdout=drawing),
    )
    return lambda draft: session.prompt(default=draft)


class _Commands(Completer):
    """Completes commands and their paths."""

    def __init__(self, complete: Complete, before_a_path: Sequence[str]) -> None:
        self._complete = complete
        self._before_a_path = before_a_path

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        for completion, length, meaning in self._complete(text):
            yield Completion(completion, start_position=-length, display_meta=meaning)
        for command in self._before_a_path:
            if text.startswith(command):
                path = Document(text.removeprefix(command))
                yield from PathCompleter(expanduser=True).get_completions(path, complete_event)


def _key_bindings() -> KeyBindings:
    """Enter sends; Alt-Enter and a backslash at the end begin another line."""
    keys = KeyBindings()
    is_message = has_focus(DEFAULT_BUFFER)  # False while the history is searched

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
        """Clear the input; if it is empty, leave."""
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys
