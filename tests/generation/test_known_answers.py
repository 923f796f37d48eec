"""Answers chosen among known ones: similarity compared with plain TF-IDF, and the effect of each part of the score."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load, load_any, open_tokenizer
from llmcli.formats.training_record import KnownAnswers
from llmcli.generation import known_answers as module
from llmcli.generation.chat import Assistant, open_assistant
from llmcli.generation.generator import Piece
from llmcli.generation.known_answers import AnswerFinder, KnownAnswersChat, TextIndex, language_of, ngrams
from llmcli.models.open_runtime import open_runtime
from tests.cli.commands.test_chat import write_chat_model

PAIRS = (
    ("When are you open?", "From nine to five."),
    ("What are your opening hours?", "From nine to five."),
    ("Where can I park my car?", "Behind the house."),
    ("Is there a car park?", "Behind the house."),
)
KNOWN = KnownAnswers(pairs=PAIRS, min_confidence=0.5, network_weight=0.125)
TEXTS = [*(question for question, _ in PAIRS), "図書館はどこですか。", "駅から近いですか？", "ＰＡＲＫ Straße", ""]


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    model = load_any(write_chat_model(tmp_path_factory.mktemp("chat") / "chat.safetensors"))
    return open_assistant(model, open_runtime(model, "cpu", None), open_tokenizer(model))


def find(assistant: Assistant, text: str, least: float | None = None) -> module.KnownAnswer:
    return AnswerFinder(KNOWN, least).find(assistant, [Message("user", text)])


def test_ngrams_by_hand() -> None:
    assert list(ngrams("Is 3?")) == [" i", "is", "s ", " is", "is ", " is ", " 3", "3 ", " 3 "]
    assert list(ngrams("駅は")) == [" ", "駅", "は", " ", " 駅", "駅は", "は ", " 駅は", "駅は "]
    assert list(ngrams("ＣＡＦＥ")) == list(ngrams("cafe"))


def test_similarity_is_the_cosine_of_tf_idf_vectors() -> None:
    """Compared with matrices over all n-grams."""
    for query in [*TEXTS, "Where do I park?", "駅はどこですか。", "qqq"]:
        vocabulary = sorted({ngram for text in [*TEXTS, query] for ngram in ngrams(text)})
        counts = np.array([[list(ngrams(text)).count(ngram) for ngram in vocabulary] for text in [*TEXTS, query]])
        inverse = np.log((len(TEXTS) + 1) / ((counts[:-1] > 0).sum(0) + 0.5))
        vectors = np.where(counts, 1 + np.log(np.maximum(counts, 1)), 0) * inverse
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        assert TextIndex(TEXTS).similarities(query) == pytest.approx(vectors[:-1] @ vectors[-1]), query


def test_a_question_gets_the_answer_of_the_most_similar_one(assistant: Assistant) -> None:
    for question, answer in PAIRS:
        found = find(assistant, question)
        assert (found.text, found.confidence, found.is_known) == (answer, 1.0, True)
    parking = find(assistant, "Where may my car be parked?")
    assert parking.text == "Behind the house."
    assert parking.is_known
    other = find(assistant, "Tell me a joke.")
    assert not other.is_known
    assert other.confidence < 0.3
    assert find(assistant, "Tell me a joke.", least=0.0).is_known
    assert not find(assistant, "Where may my car be parked?", least=1.0).is_known


def test_the_score_is_the_sum_of_its_parts(assistant: Assistant) -> None:
    text = "Where is the house open?"
    similarities = TextIndex([*(q for q, _ in PAIRS), "From nine to five.", "Behind the house."]).similarities(text)
    scored = {s.text: s.probability for s in assistant.score([Message("user", text)], [PAIRS[0][1], PAIRS[2][1]])}
    expected = {
        answer: max(similarities[first : first + 2])
        + 0.5 * similarities[4 + first // 2]
        + 0.125 * scored[answer] / sum(scored.values())
        for answer, first in (("From nine to five.", 0), ("Behind the house.", 2))
    }
    best = max(expected, key=lambda answer: expected[answer])
    found = find(assistant, text)
    assert found.text == best
    assert found.confidence == pytest.approx(expected[best], abs=1e-5)


def test_the_network_is_not_asked_if_it_has_no_weight() -> None:
    known = KnownAnswers(pairs=PAIRS[::2], min_confidence=0.5)
    found = AnswerFinder(known).find(None, [Message("user", "When do you open?")])  # type: ignore[arg-type]
    assert found.text == "From nine to five."


def test_a_chat_says_that_it_does_not_know(assistant: Assistant) -> None:
    chat = KnownAnswersChat(assistant, AnswerFinder(KNOWN), SamplingConfig())
    texts = [
        "".join(event.text for event in chat.answer(text) if isinstance(event, Piece))
        for text in ("Are you open?", "Sing a song!")
    ]
    assert texts == ["From nine to five.", "I don't know."]
    assert [message.content for message in chat.messages][1::2] == texts
    assert language_of(["駅の前です。", "24 km"]) == "ja"
    assert language_of(["Am Bahnhof.", "東京"]) == "en"


def test_only_likely_answers_are_scored_as_all_are(assistant: Assistant) -> None:
    answers = ["The cat sat", "The cat", "The", "りんごを食べる。", "The cat sat on the mat. " * 9, "x" * 400, "qx"]
    messages = [Message("user", "What did the cat do?")]
    expected = {s.text: s.logprob for s in assistant.score(messages, [a for a in answers if len(a) < 400])}
    best, counts = max(expected.values()), []
    for order in itertools.islice(itertools.permutations(answers), 0, 5040, 1000):
        found = assistant.score(messages, order, only_likely=True)
        assert {s.text for s in found} >= {a for a, logprob in expected.items() if logprob > best + math.log(0.01)}
        assert "x" * 400 not in {s.text for s in found}  # it does not fit the context
        for scored in found:
            assert scored.logprob == pytest.approx(expected[scored.text], abs=1e-4)
        counts.append(len(found))
    assert min(counts) < len(expected)
    assert assistant.score(messages, ["x" * 400], only_likely=True) == []


def test_known_answers_are_in_the_file_only_if_there_are_some(tmp_path: Path) -> None:
    path = write_chat_model(tmp_path / "model.safetensors")
    before = path.read_bytes()
    save(path, load(path))
    assert path.read_bytes() == before
    save(path, replace(load(path), known_answers=KNOWN))
    known = load(path).known_answers
    assert known is not None
    assert ([*map(tuple, known.pairs)], known.min_confidence, known.network_weight) == ([*PAIRS], 0.5, 0.125)
    for text in ("[]", '{"pairs": [["a"]]}', '{"pairs": [["a", 1]]}', '{"min_confidence": 2}', "{"):
        with pytest.raises(LLMError, match=r"its known_answers\.json is"):
            KnownAnswers.parse(text)
