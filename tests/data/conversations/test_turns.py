"""Turns of plain text: where they begin and end, where a conversation begins, and which texts are none."""

from pathlib import Path

import pytest

from llmcli.data.conversations.messages import Conversation
from llmcli.data.conversations.turns import read_turns
from llmcli.data.text.decoding import Document, OpenFile, read_document
from llmcli.data.text.temporary_files import TextCopy
from tests.data.corpora import error_of, put


def document(text: str) -> Document:
    with OpenFile(put("a.txt", text.encode()), Path("a.txt")) as file:
        return read_document("a.txt", Path("a.txt"), file, TextCopy())


def read(text: str, names: tuple[str, str] | None = None) -> tuple[str, list[Conversation], list[str]] | None:
    return read_turns(document(text), names, text[:1000])


def turns(text: str, names: tuple[str, str] | None = None) -> list[list[str]] | None:
    """Each conversation as "u: Hi", "a: Ho"."""
    recognized = read(text, names)
    return recognized and [[f"{m.role[0]}: {m.content}" for m in c.messages] for c in recognized[1]]


PAIR = [["u: Hi", "a: Ho"]]
LABELS = [
    ("User", "Assistant", ":"), ("USER", "ASSISTANT", ":"), ("user", "assistant", ":"), ("Human", "AI", ":"),
    ("Human", "Assistant", " :"), ("User", "Bot", "："), ("Q", "A", ":"), ("Q1", "A1", ":"), ("Q 12", "A 12", ":"),
    ("Question", "Answer", ":"), ("質問", "回答", "："), ("問", "答", "："), ("質問1", "答え1", "："), ("Q", "A", "："),
    ("ユーザー", "アシスタント", "："), ("人間", "AI", "："), ("質問", "回答", ":"),
]  # fmt: skip


def test_speakers_are_recognized_in_many_forms() -> None:
    for space in ["", " ", "\t", "\u3000", "\n", "\r\n"]:
        for user, assistant, colon in LABELS:
            text = f"{user}{colon}{space}Hi\n{assistant}{colon}{space}Ho\n"
            assert turns(text) == PAIR, user
            assert turns(f"\n \r\n{text}\n{text}\n\n") == PAIR * 2, user


def test_a_turn_goes_on_until_the_next_speaker() -> None:
    text = (
        "User: Write it.\n\n  Two lines,\nNote: like this \u2028here.\nAssistant:\n\n    def f():\n        pass  \n\n"
        "Done: http://x\n\nUser: Thanks\nAssistant: A:\n  User: no turn\n\n\n"
    )
    question = "u: Write it.\n\n  Two lines,\nNote: like this \u2028here."
    answer = "a:     def f():\n        pass  \n\nDone: http://x"
    assert turns(text) == [[question, answer], ["u: Thanks", "a: A:\n  User: no turn"]]


CONVERSATIONS = {
    "each question begins one": (
        "Q: 1\nA: a\nQ: 2\nA: b\n\nQ: 3\n\nA: c\n\n\nQ: 4\nQ: 5\nA: e\n",
        [["u: 1", "a: a"], ["u: 2", "a: b"], ["u: 3", "a: c"], ["u: 4"], ["u: 5", "a: e"]],
    ),
    "turns that follow each other are one": ("User: 1\nAI: a\nUser: 2\nAI: b", [["u: 1", "a: a", "u: 2", "a: b"]]),
    "a blank line and the first speaker": (
        "User: 1\nAI: a\nUser: 2\nAI: b\n \r\nUser: 3\nAI: c",
        [["u: 1", "a: a", "u: 2", "a: b"], ["u: 3", "a: c"]],
    ),
    "not a blank line and the second speaker": (
        "User: 1\nAI: a\nUser: 2\n\nAI: b\nUser: 3\nAI: c",
        [["u: 1", "a: a", "u: 2", "a: b", "u: 3", "a: c"]],
    ),
    "blank lines between turns": (
        "User: 1\n\nAI: a\n\nUser: 2\n\nAI: b\n\n\nUser: 3\n\nAI: c\n\nUser: 4\n\nAI: d",
        [["u: 1", "a: a", "u: 2", "a: b"], ["u: 3", "a: c", "u: 4", "a: d"]],
    ),
    "a rule": (
        "User: 1\n\nAI: a\n\nUser: 2\n\nAI: b\n\n---\n\nUser: 3\nAI: c\n* * *\nUser: 4\nAI: d\n====\n",
        [["u: 1", "a: a", "u: 2", "a: b"], ["u: 3", "a: c"], ["u: 4", "a: d"]],
    ),
    "the assistant speaks first": (
        "AI: a\nUser: 1\nAI: b\n\nAI: c\nUser: 2\nAI: d",
        [["a: a", "u: 1", "a: b"], ["a: c", "u: 2", "a: d"]],
    ),
    "a system message": (
        "System: Be brief.\n\nUser: 1\nAI: a\n\nUser: 2\nAI: b\n\nSystem: Be\nlong.\nUser: 3\nSystem: no turn\nAI: c",
        [["s: Be brief.", "u: 1", "a: a"], ["u: 2", "a: b"], ["s: Be\nlong.", "u: 3\nSystem: no turn", "a: c"]],
    ),
    "turns of one speaker in a row": (
        "User: 1\nUser: 2\nAI: a\nAI: b\nUser: 3\nAI: c",
        [["u: 1\n2", "a: a\nb", "u: 3", "a: c"]],
    ),
    "a question without an answer": ("User: 1\n\nUser: 2\nAI: b\nUser: 3", [["u: 1"], ["u: 2", "a: b", "u: 3"]]),
    "a label in the answers alone is no third speaker": (
        "User: A cake?\nAI: Easy.\nIngredients: flour, eggs\nTime: an hour\n\n" * 9,
        [["u: A cake?", "a: Easy.\nIngredients: flour, eggs\nTime: an hour"]] * 9,
    ),
    "an empty answer": ("Q: 1\nA:\nQ: 2\nA: b", [["u: 1", "a: "], ["u: 2", "a: b"]]),
}


def test_where_a_conversation_begins() -> None:
    for kind in CONVERSATIONS:
        text, expected = CONVERSATIONS[kind]
        assert turns(text) == expected, kind
        assert turns(text.replace("User:", "Alice:").replace("AI:", "Dr. B (x):"), ("Alice", "Dr. B (x)")) == (
            expected if "User" in text else None
        ), kind


def test_the_line_of_each_conversation_and_how_blank_lines_were_read() -> None:
    recognized = read("\nUser: 1\n\nAI: a\n\nUser: 2\n\nAI: b\n\n\nUser: 3\n\nAI: c\n")
    assert recognized and recognized[0] == "User:/Assistant: turns"
    assert [c.source for c in recognized[1]] == ["a.txt line 2", "a.txt line 11"]
    assert recognized[2] == ["a.txt: blank lines separate turns; two of them, or ---, begin a new conversation"]
    recognized = read("Q: 1\n\nA: a\n\nQ: 2\nA: b")
    assert recognized and recognized[0] == "Q:/A: turns" and recognized[2] == []


def test_named_speakers_are_the_only_ones() -> None:
    text = "Alice: Hi\nUser: x\nBob: Ho\n\nAlice: 1\nBob : 2\nalice: 3"
    expected = [["u: Hi\nUser: x", "a: Ho"], ["u: 1", "a: 2\nalice: 3"]]
    assert turns(text, ("Alice", "Bob")) == turns(text, ("Alice:", "Bob：")) == expected
    recognized = read(text, ("Alice", "Bob"))
    assert recognized and recognized[0] == "Alice:/Bob: turns"
    assert turns(text) is None
    assert turns("User: Hi\nAI: Ho", ("Alice", "Bob")) is None
    assert turns("Alice: Hi\n" * 9, ("Alice", "Bob")) is None


def test_two_different_names_are_wanted() -> None:
    for names in [("", "Bob"), ("Alice", " "), ("Alice", "Alice:")]:
        assert "wanted two different names" in error_of(turns, "x", names, exit_code=2)


def test_a_second_answer_to_a_question_is_an_error() -> None:
    assert error_of(turns, "Q: 1\nA: a\n\nQ: 2\nA: b\nor\nA: c\n") == (
        "a.txt line 7: a second answer to the question in line 4; wanted the question before each answer; or "
        "`plain` to read the file as plain text"
    )


PLAY = """Human: Who goes there?
AI: Nobody that you know.
Captain: Silence, both of you!
Human: Captain, it speaks.
Captain: I heard.
AI: I only answered.
Captain: Then answer me.
"""
OTHER_TEXTS = {
    "nothing": "",
    "prose": "Once upon a time there was a user: he asked.\nA: no.\n",
    "a book that opens with a question and an answer": "Q: Who?\nA: Me.\n\nChapter 1\n\n" + "It was a day.\n" * 1000,
    "a title before the first question": "Questions and answers\n\nQ: 1\nA: a\nQ: 2\nA: b\n",
    "a play with a human, an AI and another": PLAY * 5,
    "a play with a user, a bot and many others": "".join(
        f"User: I am lost.\n{name}: So am I.\nBot: Who is not?\n{name}: Be quiet.\n"
        for name in ("Ann", "Ben", "Eve", "Kim")
    ),
    "a quiz": "Q: Which one?\nA: the cat\nB: the dog\nC: the cow\nAnswer: B\n\n" * 9,
    "only questions": "Q: 1\nQ: 2\nQ: 3\n",
    "only answers": "A: 1\nA: 2\n",
    "an answer before the first question": "A: 1\nQ: 2\nA: 3\n",
    "indented turns": "  User: Hi\n  AI: Ho\n" * 3,
    "a drive": "Q:\\data\nA:\\disk\n",
    "scopes": "User::login()\nAI::run()\n",
    "links": "User://a\nAI://b\n",
    "YAML": "user: root\npassword: x\nports:\n  - 80\n",
    "lower case letters": "q: 1\na: 2\n",
    "a speaker without the other": "User: Hi\nA: Ho\n" * 3,
}


def test_other_texts_are_not_conversations() -> None:
    for kind in OTHER_TEXTS:
        assert turns(OTHER_TEXTS[kind]) is None, kind


def test_a_long_book_is_left_after_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    book = document("Once upon a time.\n" * 400_000)
    monkeypatch.setattr(Document, "lines", None)  # nothing is read but the start
    assert read_turns(book, None, book.start) is None


@pytest.mark.slow
def test_long_files_take_time_in_proportion() -> None:
    """Quadratic work would take minutes here."""
    assert len(turns("User: 1\nAI: a\n" * 20_000) or []) == 1
    assert len(turns("User: 1\n" * 40_000 + "AI: a\n" * 2) or []) == 1
