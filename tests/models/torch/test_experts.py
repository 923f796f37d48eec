"""Sparse experts: routing, the load-balancing loss, and the names of their weights."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch.experts import Router
from llmcli.models.torch.runtime import score
from tests.conftest import random_checkpoint
from tests.models.decoders import SHAPES, torch_model


def test_the_balance_loss_is_that_of_its_definition_and_not_part_of_the_reported_loss() -> None:
    """Three experts, one active per token: of four tokens, three are routed to the first expert, one to the second."""
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


def test_training_adds_a_hundredth_of_the_balance_losses_gradient() -> None:
    """The weight 0.01 is that of Switch Transformers (arXiv:2101.03961, section 2.2); layers are averaged."""
    model, _ = torch_model(SHAPES["experts"])
    ids = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(4))

    def router_gradient(loss: Tensor) -> Tensor:
        model.zero_grad()
        loss.backward()
        gradient = model.get_parameter("model.layers.0.mlp.gate.weight").grad
        assert gradient is not None
        return gradient.clone()

    cross_entropy = router_gradient(model.loss(ids))
    model.train()
    total = router_gradient(model.loss(ids))
    model.loss(ids)  # computes the balance losses anew
    balance_losses = [module.balance_loss for module in model.modules() if isinstance(module, Router)]
    balance = router_gradient(torch.stack([loss for loss in balance_losses if loss is not None]).mean())
    assert balance.abs().max() > 1e-3
    torch.testing.assert_close(total - cross_entropy, 0.01 * balance, rtol=1e-3, atol=1e-6)


def test_expert_shares_are_those_of_the_numpy_runtime() -> None:
    model, _ = torch_model(SHAPES["experts"])
    assert model.expert_shares() == [[0.0] * 5] * 2
    score(model, np.arange(22).reshape(1, 22))
    runtime = NumpyRuntime(random_checkpoint(SHAPES["experts"]))
    counts = np.zeros((2, 5))
    for token in range(21):
        runtime.step(token)
        counts += runtime.expert_weights() > 0
    for layer_counts, shares in zip(counts, model.expert_shares(), strict=True):
        assert shares == pytest.approx((layer_counts / layer_counts.sum()).tolist(), abs=1e-4)
    assert runtime.expert_weights().shape == (2, 5)
    np.testing.assert_allclose(runtime.expert_weights().sum(axis=1), 1, rtol=1e-5)
