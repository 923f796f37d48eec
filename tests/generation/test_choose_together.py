"""Choices of several texts at once, compared with those of each alone."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.generator import GeneratedText, choose_together
from tests.conftest import TEXT

TOKENIZER = Tokenizer.train_bpe([TEXT], 300)
V = TOKENIZER.vocab_size
SAMPLINGS = [
    SamplingConfig(temperature=0.0, max_tokens=50),
    SamplingConfig(temperature=0.0, max_tokens=50),
    SamplingConfig(temperature=0.0, max_tokens=50, stop=("at",)),
    SamplingConfig(temperature=0.8, max_tokens=50, seed=1),
    SamplingConfig(temperature=1.0, max_tokens=50, seed=2, min_p=0.2),
    SamplingConfig(temperature=1.5, max_tokens=50, seed=3, min_p=0.0),
    SamplingConfig(temperature=0.8, max_tokens=50, seed=4, top_k=5),
    SamplingConfig(temperature=0.8, max_tokens=50, seed=5, top_p=0.9),
    SamplingConfig(temperature=0.0, max_tokens=50, repetition_penalty=1.2),
]
INSIDE_CHARACTER = TOKENIZER.vocabulary.find(b"\xe3")  # the first byte of a Japanese character


def rows_of(seed: int, count: int, extra: int) -> np.ndarray:
    """Logits with ties and removed tokens, of a model with `extra` rows that no token uses."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, rng.choice([0.1, 3, 30]), (count, V + extra)).astype(np.float32)
    rows = np.round(rows, int(rng.integers(0, 6)))
    rows[rng.random(rows.shape) < 0.1] = -np.inf
    return rows


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    samplings=st.lists(st.sampled_from(SAMPLINGS), min_size=1, max_size=9),
    extra=st.integers(0, 3),
    inside=st.sets(st.integers(0, 8)),
)
def test_the_choices_are_those_made_alone(seed, samplings, extra, inside):
    assert INSIDE_CHARACTER is not None
    texts = [GeneratedText(TOKENIZER, [5, 6], sampling) for sampling in samplings]
    for number in inside & set(range(len(texts))):
        texts[number].append((INSIDE_CHARACTER, 0.0))
    alone = deepcopy(texts)
    rows = rows_of(seed, len(texts), extra)
    choices = choose_together(texts, rows)
    together = [s.repetition_penalty == 1 and not s.top_k and s.top_p == 1 for s in samplings]
    assert [choice is not None for choice in choices] == [one and sum(together) > 1 for one in together]
    for text, other, row, choice in zip(texts, alone, rows, choices, strict=True):
        assert text.append(choice or text.choose(row)) == other.append(other.choose(row))
        assert (text.ids, text.last_token, text.finish_reason) == (other.ids, other.last_token, other.finish_reason)


def test_a_damaged_row_leaves_all_choices_to_the_texts():
    rows = rows_of(0, 3, 0)
    rows[1, 7] = np.nan
    assert choose_together([GeneratedText(TOKENIZER, [5], SAMPLINGS[0]) for _ in rows], rows) == [None] * 3
