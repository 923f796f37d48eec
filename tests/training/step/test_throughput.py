"""The measured speed of training, on a simulated clock."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.planning.cost_model import estimated_speed
from llmcli.training.step import throughput
from llmcli.training.step.optimizer import Optimizer
from llmcli.training.step.thread_tuner import ThreadTuner
from llmcli.training.step.throughput import measure_throughput
from llmcli.training.step.training_step import accumulate_gradients

GENERATOR = torch.Generator
CONFIG = ModelConfig(300, 16, 32, 2, 2, 2, 8, 32)
SETTINGS = TrainConfig(steps=1, context=32, batch_size=16)


def simulate(monkeypatch: pytest.MonkeyPatch, gradients: Any, clock: Callable[[], float] = time.perf_counter) -> None:
    monkeypatch.setattr(throughput, "accumulate_gradients", gradients)
    monkeypatch.setattr(throughput, "perf_counter", clock)


def test_rows_of_conversations_have_the_full_length_and_learn_a_part_of_their_tokens(monkeypatch) -> None:
    shapes, masked_shares = set(), set()

    def gradients(
        model: LanguageModel, ids: torch.Tensor, micro_batches: int, loss_mask: torch.Tensor | None
    ) -> torch.Tensor:
        assert loss_mask is not None and loss_mask.shape == ids.shape
        shapes.add(ids.shape[1])
        masked_shares.add(round(loss_mask.float().mean().item(), 1))
        return accumulate_gradients(model, ids, micro_batches, loss_mask)

    simulate(monkeypatch, gradients)
    measure_throughput(CONFIG, SETTINGS, 0.0, conversations=True)
    assert shapes == {33} and masked_shares == {0.4}


def test_what_a_gpu_has_queued_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that works only while it is waited for: 1/4096 s per token, after a second for what was queued before
    the first step."""
    now, queued = 100.0, 1.0

    def gradients(model: LanguageModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal queued
        queued += ids[:, 1:].numel() / 4096
        return accumulate_gradients(model, ids, *rest)

    def synchronize(device: str) -> None:
        nonlocal now, queued
        now, queued = now + queued, 0.0

    monkeypatch.setattr(throughput, "_synchronize", synchronize)
    simulate(monkeypatch, gradients, lambda: now)
    model, ids = throughput._random_model(CONFIG, SETTINGS), torch.zeros(16, 33, dtype=torch.int64)
    pace = throughput._step_pace(model, Optimizer(model, SETTINGS), SETTINGS, ids, False, 200.0)
    assert pace == pytest.approx(1 / 4096)


def test_a_model_whose_step_takes_long_is_measured_by_some_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    now, layers = 0.0, set()

    def gradients(model: LanguageModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal now
        layers.add(model.config.num_hidden_layers)
        now += ids[:, 1:].numel() / estimated_speed(model.config, settings)
        return accumulate_gradients(model, ids, *rest)

    config, settings = replace(CONFIG, num_hidden_layers=24), replace(SETTINGS, batch_size=4)
    whole = settings.tokens_per_step / estimated_speed(config, settings)
    assert throughput._affordable_part(config, settings, whole) == config
    assert throughput._affordable_part(config, settings, whole / 2).num_hidden_layers in (10, 11)
    monkeypatch.setattr(throughput, "_affordable_part", lambda *_: replace(config, num_hidden_layers=4))
    simulate(monkeypatch, gradients, lambda: now)
    measured = measure_throughput(config, settings, 0.0)
    assert layers == {4} and measured == pytest.approx(estimated_speed(config, settings), rel=1e-6)


def test_the_weights_of_a_trial_are_drawn_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch fills the tensors of a device only from a generator of that device."""
    drawn_on = []

    def generator(device: str = "cpu") -> torch.Generator:
        drawn_on.append(device)
        return GENERATOR()

    monkeypatch.setattr(torch, "Generator", generator)
    monkeypatch.setattr(throughput, "new_model", lambda config, settings: LanguageModel(config))
    for device in ("cuda", "mps", "cpu"):
        throughput._random_model(CONFIG, replace(SETTINGS, device=device))
    assert drawn_on == ["cuda", "mps", "cpu"]


def test_the_number_of_threads_is_chosen_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads beside other programs took 40 s to fill the weights of a model, one thread took 2 s."""
    order: list[str] = []

    def new_model(config: ModelConfig, settings: TrainConfig) -> LanguageModel:
        order.append("model")
        return LanguageModel(config)

    monkeypatch.setattr(throughput, "new_model", new_model)
    tuner = ThreadTuner(2, lambda threads: order.append(f"{threads}"), min)
    order.clear()
    measure_throughput(CONFIG, SETTINGS, 0.0, tuner)
    assert order[:2] == ["1", "model"]
