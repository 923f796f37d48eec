"""Prompt -> the likeliest next words with their probabilities, whatever the tokenizer.

A model gives probabilities of tokens, and a word may be spelled in many ways: " apple", or " app" + "le". Best-first
search follows the likeliest spellings until each has left its word, and sums over those of the same word. What was
not followed to its end is the unexplored rest, so every probability is a lower bound, and all sum to 1 with the rest.

A word is a run of letters, digits and marks; Chinese characters, hiragana and katakana each make runs of their own,
since no space parts their words; any other character, and a line's end, is a word by itself.
"""

import heapq
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from llmcli.data.characters import character_class
from llmcli.data.tokenizer import StreamDecoder, Tokenizer
from llmcli.data.vocabulary import START, state_after
from llmcli.generation.prompt import Path, Prompt, read
from llmcli.models.logits import entropy, softmax
from llmcli.models.runtime import Runtime

UNEXPLORED = 0.001  # the search ends when less than this is left
MOST_LOOKS, LEAST_LOOKS = 1000, 50  # or after asking the model so many times; a large one fewer times:
MOST_WORK = 2e10  # looks x parameters
OPENING_SHARE = 4  # one in so many of them is for the ways to split the prompt's end
LONGEST_WORD = 16  # tokens of the context kept free for the word
END = "<end>"  # stands for the end of the document
LEAST = 1e-7  # a spelling less likely than this is left unexplored


@dataclass(frozen=True)
class NextWord:
    """A word and how likely it is to be the next."""

    text: str
    probability: float
    continues: bool = False  # letters that go on with the last word of the prompt: "s" after "apple"


@dataclass(frozen=True)
class NextWords:
    """The likeliest first; all of them and `unexplored` sum to 1."""

    words: tuple[NextWord, ...]
    unexplored: float
    looks: int  # times the model was asked

    @property
    def entropy(self) -> float:
        """How unsure the next word is, in bits; the unexplored counts as one word, so it is this much at least."""
        return entropy(np.array([*(word.probability for word in self.words), self.unexplored]))


def most_looks(parameters: int) -> int:
    """How often a model of so many parameters is asked at most: a few seconds' work.

    >>> [most_looks(10**6), most_looks(135 * 10**6), most_looks(10**12)]
    [1000, 148, 50]
    """
    return max(LEAST_LOOKS, min(MOST_LOOKS, int(MOST_WORK / max(1, parameters))))


def next_words(runtime: Runtime, tokenizer: Tokenizer, text: str, most: int | None = None) -> NextWords:
    """The words that may follow a text, at temperature 1; the model is asked `most` times at most, else MOST_LOOKS.
    Raises LLMError for an empty one.

    The first tokens are those that `generate` chooses from (prompt.py), so probabilities are given the text, however
    its last word is split into tokens.
    """
    most = max(2, MOST_LOOKS if most is None else most)
    prompt = Prompt.of(text, tokenizer)
    opening = read(runtime, tokenizer, prompt, most=max(2, most // OPENING_SHARE), negligible=LEAST, room=LONGEST_WORD)
    search = _Search(tokenizer, in_word=character_class(text[-1]) == "letters")
    known = 1 - opening.unexplored
    for way in opening.ways(LEAST):
        search.add(way.probability * known, way.tokens, way.new)
    while opening.evaluations < most and search.is_worth_it():
        chance, path, spelled = search.pop()
        if len(path) <= opening.space:
            allowed = tokenizer.vocabulary.allowed(max(START, state_after(spelled)))
            logits = opening.logits_after(path).astype(np.float64)
            if allowed is not None:
                logits[~allowed] = -np.inf
            chances = chance * softmax(logits) if np.isfinite(logits).any() else np.zeros(len(logits))
            for token in (chances >= LEAST).nonzero()[0].tolist():
                search.add(float(chances[token]), (*path, token), spelled + tokenizer.token_bytes[token])
    return search.result(opening.evaluations)


class _Search:
    """Best-first search for first words."""

    def __init__(self, tokenizer: Tokenizer, in_word: bool) -> None:
        self._end_ids, self._in_word = tokenizer.end_ids, in_word
        self._found: dict[tuple[str, bool], float] = defaultdict(float)  # (word, does it go on with the text's last?)
        self._known = 0.0  # their probabilities' sum
        self._open: list[tuple[float, Path, bytes]] = []  # heap: (-probability, tokens, what they write after the text)

    def add(self, chance: float, path: Path, new: bytes) -> None:
        """A way to go on: a word if it is whole, else to be followed."""
        word = _first_word(new, ended=path[-1] in self._end_ids)
        if word is None:
            heapq.heappush(self._open, (-chance, path, new))
        else:
            continues = self._in_word and character_class(word[0]) == "letters" and new.startswith(word[0].encode())
            self._found[word, continues] += chance
            self._known += chance

    def is_worth_it(self) -> bool:
        """Whether there is something to follow, and enough is not known."""
        return bool(self._open) and 1 - self._known >= UNEXPLORED

    def pop(self) -> tuple[float, Path, bytes]:
        """The likeliest to follow: (probability, tokens, what they write)."""
        negative, path, new = heapq.heappop(self._open)
        return -negative, path, new

    def result(self, looks: int) -> NextWords:
        ranked = sorted(self._found.items(), key=lambda item: (-item[1], item[0]))
        words = tuple(NextWord(word, chance, continues) for (word, continues), chance in ranked)
        return NextWords(words, max(0.0, 1 - self._known), looks)


def _first_word(spelled: bytes, *, ended: bool) -> str | None:
    """The first word of what was spelled, if it is complete, else None. White space before it is no part of it.

    >>> [_first_word(text.encode(), ended=False) for text in (" app", " apple.", "\\n", " 3", "リンゴを", "!")]
    [None, 'apple', '\\n', None, 'リンゴ', '!']
    """
    text = StreamDecoder().feed(spelled).lstrip(" \t\u3000")  # a character half spelled is not there yet
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
