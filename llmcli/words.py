"""Prompt -> the likeliest next words with their probabilities, whatever the tokenizer.

A model gives probabilities of tokens, and a word may be spelled in many ways: " apple", or " app" + "le". Best-first
search follows the likeliest spellings until each has left its word, and sums over those of the same word. What was
not followed to its end is told as the unexplored rest, so every probability is exact from below.

A word is a run of letters, digits and marks; Chinese characters, hiragana and katakana each make runs of their own,
since no space parts their words; any other character, and a line's end, is a word by itself.
"""

import heapq
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.generator import Prompt, Runtime, agrees
from llmcli.sampler import entropy, highest_of, probabilities
from llmcli.tokenizer import StreamDecoder, Tokenizer

UNEXPLORED = 0.001  # the search ends when less than this is left
MOST_LOOKS, LEAST_LOOKS = 1000, 50  # or after asking the model so many times; a large one fewer times:
MOST_WORK = 2e10  # looks x parameters
SPELLINGS = 4  # ways to reach each byte of the text's last word that are followed
LONGEST_WORD = 16  # tokens of the context kept free for the word
END = "<end>"  # stands for the end of the document
LEAST = 1e-7  # a spelling less likely than this is left unexplored


Path = tuple[int, ...]  # tokens


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

    The search begins before the text's last word and follows what agrees with it, so the ways to spell that are
    summed over too; probabilities are given the whole text.
    """
    prompt = Prompt.of(text, tokenizer)
    ids = prompt.ids[-max(1, runtime.context - LONGEST_WORD) :]
    runtime.rewind()
    logits = runtime.prefill(ids)
    looks = 1
    in_word = _kind(text[-1]) == "letters"
    found: dict[tuple[str, bool], float] = defaultdict(float)  # (word, does it go on with the text's last?)
    heap: list[tuple[float, Path, bytes]] = []  # (-probability, tokens, what they write after the text)
    told, given_up = 0.0, 0.0  # probabilities of `found`, and of what is not followed

    def ask(path: Path) -> NDArray[np.float64]:
        """Probabilities of the token after a path; those of the empty path are known."""
        nonlocal logits, looks
        if path:
            runtime.rewind(len(ids))
            logits = runtime.prefill(path)
            looks += 1
        highest_of(logits)  # or it is no answer
        return np.asarray(probabilities(logits[: len(tokenizer.token_bytes)]), np.float64)

    def put(chance: float, path: Path, new: bytes) -> None:
        """A spelling that goes beyond the text: a word if it is whole, else to be followed."""
        nonlocal told
        word = _first_word(new, ended=bool(path) and path[-1] in tokenizer.end_ids)
        if word is None:
            heapq.heappush(heap, (-chance, path, new))
        else:
            continues = in_word and _kind(word[0]) == "letters" and new.startswith(word[0].encode())
            found[word, continues] += chance
            told += chance

    if prompt.tail:
        for chance, path, new in _spellings(prompt.tail, ask, tokenizer.token_bytes, runtime.context - len(ids)):
            put(chance, path, new)
    else:
        put(1.0, (), b"")
    waiting = -sum(node[0] for node in heap)
    most = MOST_LOOKS if most is None else most
    while heap and looks < most and waiting + given_up >= UNEXPLORED:
        negative, path, spelled = heapq.heappop(heap)
        if len(ids) + len(path) > runtime.context:
            given_up -= negative
        else:
            chances = ask(path) * -negative
            likely = (chances >= LEAST).nonzero()[0].tolist()
            given_up += float(chances.sum() - chances[likely].sum())
            for token in likely:
                put(float(chances[token]), (*path, token), spelled + tokenizer.token_bytes[token])
        waiting = -sum(node[0] for node in heap)
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    words = tuple(NextWord(word, chance, continues) for (word, continues), chance in ranked)
    return NextWords(words, max(0.0, waiting + given_up), looks)


def _spellings(
    tail: bytes, ask: Callable[[Path], NDArray[np.float64]], table: list[bytes], room: int
) -> list[tuple[float, Path, bytes]]:
    """Ways to spell a text's last word: (probability given the word, tokens, what they write beyond it).

    From each byte of the word on, the SPELLINGS likeliest ways to get there are followed, so that an unlikely word
    is spelled as surely as a likely one.
    """
    reached: dict[int, list[tuple[float, Path]]] = defaultdict(list, {0: [(1.0, ())]})  # by bytes spelled
    whole: list[tuple[float, Path, bytes]] = []
    for done in range(len(tail)):
        for chance, path in sorted(reached[done], reverse=True)[:SPELLINGS]:
            if len(path) >= room:
                continue
            chances, rest = ask(path) * chance, tail[done:]
            for token, data in enumerate(table):
                if agrees(data, rest):
                    step = (float(chances[token]), (*path, token))
                    if len(data) < len(rest):
                        reached[done + len(data)].append(step)
                    else:
                        whole.append((*step, data[len(rest) :]))
    total = sum(chance for chance, _, _ in whole)
    return [(chance / total, path, new) for chance, path, new in whole if chance >= LEAST * total] if total else []


def _first_word(spelled: bytes, *, ended: bool) -> str | None:
    """The first word of what was spelled, if it is complete, else None. White space before it is no part of it.

    >>> [_first_word(text.encode(), ended=False) for text in (" app", " apple.", "\\n", " 3", "リンゴを", "!")]
    [None, 'apple', '\\n', None, 'リンゴ', '!']
    """
    text = StreamDecoder().feed(spelled).lstrip(" \t\u3000")  # a character half spelled is not there yet
    if not text:
        return END if ended else None
    kind = _kind(text[0])
    if kind == "single":
        return text[0]
    end = next((i for i in range(1, len(text)) if not _continues(text, i, kind)), None)
    return text[:end] if end is not None else text.rstrip("'’") if ended else None


def _continues(text: str, i: int, kind: str) -> bool:
    c = text[i]
    if _kind(c) == kind or unicodedata.category(c)[0] == "M" or (kind == "katakana" and c == "ー"):
        return True
    return kind == "letters" and c in "'’" and (i + 1 == len(text) or _kind(text[i + 1]) == "letters")


def _kind(c: str) -> str:
    """The kind of run a character belongs to; "single" for those that stand alone."""
    for kind, ranges in _RUNS.items():
        if any(low <= c <= high for low, high in ranges):
            return kind
    return "letters" if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else "single"


_RUNS = {  # Unicode blocks; the first that holds a character counts
    "han": [
        ("\u3005", "\u3007"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"),
        ("\U00020000", "\U0003ffff"),
    ],
    "hiragana": [("\u3041", "\u309f")],
    "katakana": [("\u30a1", "\u30fa"), ("\u30fc", "\u30ff"), ("\u31f0", "\u31ff"), ("\uff66", "\uff9f")],
}  # fmt: skip
