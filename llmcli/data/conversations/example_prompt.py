"""Example prompts: beginnings of sentences or lines in a text."""

import itertools
import re
import shlex
import unicodedata
from collections.abc import Iterator

from llmcli.data.text.words import character_class

MAX_PROMPT = 32  # characters, in a script with spaces between words
MAX_WORDS = 5
MAX_PROMPT_WITHOUT_SPACES = 12  # characters, in other scripts
MIN_PROMPT = 4  # characters; a shorter prompt is used only if there is no other
MAX_SENTENCES = 400  # sentences tried
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")
# characters that are special inside double quotes, and the single quote
_SHELL_SPECIAL = frozenset("\"$`\\!'")


def example_prompts(text: str, *, starts_inside: bool = False) -> list[str]:
    """Return the first few words of all sentences and lines that have a letter or digit, without duplicates.
    Long ones that need no shell escaping come first.

    With `starts_inside`, the text may begin in the middle of a sentence; the words of that sentence come
    last.

    >>> example_prompts("I like to eat apple.\\nThe cat likes to sleep. I like to eat soup.")
    ['I like to eat', 'The cat likes to']
    >>> example_prompts("私は毎朝リンゴを食べます。")
    ['私は毎朝']
    """
    sentences = itertools.islice(_sentences(text), MAX_SENTENCES)
    prompts = [prompt for sentence in sentences if (prompt := _beginning(sentence))]
    if starts_inside:
        prompts = [*prompts[1:], *prompts[:1]]

    def rank(prompt: str) -> tuple[bool, bool]:
        is_short = len(prompt) < MIN_PROMPT or (_is_cased(prompt) and prompt.count(" ") < 2)
        return not prompt[0].isalpha() or not _SHELL_SPECIAL.isdisjoint(prompt), is_short

    return sorted(dict.fromkeys(prompts), key=rank)


def shell_quoted(text: str) -> str:
    """Quote a text for a shell, with double quotes (which every shell supports) unless the text has
    characters that are special inside them.

    >>> shell_quoted("I like to eat"), shell_quoted("for $5")
    ('"I like to eat"', "'for $5'")
    """
    return shlex.quote(text) if _SHELL_SPECIAL.intersection(text) - {"'"} or not text else f'"{text}"'


def _sentences(text: str) -> Iterator[str]:
    """Yield sentences and lines that can be typed, starting at their first letter or digit, with single
    spaces."""
    for line in text.splitlines():
        for piece in _SENTENCE_END.split(line):
            start = next((i for i, c in enumerate(piece) if c.isalnum()), len(piece))
            sentence = " ".join(piece[start:].split())
            if sentence and sentence.isprintable() and "\ufffd" not in sentence:
                yield sentence


def _beginning(sentence: str) -> str:
    words = sentence.split(" ")
    if len(words) > 1 and len(words[0]) <= MAX_PROMPT:
        lengths = itertools.accumulate(len(word) + 1 for word in words)
        count = sum(length <= MAX_PROMPT + 1 for length in lengths)
        return " ".join(words[: min(MAX_WORDS, len(words) - 1, count)]).rstrip(",;:-–—")
    word = words[0]  # or a whole sentence in a script without spaces
    if _is_cased(word) and len(word) <= MAX_PROMPT:
        return word  # a line of one word, such as a name, is not cut
    boundaries = [i for i in range(1, len(word)) if not _joins(word, i)]
    longest = min(MAX_PROMPT_WITHOUT_SPACES, max(1, len(word) // 2))
    ends = [i for i in boundaries if i <= longest] or boundaries[:1] or [len(word)]
    # a word ends where the script changes, except before hiragana, which ends a Japanese word
    classes = list(map(character_class, word))
    word_ends = [i for i in ends if 1 < i < len(word) and classes[i - 1] != classes[i] != "hiragana"]
    return word[: (word_ends or ends)[-1]]


def _is_cased(text: str) -> bool:
    """Return whether the character's script has capital letters; all such scripts put spaces between
    words."""
    return any(c.lower() != c.upper() for c in text)


def _joins(text: str, i: int) -> bool:
    """Return whether character i belongs to the previous character: a combining mark, a modifier, a joined
    emoji."""
    category = unicodedata.category(text[i])
    return category[0] == "M" or category in ("Lm", "Sk", "Cf") or text[i - 1] == "\u200d"
