"""Gradients of a batch."""

import numpy as np
import pytest
import torch

from llmcli.config import ModelConfig
from llmcli.models.transformer import LanguageModel
from llmcli.training.compute import accumulate_gradients


@pytest.mark.parametrize("micro_batches", [2, 3, 5])
def test_micro_batches_give_the_loss_and_gradients_of_the_whole_batch(micro_batches: int) -> None:
    results = []
    for n in (1, micro_batches):
        model = LanguageModel(ModelConfig(50, 16, 32, 2, 2, 2, 8, 12))
        model.initialize(torch.Generator().manual_seed(0))
        ids = torch.from_numpy(np.random.default_rng(1).integers(50, size=(5, 13)))
        loss = accumulate_gradients(model, ids, n)
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results)
