"""Files of conversations: the same in every shape and container, what is left out, malformed files, other files."""

import codecs
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcli.data import files as conversation_files
from llmcli.data.conversations.messages import Message
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.files import ConversationFile
from llmcli.data.sources import require_conversations
from llmcli.errors import LLMError
from tests.data.corpora import error_of, put, read_conversations, zstd

ROOT = Path(__file__).parent.parent.parent
PAIRS = [
    ("What is a cat?", 'An animal.\nIt says "meow", and\u2028purrs.'),
    ("りんごは何色？", "赤い🍎"),
    ("2+2, please", "It is 4; <|im_end|> {{ x }} \\n"),
]
MESSAGES = [(Message("user", prompt), Message("assistant", answer)) for prompt, answer in PAIRS]
TEXT_BYTES = sum(len((prompt + answer).encode()) for prompt, answer in PAIRS)


def read(name: str, data: bytes | str, speakers: tuple[str, str] | None = None) -> ConversationFile | None:
    put(name, data.encode() if isinstance(data, str) else data)
    return read_conversations(name, ReadOptions(speakers))


def messages_of(file: ConversationFile | None) -> list[tuple[Message, ...]]:
    assert file is not None
    return [conversation.messages for conversation in file.conversations]


def turns(*pairs: tuple[str, str]) -> list[Any]:
    roles = "user", "assistant"
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def sharegpt(*pairs: tuple[str, str]) -> list[Any]:
    senders = "human", "gpt"
    return [{"from": sender, "value": text} for pair in pairs for sender, text in zip(senders, pair, strict=True)]


SHAPES: dict[str, Callable[[str, str], Any]] = {
    "messages": lambda q, a: {"messages": turns((q, a))},
    "ShareGPT": lambda q, a: {"conversations": sharegpt((q, a))},
    "prompt/completion": lambda q, a: {"prompt": q, "completion": a},
    "instruction/output": lambda q, a: {"instruction": q, "input": "", "output": a},
    "question/answer": lambda q, a: {"question": q, "answer": a},
    "source/target": lambda q, a: {"source": q, "target": a},
    "input/output": lambda q, a: {"input": q, "output": a},
}
LISTS: dict[str, Callable[[str, str], Any]] = {
    "messages": lambda q, a: turns((q, a)),
    "prompt/completion": lambda q, a: {"prompt": turns((q, a))[:1], "completion": turns((q, a))[1:]},
}


def json_lines(records: list[Any], end: str = "\n") -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + end for record in records)


CONTAINERS: dict[str, tuple[str, Callable[[list[Any]], bytes]]] = {
    "lines": ("a.jsonl", lambda r: json_lines(r).encode()),
    "lines called .txt": ("a.txt", lambda r: json_lines(r).encode()),
    "lines with blank ones": ("a.ndjson", lambda r: ("\n" + json_lines(r, "\r\n\n") + " \n").encode()),
    "lines with escapes": ("a.jsonl", lambda r: "\n".join(map(json.dumps, r)).encode()),
    "lines with a mark": ("a.jsonl", lambda r: json_lines(r).encode("utf-8-sig")),
    "lines in UTF-16": ("a.jsonl", lambda r: json_lines(r).encode("utf-16")),
    "lines in gzip": ("a.jsonl.gz", lambda r: gzip.compress(json_lines(r).encode())),
    "lines in zstd": ("a.jsonl.zst", lambda r: zstd(json_lines(r).encode())),
    "an array": ("a.json", lambda r: json.dumps(r, ensure_ascii=False).encode()),
    "an array over several lines": ("a.json", lambda r: json.dumps(r, indent=2, ensure_ascii=False).encode()),
    "an array in gzip": ("a.json.gz", lambda r: gzip.compress(json.dumps(r).encode())),
    "records over several lines": ("a.json", lambda r: "\n".join(json.dumps(x, indent=2) for x in r).encode()),
}


def test_every_shape_in_every_container_gives_the_same_messages() -> None:
    for shape, record in [*SHAPES.items(), *LISTS.items()]:
        for container in CONTAINERS:
            name, write = CONTAINERS[container]
            if container == "records over several lines" and isinstance(record("", ""), list):
                continue  # lists one after the other begin as one array does
            data = write([record(*pair) for pair in PAIRS])
            file = read(name, data)
            assert file and messages_of(file) == MESSAGES, container
            assert (file.name, file.path, file.shape) == (name, Path(name), shape), container
            assert (file.dropped, file.text_bytes, file.notes) == (0, TEXT_BYTES, ()), container
            if "zst" not in name and "UTF-16" not in container:
                plain = gzip.decompress(data) if name.endswith(".gz") else data
                assert file.sha256 == hashlib.sha256(plain.removeprefix(codecs.BOM_UTF8)).hexdigest()


def table(delimiter: str, header: str = "", end: str = "\r\n") -> str:
    file = io.StringIO()
    rows = [tuple(header.split(","))] if header else []
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([*rows, *PAIRS])
    return file.getvalue()


OTHER_FILES: dict[str, tuple[str, bytes, str]] = {
    "CSV with a header": ("a.csv", table(",", "question,answer").encode(), "question/answer"),
    "CSV without": ("a.CSV", table(",").encode(), "two columns"),
    "CSV with semicolons": ("a.csv", table(";", "prompt,completion", "\n").encode("utf-8-sig"), "prompt/completion"),
    "CSV in gzip": ("a.csv.gz", gzip.compress(table(",").encode()), "two columns"),
    "CSV in UTF-16": ("a.csv", table(",").encode("utf-16"), "two columns"),
    "TSV": ("a.tsv", table("\t", "source,target").encode(), "source/target"),
    "TSV in gzip": ("a.tsv.gz", gzip.compress(table("\t", end="\n").encode()), "two columns"),
    "User and Assistant": ("a.txt", "\n".join(f"User: {q}\nAssistant: {a}\n" for q, a in PAIRS).encode(), ""),
    "Human and AI": ("a", "\n".join(f"Human:\n{q}\nAI:\n{a}\n" for q, a in PAIRS).encode("utf-16"), ""),
    "Q and A": ("a.txt", "".join(f"Q: {q}\nA: {a}\n" for q, a in PAIRS).encode("utf-8-sig"), "Q:/A: turns"),
    "in Japanese": ("a.md", "\n".join(f"質問：{q}\r\n回答：{a}\r\n" for q, a in PAIRS).encode(), "Q:/A: turns"),
    "in gzip": ("a.gz", gzip.compress("".join(f"Q: {q}\n\nA: {a}\n\n" for q, a in PAIRS).encode()), "Q:/A: turns"),
}


def test_tables_and_texts_give_the_same_messages() -> None:
    for kind in OTHER_FILES:
        name, data, shape = OTHER_FILES[kind]
        file = read(name, data)
        assert file and messages_of(file) == MESSAGES, kind
        assert file.shape == (shape or "User:/Assistant: turns"), kind
        assert (file.dropped, file.text_bytes, file.notes) == (0, TEXT_BYTES, ()), kind
        assert file.first_row.startswith("the first row ('What is a cat?', ") == (shape == "two columns"), kind


def test_named_speakers_give_the_same_messages() -> None:
    text = "\n".join(f"Alice: {q}\nBob: {a}\n" for q, a in PAIRS)
    assert messages_of(read("a.txt", text, ("Alice", "Bob"))) == MESSAGES
    assert read("b.txt", text) is None
    lines = json_lines([SHAPES["messages"](*pair) for pair in PAIRS])
    assert messages_of(read("a.jsonl", lines, ("Alice", "Bob"))) == MESSAGES  # they are those of plain text


# ---- what is left out


def conversation(*texts: str) -> dict[str, Any]:
    """Of alternating messages, the first of them of the user."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


def test_what_has_no_answer_is_left_out_and_counted() -> None:
    texts = [("1", "a"), ("2",), ("3", " "), ("4", "a", "5", "\n", "6"), ("7", "", "8", "b"), ("9", "a", "10")]
    file = read("a.jsonl", json_lines([conversation(*one) for one in texts]))
    contents = [[message.content for message in messages] for messages in messages_of(file)]
    assert file and contents == [["1", "a"], ["4", "a"], ["8", "b"], ["9", "a"]]
    assert [c.source for c in file.conversations] == [f"a.jsonl line {line}" for line in (1, 4, 5, 6)]
    assert file.dropped == 2 and file.text_bytes == 8 and [count for _, count in file.skipped] == [2, 2, 1]
    assert file.notes == (
        "a.jsonl: 2 of 6 conversations left out: no answer (first: a.jsonl line 2)",
        "a.jsonl: 2 of 6 conversations cut after the last answer (first: a.jsonl line 4)",
        "a.jsonl: 1 of 5 answers left out with their questions: blank (first: to '7' in a.jsonl line 5)",
    )


def test_keys_that_are_not_used_are_named() -> None:
    record = SHAPES["question/answer"]("Hi", "Ho")
    file = read("a.jsonl", json_lines([record | {"id": 1}, record | {"topic": "x", "id": 2, "system": "Be brief."}]))
    assert file and file.notes == ("a.jsonl: read: question/answer; not used: id, topic",)
    file = read("a.jsonl", json_lines([record | {f"k{i}": 0 for i in range(9)}]))
    assert file and file.notes == ("a.jsonl: read: question/answer; not used: k0, k1, k2, k3, k4 and 4 more",)


def test_a_file_without_any_answer_is_an_error() -> None:
    for name, text, problem in [
        ("a.jsonl", json_lines([conversation("1"), conversation("2")]), "a.jsonl: none of the 2 conversations has an "),
        ("a.csv", "question,answer\n\nHi,\n", "a.csv line 3: no answer; wanted answers to train on"),
        ("a.csv", "question,answer\n\n", "a.csv has a header but no conversations; wanted rows with a prompt and"),
        ("a.txt", "User: 1\nAI:\n", "a.txt line 1: no answer; wanted answers to train on"),
    ]:
        assert error_of(read, name, text).startswith(problem), name


# ---- malformed files

GOOD = json.dumps(conversation("Hi", "Ho"))
# other malformed records: test_messages.py; JSON: test_json_records.py; tables: test_tables.py
MALFORMED_LINES: dict[str, tuple[str, str]] = {
    "a mark of another file": ("\ufeff" + GOOD, "invalid JSON at character 1 "),
    "no JSON": ("Hello", "invalid JSON at character 1 "),
    "another shape": ('{"prompt": "Hi", "completion": "Ho"}', 'the record has no "messages"'),
    "a huge number for messages": ('{"messages": 1' + "0" * 6000 + "}", '"messages" is '),
    "an array of numbers": ("[1, 2]", "the record is [1, 2]; wanted an object"),
}  # fmt: skip


def test_a_malformed_line_is_an_error_with_its_number() -> None:
    for kind, (line, problem) in MALFORMED_LINES.items():
        data = "\n".join([GOOD, GOOD, line, GOOD]).encode()
        for packed in (data, gzip.compress(data, 1)):
            message = error_of(read, "a.jsonl", packed)
            assert message.startswith(f"a.jsonl line 3: {problem}") and len(message) < 250, kind


def test_a_malformed_record_in_an_array_is_an_error_with_its_line() -> None:
    for kind, (line, problem) in MALFORMED_LINES.items():
        message = error_of(read, "a.json", f"[\n{GOOD},\n\n{line}\n]")
        is_json = not problem.startswith("invalid JSON")
        assert message.startswith("a.json line 4: " if is_json else "a.json line "), kind
        assert (problem.partition(";")[0] if is_json else "invalid JSON (") in message, kind
        assert len(message) < 250


OTHER_MALFORMED = {
    "bytes in a table": ("a.csv", b"question,answer\n1,a\n2,\xff\n", "is not UTF-8 text: byte 0xff at position 22;"),
    "bytes in JSON": ("a.jsonl", b'{"messages": "\xff"}\n', "is not UTF-8 text: byte 0xff at position 14;"),
    "a chat of another program": ("a.json", b'{"messages": [{"author": {"name": "x"}, "content": "Hi"}]}',
                                  'line 1: message 1 of "messages" has the role null; wanted'),
}  # fmt: skip


def test_other_malformed_files_are_errors_with_the_line() -> None:
    for kind in OTHER_MALFORMED:
        name, data, problem = OTHER_MALFORMED[kind]
        assert error_of(read, name, data).startswith(f"{name} {problem}"), kind
    with pytest.raises(LLMError, match=r"^a.jsonl: its records are empty; wanted a text, or a prompt and an answer"):
        read("a.jsonl", "{}\n{}\n")


# ---- files that hold no conversation


OTHER = {
    "nothing": ("a.jsonl", b""),
    "text": ("a.txt", b"Once upon a time.\n"),
    "text in JSON Lines": ("a.jsonl", b'{"text": "One."}\n{"text": "Two."}\n'),
    "more text than conversations": ("a.jsonl", (b'{"text": "One."}\n' * 2 + GOOD.encode() + b"\n") * 5),
    "text in an array": ("a.json", b'[{"text": "One."}, {"text": "Two."}]'),
    "one other record": ("a.json", b'{"id": 1, "name": "x"}\n'),
    "a wrapped list of numbers": ("a.json", b'{"version": 2,\n "data": [\n1, 2]}'),
    "numbers": ("a.json", b"[[1, 2], [3, 4]]"),
    "a scene": ("a.txt", b"[Scene 1]\nEnter Hamlet.\n"),
    "braces": ("a.txt", b"{\\tt Hello}"),
    "broken JSON": ("a.json", b'{"messages": [\n{"messages": ['),
    "a table called .txt": ("a.txt", b"question,answer\nHi,Ho\n"),
}


def test_other_files_hold_no_conversation() -> None:
    for kind in OTHER:
        assert read(*OTHER[kind]) is None, kind


def test_of_the_texts_of_the_project_only_the_examples_of_conversations_are_conversations() -> None:
    files = [*(ROOT / "examples").glob("*.txt"), *(ROOT / "llmcli").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    assert len(files) > 50
    recognized = {file.name for file in files if read_conversations(str(file)) is not None}
    assert recognized == {f"{name}{part}.txt" for name in ("planets", "wakusei", "school") for part in ("", "-test")}


def test_json_lines_are_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations come while the file is read: what follows a malformed line is not read."""
    taken = []
    real = conversation_files.records_of_lines

    def counted(name: str, lines: Any) -> Any:
        for record in real(name, lines):
            taken.append(record[0])
            yield record

    monkeypatch.setattr(conversation_files, "records_of_lines", counted)
    assert "line 12" in error_of(read, "a.jsonl", (GOOD + "\n") * 11 + "{}\n" + (GOOD + "\n") * 50_000)
    assert taken == [*range(1, 11), *range(1, 13)]  # the first records are read twice


def test_a_document_that_wraps_its_records() -> None:
    records = [LISTS["prompt/completion"](*pair) for pair in PAIRS]
    for indent in (None, 1):
        assert messages_of(read("a.json", json.dumps({"version": 2, "data": records}, indent=indent))) == MESSAGES


def test_the_questions_of_squad_follow_their_context() -> None:
    asked = {"question": "What is blue?", "answers": [{"text": "The sky", "answer_start": 0}, {"text": "sky"}]}
    paragraph = {"context": "The sky is blue.", "qas": [asked, {"question": "Why?", "answers": []}]}
    data = {"version": "v2.0", "data": [{"title": "A", "paragraphs": [paragraph]}]}
    name = put("squad.json", json.dumps(data).encode())
    file = require_conversations(Path(name))
    [messages] = messages_of(file)
    assert [message.content for message in messages] == ["What is blue?\n\nThe sky is blue.", "The sky"]
    assert file.dropped == 1 and file.notes[0].endswith("no answer (first: squad.json record 2)")
    for damaged in ("context", [3], [{"qas": 3}], [{"context": "a", "qas": [{"question": "b", "answers": 3}]}]):
        with pytest.raises(LLMError, match=r"^a\.json: (no column has text|unclear .*): 'paragraphs'"):
            read("a.json", json.dumps({"data": [{"paragraphs": damaged}] * 2}))
