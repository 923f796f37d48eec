"""Initial embeddings by spelling: tokens that are spelled alike begin with similar embeddings.

Most tokens are rare in a text that is read in minutes. With these embeddings, the model applies its knowledge
of "the" to " The" from the first step, and its knowledge of one word in "-ing" to other such words
(tests/benchmarks/LOG.md, "Embeddings by spelling"). The architecture does not change, and the embeddings are
trained like all other weights.

V, C = vocabulary size, hidden size.
"""

import unicodedata
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from llmcli.models.runtime import Array

# Weights of the properties of a token; each value of a property has a random vector.
WEIGHTS = {
    "word": 1.0,  # in lowercase, without the space before it
    "last characters": 0.5,
    "last two characters": 0.5,
    "last three characters": 0.5,
    "first character": 0.4,
    "first two characters": 0.4,
    "number of characters": 0.4,
    "script of the last character": 0.4,
    "begins with space": 0.4,
    "capitalized": 0.4,
}
SPELLING_SHARE = 0.9  # share of the variance; the rest is random for each token


def spelled_embeddings(tokens: Sequence[bytes], size: int, seed: int) -> Array:
    """Make random embeddings [V, C] with variance 1 for tokens with these bytes; `size` is C."""
    rng = np.random.default_rng([seed, 2])
    spelled = np.zeros((len(tokens), size), np.float32)
    columns = zip(*(_properties(token) for token in tokens), strict=True)
    for weight, values in zip(WEIGHTS.values(), columns, strict=True):
        numbers: dict[Hashable, int] = {}
        rows = [numbers.setdefault(value, len(numbers)) for value in values]
        spelled += weight * rng.standard_normal((len(numbers), size), np.float32)[rows]
    spelled /= np.sqrt(sum(weight**2 for weight in WEIGHTS.values()))
    noise = rng.standard_normal(spelled.shape, np.float32)
    # control tokens have no spelling
    share = np.array([SPELLING_SHARE if token else 0.0 for token in tokens])[:, None]
    return (np.sqrt(share) * spelled + np.sqrt(1 - share) * noise).astype(np.float32)


def _properties(token: bytes) -> Iterator[Hashable]:
    """Yield the properties of a token in the order of WEIGHTS. Bytes that are not UTF-8, such as parts of a
    character, are read as Latin-1: each is a character."""
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        text = token.decode("latin-1")
    word = text.strip().lower() or text
    yield word
    for length in (1, 2, 3):
        yield word[-length:]
    for length in (1, 2):
        yield word[:length]
    yield len(word)
    yield unicodedata.name(word[-1:] or " ", "NONE").split()[0]  # the script: LATIN, HIRAGANA, CJK, DIGIT
    yield text[:1].isspace()
    yield text.strip()[:1].isupper()
