"""The generation loop, on models whose every answer is known: text, stops, limits, the window, the seed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import SamplingConfig
from llmcli.errors import LLMError
from llmcli.generator import generate
from llmcli.tokenizer import Tokenizer

SAMPLE = "the cat sat on the mat, the cat ate. りんごを食べる。日本語 🍎👨‍👩‍👧 naïve\n" * 8
BPE = Tokenizer.train_bpe([SAMPLE], 320)
CHAR = Tokenizer.train_char([SAMPLE])
GREEDY = SamplingConfig(temperature=0.0, max_tokens=10_000)


class Model:
    """A runtime whose logits are a function of the tokens it holds; notes what it was asked and how."""

    def __init__(self, context, answer):
        self.context, self.answer = context, answer
        self.taken, self.prefills, self.seen = [], [], []

    @property
    def length(self):
        return len(self.taken)

    def prefill(self, ids):
        assert len(ids) > 0
        self.prefills.append(list(ids))
        return self._take(ids)

    def step(self, token):
        return self._take([token])

    def rewind(self, length=0):
        del self.taken[length:]

    def _take(self, ids):
        self.taken += ids
        assert self.length <= self.context
        self.seen.append(tuple(self.taken))
        assert len(self.seen) <= 20_000, "generation does not end"
        return np.asarray(self.answer(tuple(self.taken)), np.float32)


class Tokens:
    """A tokenizer that is a table: id 0 ends the text, the others write these bytes; a prompt is the ids in digits."""

    eos_id = 0

    def __init__(self, *written):
        self.token_bytes = [b"", *written]

    def encode(self, text):
        return [int(c) for c in text]

    def split_last(self, text):
        return text, ""


def says(script, vocab_size, context=100_000):
    """A model that surely says these tokens, one after the other, and ends the text after them."""
    answers = iter([*script, 0])

    def answer(_):
        logits = np.zeros(vocab_size)
        logits[next(answers)] = 50
        return logits

    return Model(context, answer)


def cycle(vocab_size, context):
    """A model that says 1, 2, ..., vocab_size - 1, 1, 2, ... : what follows a token is the next one."""
    return Model(context, lambda taken: 50 * np.eye(vocab_size)[taken[-1] % (vocab_size - 1) + 1])


def said(script, tokenizer, sampling=GREEDY):
    """The pieces that come when a model says `script`."""
    vocab_size = len(tokenizer.token_bytes)
    prompt = "1" if isinstance(tokenizer, Tokens) else "\n\n"
    return list(generate(says(script, vocab_size), tokenizer, prompt, sampling))


def joined(pieces):
    return "".join(piece.text for piece in pieces)


# ---- characters


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
@pytest.mark.parametrize("text", ["the cat", "りんごを食べる", "🍎🍏 👨‍👩‍👧", "未知の字 ŵ", "\n \t\n", "a\u0301\u202e"])
def test_pieces_joined_are_the_text_and_never_hold_half_a_character(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = tokens = said(ids, CHAR if tokenizer is CHAR else _Whole(tokenizer))
    assert joined(pieces) == text == tokenizer.decode(ids)
    assert [piece.id for piece in tokens] == [*ids, None]
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert any(piece.text == "" for piece in pieces[:-1]) == (len(ids) > len(text) or len(_split(ids, tokenizer)) > 0)


class _Whole:
    """A tokenizer whose prompts are not taken apart."""

    def __init__(self, inner):
        self.token_bytes, self.eos_id, self.encode = inner.token_bytes, inner.eos_id, inner.encode

    def split_last(self, text):
        return text, ""


def _split(ids, tokenizer):
    """The tokens that end inside a character."""
    return [i for n, i in enumerate(ids) if b"".join(map(tokenizer.token_bytes.__getitem__, ids[: n + 1])).decode("utf-8", "ignore").encode() != b"".join(map(tokenizer.token_bytes.__getitem__, ids[: n + 1]))]
