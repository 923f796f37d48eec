"""Samples during training."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmcli.training.data.run_data import RunData
from llmcli.training.loop import sample_generator
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.job import Job
from tests.training.small_runs import prepared


@pytest.mark.parametrize(("processor_seconds", "wanted"), [(4.0, True), (3.0, True), (2.0, False)])
def test_a_busy_machine_generates_no_samples_that_take_long(
    processor_seconds: float, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10 s, 0.3 may be for a sample. Copying the weights takes 0.2 s of processor time, here 4 s after the start."""
    ready = prepared(tmp_path / "c.txt")
    plan = replace(ready.plan, train=replace(ready.plan.train, seconds=10.0))
    monkeypatch.setattr(sample_generator, "COPYING_SECONDS_PER_MILLION", 0.2e6 / plan.model.parameters)
    job = Job(plan, RunData(plan, ready.tokenizer, ready.tokens, ready.held_out), ready.record, sample_prompt="Anna")
    clock = Clock(plan.train, 0.0, now=lambda: 4.0, processor_time=lambda: processor_seconds)
    clock.start()
    assert sample_generator.SampleGenerator(job, clock).is_wanted == wanted
