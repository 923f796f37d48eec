"""Conversations for tests, and runs on them."""

from pathlib import Path

from llmcli.data.conversations.messages import Conversation, Message
from llmcli.data.files import ConversationFile
from llmcli.data.sources import Sources
from llmcli.data.text.corpus import Corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.training.data.inputs import Inputs
from llmcli.training.data.prepare import Prepared
from llmcli.training.planning.plan import PlanRequest
from tests.data.corpora import read_corpus
from tests.training.plans import prepare
from tests.training.small_runs import run as run
from tests.training.small_runs import run_to_end as run_to_end

NAMES, DRINKS = ("Anna", "Ben", "Cleo", "Dora", "Emil"), ("tea", "milk", "rice", "bread", "soup", "cake")
FAVOURITES = {name: DRINKS[i] for i, name in enumerate(NAMES)}
WORDINGS = ("What does {} like?", "What is the favourite of {}?", "Tell me what {} likes.", "{} likes what?",
            "Which thing does {} like?", "Do you know what {} likes?", "Say what {} likes!")  # fmt: skip
PAIRS = [(wording.format(name), f"{name} likes {FAVOURITES[name]}.") for wording in WORDINGS for name in NAMES]
LINES = "".join(f"{a} likes {b}.\n" for a in NAMES for b in DRINKS) * 30


def conversation(*contents: str, system: str = "") -> Conversation:
    """Messages of the user and the assistant in turn."""
    roles = ("user", "assistant")
    messages = [Message("system", system)] if system else []
    return Conversation((*messages, *(Message(roles[i % 2], content) for i, content in enumerate(contents))))


def conversation_file(
    conversations: list[Conversation], name: str = "chats.jsonl", dropped: int = 0
) -> ConversationFile:
    size = sum(len(message.content.encode()) for one in conversations for message in one.messages)
    return ConversationFile(name, Path(name), size, "0" * 64, "messages", tuple(conversations), dropped)


def inputs(conversations: list[Conversation] | None = None, held_out: float | ConversationFile = 0.1) -> Inputs:
    """By default of PAIRS; `held_out` is a share or a validation file."""
    chosen = [conversation(*pair) for pair in PAIRS] if conversations is None else conversations
    sources = Sources(Corpus(()), (conversation_file(chosen),))
    if isinstance(held_out, float):
        return Inputs(sources, held_out=held_out)
    return Inputs(sources, Sources(Corpus(()), (held_out,)))


def prepared(text: Path | None = None, conversations: Inputs | None = None, **request: object) -> Prepared:
    """A run of 30 small steps on PAIRS, after LINES, which are written to `text`, if it is given."""
    corpus = Corpus(())
    if text:
        text.write_text(LINES, "utf-8")
        corpus = read_corpus([str(text)])
    settings = {"steps": 30, "batch_tokens": 256, "context": 64, "dtype": "float32"} | request
    return prepare(PlanRequest(**settings), corpus, conversations=conversations or inputs())  # type: ignore[arg-type]


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Ids as text, control tokens by their names."""
    names = {token: name for name, token in tokenizer.control_ids.items()}
    return "".join(names.get(i) or tokenizer.decode([i]) for i in ids)
