"""The measured speed of training, on a simulated clock."""

import pytest
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.transformer import LanguageModel
from llmcli.training.compute import Compute, accumulate_gradients
from llmcli.training.throughput import measure_throughput


def test_tokens_per_second_are_measured() -> None:
    """Only gradients let time pass: 1/4096 s per token."""
    now = [100.0]

    def gradients(
        model: LanguageModel, ids: torch.Tensor, micro_batches: int, learned: torch.Tensor | None
    ) -> torch.Tensor:
        now[0] += ids[:, 1:].numel() / 4096
        return accumulate_gradients(model, ids, micro_batches)

    config = ModelConfig(300, 16, 32, 2, 2, 2, 8, 32)
    settings = TrainConfig(steps=1, context=32, batch_size=16)
    measured = measure_throughput(config, settings, 0.0, compute=Compute(gradients), clock=lambda: now[0])
    assert measured == pytest.approx(4096)


def test_rows_of_conversations_have_the_full_length_and_learn_a_part_of_their_tokens() -> None:
    shapes, learned_shares = set(), set()

    def gradients(
        model: LanguageModel, ids: torch.Tensor, micro_batches: int, learned: torch.Tensor | None
    ) -> torch.Tensor:
        assert learned is not None and learned.shape == ids.shape
        shapes.add(ids.shape[1])
        learned_shares.add(round(learned.float().mean().item(), 1))
        return accumulate_gradients(model, ids, micro_batches, learned)

    config = ModelConfig(300, 16, 32, 2, 2, 2, 8, 32)
    settings = TrainConfig(steps=1, context=32, batch_size=4)
    measure_throughput(config, settings, 0.0, conversations=True, compute=Compute(gradients))
    assert shapes == {33} and learned_shares == {0.4}
