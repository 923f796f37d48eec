"""The files that a command names, each as what it holds: plain text, or conversations."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmcli.data.conversation_files import ConversationFile, read_conversations
from llmcli.data.conversation_turns import shape_of
from llmcli.data.conversations import Conversation
from llmcli.data.corpus import Corpus, read_corpus
from llmcli.data.documents import display_name
from llmcli.errors import LLMError


@dataclass(frozen=True)
class Sources:
    """What was read. One of the two may be empty."""

    text: Corpus
    conversation_files: tuple[ConversationFile, ...]

    @property
    def conversations(self) -> list[Conversation]:
        """Those of all files, in order."""
        return [one for file in self.conversation_files for one in file.conversations]


def read_sources(names: Iterable[str], speakers: tuple[str, str] | None = None) -> Sources:
    """Read files, directories and patterns, as `read_corpus` does; standard input is always plain text.

    `speakers` are the names of the user and of the assistant in text with turns. Raises LLMError, also for a malformed
    record in a file of conversations.
    """
    files: list[ConversationFile] = []

    def holds_conversations(name: str, path: Path) -> bool:
        if not path.is_file():  # a pipe, which can be read only once
            return False
        file = read_conversations(display_name(name), path, speakers=speakers)
        if file is not None:
            files.append(file)
        return file is not None

    text = read_corpus(names, takes=holds_conversations)
    return Sources(text, tuple(files))


def check_speakers(speakers: tuple[str, str] | None, files: Iterable[ConversationFile]) -> None:
    """Raise LLMError if none of the files has turns of the named speakers."""
    if speakers and shape_of(*speakers) not in {file.shape for file in files}:
        user, assistant = speakers
        raise LLMError(
            f"--speakers {user},{assistant}: no file has turns of both; wanted a text with lines that begin with "
            f'"{user}:" and "{assistant}:", its first line among them; check the names, or leave --speakers out'
        )
