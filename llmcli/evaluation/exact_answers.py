"""Exact answers: how many answers of a model equal the reference answers, written at temperature 0 or chosen
among its known answers (generation/known_answers.py)."""

from collections.abc import Callable, Iterator, Sequence

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Conversation, Messages, learned_answers
from llmcli.errors import LLMError
from llmcli.evaluation.evaluator import OnProgress
from llmcli.formats.training_record import KnownAnswerShares
from llmcli.generation.batch import BatchResult, answer_request, decode_batch
from llmcli.generation.chat import Assistant
from llmcli.generation.engine.requests import GenerationRequest
from llmcli.generation.known_answers import AnswerFinder


def last_answers(conversations: Sequence[Conversation]) -> Iterator[tuple[Messages, str]]:
    """Yield (messages before the last learned answer, that answer) for each conversation that has one."""
    for conversation in conversations:
        messages = conversation.messages
        learned = learned_answers(messages)
        if learned and messages[learned[-1] - 1].role == "user":
            yield messages[: learned[-1]], messages[learned[-1]].content.strip()


def score_exact(
    conversations: Sequence[Conversation], assistant: Assistant, on_progress: OnProgress
) -> tuple[int, int]:
    """Generate the last answer of each conversation at temperature 0, and return (exact answers, questions
    that fit the context). Generation stops at the first difference from the reference answer."""
    references = [*last_answers(conversations)]

    def requests() -> Iterator[GenerationRequest | BatchResult]:
        for messages, answer in references:
            # a token has at least one byte; the answer may have a space on either side
            max_tokens = len(answer.encode("utf-8")) + 2
            try:
                yield answer_request(
                    messages, assistant, SamplingConfig(temperature=0.0, max_tokens=max_tokens)
                )
            except LLMError as error:  # the question does not fit the context
                yield BatchResult(error=error)

    def differs(number: int, text: str) -> bool:
        return not references[number][1].startswith(text.strip())

    exact = questions = 0
    results = decode_batch(assistant.runtime, assistant.tokenizer, requests(), differs)
    for done, ((_, answer), result) in enumerate(zip(references, results, strict=True), 1):
        questions += result.error is None
        exact += (
            result.finished is not None and result.finished.reason == "stop" and result.text.strip() == answer
        )
        on_progress(done / len(references))
    return exact, questions


def score_known(
    conversations: Sequence[Conversation],
    assistant: Assistant,
    finder: AnswerFinder,
    on_progress: OnProgress,
    stop: Callable[[], bool] = lambda: False,
) -> KnownAnswerShares:
    """Choose a known answer to the last question of each conversation, or none, until `stop()`. The result
    counts as answerable the questions whose answer is a known one."""
    questions = [*last_answers(conversations)]
    known = set(finder.answers)
    right = wrong = answerable = 0
    for done, (messages, answer) in enumerate(questions, 1):
        if stop():
            del questions[done - 1 :]
            break
        chosen = finder.find(assistant, messages)
        answerable += answer in known
        right += chosen.is_known and chosen.text == answer
        wrong += chosen.is_known and chosen.text != answer
        on_progress(done / len(questions))
    return KnownAnswerShares(len(questions), right, wrong, answerable)
