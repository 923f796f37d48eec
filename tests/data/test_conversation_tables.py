"""Tables of two columns: which are conversations, their headers, quoting, and rows that do not fit."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.conversation_tables import read_table
from llmcli.data.text_lines import open_lines
from llmcli.errors import LLMError
from tests.data.corpora import put


def read(name: str, text: str) -> tuple[list[tuple[str, str]], list[str], list[str]] | None:
    """(pairs, lines, notes)"""
    put(name, text.encode())
    with open_lines(name, Path(name)) as lines:
        table = read_table(lines, Path(name).suffix)
        if table is None:
            return None
        conversations = list(table.conversations)
    assert all([message.role for message in c.messages] == ["user", "assistant"] for c in conversations)
    pairs = [(c.messages[0].content, c.messages[1].content) for c in conversations]
    return pairs, [c.source.removeprefix(f"{name} line ") for c in conversations], table.notes


@pytest.mark.parametrize(
    ("name", "text", "pairs", "lines", "note"),
    [
        ("a.csv", "question,answer\nHi,Ho\n", [("Hi", "Ho")], ["2"], "the first row is the header ('question', "),
        ("a.csv", "Prompt, Completion \r\nHi,Ho\r\n", [("Hi", "Ho")], ["2"], "the first row is the header"),
        ("a.csv", "\ufeffsource,target\nHi,5", [("Hi", "5")], ["2"], "the first row is the header"),
        ("a.csv", "質問,回答\nHi,Ho", [("Hi", "Ho")], ["2"], "the first row is the header"),
        (
            "a.csv",
            "answer,question\nHo,Hi",
            [("Hi", "Ho")],
            ["2"],
            "the first row is the header ('answer', 'question'); the answer stands in the first column",
        ),
        (
            "a.csv",
            "cat,猫\ndog,犬",
            [("cat", "猫"), ("dog", "犬")],
            ["1", "2"],
            "the first row ('cat', '猫') is data; a header would be question,answer or source,target",
        ),
        ("a.csv", "Hi;Ho\nOne, two;three", [("Hi", "Ho"), ("One, two", "three")], ["1", "2"], "the first row"),
        ("a.csv", "Hi, you;Ho\n" * 4 + "1;2a", [("Hi, you", "Ho")] * 4 + [("1", "2a")], [*"12345"], "the first row"),
        ("a.tsv", "Hi, you\tHo\n\nOne\tTwo", [("Hi, you", "Ho"), ("One", "Two")], ["1", "3"], "the first row"),
        (
            "a.csv",
            '"Say ""Hi"", please","one\r\ntwo"\n\n,\n"  ",""\nx,y\n',
            [('Say "Hi", please', "one\ntwo"), ("x", "y")],
            ["1", "6"],
            "the first row",
        ),
        ("a.csv", "question,answer\n,Ho\nHi,\n", [("", "Ho"), ("Hi", "")], ["2", "3"], "the first row is the header"),
        ("a.tsv", 'Hi\t"one\ntwo"\n', [("Hi", "one\ntwo")], ["1"], "the first row"),
    ],
)  # fmt: skip
def test_a_table_of_two_columns_is_read(
    name: str, text: str, pairs: list[tuple[str, str]], lines: list[str], note: str
) -> None:
    table = read(name, text)
    assert table and table[:2] == (pairs, lines)
    assert table[2][0].startswith(f"{name}: {note}") and len(table[2]) == 1


@pytest.mark.parametrize(
    "rows",
    [
        '"Why?" he asked.\tQ\nHi\tHo',
        'Hi\tHo\n"Why?" he asked.\tQ',
        'Hi\tHo\n"Why?\tQ',
        "a\tb\n" * 60 + '"x\ty',
    ],
)
def test_quotation_marks_of_a_tsv_are_text_where_they_follow_no_rule(rows: str) -> None:
    table = read("a.tsv", rows)
    assert table and table[0] == [tuple(row.split("\t")) for row in rows.split("\n") if row]
    assert "a.tsv: its quotation marks are part of the text" in table[2]


CELLS = st.text(st.sampled_from('ab ,;\t"\n\u2028りé'), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_what_pythons_writer_writes_is_read_exactly(rows: list[tuple[str, str]], end: str) -> None:
    for name, delimiter in (("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")):
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([("question", "answer"), *rows])
        table = read(name, file.getvalue())
        assert table and table[0] == rows


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "1,2\n3,4\n5,6\n"),
        ("a.csv", "x,y\n1,2\n3,4\n"),
        ("a.csv", "date,temperature\n2024-01-01,3.5\n2024-01-02,4.1\n"),
        ("a.csv", "city,people\nTokyo,14\nParis,2\nRome,3\n"),
        ("a.csv", "id,question,answer\n1,Hi,Ho\n"),
        ("a.csv", "One line of prose, with a comma.\nAnd one, with two, of them.\n"),
        ("a.csv", "Prose\nwithout any\n"),
        ("a.csv", "Prose, at times,\n" + "with one, comma\n" * 3),
        ("a.csv", '"Hi, Ho\n'),
        ("a.csv", ""),
        ("a.csv", "\n\n"),
        ("a.tsv", "1\t2\n"),
        ("a.tsv", "question,answer\nHi,Ho\n"),
    ],
)
def test_other_tables_are_not_conversations(name: str, text: str) -> None:
    assert read(name, text) is None


HEADER = "question,answer\nHi,Ho\n"
LONG = "x" * 140_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEADER + "a,b,c\n", "line 3: 3 columns; wanted 2, a prompt and an answer"),
        (HEADER + "a\n", "line 3: 1 column; wanted 2, a prompt and an answer"),
        ("a,b\n" * 40 + '\n"x\ny",c,d\n', "line 42: 3 columns; wanted 2, a prompt and an answer"),
        (HEADER + 'a,"b\nc,d\ne,f\n', "line 3: a quotation mark without its partner; wanted text with a comma or"),
        (HEADER + 'a,"b" c\n', "line 3: text after the quotation mark that ends a cell; wanted text with a comma or"),
        (HEADER + "a,b\rc\n", "line 3: a carriage return inside a row; wanted"),
        (HEADER + f"a,{LONG}\n", "line 3: a cell of more than 131,072 characters (a quotation mark without its"),
        ("a,b,c\n" + "Hi,Ho\n" * 4, "line 1: 3 columns; wanted 2, a prompt and an answer"),
        ("Hi,Ho\n" * 3 + "Hi\n" + "Hi,Ho\n", "line 4: 1 column; wanted 2, a prompt and an answer"),
        ("Hi;Ho\n" * 3 + "Hi;Ho;Hu\n" + "Hi;Ho\n" * 9, "line 4: 3 columns; wanted 2, a prompt and an answer"),
        ("a,b\n" * 99 + 'c,"d\n', "line 100: a quotation mark without its partner"),
    ],
)
def test_the_error_gives_the_line_in_which_a_row_begins(text: str, problem: str) -> None:
    with pytest.raises(LLMError) as caught:
        read("a.csv", text)
    assert str(caught.value).startswith(f"a.csv {problem}") and "\n" not in str(caught.value)
