"""How the weights of planted induction heads are trained: their rates, and output embeddings that follow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.induction import Subspaces, written_parts
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.planning import recipe
from llmcli.training.step.initialization import fresh_weights
from llmcli.training.step.optimizer import Optimizer

CONFIG = ModelConfig(300, 64, 160, 2, 2, 2, 32, 64, rope_theta=1e6)
TRAIN = TrainConfig(steps=1, induction=True)


def new_model(config: ModelConfig = CONFIG) -> LanguageModel:
    model = LanguageModel(config)
    model.load_arrays(fresh_weights(config, 0, induction=True))
    return model


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, num_attention_heads=4), replace(CONFIG, num_hidden_layers=3)]
)
def test_the_parts_of_the_heads_are_all_that_writing_them_changes(config: ModelConfig) -> None:
    parts = written_parts(config)
    plain, written = fresh_weights(config, 0), fresh_weights(config, 0, induction=True)
    for name, weights in written.items():
        if not name.endswith("_proj.weight"):
            continue
        changed = weights != plain[name]
        if name.endswith("o_proj.weight"):
            changed = changed.T
        for part in parts.get(name, ()):
            assert changed[part].any(), name
            changed[part] = False
        assert not changed.any(), name


def test_the_heads_are_trained_at_a_fraction_of_the_rate() -> None:
    moved = []
    for induction in (True, False):
        model = new_model()
        before = {name: array.copy() for name, array in model.to_arrays().items()}
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        Optimizer(model, replace(TRAIN, induction=induction)).step(0.2)
        moved.append({name: array - before[name] for name, array in model.to_arrays().items()})
    parts = written_parts(CONFIG)
    for name, plain in moved[1].items():
        if "layers" not in name:
            continue
        expected = plain.copy()
        for part in parts.get(name, ()):
            expected[(slice(None), part) if "o_proj" in name else part] *= recipe.INDUCTION_RATE
        np.testing.assert_allclose(moved[0][name], expected, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_head_still_recognizes_copies_after_the_embeddings_have_changed() -> None:
    """Output embeddings that are the copies times a scale remain so, if only the input embeddings have gradients."""
    model = new_model()
    space = Subspaces.of(CONFIG, np.random.default_rng(0))
    values = model.to_arrays()["model.layers.1.self_attn.v_proj.weight"]
    optimizer = Optimizer(model, TRAIN)
    for step in range(3):
        embedding = model.get_parameter("model.embed_tokens.weight")
        embedding.grad = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step(0.2)
    arrays = model.to_arrays()
    embedding = arrays["model.embed_tokens.weight"]
    copies = embedding[:, space.token] @ values[space.values, space.token].T
    output = arrays["lm_head.weight"][:, space.copied]
    np.testing.assert_allclose(output, 0.05 * copies, rtol=1e-2, atol=1e-4)
    assert not np.allclose(embedding, fresh_weights(CONFIG, 0, induction=True)["model.embed_tokens.weight"], atol=0.1)
