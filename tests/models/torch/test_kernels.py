"""Each operation and its hand-written gradient, compared with autograd on plain torch in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmcli.config import ACTIVATIONS, LOSS_ROWS
from llmcli.models.torch import kernels

EPS = 1e-6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Compare values, and gradients of a weighted sum in which every value has a different weight."""
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
    weights = random(*found.shape, seed=99).detach()
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected)]
    for found_grad, grad in zip(*gradients, strict=True):
        assert torch.allclose(found_grad, grad, rtol=tolerance, atol=tolerance)


def test_normalize_and_rotate_are_rms_norm_and_complex_rotation_of_pairs() -> None:
    x, gain = random(2, 7, 3, 8), random(3, 8, seed=1)
    angle = random(7, 1, 4, seed=2).detach()
    cos, sin = (torch.cat([t, t], -1) for t in (angle.cos(), angle.sin()))

    def rotated(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag], -1)

    assert_same(kernels.normalize(x, EPS), F.rms_norm(x, (8,), eps=EPS), [x])
    assert_same(kernels.rotate(x, cos, sin), rotated(x), [x])
    both = kernels.normalize_rotate(x, gain, cos, sin, EPS)
    assert_same(both, rotated(F.rms_norm(x, (8,), eps=EPS) * gain), [x, gain])
    assert both.permute(2, 0, 1, 3).is_contiguous()  # ordered by heads, for attention


def test_attention_and_its_gradients() -> None:
    for T in [1, 5, kernels.QUERY_BLOCK, kernels.QUERY_BLOCK + 1, 2 * kernels.QUERY_BLOCK + 3]:
        for window in [1, 7, kernels.QUERY_BLOCK + 9, 1000]:
            q, k, v = (random(2, T, 3, 8, seed=seed) for seed in (1, 2, 3))
            distance = torch.arange(T)[:, None] - torch.arange(T)
            mask = (distance >= 0) & (distance < window)
            expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask, scale=1.0)
            assert_same(kernels.attention(q, k, v, window), expected.transpose(1, 2), [q, k, v])


def test_regroup_and_its_gradients() -> None:
    x, order = random(4, 3), torch.tensor([7, 0, 3, 2, 6, 1, 5, 4])
    assert_same(kernels.regroup(x, order, order.argsort(), 2), x[order // 2], [x])
    y = random(8, 3, seed=1)
    assert_same(kernels.regroup(y, order, order.argsort(), 1), y[order], [y])


def test_grouped_linear_multiplies_each_group_by_its_matrix() -> None:
    for ends in [[2, 2, 7], [0, 0, 7], [7, 7, 7]]:
        x, weights = random(7, 4), random(3, 5, 4, seed=1)
        group = torch.searchsorted(torch.tensor(ends), torch.arange(7), right=True)
        assert_same(
            kernels.grouped_linear(x, weights, ends), torch.einsum("ni,noi->no", x, weights[group]), [x, weights]
        )


def test_stacked_linear_and_its_gradients() -> None:
    for recompute in [False, True]:
        x, gain, bias = random(2, 5, 8), random(8, seed=1), random(7, seed=2)
        weights = [random(3, 8, seed=3), random(4, 8, seed=4)]
        found = kernels.stacked_linear(x, gain, bias, weights, recompute=recompute)
        assert_same(found, F.linear(x * gain, torch.cat(weights), bias), [x, gain, bias, *weights])
        plain = kernels.stacked_linear(x, None, None, weights[:1], recompute=recompute)
        assert_same(plain, F.linear(x, weights[0]), [x, weights[0]])
        gain, weight = gain.detach(), weights[0].detach()
        frozen = kernels.stacked_linear(x, gain, None, [weight], recompute=recompute)
        assert_same(frozen, F.linear(x * gain, weight), [x])


@pytest.mark.parametrize("recompute", [False, True])
def test_stacked_linear_keeps_copies_of_the_weights_only_if_they_are_not_made_again(recompute: bool) -> None:
    kept: list[int] = []
    x, gain, weights = random(5, 8), random(8, seed=1), [random(64, 8, seed=2), random(64, 8, seed=3)]
    own = {t.data_ptr() for t in (x, gain, *weights)}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kernels.stacked_linear(x, gain, None, weights, recompute=recompute)
    assert sum(kept) == (0 if recompute else 2 * 128 * 8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_swiglu_and_its_gradients(activation: str, on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_is_on_cpu", lambda x: on_cpu)
    both = random(2, 5, 12)
    x = both[..., :6]
    expected = {
        "silu": x * torch.sigmoid(x),
        "gelu_pytorch_tanh": x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        "gelu": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    }
    assert_same(kernels.swiglu(both, activation), expected[activation] * both[..., 6:], [both])


def test_swiglu_on_mps_gives_torch_no_views(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []
    backward = torch.ops.aten.silu_backward

    def silu(x: Tensor) -> Tensor:
        given.append(x)
        return torch.sigmoid(x) * x

    def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
        given.extend([grad, x])
        return backward(grad, x)

    monkeypatch.setattr(kernels, "_is_on_mps", lambda x: True)
    monkeypatch.setattr(kernels, "_is_on_cpu", lambda x: False)
    monkeypatch.setattr(kernels.functional, "silu", silu)
    monkeypatch.setattr(torch.ops.aten, "silu_backward", silu_backward)
    both = random(2, 5, 12)
    assert_same(kernels.swiglu(both, "silu"), torch.sigmoid(both[..., :6]) * both[..., :6] * both[..., 6:], [both])
    assert len(given) == 3 and all(x.is_contiguous() for x in given)


def test_cross_entropy_and_its_gradients() -> None:
    for rows in [1, 7, LOSS_ROWS, LOSS_ROWS + 1, 2 * LOSS_ROWS + 3]:
        x, head = random(rows, 6), random(11, 6, seed=1)
        targets = torch.arange(rows) % 11
        for inputs in ([x, head], [x]):  # the second time the head is frozen
            head.requires_grad_(len(inputs) == 2)
            expected = 3.0 * F.cross_entropy(x @ head.mT, targets)
            assert_same(3.0 * kernels.cross_entropy(x, head, targets), expected, inputs)


def test_cross_entropy_of_an_impossible_target_is_finite() -> None:
    x, head = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = kernels.cross_entropy(x, head, torch.tensor([1]))
    loss.backward()
    assert math.isfinite(loss.item()) and loss.item() > 80
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_cross_entropy_in_bfloat16_is_close_to_float64() -> None:
    x, head = random(40, 32), random(50, 32, seed=1)
    targets = torch.arange(40)
    with torch.no_grad():
        head.mul_(0.1)
    low = [t.detach().bfloat16().requires_grad_() for t in (x, head)]
    found, expected = kernels.cross_entropy(low[0], low[1], targets), F.cross_entropy(x @ head.mT, targets)
    assert found.item() == pytest.approx(expected.item(), rel=0.01)
    for found_grad, grad in zip(torch.autograd.grad(found, low), torch.autograd.grad(expected, [x, head]), strict=True):
        assert (found_grad.double() - grad).norm() < 0.02 * grad.norm()


def test_divergence_and_its_gradients() -> None:
    for rows in [7, 600]:
        x, head = random(rows, 6), random(11, 6, seed=1)
        base_x, base_head = random(rows, 6, seed=2).detach(), random(11, 6, seed=3).detach()
        base_logs = torch.log_softmax(base_x @ base_head.mT, -1)
        for inputs in ([x, head], [x]):  # the second time the head is frozen
            head.requires_grad_(len(inputs) == 2)
            logs = torch.log_softmax(x @ head.mT, -1)
            expected = 3.0 * F.kl_div(logs, base_logs, log_target=True, reduction="batchmean")
            assert_same(3.0 * kernels.divergence(x, head, base_x, base_head), expected, inputs)


def test_attention_in_bfloat16_is_close_to_float64() -> None:
    wide = [random(2, kernels.QUERY_BLOCK + 36, 2, 16, seed=seed) for seed in (1, 2, 3)]
    low = [x.detach().bfloat16().requires_grad_() for x in wide]
    found, expected = kernels.attention(*low, 40), kernels.attention(*wide, 40)
    assert (found.double() - expected).norm() < 0.01 * expected.norm()
    weights = random(*expected.shape, seed=99).detach()
    gradients = [torch.autograd.grad((y * weights.to(y.dtype)).sum(), x) for y, x in ((found, low), (expected, wide))]
    for found_grad, grad in zip(*gradients, strict=True):
        assert (found_grad.double() - grad).norm() < 0.02 * grad.norm()


def test_dropout_keeps_the_mean_and_has_gradients_where_values_are_kept() -> None:
    dropout = kernels.Dropout(0.25)
    dropout.seed(1, 2)
    x, y = torch.zeros(400, 500), torch.ones(400, 500, requires_grad=True)
    z = dropout.add(x, y)
    assert z.unique().tolist() == pytest.approx([0.0, 4 / 3])
    # 200,000 draws: within five standard deviations of the mean
    assert abs(z.mean().item() - 1) < 5 * (4 / 3) * math.sqrt(0.25 * 0.75 / 200_000)
    z.backward(torch.full_like(z, 2.0))
    assert y.grad is not None and torch.equal(y.grad, 2 * z)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    def mask(seed: int, step: int) -> np.ndarray:
        dropout = kernels.Dropout(0.5)
        dropout.seed(seed, step)
        return dropout.add(torch.zeros(9, 9), torch.ones(9, 9)).numpy()

    assert np.array_equal(mask(1, 2), mask(1, 2))
    assert not np.array_equal(mask(1, 2), mask(1, 3)) and not np.array_equal(mask(1, 2), mask(2, 2))
    assert torch.equal(kernels.Dropout(0.0).add(torch.ones(3), torch.ones(3)), torch.full((3,), 2.0))
