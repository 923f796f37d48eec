"""Initialization with induction heads: the fresh model copies from its context."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.analysis.explain import ActivationRecorder
from llmcli.config import ModelConfig
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models import induction
from llmcli.models.induction import initialized_heads, supports_induction, with_stronger_copies, write_induction_heads
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.training.step.initialization import fresh_weights

CONFIG = ModelConfig(300, 128, 352, 2, 2, 2, 64, 256, rope_theta=1e6)


def repeated(config, rng, length=40, rows=4):
    """Random tokens [rows, 2 * length], whose second half equals the first."""
    half = rng.integers(config.vocab_size, size=(rows, length))
    return np.concatenate([half, half], axis=1)


def losses_of_halves(config, weights, ids):
    """Mean losses of the first and of the second half, without the first few tokens of each."""
    losses, _ = NumpyRuntime(Checkpoint(config, "", weights)).score(ids)
    half = ids.shape[1] // 2
    return losses[:, : half - 1].mean(), losses[:, half + induction.MATCHED_TOKENS :].mean()


def test_a_fresh_model_predicts_repeated_text_better():
    cases = [
        CONFIG,
        replace(CONFIG, hidden_size=64, intermediate_size=160, head_dim=32),
        replace(CONFIG, hidden_size=96, intermediate_size=256, head_dim=48),
        replace(CONFIG, hidden_size=192, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=3),
        replace(CONFIG, hidden_size=256, num_attention_heads=4, num_key_value_heads=2),
        replace(CONFIG, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2),
    ]
    for config in cases:
        rng = np.random.default_rng(1)
        first, second = losses_of_halves(config, fresh_weights(config, 0, induction=True), repeated(config, rng))
        assert second < first - 0.4, config
        assert abs(first - math.log(config.vocab_size)) < 0.3, config  # otherwise it predicts uniformly
        first, second = losses_of_halves(config, fresh_weights(config, 0), repeated(config, rng))
        assert abs(second - first) < 1e-3, config  # without the heads it predicts uniformly


def test_a_stronger_copy_predicts_repeated_text_better():
    weights = fresh_weights(CONFIG, 0, induction=True)
    ids = repeated(CONFIG, np.random.default_rng(1))
    first, second = losses_of_halves(CONFIG, weights, ids)
    stronger = with_stronger_copies(CONFIG, weights, 2.0)
    new_first, new_second = losses_of_halves(CONFIG, stronger, ids)
    assert new_second < second - 0.2
    assert abs(new_first - first) < 0.05
    output = "model.layers.1.self_attn.o_proj.weight"  # of head 0 and head 1, which is as before
    assert np.array_equal(stronger[output], weights[output] * np.repeat(np.float32([2, 1]), CONFIG.head_dim))
    assert all(stronger[name] is weights[name] for name in weights if name != output)


def test_heads_attend_as_their_names_say():
    config = replace(CONFIG, hidden_size=384, num_attention_heads=6, num_key_value_heads=3)
    names = initialized_heads(config)
    assert names.pop("2.1") == "induction head" and [*names] == ["1.1", "1.3", "1.5"]
    runtime = NumpyRuntime(Checkpoint(config, "", fresh_weights(config, 0, induction=True)))
    [ids] = repeated(config, np.random.default_rng(1), rows=1)
    recorder = ActivationRecorder(runtime.config, len(ids), len(ids))
    runtime.prefill(ids.tolist(), recorder)
    attended = recorder.weights.argmax(-1)  # [L, H, T]
    for name, kind in names.items():
        back = int(kind.removeprefix("previous-token head, ").removesuffix(" back"))
        layer, head = (int(number) - 1 for number in name.split("."))
        assert (attended[layer, head, back:] == np.arange(len(ids) - back)).mean() > 0.9, name
    assert (attended[1, 0, 45:] == np.arange(45, 80) - 39).mean() > 0.9  # the token after the same tokens


def test_a_match_of_three_tokens_outweighs_a_match_of_one():
    """After a b c X ... c Y ... a b c the model predicts X, which followed the same three tokens, rather than the
    nearer Y, which followed one of them."""
    config = replace(CONFIG, hidden_size=192, num_attention_heads=3, num_key_value_heads=3)
    weights = fresh_weights(config, 0, induction=True)
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(20):
        a, b, c, x, y, *rest = rng.permutation(300)[:45].tolist()
        ids = [*rest[:10], a, b, c, x, *rest[10:25], c, y, *rest[25:], a, b, c]
        logits = NumpyRuntime(Checkpoint(config, "", weights)).prefill(ids)
        hits += logits[x] > logits[y]
    assert hits >= 18


def test_some_configs_are_not_supported():
    cases = [
        {"num_hidden_layers": 1},
        {"tie_word_embeddings": True},
        {"hidden_size": 32, "head_dim": 16},
        {"head_dim": 8},
        {"model_type": "llama"},
    ]
    for change in cases:
        assert not supports_induction(replace(CONFIG, **change)), change


@pytest.mark.slow
@given(
    width=st.integers(48, 400),
    heads=st.integers(1, 12),
    share=st.integers(1, 4),
    head_dim=st.integers(8, 80).map(lambda n: 2 * n),
    layers=st.integers(2, 4),
    theta=st.sampled_from([100.0, 1e4, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_every_supported_shape_works(width, heads, share, head_dim, layers, theta):
    kv_heads = heads // share if heads % share == 0 else heads
    config = ModelConfig(50, width, 32, layers, heads, kv_heads or 1, head_dim, 64, rope_theta=theta)
    rng = np.random.default_rng(0)
    shapes = config.tensor_shapes()
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    write_induction_heads(config, found, 0)
    assert {name: weight.shape for name, weight in found.items()} == shapes
    assert all(np.isfinite(weight).all() and weight.dtype == np.float32 for weight in found.values())
