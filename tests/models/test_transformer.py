"""The graph in torch against the papers' formulas written out, and the numpy graph against it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmcli.config import ModelConfig
from llmcli.models.experts import Router
from llmcli.models.kernels import normalize_rotate
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch_runtime import TorchRuntime
from llmcli.models.torch_scoring import INVERSE_TEMPERATURES, fit_inverse_temperature, score
from llmcli.models.transformer import Attention, LanguageModel, rotary_tables
from tests.conftest import random_checkpoint

SHAPES = {
    "untied": ModelConfig(300, 64, 160, 3, 4, 4, 16, 48),
    "tied": ModelConfig(300, 64, 160, 2, 4, 4, 16, 48, tie_word_embeddings=True),
    "grouped": ModelConfig(300, 64, 160, 2, 4, 2, 16, 48),
    "one key-value head, tied": ModelConfig(300, 48, 96, 2, 6, 1, 8, 48, tie_word_embeddings=True),
    "heads wider than the model": ModelConfig(300, 32, 96, 2, 4, 2, 16, 48, rope_theta=1e6),
    "experts": ModelConfig(300, 32, 32, 2, 4, 2, 8, 48, model_type="qwen3_moe", num_experts=5, num_experts_per_tok=2),
    "experts that do not sum to one": ModelConfig(
        300, 32, 32, 2, 4, 2, 8, 48, model_type="qwen3_moe", num_experts=3, num_experts_per_tok=1, norm_topk_prob=False
    ),
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

    def swiglu(h: Tensor, L: dict[str, Tensor], name: str) -> Tensor:
        gate = h @ L[f"{name}gate_proj.weight"].T
        return (gate * gate.sigmoid() * (h @ L[f"{name}up_proj.weight"].T)) @ L[f"{name}down_proj.weight"].T

    def sparse(h: Tensor, L: dict[str, Tensor]) -> Tensor:
        shares = (L["mlp.gate.weight"] @ h).softmax(0)
        chosen = sorted(range(config.num_experts), key=lambda e: -shares[e])[: config.num_experts_per_tok]
        total = sum(shares[e] for e in chosen) if config.norm_topk_prob else 1
        return sum(shares[e] / total * swiglu(h, L, f"mlp.experts.{e}.") for e in chosen)

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
        x = x + (torch.stack([sparse(row, L) for row in h]) if config.num_experts else swiglu(h, L, "mlp."))
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
    runtime = NumpyRuntime(random_checkpoint(config))
    assert np.abs(runtime.logits(ids[0].tolist()) - wanted).max() < 1e-4
    runtime.rewind()
    stepped = [runtime.prefill(ids[0, :7].tolist()), *(runtime.step(int(i)) for i in ids[0, 7:])]
    assert np.abs(np.stack(stepped) - wanted[6:]).max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_runtime_takes_tokens_in_like_the_numpy_runtime(shape: str) -> None:
    checkpoint = random_checkpoint(SHAPES[shape])
    numpys, torches = NumpyRuntime(checkpoint), TorchRuntime(checkpoint, "cpu")
    for runtime in (numpys, torches):
        runtime.prefill([5, 6, 7, 8])
        runtime.rewind(2)
        runtime.step(9)
    assert np.abs(numpys.prefill([1, 2, 3]) - torches.prefill([1, 2, 3])).max() < 1e-4
    assert numpys.length == torches.length == 6


def test_state_dict_has_hugging_faces_names_and_shapes() -> None:
    for config in (config for config in SHAPES.values() if not config.num_experts):
        found = {name: tuple(tensor.shape) for name, tensor in LanguageModel(config).state_dict().items()}
        assert found == config.tensor_shapes()


def test_experts_are_stacked_and_come_back_under_hugging_faces_names() -> None:
    model, weights = torch_model(SHAPES["experts"])
    found = model.to_arrays()
    assert list(found) == list(weights) and all(np.array_equal(found[name], weights[name]) for name in weights)


def test_balance_by_hand_and_without_part_in_the_loss() -> None:
    """Three experts, one of them for each token; of four tokens the first gets three, the second one."""
    config = SHAPES["experts that do not sum to one"]
    router = Router(config).train()
    with torch.no_grad():
        router.weight.zero_()
        router.weight[0, 0], router.weight[1, 1] = 3.0, 3.0
    x = torch.zeros(4, 32)
    x[:3, 0], x[3, 1] = 1.0, 1.0
    weights, chosen, counts = router(x)
    a, b = math.exp(3) / (math.exp(3) + 2), 1 / (math.exp(3) + 2)
    assert counts == [3, 1, 0] and chosen.flatten().tolist() == [0, 0, 0, 1]
    assert torch.allclose(weights.flatten(), torch.full((4,), a))
    assert router.balance_loss is not None
    assert router.balance_loss.item() == pytest.approx(
        3 * (3 / 4 * (3 * a + b) / 4 + 1 / 4 * (3 * b + a) / 4), rel=1e-5
    )
    model, _ = torch_model(SHAPES["experts"])
    ids = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(4))
    without = model.loss(ids).item()
    model.train()
    loss = model.loss(ids)
    loss.backward()
    assert loss.item() == without and model.get_parameter("model.layers.0.mlp.gate.weight").grad is not None


def test_the_balance_loss_spreads_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing to learn but the balance a router that sends everything to one expert stops doing so."""
    router = Router(SHAPES["experts"]).train()
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(5))
    x[:, 0] = 2.0
    with torch.no_grad():
        router.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(6))
        router.weight[0, 0] = 2.0
    assert router(x)[2][0] == 256
    moves = torch.optim.Adam(router.parameters(), 0.03)
    for _ in range(200):
        moves.zero_grad()
        router(x)
        assert router.balance_loss is not None
        router.balance_loss.backward()
        moves.step()
    counts = router(x)[2]
    assert max(counts) < 1.5 * 512 / 5 and min(counts) > 0.5 * 512 / 5


def test_shares_tell_who_got_the_tokens() -> None:
    model, _ = torch_model(SHAPES["experts"])
    assert model.expert_shares() == [[0.0] * 5] * 2
    score(model, np.arange(22).reshape(1, 22))
    runtime = NumpyRuntime(random_checkpoint(SHAPES["experts"]))
    runtime.prefill(range(21))
    for layer, shares in zip(runtime._layers, model.expert_shares(), strict=True):
        got = (layer.mlp.weights > 0).sum(axis=0)
        assert shares == pytest.approx((got / got.sum()).tolist(), abs=1e-4)
    assert runtime.expert_weights().shape == (2, 5)
    np.testing.assert_allclose(runtime.expert_weights().sum(axis=1), 1, rtol=1e-5)


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
    nats, right = NumpyRuntime(checkpoint).score(ids)
    monkeypatch.setattr("llmcli.models.torch_scoring.LOGITS_AT_ONCE", 2 * 48 * 300)  # two windows at once
    runtime = TorchRuntime(checkpoint, "cpu")
    before = runtime.prefill([1, 2])
    torch_nats, torch_right = runtime.score(ids)
    assert np.abs(nats - torch_nats).max() < 1e-4 and nats.mean() == pytest.approx(torch_nats.mean(), abs=1e-5)
    assert np.array_equal(right, torch_right)
    runtime.rewind()
    assert np.array_equal(runtime.prefill([1, 2]), before)


# ---- how sure to be


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.6, 40.0])
@pytest.mark.slow
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
    found = fit_inverse_temperature(model, ids)
    assert found == pytest.approx(min(max(1 / scale, INVERSE_TEMPERATURES[0]), INVERSE_TEMPERATURES[-1]), abs=0.05)

    def nats(factor: float) -> float:
        gain = model.model.norm.weight
        before = gain.detach().clone()
        with torch.no_grad():
            gain.mul_(factor)
            losses = float(score(model, ids)[0].mean())
            gain.copy_(before)
        return losses

    assert nats(found) <= min(nats(found - 0.03), nats(found + 0.03)) or found in (
        INVERSE_TEMPERATURES[0],
        INVERSE_TEMPERATURES[-1],
    )


def test_rotary_tables_grow_with_what_is_used() -> None:
    """A config may claim a billion positions; the tables hold those that were used, and the same values."""
    model, _ = torch_model(SHAPES["untied"])
    claimed = LanguageModel(replace(SHAPES["untied"], max_position_embeddings=10**9))
    claimed.load_state_dict(model.state_dict())
    assert len(claimed.cos) == len(claimed.sin) == 0
    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(claimed(ids), model(ids))
    assert len(claimed.cos) == 64
    score(claimed, np.zeros((1, 101), np.int64))  # in inference mode; what it has made serves training too
    assert len(claimed.cos) == 128
    claimed.loss(torch.zeros(1, 100, dtype=torch.int64)).backward()
    whole = rotary_tables(claimed.config, 5000)
    for length in (1, 63, 64, 127, 500):
        assert all(
            torch.equal(a[:length], b) for a, b in zip(whole, rotary_tables(claimed.config, length), strict=True)
        )
