"""A conversation with a person, by a reader that types what a test says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmcli.cli.chat import explanation
from llmcli.cli.chat.session import Session
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError
from llmcli.formats.training_record import KnownAnswers
from llmcli.generation.chat import Assistant, Chat
from llmcli.generation.known_answers import AnswerFinder, KnownAnswersChat
from tests.generation.conversations import ASSISTANT, END, USER, CountingModel, Letters, Turns, answering

LETTERS = Letters()


class Lines:
    """Types these lines, one after the other; notes the drafts that it was given. An exception is raised instead."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines: Iterator[str | type[BaseException]] = iter(lines)
        self.drafts: list[str] = []

    def read(self, draft: str = "") -> str:
        self.drafts.append(draft)
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


def converse(*lines: Any, model: Any = None, max_tokens: int = 50) -> tuple[Chat, Lines]:
    model = model or CountingModel(answering("ca", "do", "ez"))
    chat = Chat(Assistant(model, LETTERS, Turns(LETTERS)), SamplingConfig(temperature=0, max_tokens=max_tokens, seed=7))
    reader = Lines(*lines)
    Session(chat, reader.read, source=None).run()  # type: ignore[arg-type]  # only /why needs the model
    return chat, reader


def contents(chat: Chat) -> list[str]:
    return [message.content for message in chat.messages]


def test_answers_go_to_stdout_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    chat, _ = converse("x", "", "  y \n", "/stats", "/set", "/help", "/nonsense")
    assert contents(chat) == ["x", "ca", "y", "do"]
    captured = capsys.readouterr()
    assert captured.out == "ca\ndo\n"
    assert "error: there is no command /nonsense" in captured.err


def test_a_word_that_is_meant_to_leave_is_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    chat, reader = converse("exit", "llm chat", " quit")
    assert contents(chat) == ["quit", "ca"] and len(reader.drafts) == 4
    captured = capsys.readouterr()
    assert captured.out == "ca\n" and "To leave, type /exit or press Ctrl-D." in captured.err


def test_reset_and_system(capsys: pytest.CaptureFixture[str]) -> None:
    chat, _ = converse("/system bea", "x", "/reset", "y", "/system")
    assert contents(chat) == ["bea", "y", "ca"]
    assert "system message: bea" in capsys.readouterr().err
    chat, _ = converse("x", "/system s", "/system bea")
    assert contents(chat) == ["bea", "x", "ca"]
    chat, _ = converse("/system bea", "/system -", "/system")
    assert contents(chat) == [] and "there is no system message" in capsys.readouterr().err


def test_retry_and_undo() -> None:
    for again in ["/retry", "/regenerate", "/again"]:
        chat, reader = converse("x", again, "y", "/undo", "z")
        assert contents(chat) == ["x", "ca", "z", "do"]
        assert reader.drafts == ["", "", "", "", "y", ""]


def test_a_command_that_is_not_possible_is_an_error_and_the_chat_goes_on(capsys) -> None:
    for command in ["/retry", "/undo", "/why", "/save", "/save f", "/load", "/load f", "/set x 1"]:
        chat, _ = converse(command, "x")
        captured = capsys.readouterr()
        assert contents(chat) == ["x", "ca"] and captured.out == "ca\n"
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 2, captured.err
        assert list(Path().iterdir()) == []


def test_save_and_load(capsys: pytest.CaptureFixture[str]) -> None:
    converse("/system s", "x", "/save 'my chat.jsonl'", "y", "/save my chat.jsonl", "/save other.jsonl")
    first, other = (json.loads(Path(name).read_text("utf-8")) for name in ("my chat.jsonl", "other.jsonl"))
    assert first == other and [message["content"] for message in first["messages"]] == ["s", "x", "ca", "y", "do"]
    chat, _ = converse("/load my chat.jsonl", "z")
    assert contents(chat) == ["s", "x", "ca", "y", "do", "z", "ez"]
    capsys.readouterr()
    converse("x", "/save my chat.jsonl")  # another session: the file is not its own
    assert "my chat.jsonl already exists; give another name" in capsys.readouterr().err


def test_a_loaded_conversation_is_saved_to_its_file_again(capsys: pytest.CaptureFixture[str]) -> None:
    converse("x", "/save chat.jsonl")
    converse("/load chat.jsonl", "y", "/save chat.jsonl")
    assert contents(converse("/load chat.jsonl")[0]) == ["x", "ca", "y", "do"]
    theirs = "Q: x\nA: y\n"  # a file that /save did not write is not replaced
    Path("theirs.txt").write_text(theirs, "utf-8")
    capsys.readouterr()
    converse("/load theirs.txt", "y", "/save theirs.txt")
    assert "theirs.txt already exists" in capsys.readouterr().err
    assert Path("theirs.txt").read_text("utf-8") == theirs


def test_load_takes_the_number_of_a_conversation() -> None:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": q}]}) for q in "abc"
    ]
    for name in ("many.jsonl", "many.jsonl 2"):
        Path(name).write_text("\n".join(lines))
    chat, _ = converse("/load many.jsonl 3")
    assert contents(chat) == ["c", "c"]
    chat, _ = converse("/load many.jsonl 2")  # the name of a file, too
    assert contents(chat) == ["a", "a"]


def test_load_names_a_question_that_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    Path("cut.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    assert contents(converse("/load cut.jsonl")[0]) == ["q", "a"]
    assert "cut after the last answer (first: cut.jsonl line 1)" in capsys.readouterr().err
    Path("a; b.txt").write_text("no conversation\n")
    converse("/load a; b.txt")
    assert "error: a; b.txt has no conversations; give a JSON Lines file" in capsys.readouterr().err


def test_set_changes_the_next_answers(capsys: pytest.CaptureFixture[str]) -> None:
    chat, _ = converse("/set max-tokens 1", "x", "/set seed 3")
    assert contents(chat) == ["x", "c"]
    assert chat.sampling.seed == 3 and chat.sampling.max_tokens == 1
    assert "(cut off after 1 token; for longer answers: /set max-tokens" in capsys.readouterr().err


def test_set_refuses_a_maximum_below_the_minimum(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(Assistant(CountingModel(answering("ca")), LETTERS, Turns(LETTERS)), SamplingConfig(min_tokens=9))
    Session(chat, Lines("/set max-tokens 8").read, source=None).run()  # type: ignore[arg-type]
    assert "max-tokens, 8, found 9" in capsys.readouterr().err and chat.sampling.max_tokens == 200


def test_set_is_refused_with_known_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assistant = Assistant(CountingModel(answering("ca")), LETTERS, Turns(LETTERS))
    finder = AnswerFinder(KnownAnswers(pairs=(("x", "ca"),), min_confidence=0.1))
    chat = KnownAnswersChat(assistant, finder, SamplingConfig())
    Session(chat, Lines("/set temperature 1", "/set").read, source=None).run()  # type: ignore[arg-type]
    shown = capsys.readouterr().err
    assert shown == 2 * "error: /set has no effect with --known-answers\n"


def test_stats_are_those_of_the_last_answer(capsys: pytest.CaptureFixture[str]) -> None:
    converse("x", "y", "/stats")
    shown = capsys.readouterr().err
    # USER x END ASSISTANT c a END USER y END ASSISTANT; all but the second END on were in the cache
    assert "11 tokens, 6 of them from the cache" in shown
    assert "2 turns" in shown and "13 of 1,000 tokens" in shown and "2 tokens," in shown
    assert "seed 8\n" in shown  # that of the second answer, not of the next one


def test_why_explains_the_answer_that_ends_the_conversation(monkeypatch) -> None:
    """Whether it was generated last, before a question that was taken back, or in an earlier session."""
    explained = []

    def show(source, assistant, prompt_ids, pieces, which) -> None:
        explained.append((prompt_ids, [(piece.id, piece.text, round(piece.logprob, 3)) for piece in pieces]))

    monkeypatch.setattr(explanation, "show", show)
    converse("x", "/save f", "/why", "y", "/undo", "/why", "/reset", "/load f", "/why")
    assert explained == [([USER, 24, END, ASSISTANT], [(3, "c", 0), (1, "a", 0)])] * 3


def test_why_explains_the_end_of_the_conversation_after_an_error_in_an_answer(monkeypatch) -> None:
    explained = []
    monkeypatch.setattr(explanation, "show", lambda _source, _assistant, _ids, pieces, _which: explained.append(pieces))

    def next_token(cached: list[int]) -> int:
        if len(cached) == 12:
            raise LLMError("damaged")
        return END if len(cached) == 5 else 3

    chat, _ = converse("x", "y", "/why", model=CountingModel(next_token))
    assert contents(chat) == ["x", "c", "y", "cc"]
    assert ["".join(piece.text for piece in pieces) for pieces in explained] == ["cc"]


def test_an_error_of_an_answer_leaves_the_conversation_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    chat, _ = converse("x", "y" * 60, "z", model=CountingModel(answering("c", "d"), context=30))
    assert contents(chat) == ["x", "c", "z", "d"]
    captured = capsys.readouterr()
    assert captured.out == "c\nd\n" and "error: the messages have 63 tokens" in captured.err


def test_ctrl_c_stops_an_answer_between_two_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    import os
    import signal

    def next_token(cached: list[int]) -> int:
        if len(cached) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return 3

    before = signal.getsignal(signal.SIGINT)
    chat, _ = converse("x", "/stats", model=CountingModel(next_token))
    assert signal.getsignal(signal.SIGINT) is before
    assert contents(chat) == ["x", "ccc"]
    captured = capsys.readouterr()
    assert captured.out == "ccc\n" and "(stopped)" in captured.err


def test_ctrl_c_before_an_answer_leaves_the_message_out_and_says_so(capsys, monkeypatch) -> None:
    from contextlib import contextmanager

    from llmcli.cli.chat import session as chat_session

    @contextmanager
    def already_received() -> Iterator[list[int]]:
        yield [2]

    monkeypatch.setattr(chat_session, "stop_requests", already_received)
    chat, _ = converse("x")
    assert contents(chat) == []
    assert "stopped before the answer began; the message is left out" in capsys.readouterr().err
