"""Prompts of a batch: lines, JSON Lines and tables, with their bad rows."""

import re
from pathlib import Path

import pytest

from llmcli.data.conversations.messages import Message
from llmcli.data.prompts import PromptRow, read_prompts
from llmcli.errors import LLMError
from tests.data.corpora import error_of


def write(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_bytes(text.encode("utf-8"))
    return name


def test_each_line_of_a_text_is_a_prompt_with_its_number(tmp_path: Path) -> None:
    rows = read_prompts(write(tmp_path, "p.txt", "朝ごはん\r\n\n {not JSON\n🍎 \u2028x\n"))
    assert [(row.number, row.prompt, row.error) for row in rows] == [
        (1, "朝ごはん", ""), (3, " {not JSON", ""), (4, "🍎 \u2028x", ""),
    ]  # fmt: skip
    assert rows[0].conversation() == [Message("user", "朝ごはん")]
    assert "has no prompts" in error_of(read_prompts, write(tmp_path, "p.txt", " \n\n"))


def test_json_lines_have_prompts_or_messages_and_bad_rows_have_errors(tmp_path: Path) -> None:
    for name in ["p.jsonl", "p.txt"]:
        lines = [
            '{"id": [1], "prompt": "a\\nb"}',
            '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]}',
            '{"prompt": ""}', '{"prompt": 5}', "[1]", "{", '{"messages": [{"role": "x", "content": "Q"}]}',
            '{"messages": []}', '{"prompt": "a", "messages": []}', '{"prompt": "\\ud800"}', "[" * 100_000,
        ]  # fmt: skip
        rows = read_prompts(write(tmp_path, name, "\n".join(lines)))
        assert [row.number for row in rows] == list(range(1, 12)), name
        assert rows[0] == PromptRow(1, "a\nb", id=[1]), name
        assert rows[1].conversation() == [Message("system", "S"), Message("user", "Q")], name
        assert rows[2] == PromptRow(3), name
        assert "the message is empty" in error_of(rows[2].conversation, exit_code=2)
        assert all(row.error and not row.prompt and not row.messages for row in rows[3:]), name


def test_a_column_of_a_table(tmp_path: Path) -> None:
    name = write(tmp_path, "p.csv", 'n;prompt;c\r\n1;"a;\nb ""x""";2\r\n\r\n1; ;3\r\n')
    assert [(row.number, row.prompt, bool(row.error)) for row in read_prompts(name)] == [
        (1, 'a;\nb "x"', False), (2, "", False),
    ]  # fmt: skip
    assert [row.prompt for row in read_prompts(name, "c")] == ["2", "3"]
    assert [row.prompt for row in read_prompts(write(tmp_path, "one.csv", "q\na\nb\n"), "q")] == ["a", "b"]
    with pytest.raises(LLMError, match=r"has no column 'x'; name one: .* the first row is 'n', 'prompt', 'c'"):
        read_prompts(name, "x")
    with pytest.raises(
        LLMError, match=r"t.tsv has no column 'prompt'; name one: `column` NAME, or a number; the first row is 'a', 'b'"
    ):
        read_prompts(write(tmp_path, "t.tsv", "a\tb\n1\t2\n"))
    with pytest.raises(LLMError, match=r"one.csv has no column 'prompt'; .* the first row is 'q'$"):
        read_prompts("one.csv")
    assert [row.prompt for row in read_prompts("t.tsv", "2")] == ["b", "2"]
    assert "has no column '3'" in error_of(read_prompts, "t.tsv", "3", exit_code=2)


def test_the_rows_of_a_table_are_read_as_in_training(tmp_path: Path) -> None:
    name = write(tmp_path, "p.tsv", 'prompt\tc\n"a" b\t1\n"c"\t2\n"e\t3\n')
    assert [row.prompt for row in read_prompts(name)] == ['"a" b', '"c"', '"e']
    for row, problem in (('"a" b,1', ".* expected after"), ("a", "1 column; wanted 2")):
        message = error_of(read_prompts, write(tmp_path, "p.csv", f"prompt,c\nf,4\n{row}\n"))
        assert re.match(f"p.csv line 3: {problem}", message) and "`plain`" not in message  # no option of a batch


def test_text_with_markup_is_no_list_of_prompts(tmp_path: Path) -> None:
    mail = "From: a@example.com\nSubject: Hi\n\nHello.\n"
    for name, text, description in (
        ("a.txt", "<!DOCTYPE html>\n<p>Hello.</p>\n", "is an HTML page"),
        ("a.ipynb", '{"cells": []}', "is a notebook"),
        ("a.eml", mail, "is an e-mail"),
        ("a.mbox", f"From a@example.com Mon Jan  1 10:00:00 2024\n{mail}", "is a mailbox"),
    ):
        message = error_of(read_prompts, write(tmp_path, name, text))
        assert message == f"{name} {description}, not text; extract its text first: llm text {name} > TEXT"


def test_settings_in_a_row_are_an_error(tmp_path: Path) -> None:
    lines = '{"prompt": "a", "temperature": 0, "top_k": 7}\n{"prompt": "a", "topic": "food", "seed": 7}'
    with_settings, with_topic = read_prompts(write(tmp_path, "p.jsonl", lines))
    assert with_settings.error == ("found 'temperature', 'top_k'; give settings as options, which apply to all rows")
    assert with_topic == PromptRow(2, "a")
