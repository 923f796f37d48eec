"""A run before its first step, when it evaluates, and its record."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.induction import with_stronger_copies
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.loop import run
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import State
from llmcli.training.loop.record import CURVE_POINTS, loss_curve
from llmcli.training.planning import recipe
from llmcli.training.step.thread_tuner import ThreadTuner
from tests.training.small_runs import assert_same_end, prepared, run_to_end, through_a_file, train


def test_an_evaluation_is_due_after_enough_progress() -> None:
    cases = ((24_000, 0.05, True), (23_999, 0.05, False), (24_000, 0.049, False), (10**9, 0.0, False))
    for trained, progress, due in cases:
        assert run.is_worth_evaluating(trained, 1000, progress, 0.05) == due


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
    run.Run(RunData(replace(ready, plan=plan)), Clock(plan.train), tuner=tuner)
    assert order == ["1", "model"]


@pytest.mark.slow
def test_the_result_copies_more_strongly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it was stopped, while the teacher or the student was trained."""
    ready = prepared(tmp_path / "c.txt", width=64, steps=12)
    settings = replace(ready.plan.train, induction=True, teacher_share=0.5)
    ready = replace(ready, plan=replace(ready.plan, train=settings))
    whole = list(train(ready, save_due=lambda: True))
    for step in (3, 9):
        state = next(event for event in whole if isinstance(event, State) and event.step == step)
        assert_same_end(whole, list(train(ready, resume_from=through_a_file(ready, state))))
    result = run_to_end(ready).checkpoint.tensors
    monkeypatch.setattr(recipe, "COPY_FACTOR", 1.0)
    without = run_to_end(ready).checkpoint.tensors
    expected = with_stronger_copies(ready.plan.model, without, 1.15)
    changed = {name for name in result if not np.array_equal(result[name], without[name])}
    assert changed == {"model.layers.1.self_attn.o_proj.weight"}
    assert all(np.array_equal(result[name], expected[name]) for name in result)


def test_the_curve_of_the_record_is_thinned_to_means() -> None:
    curve = loss_curve(Position(), [float(step) for step in range(1, 2 * CURVE_POINTS + 1)])
    assert len(curve["step"]) == CURVE_POINTS
    assert curve["step"][:2] == [2, 4]
    assert curve["loss"][:2] == [1.5, 3.5]
