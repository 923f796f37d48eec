"""Bits per byte of plain text before and after training on conversations."""

import itertools
import math
import weakref
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data import plain_text
from llmcli.training.data.plain_text import (
    PlainText,
    affordable_tokens,
    bits_per_byte,
    compare,
    generate_text,
    windows_of,
)
from llmcli.training.interruption import stop_between_layers

BYTES = Tokenizer.train_bpe(["a"], 261)
LENGTHS = np.array([len(data) for data in BYTES.token_bytes])


def model(seed: int = 0) -> LanguageModel:
    made = LanguageModel(ModelConfig(261, 32, 64, 2, 2, 2, 16, 128))
    made.initialize(torch.Generator().manual_seed(seed))
    return made


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000), st.integers(1, 300), st.integers(1, 3000))
def test_windows_are_parts_of_the_text_that_do_not_overlap(count: int, context: int, most: int) -> None:
    ids = np.arange(1, count + 1, dtype=np.uint16)
    windows = windows_of(ids, 0, context, most)
    assert (np.diff(windows, axis=1) == 1).all()  # of ascending ids, with 0 before them
    assert windows.shape[1] - 1 <= min(context, plain_text.WINDOW)
    assert windows[:, 1:].size <= max(most, windows.shape[1] - 1)
    assert len(set(windows[:, 1:].ravel().tolist())) == windows[:, 1:].size
    if count:
        assert windows[0, 0] == 0


def test_bits_per_byte_of_a_uniform_model() -> None:
    """Fresh weights predict all tokens alike; a byte is a token."""
    text = PlainText(windows_of(np.array(BYTES.encode("Some text. " * 20)), BYTES.bos_id, 32, 10**6), "a text")
    assert bits_per_byte(model(), text, LENGTHS) == pytest.approx(math.log2(261), rel=1e-4)


@pytest.mark.slow
def test_generated_text_follows_the_probabilities_of_the_model() -> None:
    repeating = model()
    with torch.no_grad():
        for name, weight in repeating.named_parameters():
            if "proj" in name:
                weight.zero_()
        embedding = torch.nn.init.orthogonal_(torch.empty(261, 32))
        repeating.model.embed_tokens.weight.copy_(embedding / embedding.norm(dim=1, keepdim=True))
        repeating.lm_head.weight.copy_(repeating.model.embed_tokens.weight * 0.7)
    text = generate_text(repeating, BYTES, 4000, seed=1)
    assert text.windows.shape[1] == plain_text.GENERATED_LENGTH + 1 and (text.windows[:, 0] == BYTES.bos_id).all()
    assert text.tokens == pytest.approx(4000, abs=plain_text.GENERATED_LENGTH)
    with torch.no_grad():
        logits = repeating(torch.arange(261)[:, None])[:, 0]
        entropies = torch.distributions.Categorical(logits=logits).entropy().numpy() / math.log(2)
    expected = entropies[text.windows[:, :-1]].mean()
    found = bits_per_byte(repeating, text, np.ones(261, int))
    assert found == pytest.approx(expected, rel=0.02)
    again = generate_text(repeating, BYTES, 4000, seed=1)
    assert np.array_equal(again.windows, text.windows)
    assert not np.array_equal(generate_text(repeating, BYTES, 4000, seed=2).windows, text.windows)
    other = bits_per_byte(model(3), text, np.ones(261, int))
    assert other > found  # nobody predicts a model's text better than the model


def test_without_time_for_whole_texts_they_are_shorter_or_left_out() -> None:
    """Passes are counted: two layers for each token that is generated, then two for each of two models' scores."""
    made = model()
    checkpoint = Checkpoint(made.config, BYTES.to_json(), made.to_arrays())
    count = max(1, affordable_tokens(made.config.parameters) // plain_text.GENERATED_LENGTH)

    def scores(tokens: int, layers: float = math.inf) -> plain_text.PlainTextScores | None:
        def interruptible(of: LanguageModel, share: float) -> AbstractContextManager[None]:
            limit, passed = 2 * tokens if share < 1 else layers, itertools.count()
            return stop_between_layers(of, lambda: next(passed) >= limit)

        return compare(None, checkpoint, made, checkpoint.tensors, BYTES, 0, interruptible)

    found = scores(10)
    assert found and found.tokens == 10 * count and found.before == found.after
    assert scores(plain_text.MIN_LENGTH - 1) is None  # too short to be of use
    assert scores(10, layers=1) is None


@pytest.mark.slow
def test_no_two_models_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[LanguageModel] = weakref.WeakSet()
    made = model()
    checkpoint = Checkpoint(made.config, BYTES.to_json(), made.to_arrays())

    class Counted(LanguageModel):
        def __init__(self, config: ModelConfig) -> None:
            assert not alive
            super().__init__(config)
            alive.add(self)

    monkeypatch.setattr(plain_text, "LanguageModel", Counted)
    scores = compare(None, checkpoint, LanguageModel(made.config), checkpoint.tensors, BYTES, 0)
    assert scores is not None and scores.before == scores.after
