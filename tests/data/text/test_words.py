"""Long text encoded in pieces has the token ids of the whole."""

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.text import words
from llmcli.data.tokenizers import tokenizer as tokenizer_module
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.tokenizer_json import PRE_TOKENIZERS
from tests.data.tokenizers.test_tokenizer import BPE, ids_in_parts, library_ids, long_text


@pytest.mark.slow
def test_long_text_in_any_parts_has_the_ids_of_the_library() -> None:
    text = long_text()
    tokenizer = Tokenizer.train_bpe([text[:30_000]], 500)
    assert len(text) > 4 * words.SEARCHED_CHARACTERS
    expected = library_ids(tokenizer, text)
    assert tokenizer.encode(text) == expected
    for size in (1, 1000, 65_536, 100_003):
        parts = [text[i : i + size] for i in range(0, len(text), size)] if size > 1 else [*text[:50], text[50:]]
        assert ids_in_parts(tokenizer, parts) == expected, size


@pytest.mark.slow
def test_long_text_without_spaces_round_trips_in_any_parts() -> None:
    text = "りんご" * 60_000
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert ids_in_parts(BPE, [text[:5], text[5:100_000], text[100_000:]]) == ids


@contextlib.contextmanager
def short_pieces() -> Iterator[None]:
    """Pieces of about 5 characters, and at most 32."""
    with (
        mock.patch.object(words, "SEARCHED_CHARACTERS", 16),
        mock.patch.object(tokenizer_module, "PIECE_CHARACTERS", 5),
    ):
        yield


SPACED = Tokenizer.train_bpe(["a   b\n\n\nc\n  d\n\ne  f \u3000g \th " * 9], 300)  # has merges of white space

WORD = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from(["a", "b'", "1", ".", "あ", "🍎", "e\u0301", "'s", "\x1c", "\u3000"]),
    st.sampled_from(["", "\x1c", "\xa0", "\r", "\u2028", "\x85"]),
    st.sampled_from(["t", "h", "9", "!", "'", "あ", "\u0301", "Ж"]),
)

SPACE = st.sampled_from([" ", "\n", "  ", "\n\n", " \t", "\n ", " \u3000", " \x1c", "   ", "\n\n\n", "\n  "])
CUTS = st.lists(st.integers(0, 250), max_size=5)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(WORD, SPACE), min_size=8, max_size=40), cuts=CUTS)
@pytest.mark.slow
def test_cutting_text_at_word_ends_keeps_the_ids(pairs: list[tuple[str, str]], cuts: list[int]) -> None:
    check_cuts(SPACED, "".join(word + space for word, space in pairs), cuts)  # a word end in every 16 characters


def check_cuts(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    parts = [text[low:high] for low, high in itertools.pairwise(edges)]
    with short_pieces():
        assert ids_in_parts(tokenizer, parts) == library_ids(tokenizer, text)


@functools.cache
def with_pre_tokenizer(name: str) -> Tokenizer:
    result = json.loads(SPACED.to_json()) | {"pre_tokenizer": PRE_TOKENIZERS[name]}
    for left, right in (("!", "Ċ"), ("Ċ", "!")):  # the first is one word for Llama 3 and Qwen 2, the second never
        result["model"]["vocab"][left + right] = len(result["model"]["vocab"])
        result["model"]["merges"].append([left, right])
    return Tokenizer.from_json(json.dumps(result))


LETTERS = WORD.filter(lambda word: not word[0].isspace())
PLAIN = st.sampled_from([" ", "\n", "  ", "\n\n", " \t"])  # after which every way to cut words ends one


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(LETTERS, PLAIN), min_size=8, max_size=40), cuts=CUTS)
@pytest.mark.slow
def test_cutting_text_keeps_the_ids_of_every_pre_tokenizer(pairs: list[tuple[str, str]], cuts: list[int]) -> None:
    for name in PRE_TOKENIZERS:
        check_cuts(with_pre_tokenizer(name), "".join(word + space for word, space in pairs), cuts)
