"""A run before its first step, and when it evaluates."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.run_data import RunData
from llmcli.training.loop import run
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.job import Job
from llmcli.training.step.thread_tuner import ThreadTuner
from tests.training.small_runs import prepared


def test_an_evaluation_is_due_after_enough_progress() -> None:
    for trained, progress, due in (
        (24_000, 0.05, True),
        (23_999, 0.05, False),
        (24_000, 0.049, False),
        (10**9, 0.0, False),
    ):
        assert run.is_evaluation_due(trained, 1000, progress, 0.05) == due


def test_the_number_of_threads_is_chosen_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many beside other programs, loading a model of 135 M parameters took 17 s instead of 2."""
    ready = prepared(tmp_path / "c.txt")
    plan = replace(ready.plan, train=replace(ready.plan.train, seconds=60.0))
    order: list[str] = []

    def new_model(config: ModelConfig, settings: TrainConfig, new_tokens: range) -> LanguageModel:
        order.append("model")
        return LanguageModel(config)

    monkeypatch.setattr(run, "new_model", new_model)
    tuner = ThreadTuner(2, lambda threads: order.append(f"{threads}"), min)
    order.clear()
    data = RunData(plan, ready.tokenizer, ready.tokens, ready.held_out)
    run.Run(Job(plan, data, ready.record, Clock(plan.train), tuner=tuner))
    assert order == ["1", "model"]
