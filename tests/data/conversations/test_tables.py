"""Tables: delimiters, headers, quoting, rows that do not fit, and which columns are pairs or text."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.conversations import tables
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.files import ConversationFile, read_records
from llmcli.data.text.decoding import Document, OpenFile
from llmcli.data.text.temporary_files import TextCopy
from llmcli.errors import LLMError
from tests.data.corpora import error_of, put

AUTOMATIC = ReadOptions()


def read(name: str, text: str, reading: ReadOptions = AUTOMATIC) -> ConversationFile | Document | None:
    put(name, text.encode())
    with OpenFile(name, Path(name)) as opened:
        file = read_records(name, Path(name), opened, reading=reading, copy=TextCopy())
    return None if isinstance(file, Document) and not file.columns else file


def pairs_of(file: object) -> list[tuple[str, str]]:
    assert isinstance(file, ConversationFile)
    assert all([message.role for message in c.messages] == ["user", "assistant"] for c in file.conversations)
    return [(c.messages[0].content, c.messages[1].content) for c in file.conversations]


HEADER, DATA = " is the header; if it is data: `column` ", " is data"
PAIRS: list[tuple[str, str, list[tuple[str, str]], str, str]] = [  # (name, text, pairs, lines, of the first row)
    ("a.csv", "question,answer\nHi,Ho\n", [("Hi", "Ho")], "2", ""),
    ("a.csv", "Prompt, Completion \r\nHi,Ho\r\n", [("Hi", "Ho")], "2", ""),
    ("a.csv", "\ufeffsource,target\nHi,5", [("Hi", "5")], "2", ""),
    ("a.csv", "質問,回答\nHi,Ho", [("Hi", "Ho")], "2", ""),
    ("a.csv", "answer,question\nHo,Hi", [("Hi", "Ho")], "2", ""),
    ("a.csv", "id,question,answer\n1,Hi,Ho\n2,Ha,He", [("Hi", "Ho"), ("Ha", "He")], "23", ""),
    ("a.csv", "Front,Back\nHi,Ho", [("Hi", "Ho")], "2", ""),
    ("a.csv", "english,spanish\ncat,gato", [("cat", "gato")], "2", f"('english', 'spanish'){HEADER}1,2"),
    ("a.tsv", "単語\t意味\n猫\tcat\n", [("猫", "cat")], "2", f"('単語', '意味'){HEADER}1,2"),
    ("a.csv", "en,klingon\ncat,gato", [("en", "klingon"), ("cat", "gato")], "12", f"('en', 'klingon'){DATA}; if it"),
    ("a.csv", "name,phone\nAnn,55-1\nBob,55-2", [("Ann", "55-1"), ("Bob", "55-2")], "23", f"('name', 'phone'){HEADER}"),
    ("a.tsv", "1\tone\n2\ttwo", [("1", "one"), ("2", "two")], "12", f"('1', 'one'){DATA}"),
    ("a.csv", "city,x\nTokyo,14\nParis,2", [("Tokyo", "14"), ("Paris", "2")], "23", f"('city', 'x'){HEADER}1,2"),
    ("a.csv", "cat,猫\ndog,犬", [("cat", "猫"), ("dog", "犬")], "12", f"('cat', '猫'){DATA}; if it is the header, "),
    ("a.csv", "Hi;Ho\nOne, two;three", [("Hi", "Ho"), ("One, two", "three")], "12", "('Hi', 'Ho')"),
    ("a.csv", "Hi, you;Ho\n" * 4 + "1;2a", [("Hi, you", "Ho")] * 4 + [("1", "2a")], "12345", ""),
    ("a.tsv", "Hi, you\tHo\n\nOne\tTwo", [("Hi, you", "Ho"), ("One", "Two")], "13", ""),
    ("a.csv", '"Say ""Hi"", please","one\r\ntwo"\n\n,\n"  ",""\nx,y\n',
     [('Say "Hi", please', "one\ntwo"), ("x", "y")], "16", ""),
    ("a.csv", "question,answer\n,Ho\nHi,a\n", [("", "Ho"), ("Hi", "a")], "23", ""),
    ("a.tsv", 'Hi\t"one\ntwo"\n', [("Hi", "one\ntwo")], "1", ""),
    ("a.csv", "sep=;\nquestion;answer\nHi;Ho\n", [("Hi", "Ho")], "3", ""),
    ("a.csv", "sep=,\r\nHi,Ho\r\none,two\r\n", [("Hi", "Ho"), ("one", "two")], "23", "('Hi', 'Ho')"),
    ("a.csv", "question,answer\rHi,Ho\rone,two\r", [("Hi", "Ho"), ("one", "two")], "23", ""),
    ("a.tsv", "Hi\tHo\rone\ttwo", [("Hi", "Ho"), ("one", "two")], "12", "('Hi', 'Ho')"),
    ("a.csv", "question|answer\nHi|Ho, ha\n", [("Hi", "Ho, ha")], "2", ""),
    ("a.csv", "Hi, you|Ho\none|two\n", [("Hi, you", "Ho"), ("one", "two")], "12", "('Hi, you', 'Ho')"),
    ("a.csv", "question\tanswer\nHi\tHo\n", [("Hi", "Ho")], "2", ""),
    ("a.csv", "question,question,answer\nHi,x,Ho\n", [("Hi", "Ho")], "2", ""),
    ("a.csv", '"question", "answer"\r\n"Hi, you", " Ho"\r\nOne, two\r\n',
     [("Hi, you", " Ho"), ("One", "two")], "23", ""),
    # a space is part of the text, unless the first row has one before a quoted cell
    ("a.csv", 'question,answer\nHi, "Ho"\n', [("Hi", ' "Ho"')], "2", ""),
    ("a.csv", 'question, said "answer"\nHi, Ho\n', [("question", ' said "answer"'), ("Hi", " Ho")], "12", ""),
    ("a.csv", f"question,answer\nHi,\"{'x' * 200_000}\"\n", [("Hi", "x" * 200_000)], "2", ""),
]  # fmt: skip


def test_two_columns_are_pairs() -> None:
    for name, text, pairs, lines, first_row in PAIRS:
        file = read(name, text)
        assert pairs_of(file) == pairs and isinstance(file, ConversationFile), name
        assert [c.source for c in file.conversations] == [f"{name} line {line}" for line in lines], name
        assert file.first_row.startswith(f"the first row {first_row}" if first_row else ""), name


TEXT_COLUMNS = [
    ("a.csv", "text,label\nOne.,1\nTwo.,0\n", "text"),
    ("a.csv", "id,Text,lang\n1,One.,en\n2,Two.,en\n3,,en\n", "Text"),
    ("a.csv", "text\nOne.\nTwo.\n", "text"),
    ("a.tsv", "label\ttext\n1\tOne.\n0\tTwo.\n", "text"),
]


def test_a_column_called_text_is_plain_text() -> None:
    for name, text, column in TEXT_COLUMNS:
        document = read(name, text)
        assert isinstance(document, Document) and document.columns == (column,), name
        assert "".join(document.text()) == "One.\n\nTwo.", name


REQUESTED: list[tuple[str, ReadOptions, str, object]] = [  # (file, how it is read, text, pairs or text)
    ("a.csv", ReadOptions(pairs=True), "1,2\n3,4\n", [("1", "2"), ("3", "4")]),
    ("a.csv", ReadOptions(pairs=True), "x,y\n1,2\n3,4\n", [("1", "2"), ("3", "4")]),
    ("a.csv", ReadOptions(columns=("c", "a")), "a,b,c\nx,y,z\n", [("z", "x")]),
    ("a.csv", ReadOptions(columns=("3", "1")), "a,b,c\nx,y,z\n", [("c", "a"), ("z", "x")]),
    ("a.csv", ReadOptions(columns=("1", "2")), "question,answer\nHi,Ho\n", [("question", "answer"), ("Hi", "Ho")]),
    ("a.csv", ReadOptions(columns=("cat", "gato")), "cat,gato\ndog,perro\n", [("dog", "perro")]),
    ("a.csv", ReadOptions(columns=("ANSWER",)), "question,answer\nHi,Ho\n", "Ho"),
    ("a.txt", ReadOptions(columns=("1", "2")), "Go.\tVe.\tCC\nHi.\tHola.\tCC\n", [("Go.", "Ve."), ("Hi.", "Hola.")]),
    ("a.txt", ReadOptions(pairs=True), "Go.\tVe.\nHi.\tHola.\n", [("Go.", "Ve."), ("Hi.", "Hola.")]),
    ("a.csv", ReadOptions(plain=True), "question,answer\nHi,Ho\n", None),
    ("a.csv", ReadOptions(columns=("other",)), "question,answer\nHi,Ho\n", [("Hi", "Ho")]),  # that of another file
]


def test_the_options_say_otherwise() -> None:
    for name, reading, text, expected in REQUESTED:
        file = read(name, text, reading)
        if isinstance(file, Document):
            assert "".join(file.text()) == expected, name
        else:
            assert (pairs_of(file) if file else None) == expected, name


REFUSED = [
    ("1,2\n3,4\n5,6\n", "unclear which columns to read: '1', '2'; name a column of text, or two columns of prompts "
     "and answers: `column` 1,2, or read it as plain text: `plain`"),
    ("date,temp\n2024-01,3.5\n2024-02,4.1\n", "unclear which columns to read: 'date', 'temp'"),
    ("chosen,rejected\nyes,no\n", "preference data: the model would also learn the rejected answers; to train on the "
     "chosen ones: `column` chosen"),
    ("prompt,chosen,rejected\nHi,yes,no\n", "preference data: the model would also learn the rejected answers; to "
     "train on the chosen ones: `column` prompt,chosen"),
    ("'question, or prompt',x,n\n".replace("'", '"') + "Hi,Ho,1\nHa,He,2\n", "unclear which columns to read: "
     "'question, or prompt', 'x', 'n'; name a column of text, or two columns of prompts and answers: `column` "
     "'\"question, or prompt\",x'"),
    ("prompt,completion,label\nHi,Ho,True\nHi,No,False\n", '"label" marks good answers, and the model would'),
]  # fmt: skip


def test_what_cannot_be_told_and_what_is_better_not_learned_is_refused() -> None:
    for text, problem in REFUSED:
        assert error_of(read, "a.csv", text).startswith(f"a.csv: {problem}"), text
        assert read("a.csv", text, ReadOptions(plain=True)) is None, text
    # the command that a message names helps, and answers that are all marked as good are read
    chosen = ReadOptions.of_options(column="prompt,chosen")
    assert pairs_of(read("a.csv", "prompt,chosen,rejected\nHi,yes,no\n", chosen)) == [("Hi", "yes")]
    good = "prompt,completion,label\nHi,Ho,True\nHe,Hu,True\n"
    assert pairs_of(read("a.csv", good)) == [("Hi", "Ho"), ("He", "Hu")]


def test_quotation_marks_of_a_tsv_are_text_where_they_follow_no_rule() -> None:
    why = '"Why?" he asked.\tQ'
    for rows in [f"{why}\nHi\tHo", f"Hi\tHo\n{why}", 'Hi\tHo\n"Why?\tQ', "a\tb\n" * 60 + '"x\ty']:
        file = read("a.tsv", rows)
        assert pairs_of(file) == [tuple(row.split("\t")) for row in rows.split("\n") if row], rows
        assert file and "a.tsv: its quotation marks are part of the text" in file.notes, rows
    assert pairs_of(read("a.tsv", "question\tanswer\n" + 'Hi\t"Ho\n' * 9)) == [("Hi", '"Ho')] * 9


CELLS = st.text(st.sampled_from('ab ,;\t"\n\u2028りé'), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_what_pythons_writer_writes_is_read_exactly(rows: list[tuple[str, str]], end: str) -> None:
    for name, delimiter in (("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")):
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([("question", "answer"), *rows])
        assert pairs_of(read(name, file.getvalue())) == rows


def test_other_files_are_no_tables() -> None:
    for name, text in [
        ("a.csv", "One line of prose, with a comma.\nAnd one, with two, of them.\n"),
        ("a.csv", "Prose\nwithout any\n"),
        ("a.csv", "Prose, at times,\n" + "with one, comma\n" * 3),
        ("a.csv", '"Hi, Ho\n'),
        ("a.csv", ""),
        ("a.csv", "\n\n"),
        ("a.tsv", "question,answer\nHi,Ho\n"),
        ("a.txt", "Go.\tVe.\nHi.\tHola.\n"),
    ]:
        assert read(name, text) is None, name


QA = "question,answer\nHi,Ho\n"


def test_the_error_gives_the_line_in_which_a_row_begins() -> None:
    for text, problem in [
        (QA + "a,b,c\n", "line 3: 3 columns; wanted 2 ("),
        (QA + "a\n", "line 3: 1 column; wanted 2 ("),
        ("id,text\n" + "1,The quick, brown fox\n" * 99, "line 2: 3 columns; wanted 2 ("),
        ("id,text\n" + '1,"The \\"quick\\" fox"\n' * 99, "line 2: ',' expected after '\"'"),
        ("a,b\n" * 40 + '\n"x\ny",c,d\n', "line 42: 3 columns; wanted 2 ("),
        (QA + 'a,"b\nc,d\ne,f\n', "line 3: unexpected end of data; wanted double quotes around"),
        (QA + 'a,"b" c\n', "line 3: ',' expected after '\"'; wanted double quotes around"),
        (QA + "a,b\rc\n", "line 3: new-line character seen in unquoted field"),
        ("a,b,c\n" + "Hi,Ho\n" * 4, "line 1: 3 columns; wanted 2 ("),
        ("Hi,Ho\n" * 3 + "Hi\n" + "Hi,Ho\n", "line 4: 1 column; wanted 2 ("),
        ("Hi;Ho\n" * 3 + "Hi;Ho;Hu\n" + "Hi;Ho\n" * 9, "line 4: 3 columns; wanted 2 ("),
        ("a,b\n" * 99 + 'c,"d\n', "line 100: unexpected end of data"),
        ("# made by hand\nquestion,answer\n" + "Hi,Ho\n" * 9, "line 1: 1 column; wanted 2 ("),
    ]:
        assert error_of(read, "a.csv", text).startswith(f"a.csv {problem}"), text


def test_a_line_or_a_cell_that_takes_much_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CELL", 1000)
    for name, text, problem in (
        ("a.csv", f"question,answer\nHi,{'Ho ' * 400}", "a.csv: a line of over 1,000 characters; `plain` reads"),
        ("b.csv", 'question,answer\nHi,Ho\nHi,"' + "Ho\n" * 400, "b.csv line 3: field larger than field limit"),
    ):
        with pytest.raises(LLMError, match=problem):
            read(name, text)
