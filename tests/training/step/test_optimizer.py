"""Update rules, compared with torch's AdamW, with the singular value decomposition, and with literal numbers."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.planning import recipe
from llmcli.training.planning.plan_table import learning_rate
from llmcli.training.step.muon import orthogonalize
from llmcli.training.step.optimizer import Optimizer, lr_schedule, momentum


def test_the_learning_rate_rises_stays_and_falls_linearly() -> None:
    for progress, expected in [
        (0.0, 0.1),
        (recipe.WARMUP / 2, 0.55),
        (recipe.WARMUP, 1.0),
        (0.4, 1.0),
        (0.7, 0.5),
        (1.0, 0.0),
        (1.2, 0.0),
    ]:
        assert lr_schedule(progress) == pytest.approx(expected)


def applied_rates(model: LanguageModel, train: TrainConfig) -> dict[str, float]:
    """The learning rate of each parameter, from its first step: AdamW moves by the rate, whatever the gradient; Muon
    shrinks a matrix without a gradient by rate x weight decay."""
    by_muon = {
        name
        for name, parameter in model.named_parameters()
        if train.recipe == "muon" and "layers" in name and parameter.ndim == 2
    }
    for name, parameter in model.named_parameters():
        nn.init.constant_(parameter, 1.0 if name in by_muon else 0.0)
        parameter.grad = torch.full_like(parameter, 0.0 if name in by_muon else 1.0)
    Optimizer(model, train).step(0.2)  # between warm-up and decay
    return {
        name: (1 - parameter.mean().item()) / train.weight_decay if name in by_muon else -parameter.mean().item()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("recipe", ["muon", "adamw", "fine-tune"])
def test_the_learning_rates_of_the_plan_are_those_that_are_applied(recipe: str, tied: bool) -> None:
    model = LanguageModel(ModelConfig(60, 16, 32, 1, 2, 2, 8, 16, tie_word_embeddings=tied))
    model.initialize(torch.Generator().manual_seed(0))
    train = TrainConfig(steps=1, recipe=recipe, lr=0.5)
    rates = applied_rates(model, train)
    gains = rates["model.norm.weight"]
    if recipe == "muon":
        expected = [rates["model.layers.0.mlp.up_proj.weight"], gains]
        if not tied:
            expected.append(rates["model.embed_tokens.weight"])
            assert rates["lm_head.weight"] == pytest.approx(gains)
    else:
        expected = [gains]
        assert list(rates.values()) == pytest.approx([gains] * len(rates))
    shown = learning_rate(train.recipe, train.lr, model.config)
    assert [float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?", shown)] == pytest.approx(expected, rel=0.005)


def test_momentum_rises_from_085_to_095() -> None:
    assert [momentum(p) for p in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0.85, 0.90, 0.95, 0.95])


def matrices(m: int, n: int, spread: float) -> torch.Tensor:
    """Twenty matrices whose singular values lie between e^-spread and 1, evenly in their logarithms."""
    generator = torch.Generator().manual_seed(m * n)
    u = torch.linalg.qr(torch.randn(20, m, m, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(20, n, n, generator=generator))[0][..., : min(m, n)]
    values = torch.exp(-spread * torch.linspace(0, 1, min(m, n)))
    return u[..., : min(m, n)] @ torch.diag(values) @ v.mT


def test_orthogonalize_brings_every_singular_value_near_one() -> None:
    for spread in [0.0, 1.0, 4.0]:
        for m, n in [(64, 64), (96, 96), (64, 192), (192, 64), (8, 8)]:
            for dtype in [torch.float32, torch.bfloat16]:
                values = torch.linalg.svdvals(orthogonalize(matrices(m, n, spread).to(dtype)).float())
                assert values.max() < 1.25
                assert values.min() > 0.7


def test_orthogonalize_does_not_diverge_for_one_direction_among_noise() -> None:
    """One large singular value, the others tiny: without the safety factor the loss jumped."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = torch.outer(torch.randn(64, generator=generator), torch.randn(64, generator=generator))
        x = (x + 1e-4 * torch.randn(64, 64, generator=generator)).bfloat16()
        assert torch.linalg.matrix_norm(orthogonalize(x).float(), 2) < 1.25


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    x = matrices(32, 48, 1.0)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    assert (orthogonalize(x) - u @ vh).abs().max() < 0.1


def tiny() -> LanguageModel:
    model = LanguageModel(ModelConfig(50, 16, 32, 1, 2, 2, 8, 16))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def test_a_muon_step_has_the_size_of_the_learning_rate_whatever_the_gradient() -> None:
    for scale in (1e-6, 1.0, 1e6):
        model = tiny()
        weight = model.model.layers[0].self_attn.q_proj.weight
        before = weight.detach().clone()
        weight.grad = scale * torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
        Optimizer(model, TrainConfig(steps=1, weight_decay=0.0)).step(0.3)
        moved = torch.linalg.svdvals(weight.detach() - before)
        assert recipe.MUON_LR * 0.8 < moved.median() < recipe.MUON_LR * 1.2


def test_gains_are_updated_like_by_torchs_adamw() -> None:
    model, twin = tiny(), tiny()
    ours = Optimizer(model, TrainConfig(steps=1))
    gain, other = model.model.norm.weight, twin.model.norm.weight
    theirs = torch.optim.AdamW([other], lr=0.003, betas=(0.9, 0.99), eps=1e-10, weight_decay=0.0)
    for i in range(5):
        gradient = torch.randn(16, generator=torch.Generator().manual_seed(i))
        gain.grad = gradient.clone()
        other.grad = gradient.clone()
        ours.step(0.2)
        theirs.step()
    assert torch.allclose(gain, other, atol=1e-6)


def test_weight_decay_shrinks_matrices_and_nothing_else() -> None:
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Optimizer(model, TrainConfig(steps=1, weight_decay=0.5)).step(0.2)  # no gradient anywhere
    for name, parameter in model.named_parameters():
        matrix = "layers" in name and parameter.ndim == 2
        expected = before[name] * (1 - recipe.MUON_LR * 0.5) if matrix else before[name]
        assert torch.allclose(parameter, expected, atol=1e-7), name


@pytest.mark.slow
def test_torchs_compiler_is_not_imported() -> None:
    """It takes a second or two at the start of each run."""
    code = (
        "import sys, torch; from llmcli.config import TrainConfig; "
        "from llmcli.training.step.optimizer import Optimizer; "
        "from llmcli.config import ModelConfig; from llmcli.models.torch.transformer import LanguageModel; "
        "model = LanguageModel(ModelConfig(50, 16, 32, 1, 2, 2, 8, 16)); "
        "model.loss(torch.ones(1, 9, dtype=int)).backward(); "
        "Optimizer(model, TrainConfig(steps=1)).step(0.5); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
