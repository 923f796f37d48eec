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
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.errors import LLMError
from llmcli.generator import Runtime
from llmcli.sampler import probabilities
from llmcli.tokenizer import Tokenizer

UNEXPLORED = 0.001  # the search ends when less than this is left
MOST_LOOKS = 1000  # or after asking the model so many times
LONGEST_WORD = 16  # tokens of the context kept free for the word
END = "<end>"  # stands for the end of the document
LEAST = 1e-7  # a spelling less likely than this is left unexplored


@dataclass(frozen=True)
class NextWord:
    text: str
    probability: float


@dataclass(frozen=True)
class NextWords:
    """The likeliest first; they and `unexplored` sum to 1 when all are listed."""

    words: tuple[NextWord, ...]
    unexplored: float


def next_words(runtime: Runtime, tokenizer: Tokenizer, ids: Sequence[int]) -> NextWords:
    """The words that may follow the tokens `ids` (at least one), at temperature 1."""
    if not ids:
        raise LLMError('the prompt is empty; give some text: llm generate "I like to eat" --next 5')
    ids = list(ids[-max(1, runtime.context - LONGEST_WORD) :])
    runtime.rewind()
    logits = runtime.prefill(ids)
    found: dict[str, float] = defaultdict(float)
    heap: list[tuple[float, tuple[int, ...], bytes]] = [(-1.0, (), b"")]  # (-probability, tokens, their bytes)
    waiting, given_up, looks = 1.0, 0.0, 0  # probabilities of the heap, and of what is not followed
    while heap and looks < MOST_LOOKS and waiting + given_up >= UNEXPLORED:
        negative, path, spelled = heapq.heappop(heap)
        waiting += negative
        if len(ids) + len(path) > runtime.context:
            given_up -= negative
            continue
        if path:
            runtime.rewind(len(ids))
            logits = runtime.prefill(path)
        looks += 1
        chances = probabilities(logits.astype("float64")) * -negative
        likely = (chances >= LEAST).nonzero()[0].tolist()
        given_up += -negative - float(chances[likely].sum())
        for token in likely:
            text = spelled + tokenizer.token_bytes[token]
            word = _first_word(text, ended=token == tokenizer.eos_id)
            if word is None:
                heapq.heappush(heap, (-float(chances[token]), (*path, token), text))
                waiting += float(chances[token])
            else:
                found[word] += float(chances[token])
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return NextWords(tuple(NextWord(text, chance) for text, chance in ranked), max(0.0, waiting + given_up))


def _first_word(spelled: bytes, *, ended: bool) -> str | None:
    """The first word of what was spelled, if it is complete, else None. White space before it is no part of it.

    >>> [_first_word(text.encode(), ended=False) for text in (" app", " apple.", "\\n", " 3", "リンゴを", "!")]
    [None, 'apple', '\\n', None, 'リンゴ', '!']
    """
    text = spelled.decode("utf-8", "ignore").lstrip(" \t\u3000")  # a character half spelled is not there yet
    if not text:
        return END if ended else None
    kind = _kind(text[0])
    if kind == "single":
        return text[0]
    end = next((i for i in range(1, len(text)) if not _continues(text, i, kind)), None)
    return text[:end] if end is not None or ended else None


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
    "han": [("\u3005", "\u3007"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003ffff")],
    "hiragana": [("\u3041", "\u309f")],
    "katakana": [("\u30a1", "\u30fa"), ("\u30fc", "\u30ff"), ("\u31f0", "\u31ff"), ("\uff66", "\uff9f")],
}  # fmt: skip
