"""Answers chosen from the training answers of a model (formats/training_record.py, KnownAnswers), or none.

The score of a known answer is the sum of three parts: the similarity of the question to the most similar
training question with that answer; ANSWER_WEIGHT times the question's similarity to the answer itself; and
`network_weight` times the network's probability of the answer among the NEAREST answers by the first two.
Similarity is the cosine of TF-IDF vectors of character n-grams inside words. tests/benchmarks/faq.py measures
the contribution of each part.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Message, Messages
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.training_record import KnownAnswers
from llmcli.generation.chat import Assistant, Chat, Event
from llmcli.generation.choices import ranked
from llmcli.generation.generator import Piece
from llmcli.models.runtime import Doubles

ANSWER_WEIGHT = 0.5
NEAREST = 20  # answers scored by the network: the time for a question does not grow with their number
# lengths of n-grams in characters; UNSPACED_LENGTHS for scripts without spaces between words
LENGTHS = range(2, 5)
UNSPACED_LENGTHS = range(1, 4)
_WORD = re.compile(r"\w+")
_KANA = re.compile("[ぁ-ヿ]")
_UNSPACED = re.compile("[ぁ-ヿ一-鿿]")
_UNKNOWN = {"ja": "わかりません。", "en": "I don't know."}


def language_of(texts: Sequence[str]) -> str:
    """Return "ja" if at least half of the texts contain kana, otherwise "en"."""
    return "ja" if 2 * sum(map(bool, map(_KANA.search, texts))) >= len(texts) > 0 else "en"


def ngrams(text: str) -> Iterator[str]:
    """Return the n-grams of a text's words, with a space before and after each word."""
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        spaced = f" {word} "
        for n in UNSPACED_LENGTHS if _UNSPACED.search(word) else LENGTHS:
            yield from (spaced[i : i + n] for i in range(len(spaced) - n + 1))


class TextIndex:
    """TF-IDF vectors of texts, of length 1."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(ngrams(text)) for text in texts]
        self._size = len(texts)
        self._frequencies = Counter(ngram for count in counts for ngram in count)
        postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for i, count in enumerate(counts):
            for ngram, weight in self._vector(count).items():
                postings[ngram].append((i, weight))
        self._postings = {  # n-gram -> (texts that contain it, its weights in their vectors)
            ngram: (np.array([i for i, _ in entries]), np.array([weight for _, weight in entries]))
            for ngram, entries in postings.items()
        }

    def _vector(self, count: Counter[str]) -> dict[str, float]:
        """Weight n-grams by (1 + ln frequency) times the logarithm of the inverse share of texts that contain
        them."""
        weights = {
            ngram: (1 + math.log(n)) * math.log((self._size + 1) / (self._frequencies[ngram] + 0.5))
            for ngram, n in count.items()
        }
        length = math.hypot(*weights.values()) or 1.0
        return {ngram: weight / length for ngram, weight in weights.items()}

    def similarities(self, text: str) -> Doubles:
        """Return the cosine similarity of a text to each text, from 0 to 1."""
        result = np.zeros(self._size)
        for ngram, weight in self._vector(Counter(ngrams(text))).items():
            if ngram in self._postings:
                texts, others = self._postings[ngram]
                result[texts] += weight * others
        return result


def open_known_answers(model: Checkpoint | Ensemble) -> KnownAnswers:
    """Return the known answers in a model's file. Raises LLMError if it has none."""
    known, path = model.shared.known_answers, model.shared.path
    if known is None or not known.pairs:
        raise LLMError(
            f"{path or 'the model'} has no known answers: training stores them only on request, because "
            "anyone who has the file can read them; train it with `known_answers`"
        )
    return known


@dataclass(frozen=True)
class KnownAnswer:
    """The known answer with the highest score."""

    text: str
    confidence: float  # the score, at most 1
    is_known: bool = True  # whether the confidence reaches the minimum


class AnswerFinder:
    """Chooses among the known answers of a model."""

    def __init__(self, known: KnownAnswers, min_confidence: float | None = None) -> None:
        """By default, the minimum confidence is the one in the file."""
        self._min_confidence = known.min_confidence if min_confidence is None else min_confidence
        questions, answers = zip(*known.pairs, strict=True)
        self.answers: list[str] = list(dict.fromkeys(answers))
        self._index = TextIndex([*questions, *self.answers])
        self._places = {answer: i for i, answer in enumerate(self.answers)}
        self._answer_of = np.array([self._places[answer] for answer in answers])
        self._network_weight = known.network_weight

    def find(self, assistant: Assistant, messages: Messages) -> KnownAnswer:
        """Choose an answer to messages that end with a user message. Raises LLMError
        like `Assistant.score`."""
        if messages[-1].role != "user":
            raise LLMError("a conversation must end with a user message")
        similarities = self._index.similarities(messages[-1].content)
        count = len(self._answer_of)
        scores = ANSWER_WEIGHT * similarities[count:]
        of_questions = np.zeros(len(scores))
        np.maximum.at(of_questions, self._answer_of, similarities[:count])
        scores += of_questions
        if self._network_weight:
            nearest = [self.answers[i] for i in np.argsort(-scores, kind="stable")[:NEAREST].tolist()]
            likely = assistant.score(messages, nearest, only_likely=True)
            for scored, probability in ranked(likely) if likely else ():
                scores[self._places[scored.text]] += self._network_weight * probability
        best = int(scores.argmax())
        confidence = min(1.0, float(scores[best]))
        return KnownAnswer(self.answers[best], confidence, confidence >= self._min_confidence)


class KnownAnswersChat(Chat):
    """A conversation with known answers, or "I don't know." if the confidence is below the minimum."""

    def __init__(
        self,
        assistant: Assistant,
        finder: AnswerFinder,
        sampling: SamplingConfig,
        messages: Iterable[Message] = (),
    ) -> None:
        super().__init__(assistant, sampling, messages)
        self._finder = finder
        self.unknown = _UNKNOWN[language_of(self._finder.answers)]
        self.last: KnownAnswer | None = None

    def find(self, messages: Messages) -> KnownAnswer:
        """Answer messages, which need not belong to this conversation; without an answer, the text is
        `unknown`."""
        answer = self._finder.find(self.assistant, messages)
        return answer if answer.is_known else replace(answer, text=self.unknown)

    def read_answer(self) -> tuple[list[int], list[Piece]]:
        """A known answer has no generated tokens."""
        return [], []

    def _events(self, messages: Messages, sampling: SamplingConfig) -> Iterator[Event]:
        self.last = self.find(messages)
        yield Piece(None, self.last.text, math.nan, "stop")
