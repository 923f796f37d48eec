"""An interactive conversation in `llm chat`: reads messages and commands until the user leaves."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.chat import answers
from llmcli.cli.chat import commands as chat_commands
from llmcli.cli.chat import explanation as chat_explanation
from llmcli.cli.terminal import console, tables
from llmcli.cli.terminal.console import without_echo
from llmcli.errors import LLMError, usage
from llmcli.signals import stop_requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.generation.chat import Chat, Event


class Session:
    """Reads messages and commands, and answers or runs them."""

    def __init__(self, chat: "Chat", read: Callable[[str], str], source: "Checkpoint | Ensemble") -> None:
        """`read` comes from `line_editor.open_reader`."""
        self._chat = chat
        self._read = read
        self._source = source
        self._draft = ""  # initial text of the next input line
        self._last: answers.Answer | None = None  # last answer in this conversation, if it is of this session
        # files saved in this session, with their content; /save may replace them
        self._saved: dict[Path, bytes] = {}

    def run(self) -> None:
        """Answer until the end of the input or /exit. Errors are shown, and the conversation continues."""
        while True:
            draft = self._draft
            self._draft = ""
            try:
                line = self._read(draft)
            except KeyboardInterrupt:
                console.note("Ctrl-D or /exit leaves, /help lists the commands")
                continue
            except EOFError:
                return
            try:
                if not self._handle(line):
                    return
            except LLMError as error:
                console.fail(str(error))
            except KeyboardInterrupt:
                console.note("(stopped)")

    def _handle(self, line: str) -> bool:
        """Answer a message, or run a command. Return False if the user leaves."""
        command = chat_commands.parse(line)
        if command is None:
            if advice := chat_commands.hint(line):
                console.warn(advice)
            elif line.strip():
                self._answer(self._chat.answer(line.strip()))
            return True
        name, rest = command
        if name != "exit":
            getattr(self, f"_{name}")(rest)
        return name != "exit"

    def _answer(self, events: "Iterator[Event]") -> None:
        """Show an answer as it arrives; Ctrl-C stops it."""
        before = self._chat.messages
        self._last = None  # after an error, too
        with without_echo(), stop_requests() as requests:
            answer = answers.receive(events, self._chat.sampling, is_stopped=lambda: bool(requests))
        if self._chat.messages is not before:
            self._last = answer
            answer.prompt_ids = self._chat.assistant.prompt_ids
        if answer.finish_reason == answers.INTERRUPTED:
            unanswered = " before the answer began; the message is left out, and the up arrow brings it back"
            console.note(f"(stopped{'' if answer.text else unanswered})")
        answers.note_end(answer, "for longer answers: /set max-tokens 2000")
        console.note("")

    # ---- the commands of COMMANDS, by name

    def _help(self, rest: str) -> None:
        tables.pairs(list(chat_commands.COMMANDS.items()), to_stderr=True)
        console.warn(chat_commands.INPUT_HELP)

    def _reset(self, rest: str) -> None:
        self._chat.reset()
        self._last = None
        console.note("a new conversation" + ("; the system message stays" if self._chat.system else ""))

    def _system(self, rest: str) -> None:
        if rest:
            self._chat.set_system("" if rest == "-" else rest)
        system = self._chat.system
        console.warn(
            f"system message: {system}" if system else "there is no system message; set one: /system TEXT"
        )

    def _save(self, rest: str) -> None:
        from llmcli.generation.chat import save_messages

        path = _path(rest, "save")
        self._saved[path] = save_messages(path, self._chat.messages, self._saved.get(path, b""))
        self._confirm(f"saved {path}")

    def _load(self, rest: str) -> None:
        from llmcli.generation.chat import as_line, load_conversation

        path = _path(rest, "load")
        number = 1
        name, _, last = rest.rpartition(" ")
        if last.isdecimal() and name.strip() and not path.exists():
            path = _path(name.strip(), "load")
            number = int(last)
        conversation, file = load_conversation(path, number)
        count = len(file.conversations)
        self._chat.messages = list(conversation.messages)
        self._last = None
        if count == 1 and path.read_bytes() == (written := as_line(conversation.messages)):
            self._saved[path] = written
        source = f"conversation {number} of {count:,} in {path}" if count > 1 else str(path)
        self._confirm(f"loaded {source}")
        for note in file.notes:  # such as a question at the end, which is left out
            console.note(note)

    def _confirm(self, text: str) -> None:
        console.warn(f"{text} ({units.count(self._chat.turns, 'turn')})")

    def _retry(self, rest: str) -> None:
        self._answer(self._chat.regenerate())

    def _undo(self, rest: str) -> None:
        self._draft = self._chat.take_back()
        self._last = None

    def _set(self, rest: str) -> None:
        from llmcli.generation.known_answers import KnownAnswersChat

        if isinstance(self._chat, KnownAnswersChat):
            raise usage("/set has no effect with --known-answers")
        if rest:
            self._chat.set_sampling(chat_commands.set_option(self._chat.sampling, rest))
        tables.pairs(chat_commands.settings(self._chat.sampling), to_stderr=True)

    def _stats(self, rest: str) -> None:
        rows = [("conversation", units.count(self._chat.turns, "turn"))]
        last = self._last
        if last and last.reading:
            prompt = last.reading.tokens
            pieces = len(last.pieces)
            rows.append(("prompt", f"{prompt:,} tokens, {last.reading.cached:,} of them from the cache"))
            if pieces:
                rows.append(("first token", f"after {last.seconds_to_first_token:.2f} s"))
                rows.append(
                    ("answer", f"{units.count(pieces, 'token')}, {last.tokens_per_second:,.1f} tokens/s")
                )
            rows.append(
                ("context", f"{prompt + pieces:,} of {self._chat.assistant.runtime.context:,} tokens")
            )
            settings = (f"{name} {value}" for name, value in chat_commands.settings(last.sampling))
            rows.append(("sampling", ", ".join(settings)))
        tables.pairs(rows, to_stderr=True)

    def _why(self, rest: str) -> None:
        if not self._chat.messages or self._chat.messages[-1].role != "assistant":
            raise usage("there is no answer to explain yet; ask something first")
        if self._last:
            prompt_ids, pieces = self._last.prompt_ids, self._last.pieces
        else:
            prompt_ids, pieces = self._chat.read_answer()
        chat_explanation.show(self._source, self._chat.assistant, prompt_ids, pieces, rest)
        console.note("")


def _path(text: str, command: str) -> Path:
    """Parse a file name, possibly in quotes or with ~. Raises LLMError if it is missing."""
    name = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    if not name:
        raise usage(f"a file name is missing: {chat_commands.USAGE[command]}")
    return Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser fails without a home directory)
