"""A conversation from a JSON object: each shape of record, and what is wrong in malformed ones."""

from typing import Any

import pytest

from llmcli.data.conversations.messages import Conversation, Message, RecordShape, from_record, record_shape
from llmcli.errors import LLMError
from tests.data.corpora import error_of

USER, ASSISTANT = Message("user", "Hi"), Message("assistant", "Ho")
SYSTEM = Message("system", "Be brief.")


def read(record: object, source: str, shape: RecordShape | None = None) -> Conversation:
    """The conversation in a record; one of no known shape is in a file of messages."""
    shape = shape or record_shape(record)
    return from_record(record, source, shape if shape and not shape.is_text else RecordShape("messages", ("messages",)))


def openai(*messages: Message) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


RECORDS: list[tuple[str, Any, tuple[Message, ...]]] = [
    ("messages", {"messages": openai(SYSTEM, USER, ASSISTANT, USER)}, (SYSTEM, USER, ASSISTANT, USER)),
    ("messages", openai(USER, ASSISTANT), (USER, ASSISTANT)),
    ("messages", {"messages": [{"role": "developer", "content": "Be brief."}, *openai(USER)]}, (SYSTEM, USER)),
    ("messages", {"messages": openai(USER, USER, ASSISTANT), "weight": 1}, (USER, USER, ASSISTANT)),
    ("messages", {"messages": openai(ASSISTANT, USER)}, (ASSISTANT, USER)),
    ("messages",
     {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]},
     (USER,)),
    ("messages", {"messages": [{"role": "user", "content": ""}, *openai(ASSISTANT)]}, (Message("user", ""), ASSISTANT)),
    ("ShareGPT", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
     (USER, ASSISTANT)),
    ("ShareGPT", {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}]},
     (USER, ASSISTANT)),
    ("ShareGPT", {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}]},
     (SYSTEM, USER)),
    ("ShareGPT", {"conversations": openai(USER, ASSISTANT), "system": "Be brief."}, (SYSTEM, USER, ASSISTANT)),
    ("messages", {"messages": openai(SYSTEM, USER), "system": "Another"}, (SYSTEM, USER)),
    ("ShareGPT", {"conversation": openai(USER, ASSISTANT)}, (USER, ASSISTANT)),
    ("ChatML in a text", {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"},
     (USER, ASSISTANT)),
    ("prompt/completion", {"prompt": "Hi", "completion": "Ho"}, (USER, ASSISTANT)),
    ("prompt/completion", {"prompt": "", "completion": " Ho\n"}, (Message("user", ""), Message("assistant", " Ho\n"))),
    ("prompt/completion", {"prompt": openai(SYSTEM, USER, ASSISTANT, USER), "completion": openai(ASSISTANT)},
     (SYSTEM, USER, ASSISTANT, USER, ASSISTANT)),
    ("prompt/completion", {"prompt": openai(SYSTEM, USER), "completion": "Ho"}, (SYSTEM, USER, ASSISTANT)),
    ("prompt/response", {"prompt": "Hi", "response": "Ho"}, (USER, ASSISTANT)),
    ("instruction/output", {"instruction": "Hi", "output": "Ho"}, (USER, ASSISTANT)),
    ("instruction/output", {"instruction": "Hi", "input": "", "output": "Ho"}, (USER, ASSISTANT)),
    ("instruction/output", {"instruction": "Hi", "input": None, "output": "Ho"}, (USER, ASSISTANT)),
    ("instruction/output",
     {"instruction": "Hi", "input": "1, 2", "output": "Ho", "system": "Be brief.", "text": "all of it"},
     (SYSTEM, Message("user", "Hi\n\n1, 2"), ASSISTANT)),
    ("instruction/response", {"instruction": "Hi", "context": "x", "response": "Ho"},
     (Message("user", "Hi\n\nx"), ASSISTANT)),
    ("question/answer", {"question": "Hi", "answer": "Ho", "id": 3}, (USER, ASSISTANT)),
]  # fmt: skip


def test_each_shape_of_record_is_recognized_and_read() -> None:
    for name, record, messages in RECORDS:
        shape = record_shape(record)
        assert shape and shape.name == name, name
        assert read(record, "a.jsonl line 7") == Conversation(messages, "a.jsonl line 7"), name


OTHER_RECORDS: list[Any] = [
    {}, {"text": 1}, {"prompt": "Hi"}, {"completion": "Ho"}, {"prompt": "x", "chosen": "a", "rejected": "b"},
    {"question": "?", "answers": {"text": ["x"]}}, {"prompt": "Hi", "completion": None}, {"messages": None},
    None, 3, "Hi", [], [1, 2], [{"a": 1}],
]  # fmt: skip


def test_other_records_are_of_no_known_shape() -> None:
    for record in OTHER_RECORDS:
        assert record_shape(record) is None, record


def answered(content: object = "Ho", **fields: object) -> dict[str, Any]:
    return {"messages": [*openai(USER), {"role": "assistant", "content": content, **fields}]}


MALFORMED: list[tuple[Any, str]] = [
    (3.0, "the record is 3.0; wanted an object: {...}"),
    ({"text": "x"}, 'the record has no "messages"; wanted "messages", as in other records of the file'),
    ({"messages": "Hi"},
     '"messages" is "Hi"; wanted a list of messages: [{"role": "user", "content": "text"}, ...]'),
    ({"messages": [{"role": "user", "content": "Hi"}, "Ho"]},
     'message 2 of "messages" is "Ho"; wanted {"role": "user", "content": "text"}'),
    ({"messages": [{"role": "user", "content": "Hi"}, {"content": "Ho"}]},
     'message 2 of "messages" has the role null; wanted system, user or assistant'),
    ({"messages": [{"role": ["user"], "content": "Hi"}]},
     "message 1 of \"messages\" has the role [\"user\"]; wanted system, user or assistant"),
    ({"conversations": [{"from": "bing", "value": "Hi"}]},
     "message 1 of \"conversations\" has the role \"bing\"; wanted system, user or assistant"),
    ({"conversations": [{"from": "gpt", "content": "Hi"}]},
     '"value" of message 1 of "conversations" is null; wanted text in quotes'),
    (answered(None), '"content" of message 2 of "messages" is null; wanted text in quotes'),
    (answered({"text": "Ho"}), "\"content\" of message 2 of \"messages\" is {\"text\": \"Ho\"}; wanted text in quotes"),
    (answered([{"type": "text", "text": "Ho"}, {"type": "image_url", "image_url": {}}]),
     'part 2 of "content" of message 2 of "messages" is {"type": "image_url", "image_url": {}}; wanted '
     '{"type": "text", "text": ...}: the model reads text only'),
    (answered(["Ho"]), 'part 1 of "content" of message 2 of "messages" is "Ho"; wanted {"type": "text", "text": ...'
     "}: the model reads text only"),
    (answered([{"type": "text"}]),
     '"text" of part 1 of "content" of message 2 of "messages" is null; wanted text in quotes'),
    (answered("Ho \ud83c"), '"content" of message 2 of "messages" has a lone surrogate (\\ud83c) at position 3; wanted '
     "both halves of the pair, or remove it"),
    (answered("H\0o"), '"content" of message 2 of "messages" has a zero character (\\u0000) at position 1; remove it'),
    ({"messages": openai(USER, ASSISTANT, ASSISTANT)},
     "messages 2 and 3 are both the assistant's; wanted a user message between them"),
    ({"messages": openai(USER, SYSTEM)}, "message 2 is a system message; wanted it first or not at all"),
    ({"prompt": openai(USER), "completion": []},
     '"completion" is []; wanted a list of messages: [{"role": "user", "content": "text"}, ...]'),
    ({"instruction": "Hi", "input": 3.0, "output": "Ho"}, '"input" is 3.0; wanted text in quotes'),
    ({"completion": "Ho"},
     'the record has no "prompt"; wanted "prompt" and "completion", as in other records of the file'),
    ({"prompt": "Hi", "completion": "Ho", "system": 1.0}, '"system" is 1.0; wanted text in quotes'),
]  # fmt: skip


def test_a_malformed_record_gives_one_line_with_its_place() -> None:
    for record, problem in MALFORMED:
        shape = record_shape({"prompt": "", "completion": ""}) if "completion" in str(record) else None
        assert error_of(read, record, "a.jsonl line 7", shape) == f"a.jsonl line 7: {problem}", record


def test_calls_of_tools_are_refused() -> None:
    for key in ["tool_calls", "function_call"]:
        assert error_of(read, answered(None, **{key: [{"name": "f"}]}), "a.jsonl line 7") == (
            f'a.jsonl line 7: message 2 of "messages" has "{key}", which is not supported: the model would learn to '
            "answer without calling; leave such conversations out"
        ), key
        assert read(answered(**{key: []}), "a").messages[1] == ASSISTANT


def test_an_answer_with_weight_0_or_train_false_is_not_learned() -> None:
    for key, values in (("weight", {0: False, 1: True, None: True}), ("train", {False: False, True: True, None: True})):
        for value, learned in values.items():
            expected = USER, Message("assistant", "Ho", is_learned=learned)
            assert read(answered(**{key: value}), "a").messages == expected
            sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", key: value}]
            assert read({"conversations": sharegpt}, "a").messages == expected
    for weight in [2, -1, 0.5, 1.5, "1", True, False, [], {}]:
        with pytest.raises(
            LLMError, match=r'^a line 7: "weight" of message 2 of "messages" is .*; wanted 1, or 0 for an answer that'
        ):
            read(answered(weight=weight), "a line 7")


def test_the_senders_of_sharegpt_are_known() -> None:
    for sender in ["gpt", "model", "bot", "ai", "chatgpt", "bard", "assistant"]:
        record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": sender, "value": "Ho"}]}
        assert read(record, "a").messages == (USER, ASSISTANT), sender
