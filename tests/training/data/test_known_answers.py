"""The known answers that a run stores, and their minimum confidence."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError
from llmcli.formats.training_record import KnownAnswers
from llmcli.generation.chat import Assistant, open_assistant
from llmcli.generation.choices import ScoredText
from llmcli.generation.known_answers import AnswerFinder
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.open_runtime import open_runtime
from llmcli.training.data import known_answers as module
from llmcli.training.data.known_answers import check_known_answers, fit_min_confidence, pairs_of, store_known_answers
from tests.training.chats import PAIRS, conversation, inputs, prepared, run_to_end


def test_a_run_stores_training_and_held_out_pairs_and_a_minimum_between_related_and_unrelated_questions() -> None:
    ready = prepared(steps=3)
    model, conversations = run_to_end(ready).checkpoint, ready.conversations
    assert model.known_answers is None and conversations is not None
    store_known_answers(model, conversations)
    fit = partial(fit_min_confidence, model, NumpyRuntime(model), ready.tokenizer, conversations)
    progress: list[float] = []
    shares = fit(on_progress=progress.append)
    known = model.known_answers
    assert sorted(known.pairs) == sorted(PAIRS)
    assert module.TYPICAL / 2 <= known.min_confidence < 0.75
    assert progress == sorted(progress) and (progress[0], progress[-1]) == (0.0, 1.0) and progress[-2] > 0.95
    held_out, training = pairs_of(conversations.held_out.texts), pairs_of(conversations.training.texts)
    assert known.network_weight == pytest.approx(0.25 * (1 - 5 / len(training)), abs=1e-4)
    finder = AnswerFinder(
        KnownAnswers(pairs=training, network_weight=known.network_weight, min_confidence=known.min_confidence)
    )
    assistant = open_assistant(model, open_runtime(model, "cpu", None), ready.tokenizer)
    found = [(finder.find(assistant, [Message("user", question)]), answer) for question, answer in held_out]
    right = sum(one.is_known and one.text == answer for one, answer in found)
    wrong = sum(one.is_known and one.text != answer for one, answer in found)
    assert shares == (len(held_out), right, wrong, None)
    assert fit(stop=lambda: progress[-1] >= 0.5) == (0, 0, 0, len(held_out))  # at the held-out questions
    fit(stop=lambda: True)
    assert model.known_answers is not None and model.known_answers.min_confidence == module.TYPICAL


def test_the_fit_ends_in_time_with_fewer_questions_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question takes a second."""
    ready = prepared(steps=1)
    model, conversations = run_to_end(ready).checkpoint, ready.conversations
    assert conversations is not None
    now, score = 0.0, Assistant.score

    def slow_score(*arguments: Any, **options: Any) -> list[ScoredText]:
        nonlocal now
        now += 1
        return score(*arguments, **options)

    monkeypatch.setattr(Assistant, "score", slow_score)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    for asked in [1, module.MIN_QUESTIONS - 1, module.MIN_QUESTIONS, 6]:
        store_known_answers(model, conversations)
        notes: list[str] = []
        began, seconds = now, (asked + 0.5) / module.UNRELATED_SHARE
        fit_min_confidence(model, NumpyRuntime(model), ready.tokenizer, conversations, seconds, on_note=notes.append)
        assert now - began <= seconds + 1
        [note] = notes
        assert note.endswith(f": there was time for {asked} of 32 questions")
        is_fitted = asked >= module.MIN_QUESTIONS
        assert ("was fitted" if is_fitted else "has its default, 0.5") in note
        assert (model.known_answers.min_confidence != module.TYPICAL) == is_fitted


def test_pairs_are_the_turns_that_are_learned() -> None:
    several = conversation("Who?", " Anna.\n", "Where?", "Here.", system="Be short.")
    assert pairs_of([several, several]) == (("Who?", "Anna."), ("Where?", "Here."))


def test_a_run_without_known_answers_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    check_known_answers(inputs().sources.conversations, adapter_only=False)
    with pytest.raises(LLMError, match="adapters cannot store `known_answers`"):
        check_known_answers(inputs().sources.conversations, adapter_only=True)
    with pytest.raises(LLMError, match="at least two different answers"):
        check_known_answers([conversation("a?", "b"), conversation("c?", "b")], adapter_only=False)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(LLMError, match=r"have 1\.37 kB, and a model file stores at most 100 bytes"):
        check_known_answers(inputs().sources.conversations, adapter_only=False)


def test_unrelated_questions_are_distinct() -> None:
    for questions in module.UNRELATED.values():
        assert len(questions) == len(set(questions)) == 32
    others = (Path(__file__).parents[2] / "benchmarks/questions/other.txt").read_text("utf-8").splitlines()
    assert set(others).isdisjoint(module.UNRELATED["en"])  # the benchmark asks others
