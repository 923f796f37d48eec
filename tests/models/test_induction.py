"""The circuit in fresh weights, held against what it should do: copy."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models import induction
from llmcli.models.induction import supports_induction, with_induction_heads
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.training.initialization import fresh_weights

CONFIG = ModelConfig(300, 128, 352, 2, 2, 2, 64, 256, rope_theta=1e6)


def twice(config, rng, length=40, rows=4):
    """Random tokens [rows, 2 * length], the second half the same as the first."""
    once = rng.integers(config.vocab_size, size=(rows, length))
    return np.concatenate([once, once], axis=1)


def nats(config, weights, ids):
    """Mean cost of the first time and of the second, but for the first few tokens of each."""
    found, _ = NumpyRuntime(Checkpoint(config, "", weights)).score(ids)
    half = ids.shape[1] // 2
    return found[:, : half - 1].mean(), found[:, half + induction.MATCHED_TOKENS :].mean()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, hidden_size=64, intermediate_size=160, head_dim=32),
        replace(CONFIG, hidden_size=96, intermediate_size=256, head_dim=48),
        replace(CONFIG, hidden_size=192, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=3),
        replace(CONFIG, hidden_size=256, num_attention_heads=4, num_key_value_heads=2),
        replace(CONFIG, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2),
    ],
    ids=["2 x 128", "2 x 64", "2 x 96", "3 x 192", "grouped", "experts"],
)
def test_a_fresh_model_copies_what_it_read(config):
    rng = np.random.default_rng(1)
    first, again = nats(config, fresh_weights(config, 0, induction=True), twice(config, rng))
    assert again < first - 0.4
    assert abs(first - math.log(config.vocab_size)) < 0.3  # and knows nothing else
    first, again = nats(config, fresh_weights(config, 0), twice(config, rng))
    assert abs(again - first) < 1e-3  # without the circuit it knows nothing at all


def test_three_equal_tokens_outweigh_one():
    """a b c X ... c Y ... a b c: X, which stood after the same three, not Y, which stood nearer after one of them."""
    config = replace(CONFIG, hidden_size=192, num_attention_heads=3, num_key_value_heads=3)
    weights = fresh_weights(config, 0, induction=True)
    rng = np.random.default_rng(2)
    right = 0
    for _ in range(20):
        a, b, c, x, y, *rest = rng.permutation(300)[:45].tolist()
        ids = [*rest[:10], a, b, c, x, *rest[10:25], c, y, *rest[25:], a, b, c]
        logits = NumpyRuntime(Checkpoint(config, "", weights)).prefill(ids)
        right += logits[x] > logits[y]
    assert right >= 18


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 1},
        {"tie_word_embeddings": True},
        {"hidden_size": 32, "head_dim": 16},
        {"head_dim": 8},
        {"model_type": "llama"},
    ],
)
def test_where_there_is_no_room_weights_stay_as_they_are(change):
    config = replace(CONFIG, **change)
    assert not supports_induction(config)
    weights = fresh_weights(config, 0)
    found = with_induction_heads(config, weights, 0)
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_what_was_given_is_not_changed_and_a_seed_gives_the_same():
    weights = fresh_weights(CONFIG, 0)
    kept = {name: weight.copy() for name, weight in weights.items()}
    one, same, other = (with_induction_heads(CONFIG, weights, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(weights[name], kept[name]) for name in kept)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


@given(
    width=st.integers(48, 400),
    heads=st.integers(1, 12),
    share=st.integers(1, 4),
    head_dim=st.integers(8, 80).map(lambda n: 2 * n),
    layers=st.integers(2, 4),
    theta=st.sampled_from([100.0, 1e4, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_it_fits_every_shape(width, heads, share, head_dim, layers, theta):
    kv_heads = heads // share if heads % share == 0 else heads
    config = ModelConfig(50, width, 32, layers, heads, kv_heads or 1, head_dim, 64, rope_theta=theta)
    rng = np.random.default_rng(0)
    shapes = config.tensor_shapes()
    found = with_induction_heads(config, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}, 0)
    assert {name: weight.shape for name, weight in found.items()} == shapes
    assert all(np.isfinite(weight).all() and weight.dtype == np.float32 for weight in found.values())
