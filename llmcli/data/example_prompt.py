"""Text -> a prompt to try a model with: the beginning of one of its sentences or lines.

Knows nothing of models, tokens or files.
"""

import itertools
import re
import shlex
import unicodedata
from collections.abc import Iterator

LONGEST = 32  # characters of a prompt in a script that puts spaces between words
MOST_WORDS = 5
LONGEST_UNSPACED = 12  # characters where there are no spaces
SHORTEST = 4  # characters; shorter beginnings are taken only where there is nothing else
MOST_TRIED = 400  # sentences
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")
_SPECIAL = frozenset("\"$`\\!'")  # characters that a shell would not take as they are inside double quotes, and '


def example_prompt(text: str, *, starts_inside: bool = False) -> str | None:
    """The first few words of a sentence or line of the text, fewer than the whole of it, so that there is something to
    continue. None where no line has a letter or digit.

    `starts_inside` says that the text may begin in the middle of a sentence, which then is used last. A beginning that
    needs no escaping in a shell and starts with a letter is preferred.

    >>> example_prompt("I like to eat apple.\\nThe cat likes to sleep.")
    'I like to eat'
    >>> example_prompt("私は毎朝リンゴを食べます。")
    '私は毎朝'
    """
    pieces = [found for sentence in itertools.islice(_sentences(text), MOST_TRIED) if (found := _beginning(sentence))]
    if starts_inside and len(pieces) > 1:
        pieces = [*pieces[1:], pieces[0]]
    wishes = (
        lambda prompt: prompt[0].isalpha() and not _SPECIAL.intersection(prompt) and _says_enough(prompt),
        lambda prompt: prompt[0].isalpha() and not _SPECIAL.intersection(prompt) and len(prompt) >= SHORTEST,
        lambda prompt: len(prompt) >= SHORTEST,
    )
    for wish in wishes:
        for prompt in pieces:
            if wish(prompt):
                return prompt
    return pieces[0] if pieces else None


def quoted(text: str) -> str:
    """A text as one word of a shell command; in double quotes, which every shell knows, where nothing in it is special.

    >>> quoted("I like to eat"), quoted("for $5")
    ('"I like to eat"', "'for $5'")
    """
    return shlex.quote(text) if _SPECIAL.intersection(text) - {"'"} or not text else f'"{text}"'


def _sentences(text: str) -> Iterator[str]:
    """Sentences and lines that can be typed, each from its first letter or digit on, with single spaces."""
    for line in text.splitlines():
        for piece in _SENTENCE_END.split(line):
            start = next((i for i, c in enumerate(piece) if c.isalnum()), None)
            found = " ".join(piece[start:].split()) if start is not None else ""
            if found and found.isprintable() and "\ufffd" not in found:
                yield found


def _beginning(sentence: str) -> str:
    words = sentence.split(" ")
    if len(words) > 1 and len(words[0]) <= LONGEST:
        count = 1
        while count < min(MOST_WORDS, len(words) - 1) and len(" ".join(words[: count + 1])) <= LONGEST:
            count += 1
        return " ".join(words[:count]).rstrip(",;:-–—")
    word = words[0]
    if _is_cased(word) and len(word) <= LONGEST:  # a line of one word, such as a name; half of it says little
        return word
    most = min(LONGEST_UNSPACED, max(1, len(word) // 2))
    starts = [i for i in range(1, len(word)) if not _joins(word, i)]  # of characters, for those who read
    ends = [i for i in starts if i <= most] or starts[:1] or [len(word)]
    # where the script changes a word ends, but for Japanese endings in hiragana
    between = [i for i in ends if i > 1 and _script(word[i - 1]) != _script(word[i]) != "HIRAGANA"]
    return word[: (between or ends)[-1]]


def _says_enough(prompt: str) -> bool:
    """Three words, or as much of a script without spaces."""
    return prompt.count(" ") >= 2 or (" " not in prompt and len(prompt) >= SHORTEST and not _is_cased(prompt))


def _is_cased(text: str) -> bool:
    """Whether it is of a script with capitals, all of which put spaces between words."""
    return any(c.lower() != c.upper() for c in text)


def _joins(text: str, i: int) -> bool:
    """Whether the character at i belongs to the one before: a combining mark, a modifier, a joined emoji."""
    return (
        unicodedata.category(text[i])[0] == "M"
        or unicodedata.category(text[i]) in ("Lm", "Sk", "Cf")
        or text[i - 1] == "\u200d"
    )


def _script(character: str) -> str:
    """The first word of its Unicode name, which for letters is their script: LATIN, CJK, HIRAGANA, THAI."""
    return unicodedata.name(character, "?").split()[0]
