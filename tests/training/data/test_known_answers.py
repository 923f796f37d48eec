"""The known answers that a run stores, and their minimum confidence."""

from pathlib import Path

import pytest

from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError
from llmcli.formats.training_record import KnownAnswers
from llmcli.generation.chat import open_assistant
from llmcli.generation.known_answers import AnswerFinder
from llmcli.models.open_runtime import open_runtime
from llmcli.training.data import known_answers as module
from llmcli.training.data.known_answers import check_known_answers, pairs_of, store_known_answers
from tests.training.chats import PAIRS, conversation, inputs, prepared, run_to_end


def test_a_run_stores_training_and_held_out_pairs_and_a_minimum_between_related_and_unrelated_questions() -> None:
    ready = prepared(steps=3)
    done = run_to_end(ready)
    assert done.checkpoint.known_answers is None
    conversations = ready.conversations
    assert conversations is not None
    shares = store_known_answers(done.checkpoint, ready.tokenizer, conversations)
    known = done.checkpoint.known_answers
    assert known is not None
    assert sorted(known.pairs) == sorted(PAIRS)
    assert module.TYPICAL / 2 <= known.min_confidence < 0.75
    held_out, training = pairs_of(conversations.split.held_out), pairs_of(conversations.split.training)
    assert known.network_weight == pytest.approx(0.25 * (1 - 5 / len(training)), abs=1e-4)
    finder = AnswerFinder(
        KnownAnswers(pairs=training, network_weight=known.network_weight, min_confidence=known.min_confidence)
    )
    model = done.checkpoint
    assistant = open_assistant(model, open_runtime(model, "cpu", None), ready.tokenizer)
    found = [(finder.find(assistant, [Message("user", question)]), answer) for question, answer in held_out]
    right = sum(one.is_known and one.text == answer for one, answer in found)
    wrong = sum(one.is_known and one.text != answer for one, answer in found)
    assert shares == (len(held_out), right, wrong)
    store_known_answers(done.checkpoint, ready.tokenizer, conversations, stop=lambda: True)
    assert done.checkpoint.known_answers.min_confidence == module.TYPICAL


def test_pairs_are_the_turns_that_are_learned() -> None:
    several = conversation("Who?", " Anna.\n", "Where?", "Here.", system="Be short.")
    assert pairs_of([several, several]) == (("Who?", "Anna."), ("Where?", "Here."))


def test_a_run_without_known_answers_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    check_known_answers(inputs(), adapter_only=False)
    with pytest.raises(LLMError, match="adapters have no place for `known_answers`"):
        check_known_answers(inputs(), adapter_only=True)
    with pytest.raises(LLMError, match="the training data are plain text"):
        check_known_answers(None, adapter_only=False)
    with pytest.raises(LLMError, match="at least two different answers"):
        check_known_answers(inputs([conversation("a?", "b"), conversation("c?", "b")]), adapter_only=False)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(LLMError, match=r"have 1\.37 kB, and a model file stores at most 100 bytes"):
        check_known_answers(inputs(), adapter_only=False)


def test_unrelated_questions_are_distinct() -> None:
    for questions in module.UNRELATED.values():
        assert len(questions) == len(set(questions)) == 32
    others = (Path(__file__).parents[2] / "benchmarks/questions/other.txt").read_text("utf-8").splitlines()
    assert set(others).isdisjoint(module.UNRELATED["en"])  # the benchmark asks others
