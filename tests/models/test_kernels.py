"""Each formula and its written-out gradient, against autograd of the same formula in plain torch, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmcli.models.kernels import (
    LOSS_ROWS,
    QUERY_BLOCK,
    Dropout,
    attention,
    cross_entropy,
    grouped_linear,
    normalize,
    normalize_rotate,
    regroup,
    rotate,
    swiglu,
)

EPS = 1e-6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same(found: Tensor, wanted: Tensor, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """The values, and the gradients of a sum with weights of its own for every value."""
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)
    weights = random(*found.shape, seed=99).detach()
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (found, wanted)]
    for ours, truth in zip(*gradients, strict=True):
        assert torch.allclose(ours, truth, rtol=tolerance, atol=tolerance)


def test_normalize_is_rms_norm_without_gain() -> None:
    x = random(3, 5, 16)
    same(normalize(x, EPS), F.rms_norm(x, (16,), eps=EPS), [x])


def test_normalize_rotate_is_norm_gain_and_rotation() -> None:
    x, gain = random(2, 7, 3, 8), random(3, 8, seed=1)
    angle = random(7, 1, 4, seed=2).detach()
    cos, sin = (torch.cat([t, t], -1) for t in (angle.cos(), angle.sin()))
    y = F.rms_norm(x, (8,), eps=EPS) * gain
    turned = torch.view_as_complex(torch.stack(y.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angle), angle)
    wanted = torch.cat([turned.real, turned.imag], -1)
    same(normalize_rotate(x, gain, cos, sin, EPS), wanted, [x, gain])


def test_rotate_is_the_rotation_alone() -> None:
    x = random(2, 7, 3, 8)
    angle = random(7, 1, 4, seed=2).detach()
    cos, sin = (torch.cat([t, t], -1) for t in (angle.cos(), angle.sin()))
    turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angle), angle)
    same(rotate(x, cos, sin), torch.cat([turned.real, turned.imag], -1), [x])


def test_heads_come_as_attention_takes_them() -> None:
    x, gain = random(2, 7, 3, 8), random(3, 8, seed=1)
    ones, zeros = torch.ones(7, 1, 8), torch.zeros(7, 1, 8)
    assert normalize_rotate(x, gain, ones, zeros, EPS).permute(2, 0, 1, 3).is_contiguous()


@pytest.mark.parametrize("T", [1, 5, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 3])
def test_attention_and_its_gradients(T: int) -> None:
    q, k, v = (random(2, T, 3, 8, seed=seed) for seed in (1, 2, 3))
    wanted = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, scale=1.0)
    same(attention(q, k, v), wanted.transpose(1, 2), [q, k, v])


def test_regrouped_linear_rows_and_their_gradients() -> None:
    x, order = random(4, 3), torch.tensor([7, 0, 3, 2, 6, 1, 5, 4])
    same(regroup(x, order, order.argsort(), 2), x[order // 2], [x])
    y = random(8, 3, seed=1)
    same(regroup(y, order, order.argsort()), y[order], [y])


@pytest.mark.parametrize("ends", [[2, 2, 7], [0, 0, 7], [7, 7, 7]])
def test_each_group_has_a_matrix_of_its_own(ends: list[int]) -> None:
    x, weights = random(7, 4), random(3, 5, 4, seed=1)
    group = torch.searchsorted(torch.tensor(ends), torch.arange(7), right=True)
    same(grouped_linear(x, weights, ends), torch.einsum("ni,noi->no", x, weights[group]), [x, weights])


def test_swiglu() -> None:
    both = random(2, 5, 12)
    same(swiglu(both), F.silu(both[..., :6]) * both[..., 6:], [both])


@pytest.mark.parametrize("rows", [1, 7, LOSS_ROWS, LOSS_ROWS + 1, 2 * LOSS_ROWS + 3])
def test_cross_entropy_and_its_gradients(rows: int) -> None:
    x, head = random(rows, 6), random(11, 6, seed=1)
    targets = torch.arange(rows) % 11
    found = 3.0 * cross_entropy(x, head, targets)
    wanted = 3.0 * F.cross_entropy(x @ head.mT, targets)
    same(found, wanted, [x, head])


def test_cross_entropy_of_an_impossible_target_is_a_number() -> None:
    x, head = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = cross_entropy(x, head, torch.tensor([1]))
    loss.backward()
    assert math.isfinite(loss.item()) and loss.item() > 80
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_cross_entropy_with_a_head_that_does_not_learn() -> None:
    x, head = random(7, 6), random(11, 6, seed=1).detach()
    targets = torch.arange(7)
    same(cross_entropy(x, head, targets), F.cross_entropy(x @ head.mT, targets), [x])


def test_bfloat16_stays_close_to_float64() -> None:
    x, head = random(40, 32), random(50, 32, seed=1)
    targets = torch.arange(40)
    with torch.no_grad():
        head.mul_(0.1)
    low = [t.detach().bfloat16().requires_grad_() for t in (x, head)]
    found, wanted = cross_entropy(low[0], low[1], targets), F.cross_entropy(x @ head.mT, targets)
    assert found.item() == pytest.approx(wanted.item(), rel=0.01)
    for ours, truth in zip(torch.autograd.grad(found, low), torch.autograd.grad(wanted, [x, head]), strict=True):
        assert (ours.double() - truth).norm() < 0.02 * truth.norm()


def test_attention_in_bfloat16_stays_close_to_float64() -> None:
    wide = [random(2, QUERY_BLOCK + 36, 2, 16, seed=seed) for seed in (1, 2, 3)]
    low = [x.detach().bfloat16().requires_grad_() for x in wide]
    found, wanted = attention(*low), attention(*wide)
    assert (found.double() - wanted).norm() < 0.01 * wanted.norm()
    weights = random(*wanted.shape, seed=99).detach()
    gradients = [torch.autograd.grad((y * weights.to(y.dtype)).sum(), x) for y, x in ((found, low), (wanted, wide))]
    for ours, truth in zip(*gradients, strict=True):
        assert (ours.double() - truth).norm() < 0.02 * truth.norm()


def test_dropout_keeps_the_mean_and_passes_gradients_where_it_kept() -> None:
    dropout = Dropout(0.25)
    dropout.seed(1, 2)
    x, y = torch.zeros(400, 500), torch.ones(400, 500, requires_grad=True)
    z = dropout.add(x, y)
    assert z.unique().tolist() == pytest.approx([0.0, 4 / 3])
    # 200,000 coins: five standard deviations of the mean
    assert abs(z.mean().item() - 1) < 5 * (4 / 3) * math.sqrt(0.25 * 0.75 / 200_000)
    z.backward(torch.full_like(z, 2.0))
    assert y.grad is not None and torch.equal(y.grad, 2 * z)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    def mask(seed: int, step: int) -> np.ndarray:
        dropout = Dropout(0.5)
        dropout.seed(seed, step)
        return dropout.add(torch.zeros(9, 9), torch.ones(9, 9)).numpy()

    assert np.array_equal(mask(1, 2), mask(1, 2))
    assert not np.array_equal(mask(1, 2), mask(1, 3))
    assert not np.array_equal(mask(1, 2), mask(2, 2))


def test_no_dropout_adds() -> None:
    assert torch.equal(Dropout(0.0).add(torch.ones(3), torch.ones(3)), torch.full((3,), 2.0))
