"""Sequence-length warm-up and BPE-dropout over the course of a run."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from llmcli.config import TrainConfig
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData, window_length
from tests.training.small_runs import prepared


def test_windows_grow() -> None:
    for progress, context, expected in [
        (0.19, 256, 64),
        (0.2, 256, 128),
        (0.5, 256, 256),
        (0.0, 32, 16),
        (0.0, 8, 8),
        (0.0, 100, 25),
        (0.0, 90, 30),
        (0.2, 90, 45),
        (0.0, 77, 77),
    ]:
        settings = TrainConfig(steps=1, context=context)
        assert window_length(progress, settings) == expected
        assert window_length(progress, replace(settings, recipe="fine-tune")) == context


def test_an_epoch_visits_every_token_once_while_windows_grow(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", context=64)
    tokens = np.arange(1000, dtype=np.uint16)
    settings = replace(ready.plan.train, batch_size=5, steps=9, calibration_tokens=0)
    data = RunData(replace(ready, tokens=tokens, plan=replace(ready.plan, train=settings)))
    progress = [0.0, 0.1, 0.2, 0.21, 0.4, 0.5, 0.6, 0.8, 1.0]
    batches = [data.next_batch(Position(step, done))[0] for step, done in enumerate(progress)]
    assert {batch.shape for batch in batches} == {(20, 17), (10, 33), (5, 65)}
    targets = np.concatenate([batch[:, 1:].ravel() for batch in batches]).reshape(3, -1)
    assert targets.shape[1] == 960  # of 1,000: fifteen blocks
    assert [len(set(epoch.tolist())) for epoch in targets] == [960] * 3


def test_bpe_dropout_ends_before_the_run(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt")
    data = RunData(ready)
    for progress, is_split in ((0.7, True), (0.9, False)):
        (without, _), (split, _) = (data.next_batch(Position(3, progress, token_split=rate)) for rate in (0.0, 0.5))
        assert np.array_equal(without, split) is not is_split
