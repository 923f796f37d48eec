"""Greedy answers to held-out questions: how many are exact, nearly exact, another training answer, or
garbled."""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import learned_answers
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation.answers import spread
from llmcli.formats.training_record import AnswerShares
from llmcli.generation.generator import GeneratedText, decode
from llmcli.models.runtime import Bools, Runtime
from llmcli.training.data.conversations import PreparedConversations

MAX_QUESTIONS = 64
MAX_WORK = 2e10  # maximum parameters x tokens generated (a few seconds on one core), but at least ...
MIN_QUESTIONS = 4
LONGEST_ANSWER = 2.0  # maximum tokens of an answer: this factor on the longest training answer, plus SLACK
SLACK = 8
# minimum similarity (Ratcliff and Obershelp: twice the number of matching characters, divided by the total
# length) of nearly equal answers
NEAR = 0.8


@dataclass(frozen=True)
class Question:
    """The messages before the last answer in a conversation, and that answer."""

    text: str  # last message before the answer
    ids: tuple[int, ...]  # the whole prompt, up to the answer
    answer: tuple[int, ...]  # including the token that ends it


def questions(conversations: PreparedConversations) -> Iterator[Question]:
    """Yield the last question of each held-out conversation (if there are none, of each training
    conversation), in an order in which any first N are evenly spread."""
    tokens = conversations.held_out if len(conversations.held_out) else conversations.training
    for index in spread(tokens):
        span = tokens.span(index)
        ids = tokens.ids[span]
        starts, ends = _answers(tokens.loss_mask[span])
        messages = tokens.texts[index].messages
        learned = learned_answers(messages)
        answer = learned[min(len(starts), len(learned)) - 1]  # the last answer that is not truncated
        yield Question(
            messages[answer - 1].content if answer else "",
            tuple(ids[: starts[-1]].tolist()),
            tuple(ids[starts[-1] : ends[-1]].tolist()),
        )


def _answers(loss_mask: Bools) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return (starts, exclusive ends) of the answers in a loss mask [N]."""
    edges = np.diff(np.concatenate([[False], loss_mask, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def greedy_answer(
    runtime: Runtime,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    stop_ids: Collection[int],
    max_tokens: int,
    is_over: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Answer `ids` as `llm chat` does at temperature 0. Returns at most `max_tokens` tokens, limited by the
    context length, without the token that ends the answer; stops early once `is_over` returns True."""
    runtime.rewind()
    sampling = SamplingConfig(max_tokens=min(max_tokens, runtime.context - len(ids) + 1), temperature=0.0)
    pieces = decode(runtime, GeneratedText(tokenizer, ids, sampling, stop_ids))
    return [piece.id for piece in takewhile(lambda piece: not is_over(), pieces) if piece.id is not None]


def longest_answer(conversations: PreparedConversations) -> int:
    """Return the maximum length of a greedy answer in tokens."""
    starts, ends = _answers(conversations.training.loss_mask)
    return int(LONGEST_ANSWER * (ends - starts).max()) + SLACK


def answer_questions(
    runtime: Runtime,
    tokenizer: Tokenizer,
    conversations: PreparedConversations,
    is_over: Callable[[], bool] = lambda: False,
) -> AnswerShares | None:
    """Answer as many held-out questions as MAX_WORK allows, until `is_over` returns True. Returns None if
    nothing is held out or there was no time for a single answer."""
    if not len(conversations.held_out):
        return None
    messages = (message for conversation in conversations.training.texts for message in conversation.messages)
    known = {message.content.strip() for message in messages if message.role == "assistant"}
    max_tokens = longest_answer(conversations)
    work = 0.0
    answers = list[tuple[str, str]]()
    for question in questions(conversations):
        is_enough = len(answers) >= MIN_QUESTIONS and work > MAX_WORK
        if len(answers) == MAX_QUESTIONS or is_enough or is_over():
            break
        ids = greedy_answer(
            runtime, tokenizer, question.ids, conversations.template.stop_ids, max_tokens, is_over
        )
        if is_over():
            break  # the answer may be incomplete
        work += runtime.parameters * (len(ids) + 1)
        answers.append((tokenizer.decode(ids).strip(), tokenizer.decode(question.answer).strip()))
    return answer_shares(answers, known) if answers else None


def answer_shares(answers: Sequence[tuple[str, str]], known: Collection[str]) -> AnswerShares:
    """Compute the shares for pairs (answer, reference answer); `known` are the training answers."""
    exact = [answer == reference for answer, reference in answers]
    near = [
        not same and difflib.SequenceMatcher(None, *pair, autojunk=False).ratio() >= NEAR
        for same, pair in zip(exact, answers, strict=True)
    ]
    verbatim = [answer in known for answer, _ in answers]
    garbled = [not any(flags) for flags in zip(exact, near, verbatim, strict=True)]
    seen = [reference in known for _, reference in answers]
    shares = [round(sum(counted) / len(answers), 4) for counted in (verbatim, exact, near, garbled, seen)]
    return AnswerShares(len(answers), *shares)
