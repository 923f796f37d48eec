"""The weights that a run ends with: their temperature calibration on the validation slice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.loop import validation
from llmcli.training.loop.best_weights import BestWeights
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Evaluation
from tests.training.small_runs import SimulatedMachine, losses, prepared, run, with_slice


@pytest.mark.slow
def test_calibration_scales_the_last_gain_and_its_text_is_not_trained_on(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=30)
    settings = replace(ready.plan.train, calibration_tokens=66, calibrates=True)
    calibrated = replace(ready, plan=replace(ready.plan, train=settings))
    count = len(ready.tokens)  # two windows of 33 are reserved, in the middle of each half
    reserved = [int(share * (count - 33)) + i for share in (0.25, 0.75) for i in range(33)]
    without = replace(with_slice(ready, 0), tokens=np.delete(ready.tokens, reserved))
    (*our_events, our_end), (*their_events, their_end) = run(calibrated), run(without)
    assert losses(our_events) == losses(their_events)
    ours, theirs = our_end.checkpoint, their_end.checkpoint
    factor = ours.record.document["sharpness"]
    assert factor != 1.0 and theirs.record.document["sharpness"] == 1.0
    # without a validation slice, the last weights are kept
    assert their_end.best_step == 30 and their_end.score is not None and "validation" not in theirs.record.document
    assert not any(isinstance(event, Evaluation) for event in their_events)
    for name, array in theirs.tensors.items():
        scaled = array * (factor if name == "model.norm.weight" else 1.0)
        assert np.allclose(ours.tensors[name], scaled, rtol=1e-6)


@pytest.fixture
def evaluator(tmp_path: Path, monkeypatch) -> tuple[BestWeights, Clock, SimulatedMachine]:
    """Of a run of 200 seconds, on a machine that evaluates nine tokens a second; half of the time is over."""
    ready = with_slice(prepared(tmp_path / "c.txt", steps=None, seconds=200.0))
    machine = SimulatedMachine(lambda _: 3.0)
    monkeypatch.setattr(validation, "score_with_torch", machine.compute.score)
    monkeypatch.setattr(validation, "BATCH_TOKENS", 1)
    model, clock = LanguageModel(ready.plan.model), Clock(ready.plan.train, 0.0, now=lambda: machine.time)
    model.initialize(torch.Generator().manual_seed(0))
    machine.time = 100.0
    clock.start()
    return BestWeights(model, RunData(ready), clock, Position(), is_compiled=True), clock, machine


def test_the_first_evaluation_of_compiled_layers_says_nothing_of_the_speed(evaluator) -> None:
    candidates, clock, machine = evaluator
    began = []
    candidates._position.step = 1
    for _ in range(2):
        assert candidates.evaluate(hurried=False)
        began.append(clock.progress_began)
    assert began == pytest.approx([(100.0 + machine.time) / 2] * 2) and machine.time > 120.0


def test_the_evaluation_of_a_base_model_takes_little_of_the_time_that_is_left(evaluator) -> None:
    candidates, _, machine = evaluator
    assert candidates.evaluate(hurried=False)
    assert 102.0 < machine.time < 104.0
    whole = machine.time
    candidates._position.step = 1
    assert candidates.evaluate(hurried=False) and machine.time - whole == pytest.approx(whole - 100.0)
