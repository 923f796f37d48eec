"""The most likely next words after a prompt, with their probabilities, for any tokenizer.

A model predicts tokens, and a word has many spellings: " apple", or " app" followed by "le". Best-first search follows
the most likely spellings until each has completed its word, and adds up the spellings of a word. The rest is
unexplored, so each probability is a lower bound; together with the rest they sum to 1.

A word is a run of letters, digits and combining marks. Chinese characters, hiragana and katakana form separate runs,
since no spaces separate words in those scripts. Every other character, including a line break, is a word.
"""

import heapq
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmcli.data.text.words import character_class
from llmcli.data.tokenizers.tokenizer import Tokenizer, stream_decoder
from llmcli.data.tokenizers.vocabulary import START, state_after
from llmcli.generation.token_healing import Path, Prompt, read_prompt
from llmcli.models.logits import entropy, softmax
from llmcli.models.runtime import Runtime

MAX_UNEXPLORED = 0.001  # the search stops when less probability than this is unexplored
MAX_EVALUATIONS = 1000  # maximum forward passes; fewer for a large model ...
MAX_WORK = 2e10  # ... so that evaluations x parameters stay below this ...
MIN_EVALUATIONS = 50  # ... but not fewer than this
PROMPT_SHARE = 4  # one in four evaluations goes to tokenizations of the prompt's end
MAX_WORD_TOKENS = 16  # context tokens kept free for the word
END = "<end>"  # shown as the next word where the document would end
MIN_PROBABILITY = 1e-7  # less likely spellings stay unexplored


@dataclass(frozen=True)
class NextWord:
    """A word and the probability that it comes next."""

    text: str
    probability: float
    continues: bool = False  # it continues the last word of the prompt: "s" after "apple"


@dataclass(frozen=True)
class NextWords:
    """Next words, most likely first. Their probabilities and `unexplored` sum to 1."""

    words: tuple[NextWord, ...]
    unexplored: float
    evaluations: int  # number of forward passes

    @property
    def entropy(self) -> float:
        """Entropy of the next word in bits. The unexplored rest counts as one word, so this is a lower bound."""
        return entropy(np.array([*(word.probability for word in self.words), self.unexplored]))

    def as_json(self, prompt: str, count: int) -> dict[str, object]:
        """Return the `count` most likely words after a prompt as printed by `llm generate --next --json`."""
        return {
            "prompt": prompt,
            "next": [
                {"text": word.text, "probability": round(word.probability, 6)}
                | ({"continues": True} if word.continues else {})
                for word in self.words[:count]
            ],
            "unexplored": round(self.unexplored, 6),
            "entropy_bits": round(self.entropy, 6),
        }


def max_evaluations(parameters: int) -> int:
    """Return the maximum number of evaluations for a model of this size, so that the search takes a few seconds."""
    return max(MIN_EVALUATIONS, min(MAX_EVALUATIONS, int(MAX_WORK / max(1, parameters))))


def next_words(
    runtime: Runtime, tokenizer: Tokenizer, text: str, *, check: Callable[[], None] = lambda: None
) -> NextWords:
    """Find the words that may follow a text, at temperature 1. `check` is called before each evaluation of the model
    and may raise an exception to end the search."""
    limit = max_evaluations(runtime.parameters)
    prompt, most = Prompt.of(text, tokenizer), max(2, limit // PROMPT_SHARE)
    first = read_prompt(
        runtime, tokenizer, prompt, max_evaluations=most, negligible=MIN_PROBABILITY, reserve=MAX_WORD_TOKENS
    )
    search = _WordSearch(tokenizer, in_word=prompt.in_word)
    explored = 1 - first.unexplored
    for continuation in first.continuations(MIN_PROBABILITY):
        search.add(continuation.probability * explored, continuation.tokens, continuation.new_bytes)
    while first.search.evaluations < limit and search.open and 1 - search.explored >= MAX_UNEXPLORED:
        check()
        negative, path, spelled = heapq.heappop(search.open)
        if len(path) <= first.search.space:
            logits = first.search.logits_after(path).astype(np.float64)
            allowed = tokenizer.vocabulary.allowed(max(START, state_after(spelled)))
            if allowed is not None:
                logits[~allowed] = -np.inf
            probabilities = -negative * softmax(logits) if np.isfinite(logits).any() else np.zeros(len(logits))
            for token in (probabilities >= MIN_PROBABILITY).nonzero()[0].tolist():
                search.add(float(probabilities[token]), (*path, token), spelled + tokenizer.token_bytes[token])
    ranked = sorted(search.words.items(), key=lambda item: (-item[1], item[0]))
    words = tuple(NextWord(word, probability, continues) for (word, continues), probability in ranked)
    return NextWords(words, max(0.0, 1 - search.explored), first.search.evaluations)


class _WordSearch:
    """The state of the search: words found and spellings to follow."""

    def __init__(self, tokenizer: Tokenizer, in_word: bool) -> None:
        self._end_ids, self._in_word = tokenizer.eos_ids, in_word
        self.words: dict[tuple[str, bool], float] = defaultdict(float)  # (word, continues) -> probability
        self.explored = 0.0  # sum of these probabilities
        self.open: list[tuple[float, Path, bytes]] = []  # heap: (-probability, tokens, bytes after the text)

    def add(self, probability: float, path: Path, spelled: bytes) -> None:
        """Add a spelling: it is counted if its first word is complete, otherwise followed later."""
        word = _first_word(spelled, ended=path[-1] in self._end_ids)
        if word is None:
            heapq.heappush(self.open, (-probability, path, spelled))
        else:
            continues = self._in_word and character_class(word[0]) == "letters" and spelled.startswith(word[0].encode())
            self.words[word, continues] += probability
            self.explored += probability


def _first_word(spelled: bytes, *, ended: bool) -> str | None:
    """Return the first word without leading white space; None if it is not complete yet. With `ended`, the document
    ends here.

    >>> [_first_word(text.encode(), ended=False) for text in (" app", " apple.", "\\n", " 3", "リンゴを", "!")]
    [None, 'apple', '\\n', None, 'リンゴ', '!']
    """
    text = stream_decoder().decode(spelled).lstrip(" \t\u3000")  # without an incomplete character at the end
    if not text:
        return END if ended else None
    kind = character_class(text[0])
    if kind == "single":
        return text[0]
    end = next((i for i in range(1, len(text)) if not _continues(text, i, kind)), None)
    return text[:end] if end is not None else text.rstrip("'’") if ended else None


def _continues(text: str, i: int, kind: str) -> bool:
    c = text[i]
    if character_class(c) == kind or unicodedata.category(c)[0] == "M" or (kind == "katakana" and c == "ー"):
        return True
    return kind == "letters" and c in "'’" and (i + 1 == len(text) or character_class(text[i + 1]) == "letters")
