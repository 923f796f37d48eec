"""The most likely next words after a prompt, with their probabilities, for any tokenizer.

A model predicts tokens, and a word has many spellings: " apple", or " app" followed by "le". Best-first
search follows the most likely spellings until each has completed its word, and adds up the spellings of a
word. The rest is unexplored, so each probability is a lower bound; together with the rest they sum to 1.

A word is a run of letters, digits and combining marks. Chinese characters, hiragana and katakana form
separate runs, since no spaces separate words in those scripts. Every other character, including a line break,
is a word.
"""

import heapq
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.text.words import character_class
from llmcli.data.tokenizers.tokenizer import Tokenizer, stream_decoder
from llmcli.data.tokenizers.vocabulary import unfinished
from llmcli.formats.metadata import Json
from llmcli.generation.sampler import Sampler
from llmcli.generation.token_healing import Path, Prompt, read_prompt
from llmcli.models.logits import entropy, masked
from llmcli.models.runtime import Array, Runtime

MAX_UNEXPLORED = 0.001  # the search stops when the unexplored probability falls below this
MAX_EVALUATIONS = 1000  # maximum forward passes; fewer for a large model ...
MAX_WORK = 5e9  # ... so that evaluations x parameters stay below this ...
MIN_EVALUATIONS = 30  # ... but at least this many
PROMPT_SHARE = 4  # one in four evaluations goes to tokenizations of the prompt's end
MAX_WORD_TOKENS = 16  # context tokens kept free for the word, at most half of the context
SPACES = " \t\u3000"  # white space before a word
END = "<end>"  # shown as the next word where the document would end
MIN_PROBABILITY = 1e-7  # less likely spellings stay unexplored
# maximum number of tokens in spellings evaluated together, which takes little longer than a single token
TOKENS_AT_ONCE = 16
PLAIN = SamplingConfig(temperature=1, min_p=0)  # the probabilities of the model itself


@dataclass(frozen=True)
class NextWord:
    """A word and the probability that it comes next."""

    text: str
    probability: float
    continues: bool = False  # it continues the last word of the prompt: "s" after "apple"
    # the text that it adds to the prompt, including white space before the word
    added: str = field(default="", compare=False)
    token: int = field(default=-1, compare=False)  # its most likely first token

    def as_json(self, **more: object) -> Json:
        shown = {"text": self.text, "probability": round(self.probability, 6), **more}
        return shown | ({"continues": True} if self.continues else {})


@dataclass(frozen=True)
class NextWords:
    """Next words, most likely first. Their probabilities and `unexplored` sum to 1."""

    words: tuple[NextWord, ...]
    unexplored: float
    evaluations: int  # number of forward passes

    @property
    def entropy(self) -> float:
        """Entropy of the next word in bits. The unexplored rest counts as one word, so this is a lower
        bound."""
        return entropy(np.array([*(word.probability for word in self.words), self.unexplored]))

    def as_json(self, prompt: str, count: int) -> Json:
        """Return the `count` most likely words after a prompt as printed by `llm generate --next --json`."""
        return {
            "prompt": prompt,
            "next": [word.as_json() for word in self.words[:count]],
            "unexplored": round(self.unexplored, 6),
            "entropy_bits": round(self.entropy, 6),
        }


NO_WORDS = NextWords((), 1.0, 0)


def max_evaluations(parameters: int) -> int:
    """Return the maximum number of evaluations for a model of this size, so that the search takes a few
    seconds."""
    return max(MIN_EVALUATIONS, min(MAX_EVALUATIONS, int(MAX_WORK / max(1, parameters))))


def next_words(
    runtime: Runtime,
    tokenizer: Tokenizer,
    text: str | Prompt,
    *,
    sampling: SamplingConfig = PLAIN,
    evaluations: int | None = None,
) -> NextWords:
    """Find the words that may follow a text, with their probabilities after temperature, top-k, top-p and
    min-p. The search ends after at most `evaluations` evaluations of the model."""
    limit = min(max_evaluations(runtime.parameters), evaluations or MAX_EVALUATIONS)
    prompt = Prompt.of(text, tokenizer)
    prompt_limit = max(2, limit // PROMPT_SHARE)
    sampler = Sampler(sampling)
    first = read_prompt(
        runtime,
        tokenizer,
        prompt,
        max_evaluations=prompt_limit,
        negligible=MIN_PROBABILITY,
        reserve=min(MAX_WORD_TOKENS, runtime.context // 2),
    )
    search = _WordSearch(tokenizer, in_word=prompt.in_word or _ends_in_word(tokenizer, prompt.ids))
    explored = 1 - first.unexplored
    for continuation in first.continuations(MIN_PROBABILITY, None if sampling == PLAIN else sampler):
        path = continuation.tokens
        search.add(continuation.probability * explored, path, continuation.new_bytes, path[-1])
    evaluated: dict[Path, Array] = {}  # logits after spellings that are still open
    space = first.search.space
    while search.open and 1 - search.explored >= MAX_UNEXPLORED:
        negative, path, spelled, first_token = heapq.heappop(search.open)
        if len(path) <= space:
            if path not in evaluated:
                if (left := limit - first.search.evaluations) <= 0:
                    break
                others = search.likeliest_paths(path, first.search.tail)
                others = [other for other in others if len(other) <= space and other not in evaluated]
                paths = [path, *others][:left]
                evaluated |= zip(paths, first.search.logits_after(paths), strict=True)
            logits = evaluated.pop(path)
            allowed = tokenizer.vocabulary.allowed(unfinished(spelled) or b"")
            logits = masked(logits, allowed)
            if not np.isfinite(logits).any():
                continue
            search.add_all(-negative * sampler.probabilities(logits), path, spelled, first_token)
    words = tuple(sorted(search.words(), key=lambda word: (-word.probability, word.text, word.continues)))
    return NextWords(words, max(0.0, 1 - search.explored), first.search.evaluations)


class _WordSearch:
    """The state of the search: the words found, and the spellings still to be explored."""

    def __init__(self, tokenizer: Tokenizer, in_word: bool) -> None:
        self._end_ids = tokenizer.eos_ids
        self._vocabulary = tokenizer.vocabulary
        self._decoder = stream_decoder()
        self._in_word = in_word
        # (word, continues) -> probability by the next token
        self._words: dict[tuple[str, bool], dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self._added: dict[tuple[str, bool], str] = {}  # with the white space of the likeliest spelling
        self.explored = 0.0  # sum of these probabilities
        # heap: (-probability, tokens, bytes after the text, the next token after the text)
        self.open: list[tuple[float, Path, bytes, int]] = []

    def add(self, probability: float, path: Path, spelled: bytes, token: int) -> None:
        """Add a spelling that begins with the next token `token`. It is counted if its first word is
        complete, otherwise explored later."""
        text = self._decoder.decode(spelled)  # without an incomplete character at the end
        self._decoder.reset()
        word = _first_word(text, ended=path[-1] in self._end_ids)
        if word is None:
            heapq.heappush(self.open, (-probability, path, spelled, token))
        else:
            continues = (
                self._in_word
                and character_class(word[0]) == "letters"
                and spelled.startswith(word[0].encode())
            )
            self._words[word, continues][token] += probability
            if word != END:
                self._added.setdefault((word, continues), text[: len(text) - len(text.lstrip(SPACES))] + word)
            self.explored += probability

    def add_all(self, probabilities: NDArray[np.floating], path: Path, spelled: bytes, token: int) -> None:
        """Add an open spelling with each of the next tokens, which have these probabilities [V]."""
        likely = probabilities >= MIN_PROBABILITY
        if _ends_after_letter(spelled):  # most tokens either complete this word, or certainly do not
            completing = likely & self._vocabulary.ends_words
            if completing.any():
                self.add(float(probabilities[completing].sum(dtype=np.float64)), path, spelled + b" ", token)
            continuing = likely & self._vocabulary.only_letters
            for i in continuing.nonzero()[0].tolist():
                longer = spelled + self._vocabulary.token_bytes[i]
                heapq.heappush(self.open, (-float(probabilities[i]), (*path, i), longer, token))
            likely &= ~(completing | continuing)
        for i in likely.nonzero()[0].tolist():
            longer = spelled + self._vocabulary.token_bytes[i]
            self.add(float(probabilities[i]), (*path, i), longer, token)

    def likeliest_paths(self, path: Path, tail: Path) -> list[Path]:
        """Return the likeliest open spellings to evaluate together with `path`. Those that begin with the
        `tail` of the prompt share its evaluation."""
        start = len(tail) if path[: len(tail)] == tail else 0
        tokens = TOKENS_AT_ONCE - (len(path) - start)
        likeliest = []
        while (
            self.open and self.open[0][1][:start] == tail[:start] and len(self.open[0][1]) - start <= tokens
        ):
            likeliest.append(heapq.heappop(self.open))
            tokens -= len(likeliest[-1][1]) - start
        for spelling in likeliest:
            heapq.heappush(self.open, spelling)
        return [other for _, other, _, _ in likeliest]

    def words(self) -> Iterator[NextWord]:
        """Yield the words found so far."""
        for (word, continues), tokens in self._words.items():
            added = self._added.get((word, continues), "")
            token = max(tokens, key=tokens.__getitem__)
            yield NextWord(word, sum(tokens.values()), continues, added, token)


def next_tokens(
    runtime: Runtime, tokenizer: Tokenizer, prompt: Prompt, sampling: SamplingConfig
) -> list[tuple[int | None, bytes, float]]:
    """Return (token, bytes that it adds, probability under the sampling settings) of all tokens that may
    follow a prompt, most likely first. The token is None for a text that only the end of a longer token
    spells."""
    first = read_prompt(runtime, tokenizer, prompt)
    probabilities = Sampler(sampling).probabilities(first.logits, first.tokens)
    ranked = np.argsort(-probabilities, kind="stable").tolist()
    return [(*first.token_of(i), float(probabilities[i])) for i in ranked if probabilities[i] > 0]


def _ends_in_word(tokenizer: Tokenizer, ids: list[int]) -> bool:
    text = tokenizer.vocabulary.bytes_of(ids[-4:]).decode("utf-8", "ignore")
    return text != "" and character_class(text[-1]) == "letters"


def _ends_after_letter(spelled: bytes) -> bool:
    """Return whether an open spelling ends with a letter, in a word of letters."""
    if unfinished(spelled) != b"":
        return False
    word = spelled.decode("utf-8").lstrip(SPACES)
    return word != "" and character_class(word[0]) == character_class(word[-1]) == "letters"


def _first_word(text: str, *, ended: bool) -> str | None:
    """Return the first word without leading white space; None if it is not complete yet. With `ended`, the
    document ends here.

    >>> [_first_word(text, ended=False) for text in (" app", " apple.", "\\n", " 3", "リンゴを", "!")]
    [None, 'apple', '\\n', None, 'リンゴ', '!']
    """
    text = text.lstrip(SPACES)
    if not text:
        return END if ended else None
    kind = character_class(text[0])
    if kind == "single":
        return text[0]
    end = next((i for i in range(1, len(text)) if not _continues(text, i, kind)), None)
    if end is not None:
        return text[:end]
    return text.rstrip("'’") if ended else None


def _continues(text: str, i: int, kind: str) -> bool:
    c = text[i]
    if character_class(c) == kind or unicodedata.category(c)[0] == "M" or (kind == "katakana" and c == "ー"):
        return True
    if kind != "letters" or c not in "'’":
        return False
    return i + 1 == len(text) or character_class(text[i + 1]) == "letters"
