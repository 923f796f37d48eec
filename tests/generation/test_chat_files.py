"""Conversations in files: what is written can be read, by `llm train` too, and no other file is replaced."""

import json
from pathlib import Path

import pytest

from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError
from llmcli.generation.chat import load_conversation, save_messages

MESSAGES = (
    Message("system", "Be brief."),
    Message("user", 'りんご "x"\n🍎\u2028'),
    Message("assistant", "<|im_end|>\ty\\n"),
)
PATH = Path("chat.jsonl")


def test_a_conversation_is_read_as_it_was_written_by_training_too() -> None:
    save_messages(PATH, MESSAGES)
    [line] = PATH.read_text("utf-8").split("\n")[:-1]
    assert json.loads(line) == {"messages": [{"role": m.role, "content": m.content} for m in MESSAGES]}
    conversation, read = load_conversation(PATH)
    assert conversation.messages == MESSAGES
    assert [one.messages for one in read.conversations] == [MESSAGES]
    for number in (0, 2):
        with pytest.raises(LLMError, match=f"holds 1 conversation, found number {number}"):
            load_conversation(PATH, number)


def test_only_the_conversation_as_it_was_saved_is_replaced() -> None:
    data = save_messages(PATH, MESSAGES[:3])
    longer = (*MESSAGES, Message("user", "a"), Message("assistant", "b"))
    with pytest.raises(LLMError, match=r"chat.jsonl already exists; give another name: /save OTHER.jsonl"):
        save_messages(PATH, longer)
    save_messages(PATH, longer, data)
    assert load_conversation(PATH)[0].messages == longer
    PATH.write_text("mine")
    with pytest.raises(LLMError, match="already exists"):
        save_messages(PATH, longer, data)
    assert PATH.read_text() == "mine"


def test_a_file_without_conversations_is_named() -> None:
    with pytest.raises(LLMError, match=r"there is no file chat\.jsonl"):
        load_conversation(PATH)
    with pytest.raises(LLMError, match=r"^\. is a directory; give a JSON Lines file with .*/save$"):
        load_conversation(Path())
    PATH.write_text("Once upon a time.\n" * 20)
    with pytest.raises(LLMError, match=r"chat\.jsonl line 1: invalid JSON"):
        load_conversation(PATH)
    PATH.write_text('{"text": "Once upon a time."}\n' * 20)
    with pytest.raises(LLMError, match=r"chat\.jsonl has no conversations"):
        load_conversation(PATH)
