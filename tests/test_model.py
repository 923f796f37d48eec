"""The graph in torch against the papers' formulas written out, and the numpy graph against it."""

import math

import numpy as np
import pytest
import torch
from conftest import random_checkpoint
from torch import Tensor
from torch.nn import functional as F

from llmcli.config import ModelConfig
from llmcli.kernels import normalize_rotate
from llmcli.model import SHARPNESS, Attention, LanguageModel, TorchRuntime, rotary_tables, score, sharpness
from llmcli.runtime import Runtime

SHAPES = {
    "untied": ModelConfig(300, 64, 160, 3, 4, 4, 16, 48),
    "tied": ModelConfig(300, 64, 160, 2, 4, 4, 16, 48, tie_word_embeddings=True),
    "grouped": ModelConfig(300, 64, 160, 2, 4, 2, 16, 48),
    "one key-value head, tied": ModelConfig(300, 48, 96, 2, 6, 1, 8, 48, tie_word_embeddings=True),
    "heads wider than the model": ModelConfig(300, 32, 96, 2, 4, 2, 16, 48, rope_theta=1e6),
}


def formulas(weights: dict[str, np.ndarray], config: ModelConfig, ids: list[int]) -> Tensor:
    """Qwen3 by its definition, one head and one position at a time, in float64: logits [T, V]."""
    W = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    D, H, G = config.head_dim, config.num_attention_heads, config.num_key_value_heads

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def turned(x: Tensor, position: int) -> Tensor:
        out = x.clone()
        for i in range(D // 2):
            angle = position * config.rope_theta ** (-2 * i / D)
            a, b = x[i], x[i + D // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + D // 2] = a * math.sin(angle) + b * math.cos(angle)
        return out

    x = W["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        L = {name.split(f"layers.{layer}.")[1]: w for name, w in W.items() if f"layers.{layer}." in name}
        h = rms(x, L["input_layernorm.weight"])
        q, k, v = (h @ L[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        rows = []
        for t in range(len(ids)):
            heads = []
            for head in range(H):
                group = head * G // H
                query = turned(rms(q[t, head * D : (head + 1) * D], L["self_attn.q_norm.weight"]), t)
                cut = slice(group * D, (group + 1) * D)
                keys = [turned(rms(k[s, cut], L["self_attn.k_norm.weight"]), s) for s in range(t + 1)]
                scores = torch.stack([query @ key / math.sqrt(D) for key in keys]).softmax(0)
                heads.append(sum(p * v[s, cut] for s, p in enumerate(scores)))
            rows.append(torch.cat(heads))
        x = x + torch.stack(rows) @ L["self_attn.o_proj.weight"].T
        h = rms(x, L["post_attention_layernorm.weight"])
        gate = h @ L["mlp.gate_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (h @ L["mlp.up_proj.weight"].T)) @ L["mlp.down_proj.weight"].T
    return rms(x, W["model.norm.weight"]) @ W.get("lm_head.weight", W["model.embed_tokens.weight"]).T


def torch_model(config: ModelConfig) -> tuple[LanguageModel, dict[str, np.ndarray]]:
    weights = dict(random_checkpoint(config).tensors)
    model = LanguageModel(config).eval()
    model.load_arrays(weights)
    return model, weights


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_graph_is_the_definition(shape: str) -> None:
    model, weights = torch_model(SHAPES[shape])
    ids = torch.randint(300, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(ids)[0]
    assert torch.allclose(found.double(), formulas(weights, SHAPES[shape], ids[0].tolist()), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_graph_gives_the_logits_of_the_torch_graph(shape: str) -> None:
    config = SHAPES[shape]
    model, _ = torch_model(config)
    ids = torch.randint(300, (1, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = model(ids)[0].numpy()
    runtime = Runtime(random_checkpoint(config))
    assert np.abs(runtime.logits(ids[0].tolist()) - wanted).max() < 1e-4
    runtime.rewind()
    stepped = [runtime.prefill(ids[0, :7].tolist()), *(runtime.step(int(i)) for i in ids[0, 7:])]
    assert np.abs(np.stack(stepped) - wanted[6:]).max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_runtime_takes_tokens_in_like_the_numpy_runtime(shape: str) -> None:
    checkpoint = random_checkpoint(SHAPES[shape])
    numpys, torches = Runtime(checkpoint), TorchRuntime(checkpoint, "cpu")
    for runtime in (numpys, torches):
        runtime.prefill([5, 6, 7, 8])
        runtime.rewind(2)
        runtime.step(9)
    assert np.abs(numpys.prefill([1, 2, 3]) - torches.prefill([1, 2, 3])).max() < 1e-4
    assert numpys.length == torches.length == 6


def test_state_dict_has_hugging_faces_names_and_shapes() -> None:
    for config in SHAPES.values():
        found = {name: tuple(tensor.shape) for name, tensor in LanguageModel(config).state_dict().items()}
        assert found == config.tensor_shapes()


def test_attention_is_torchs_own_between_norms_and_without_rotation() -> None:
    config = SHAPES["grouped"]
    attention = Attention(config)
    gain = torch.rand(config.hidden_size) + 0.5
    for norm in (attention.q_norm, attention.k_norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(2, 11, config.hidden_size)
    cos, sin = torch.ones(11, 1, config.head_dim), torch.zeros(11, 1, config.head_dim)
    q, k, v = (
        F.linear(x * gain, getattr(attention, f"{name}_proj").weight).view(2, 11, -1, config.head_dim).transpose(1, 2)
        for name in "qkv"
    )
    q = F.rms_norm(q, (config.head_dim,), attention.q_norm.weight, config.rms_norm_eps)
    k = F.rms_norm(k, (config.head_dim,), attention.k_norm.weight, config.rms_norm_eps)
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 11, -1)
    assert torch.allclose(attention(x, gain, cos, sin), F.linear(wanted, attention.o_proj.weight), atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    config = SHAPES["untied"]
    cos, sin = (table[:, None] for table in rotary_tables(config, 48))
    x = torch.randn(1, 1, 2, config.head_dim).expand(1, 48, 2, config.head_dim)  # one query, one key, everywhere
    turned = normalize_rotate(x, torch.ones(2, config.head_dim), cos, sin, config.rms_norm_eps)[0]
    scores = [turned[t, 0] @ turned[t - 5, 1] for t in (5, 20, 47)]
    assert torch.allclose(torch.stack(scores), scores[0].expand(3), atol=1e-4)


def test_what_comes_later_changes_nothing_before() -> None:
    model, _ = torch_model(SHAPES["grouped"])
    ids = torch.randint(300, (1, 20), generator=torch.Generator().manual_seed(3))
    other = ids.clone()
    other[0, 12:] = 7
    with torch.no_grad():
        assert torch.equal(model(ids)[0, :12], model(other)[0, :12])


def test_loss_is_the_mean_cross_entropy_of_the_next_token() -> None:
    model, _ = torch_model(SHAPES["tied"])
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        chances = model(ids[:, :-1]).log_softmax(-1)
        by_hand = -sum(chances[b, t, ids[b, t + 1]] for b in range(2) for t in range(8)) / 16
        assert model.loss(ids).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_fresh_model_knows_nothing_and_is_a_function_of_the_seed() -> None:
    first, again, other = (
        LanguageModel(SHAPES["untied"]),
        LanguageModel(SHAPES["untied"]),
        LanguageModel(SHAPES["untied"]),
    )
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        model.initialize(torch.Generator().manual_seed(seed))
    ids = torch.arange(10)[None]
    assert first.loss(ids).item() == pytest.approx(math.log(300), rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_runtimes_score_alike(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(SHAPES[shape])
    ids = np.random.default_rng(2).integers(300, size=(5, 49))
    nats, right = Runtime(checkpoint).score(ids)
    monkeypatch.setattr("llmcli.model.LOGITS", 2 * 48 * 300)  # two windows at once
    runtime = TorchRuntime(checkpoint, "cpu")
    before = runtime.prefill([1, 2])
    torch_nats, torch_right = runtime.score(ids)
    assert np.abs(nats - torch_nats).max() < 1e-4 and nats.mean() == pytest.approx(torch_nats.mean(), abs=1e-5)
    assert np.array_equal(right, torch_right)
    runtime.rewind()
    assert np.array_equal(runtime.prefill([1, 2]), before)


# ---- how sure to be


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.6, 40.0])
def test_the_sharpest_sight_is_found(scale: float) -> None:
    """Targets drawn from a model's own probabilities are predicted best by it as it is; from one whose logits are
    `scale` times as large, by those divided again."""
    config = SHAPES["untied"]
    model = LanguageModel(config)
    model.load_arrays(random_checkpoint(config).tensors)
    model.eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(300, size=(400, 9))
    with torch.no_grad():
        model.model.norm.weight.mul_(2.0)  # so that something is at stake
        for t in range(8):
            chances = torch.softmax(model(torch.from_numpy(ids[:, : t + 1]))[:, -1].double(), -1).numpy()
            ids[:, t + 1] = [rng.choice(300, p=p / p.sum()) for p in chances]
        model.model.norm.weight.mul_(scale)
    found = sharpness(model, ids)
    assert found == pytest.approx(min(max(1 / scale, SHARPNESS[0]), SHARPNESS[-1]), abs=0.05)

    def nats(factor: float) -> float:
        gain = model.model.norm.weight
        before = gain.detach().clone()
        with torch.no_grad():
            gain.mul_(factor)
            losses = float(score(model, ids)[0].mean())
            gain.copy_(before)
        return losses

    assert nats(found) <= min(nats(found - 0.03), nats(found + 0.03)) or found in (SHARPNESS[0], SHARPNESS[-1])
