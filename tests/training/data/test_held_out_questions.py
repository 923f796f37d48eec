"""Greedy answers to held-out questions, of a model that answers as it is told."""

import itertools
from functools import partial

import numpy as np
import pytest

from llmcli.config import SamplingConfig
from llmcli.formats.training_record import AnswerShares
from llmcli.generation.chat import Assistant
from llmcli.generation.generator import Piece
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.training.data import held_out_questions
from llmcli.training.data.held_out_questions import (
    answer_questions,
    answer_shares,
    greedy_answer,
    longest_answer,
    questions,
)
from llmcli.training.data.prepare import Prepared
from tests.generation.conversations import Letters
from tests.generation.fakes import FakeRuntime
from tests.training.chats import conversation, conversation_file, inputs, prepared, run_to_end, text_of


def scripted(script: dict[tuple[int, ...], list[int]], end: int) -> FakeRuntime:
    """A runtime whose most likely tokens follow a script for each prompt, then end the answer."""

    def logits_of(cached: tuple[int, ...]) -> np.ndarray:
        prompt = next(ids for ids in script if cached[: len(ids)] == ids)
        return np.eye(600)[[*script[prompt], end][len(cached) - len(prompt)]]

    return FakeRuntime(64, logits_of)


EVERY = [
    *(conversation(f"Is {i} even?", "Yes." if i % 2 == 0 else "No.") for i in range(18)),
    conversation("Who?", "Ann.", "Why?", "Is so."),
    conversation("Who are you?", "A model."),
]


def ready_with(held_out: list[int]) -> Prepared:
    """A run in which these of EVERY are held out."""
    rest = [one for i, one in enumerate(EVERY) if i not in held_out]
    other = conversation_file([EVERY[i] for i in held_out], "val.jsonl")
    return prepared(conversations=inputs(rest, held_out=other))


def test_a_question_is_all_before_the_last_answer() -> None:
    ready = ready_with([18])
    assert ready.conversations is not None
    [question] = questions(ready.conversations)
    assert question.text == "Why?"
    assert text_of(ready.tokenizer, list(question.ids)) == (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAnn.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert text_of(ready.tokenizer, list(question.answer)) == "Is so.<|im_end|>"


def test_a_greedy_answer_ends_at_a_stop_token_the_limit_or_the_context() -> None:
    runtime = scripted({(1, 2): [5, 6, 7], (3,) * 62: [5, 6, 7]}, end=9)

    def answer(ids: tuple[int, ...], stop_ids: set[int], most: int) -> list[int]:
        return greedy_answer(runtime, Letters(), ids, stop_ids, most)  # type: ignore[arg-type]

    assert answer((1, 2), {9}, 10) == [5, 6, 7]
    assert answer((1, 2), {7, 9}, 10) == [5, 6]
    assert answer((1, 2), {9}, 2) == [5, 6]
    assert answer((3,) * 62, {9}, 10) == [5, 6, 7]


@pytest.mark.slow
def test_a_greedy_answer_is_that_of_a_chat() -> None:
    ready = ready_with([18, 19])
    conversations = ready.conversations
    checkpoint = run_to_end(prepared(steps=30)).checkpoint
    runtime, stop_ids = NumpyRuntime(checkpoint), conversations.template.stop_ids
    assistant = Assistant(NumpyRuntime(checkpoint), ready.tokenizer, conversations.template)
    asked = {one.messages[-2].content: one.messages[:-1] for one in conversations.held_out.texts}
    for question in questions(conversations):
        events = assistant.answer(asked[question.text], SamplingConfig(max_tokens=10, temperature=0.0))
        expected = [event.id for event in events if isinstance(event, Piece) and event.id is not None]
        assert greedy_answer(runtime, ready.tokenizer, question.ids, stop_ids, 10) == expected


def test_shares_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = ready_with([4, 18, 19])
    conversations, tokenizer = ready.conversations, ready.tokenizer
    assert conversations is not None
    answers = {"Is 4 even?": " Yes. ", "Why?": "Is so.", "Who are you?": "No."}
    script = {one.ids: tokenizer.encode(answers[one.text]) for one in questions(conversations)}
    end = tokenizer.control_ids["<|im_end|>"]
    ask = partial(answer_questions, scripted(script, end), tokenizer, conversations)  # type: ignore[arg-type]
    found = ask()
    assert found == AnswerShares(3, 0.6667, 0.6667, garbled=0.0, seen=0.3333)  # Yes., No.; Yes., Is so.
    # asked before and after each answer and for each of its tokens: the time is over in the second answer
    over = itertools.chain(itertools.repeat(False, 5 + len(tokenizer.encode(" Yes. "))), itertools.repeat(True))
    first = ask(lambda: next(over))
    assert first == AnswerShares(1, 1.0, 1.0, garbled=0.0, seen=1.0)
    assert ask(lambda: True) is None
    monkeypatch.setattr(held_out_questions, "MAX_QUESTIONS", 2)
    limited = ask()
    assert limited is not None and limited.questions == 2


def test_each_answer_is_exact_near_known_or_garbled() -> None:
    """Jupiter for Jupiters: 2 x 27 of 55 characters; in the last one hardly any stand in the same order."""
    known = {"Mars is red.", "Jupiter is a large planet."}
    answers = [
        ("Jupiter is a large planet.", "Jupiter is a large planet."),  # exact, and known
        ("Jupiters is a large planet.", "Jupiter is a large planet."),  # near
        ("Jupiter is a large planet.", "Jupiter is a large planet!"),  # near, and known
        ("Mars is red.", "Jupiter is a large planet."),  # known only
        ("Mars is a la red", "Jupiter is a large planet."),  # garbled
    ]
    assert answer_shares(answers, known) == AnswerShares(5, verbatim=0.6, exact=0.2, near=0.4, garbled=0.2, seen=0.8)


def test_an_answer_is_cut_where_it_is_longer_than_any_of_training() -> None:
    ready = ready_with([18, 19])
    assert ready.conversations is not None
    longest = len(ready.tokenizer.encode("Yes.")) + 1  # with the token that ends it
    assert longest >= len(ready.tokenizer.encode("No.")) + 1
    assert longest_answer(ready.conversations) == 2 * longest + 8
