"""How many answers are exact: compared with the answers of a chat, and with known answers chosen one by one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Conversation, Message
from llmcli.evaluation.exact_answers import last_answers, score_exact, score_known
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from llmcli.formats.training_record import KnownAnswers, KnownAnswerShares, TrainingRecord
from llmcli.generation.chat import Assistant, open_assistant
from llmcli.generation.generator import Piece
from llmcli.generation.known_answers import AnswerFinder
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.cli.commands.test_train_conversations import SMALL, write_chats
from tests.conftest import Llm
from tests.training.chats import PAIRS, conversation, prepared, run_to_end


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    ready = prepared(steps=30)
    checkpoint = run_to_end(ready).checkpoint
    return open_assistant(checkpoint, NumpyRuntime(checkpoint), ready.tokenizer)


def greedy(assistant: Assistant, *messages: Message) -> tuple[str, str | None]:
    pieces = [one for one in assistant.answer(messages, SamplingConfig(max_tokens=30, temperature=0.0))
              if isinstance(one, Piece)]  # fmt: skip
    return "".join(piece.text for piece in pieces).strip(), pieces[-1].finish_reason


def test_exact_answers_are_those_of_a_chat_at_temperature_0(assistant: Assistant) -> None:
    """Not those that begin or end otherwise, and not those after a question that does not fit the context."""
    questions = [question for question, _ in PAIRS[:20]]
    own = [greedy(assistant, Message("user", question)) for question in questions]
    answers = {question: text for question, (text, reason) in zip(questions, own, strict=True) if reason == "stop"}
    assert len(answers) > 10 and all(answers.values())
    same = [conversation(question, f" {text}\n") for question, text in answers.items()]
    turns = [Message("user", questions[0]), Message("assistant", "No."), Message("user", questions[1])]
    text, reason = greedy(assistant, *turns)
    assert reason == "stop"
    same.append(Conversation((*turns, Message("assistant", text))))
    others = [
        conversation(question, changed)
        for question, text in answers.items()
        for changed in (f"{text}.", text[:-1], f"x{text}", text[::-1])
        if changed != text
    ]
    too_long = conversation("x" * 400, "No.")
    shares: list[float] = []
    score = score_exact([*others, *same, too_long], assistant, shares.append)
    assert score == (len(same), len(others) + len(same))
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_the_last_learned_answer_is_asked_for() -> None:
    several = conversation("Who?", "Anna.", "Where?", " Here. ")
    *others, last = several.messages
    ignored = replace(several, messages=(*others, replace(last, is_learned=False)))
    asked = [(messages[-1].content, answer) for messages, answer in last_answers([several, ignored])]
    assert asked == [("Where?", "Here."), ("Who?", "Anna.")]
    assert list(last_answers([conversation("Who?")])) == []


def test_known_answers_are_right_wrong_or_missing(assistant: Assistant) -> None:
    finder = AnswerFinder(KnownAnswers(pairs=tuple(PAIRS[:10]), min_confidence=0.6))
    asked = [conversation(*pair) for pair in (*PAIRS, ("Is it cold?", "No."), ("What does Ben like?", "Rain."))]
    found = [(finder.find(assistant, one.messages[:-1]), one.messages[-1].content) for one in asked]
    right = sum(answer.is_known and answer.text == text for answer, text in found)
    wrong = sum(answer.is_known and answer.text != text for answer, text in found)
    score = score_known(asked, assistant, finder, lambda share: None)
    assert score == KnownAnswerShares(len(asked), right, wrong, len(PAIRS))
    assert min(right, wrong, len(asked) - right - wrong) > 0


def results(run: Result) -> list[dict[str, Any]]:
    assert run.exit_code == 0, run.stderr
    return json.loads(run.stdout)["results"]


def test_eval_shows_how_many_answers_are_exact(llm: Llm, own_directory: Path) -> None:
    """Those that llm chat -t 0 writes, and the held-out ones of the training data."""
    write_chats()
    assert llm("train", "chats.jsonl", "--steps", 20, *SMALL).exit_code == 0
    [held_out] = results(llm("eval", "chats.jsonl", "--json"))
    assert held_out["questions"] == held_out["conversations"] == 4
    Path("questions.txt").write_text("".join(f"{question}\n" for question, _ in PAIRS), "utf-8")
    written = [json.loads(line) for line in llm("chat", "--batch", "questions.txt", "-t", 0).stdout.splitlines()]
    ended = [(one["prompt"], one["content"].strip()) for one in written if one["finish_reason"] == "stop"]
    assert len(ended) > 10 and all(text for _, text in ended)
    write_chats("own.jsonl", [*ended, (PAIRS[0][0], "Rain."), (PAIRS[1][0], "Snow.")])
    [own] = results(llm("eval", "own.jsonl", "--whole", "--json"))
    assert (own["exact"], own["questions"]) == (len(ended), len(ended) + 2)
    head, row = llm("eval", "own.jsonl", "--whole").stdout.splitlines()[:2]
    shown = dict(zip(head.split("\t"), row.split("\t"), strict=True))
    assert shown["exact answers"] == f"{len(ended)} of {len(ended) + 2}"


def test_eval_chooses_among_known_answers_without_the_held_out_questions(llm: Llm, own_directory: Path) -> None:
    write_chats()
    words = ("eval", "chats.jsonl", "--known-answers", "--json")
    assert llm("train", "chats.jsonl", "--steps", 2, "--known-answers", *SMALL).exit_code == 0
    model = load("model.safetensors")
    known = model.known_answers
    assert known is not None and len(known.pairs) == len(PAIRS)  # those held out are stored, too
    [result] = results(llm(*words))
    [whole] = results(llm(*words, "--whole"))
    shares = model.record.known_answers
    assert shares is not None
    assert (result["questions"], result["right"], result["wrong"]) == shares[:3]
    assert result["unanswered"] == 4 - result["right"] - result["wrong"] and result["answerable"] == 4
    assert result["min_confidence"] == known.min_confidence
    assert (whole["questions"], whole["right"]) == (len(PAIRS), len(PAIRS))
    write_chats("upper.jsonl", [(question.upper(), answer) for question, answer in PAIRS])
    [upper] = results(llm("eval", "upper.jsonl", "--known-answers", "--json"))
    assert upper["questions"] == 4 and upper["right"] <= result["right"] < 4
    write_chats("new.jsonl", [("How do I repair a bicycle?", "With tools."), PAIRS[0]])
    [new] = results(llm("eval", "new.jsonl", "--known-answers", "--whole", "--json"))
    assert [new[key] for key in ("right", "wrong", "unanswered", "answerable")] == [1, 0, 1, 1]
    [unseen] = results(llm("eval", "new.jsonl", "--known-answers", "--json"))  # PAIRS[0] was trained on
    assert [unseen[key] for key in ("right", "wrong", "unanswered", "answerable")] == [0, 0, 1, 0]
    head, row = llm("eval", "new.jsonl", "--known-answers", "--whole").stdout.splitlines()[:2]
    assert head.split("\t")[1:] == ["right", "wrong", "unanswered", "answerable", "minimum confidence"]
    assert row.split("\t")[1:-1] == ["1", "0", "1", "1"]
    save(Path("other.safetensors"), replace(model, known_answers=None, record=TrainingRecord()))
    for more, message in (
        (("--choices", "answers"), "--choices has no effect with --known-answers"),
        (("--context", 8), "--context has no effect with --known-answers"),
        (("-m", "other.safetensors"), "error: other.safetensors has no known answers"),
    ):
        assert message in llm(*words, *more).stderr
