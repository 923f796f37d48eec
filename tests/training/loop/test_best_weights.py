"""The weights that a run ends with: their temperature calibration on the validation slice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcli.training.loop.events import Done
from tests.training.small_runs import losses, prepared, run, with_slice


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
    assert isinstance(our_end, Done) and isinstance(their_end, Done)
    ours, theirs = our_end.checkpoint, their_end.checkpoint
    factor = ours.record.document["sharpness"]
    assert factor != 1.0 and theirs.record.document["sharpness"] == 1.0
    for name, array in theirs.tensors.items():
        scaled = array * (factor if name == "model.norm.weight" else 1.0)
        assert np.allclose(ours.tensors[name], scaled, rtol=1e-6)
