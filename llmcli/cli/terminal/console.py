"""Output of the commands: results to stdout, everything else to stderr; the terminal's echo."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, TextIO

from llmcli.cli.terminal import styles
from llmcli.cli.terminal.safe_text import json_line, visible, visible_line
from llmcli.cli.terminal.text_layout import fit
from llmcli.errors import with_hub_names, with_options
from llmcli.signals import cleaning_up

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTE_SECONDS = 10.0  # between two progress notes, without a terminal
MAX_ERROR_LENGTH = 2_000  # characters: a damaged file may cause far longer messages


# quiet: suppress notes, captions and progress, but not errors and results
# options: the names of all options of the command
# noted: without a terminal, the time of the last printed status, or of the first status if none was printed
# yet; None while there is no status
settings = SimpleNamespace(quiet=False, options=frozenset(), noted=None)


def result(line: str = "", *, raw: bool = False) -> None:
    """Print a line of a result on stdout, made safe for a terminal unless it is `raw` (contains our own
    escape sequences)."""
    _write((line if raw else visible_line(line)) + "\n")


def verbatim(text: str, end: str = "", *, raw: bool = False) -> None:
    """Print a model's or user's text: unchanged for a program, safe for a terminal. `raw` as in `result`."""
    _write((visible(text) if sys.stdout.isatty() and not raw else text) + end)


def result_bytes(data: bytes) -> None:
    """Write bytes: unchanged for a program, in a terminal as visible text on its own line."""
    if sys.stdout.isatty():
        verbatim(data.decode("utf-8", "replace"), end="\n")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def json_result(value: object) -> None:
    """Print a result as one line of JSON; NaN and infinity become null."""
    _write(json_line(value) + "\n")


def heading(text: str) -> None:
    """Print a heading, after an empty line."""
    result()
    _styled_lines(text, styles.BOLD)


def paragraph(text: str, indent: int = 0) -> None:
    """Print prose: wrapped in a terminal, one line for a program."""
    for line in fit(visible_line(text), sys.stdout, indent, indent):
        result(line, raw=True)


def caption(text: str) -> None:
    """Print an explanation of the preceding figure: faint, only in a terminal; nothing with --quiet."""
    if sys.stdout.isatty() and not settings.quiet:
        _styled_lines(text, styles.DIM)


def _styled_lines(text: str, style: str) -> None:
    for line in fit(visible_line(text), sys.stdout):
        result(styles.styled(line, style, sys.stdout), raw=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Print useful information on stderr; nothing with --quiet."""
    if not settings.quiet:
        warn(text)


def warn(text: str) -> None:
    """Print important information on stderr, even with --quiet."""
    for line in fit(visible_line(with_hub_names(with_options(text, settings.options))), sys.stderr):
        write_line(line, sys.stderr)


def fail(text: str) -> None:
    """Print an error message on stderr."""
    text = with_hub_names(with_options(" ".join(text.split()), settings.options))
    text = text if len(text) <= MAX_ERROR_LENGTH else f"{text[:MAX_ERROR_LENGTH]}…"
    first, *others = fit(f"error: {visible_line(text)}", sys.stderr)
    for line in (styles.styled("error:", styles.RED, sys.stderr) + first.removeprefix("error:"), *others):
        write_line(line, sys.stderr)


def note_from_signal_handler(text: str) -> None:
    """Write a note directly to stderr, bypassing the buffered stream: the signal may have interrupted a
    write."""
    if not settings.quiet:
        write_from_signal_handler(f"{visible_line(text)}\n")


def write_from_signal_handler(text: str) -> None:
    """Write safe text to stderr unchanged."""
    with suppress(OSError, ValueError):  # closed, or not a file
        os.write(sys.stderr.fileno(), text.encode("utf-8", "backslashreplace"))


def shows_progress() -> bool:
    return sys.stderr.isatty() and not settings.quiet


def status(text: str) -> None:
    """Show a status line in a terminal, which the next one replaces; "" removes it. Without a terminal, print
    a note every few seconds."""
    if shows_progress():
        print(f"\r\x1b[K{visible_line(text)}", file=sys.stderr, end="", flush=True)
        return
    now = time.monotonic()
    if not text:
        settings.noted = None
    elif settings.noted is None:
        settings.noted = now
    elif now - settings.noted > NOTE_SECONDS:
        settings.noted = now
        note(text)


def prompt(text: str) -> None:
    """Print the prompt, faint, before the text that continues it; nothing with --quiet."""
    if not settings.quiet:
        print(styles.styled(text, styles.DIM, sys.stderr), file=sys.stderr, end="", flush=True)


def write_line(line: str, stream: TextIO) -> None:
    """Print a line. Untrusted text in it must have passed through `visible`."""
    print(line, file=stream, flush=True)


def draw(drawing: "Table", stream: TextIO) -> None:
    rich_console(stream).print(drawing)


def rich_console(stream: TextIO) -> "Console":
    """Return a rich console on a stream, without rich's own markup, highlighting and emoji codes."""
    from rich.console import Console

    return Console(file=stream, markup=False, highlight=False, emoji=False)


@contextmanager
def without_echo() -> Iterator[None]:
    """Hide input typed in this context, including ^C; it can be read afterwards. Windows hides it anyway."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = termios.tcgetattr(descriptor)
    silent[3] &= ~termios.ECHO  # the local modes
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)

    def restore() -> None:
        with suppress(termios.error):  # the terminal is closed
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    with cleaning_up(restore):
        yield
