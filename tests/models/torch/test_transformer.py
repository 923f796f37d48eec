"""The decoder in torch: compared with numpy's, and its parts with torch's own operations; tests/ecosystem compares
both with transformers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmcli.config import ModelConfig
from llmcli.models.torch import kernels
from llmcli.models.torch.linear import Linear
from llmcli.models.torch.runtime import score
from llmcli.models.torch.transformer import LanguageModel, rotary_tables
from tests.models.decoders import SHAPES, torch_model


def test_the_state_dict_has_hugging_faces_names_and_shapes() -> None:
    for config in (config for config in SHAPES.values() if not config.num_experts):
        found = {name: tuple(tensor.shape) for name, tensor in LanguageModel(config).state_dict().items()}
        assert found == config.tensor_shapes()


@pytest.mark.parametrize("shape", ["untied", "grouped"])
def test_both_ways_to_train_attention_have_the_same_gradients(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, with AMX and without; against float32, whose error is far smaller."""
    config = SHAPES[shape]
    ids = torch.randint(300, (3, 33), generator=torch.Generator().manual_seed(5))

    def gradients(dtype: torch.dtype, *, amx: bool) -> torch.Tensor:
        monkeypatch.setattr(kernels, "_has_amx", lambda: amx)
        monkeypatch.setattr(kernels, "MAX_CONTEXT_KEEPING_SCORES_WITH_AMX", 32 - 1)
        model = LanguageModel(config, dtype=dtype)
        model.load_arrays(torch_model(config)[0].to_arrays())
        model.loss(ids).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    wanted = gradients(torch.float32, amx=False)
    errors = [(gradients(torch.bfloat16, amx=amx) - wanted).norm() / wanted.norm() for amx in (True, False)]
    assert all(0 < error < 0.03 for error in errors) and errors[0] < 1.2 * errors[1]


def test_a_loss_is_the_mean_cross_entropy_of_the_learned_tokens_and_so_is_its_gradient() -> None:
    model, _ = torch_model(SHAPES["untied"])
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(300, (3, 9), generator=generator)
    learned = torch.rand(3, 9, generator=generator) < 0.4
    losses = F.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:], reduction="none")
    assert model.loss(ids).item() == pytest.approx(losses.mean().item(), rel=1e-5)
    expected = losses[learned[:, 1:]].mean()
    found = model.loss(ids, learned)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = list(model.parameters())
    for ours, reference in zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        assert torch.allclose(ours, reference, atol=1e-6)


def test_initialization_predicts_uniformly_and_depends_on_the_seed_alone() -> None:
    first, again, other = (LanguageModel(SHAPES["untied"]) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        model.initialize(torch.Generator().manual_seed(seed))
    ids = torch.arange(10)[None]
    assert first.loss(ids).item() == pytest.approx(math.log(300), rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_rotary_tables_grow_as_positions_are_used() -> None:
    model, _ = torch_model(SHAPES["untied"])
    claimed = LanguageModel(replace(SHAPES["untied"], max_position_embeddings=10**9))
    claimed.load_state_dict(model.state_dict())
    assert claimed.cos.shape[1] == claimed.sin.shape[1] == 0
    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(claimed(ids), model(ids))
    assert claimed.cos.shape[1] == 64
    score(claimed, np.zeros((1, 101), np.int64))  # in inference mode; training uses the same tables
    assert claimed.cos.shape[1] == 128
    claimed.loss(torch.zeros(1, 100, dtype=torch.int64)).backward()
    whole = rotary_tables(claimed.config, 5000)
    for length in (1, 63, 64, 127, 500):
        assert all(
            torch.equal(a[:, :length], b) for a, b in zip(whole, rotary_tables(claimed.config, length), strict=True)
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_layers_can_be_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the copies of matrices that save time, and without those."""
    monkeypatch.setattr(kernels, "_is_on_cpu", lambda x: False)
    config = ModelConfig(50, 32, 48, 2, 4, 2, 8, 16, model_type="qwen2")

    def gradients(compiled: bool) -> list[torch.Tensor]:
        model = LanguageModel(config).train()
        model.initialize(torch.Generator().manual_seed(1))
        for number, layer in enumerate(model.model.layers):
            for module in layer.modules():
                if isinstance(module, Linear):
                    module.saves_memory = number == 1
            if compiled:
                layer.compile(backend="aot_eager", fullgraph=True)
        torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(2))
        model.loss(torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(3))).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for expected, found in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(found, expected)
