"""Gradients of a batch."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.distributed.processes import Processes
from llmcli.training.step.training_step import Batch, accumulate_gradients, training_step


def test_micro_batches_give_the_mean_loss_over_all_learned_tokens_and_its_gradients() -> None:
    """Whatever their number in each micro-batch, also in one without any. Without a mask all tokens are learned."""
    rng = np.random.default_rng(1)
    ids, mask = torch.from_numpy(rng.integers(50, size=(5, 13))), torch.from_numpy(rng.random((5, 13)) < 0.3)
    mask[3] = False
    for learned in (None, mask):
        results = []
        for micro_batches in (1, 2, 3, 5):
            model = LanguageModel(ModelConfig(50, 16, 32, 2, 2, 2, 8, 12))
            model.initialize(torch.Generator().manual_seed(0))
            loss = accumulate_gradients(model, ids, micro_batches, learned)
            results.append((loss, [p.grad for p in model.parameters()]))
            torch.testing.assert_close(results[-1], results[0])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:], reduction="none")
        torch.testing.assert_close(results[0][0], (losses if learned is None else losses[learned[:, 1:]]).mean())


def test_texts_of_the_base_model_have_dropout_of_all_their_rows() -> None:
    """In a process whose share of the batch is some of its rows. Another process is cut short: nothing is updated."""
    model = LanguageModel(ModelConfig(50, 16, 32, 2, 2, 2, 8, 12))
    ids, seen = torch.ones(5, 13, dtype=torch.int64), []
    group: Any = SimpleNamespace(processes=Processes(1, 2), count=2, is_sharded=False, sum=torch.zeros_like)
    texts: Any = SimpleNamespace(add_gradients=lambda step: seen.append(len(model.hidden_states(ids[:2, :-1]))))
    settings = TrainConfig(steps=1, context=12, batch_size=5)
    batch, optimizer = Batch(4, 0.0, 0.3, ids), Mock(spec=[])
    assert training_step(model, optimizer, batch, settings, group=group, base_divergence=texts) is None
    assert seen == [2] and all(p.grad is None for p in model.parameters())
