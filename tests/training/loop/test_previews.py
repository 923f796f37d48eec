"""Previews of a run: the likeliest next words of one prompt, in its events and its record, and samples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcli.config import SamplingConfig
from llmcli.formats.training_record import TrainingRecord
from llmcli.generation.generator import generate
from llmcli.generation.next_words import next_words
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.training.data.prepare import Prepared
from llmcli.training.data.run_data import RunData
from llmcli.training.files.curve import probe_points
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Done, Evaluation, Prediction, Sample, State
from llmcli.training.loop.previews import EVALUATIONS, LIKELIEST, SAMPLE_TOKENS, Previews
from tests.training.small_runs import Schedule, assert_same_end, prepared, run, run_until, through_a_file

OFTEN = Schedule(training_per_evaluated=1)


def record_of(events: list[object]) -> TrainingRecord:
    done = events[-1]
    return done.checkpoint.record


def test_the_last_preview_is_that_of_the_saved_network_and_a_resumed_run_keeps_all(own_directory: Path) -> None:
    ready = prepared(Path("c.txt"), steps=12, dtype="float32")
    prompts = {"probe": "Anna likes", "sample_prompt": "Anna", "schedule": OFTEN}
    events = run(ready, **prompts)
    predictions = [event for event in events if isinstance(event, Prediction)]
    assert [one.step for one in predictions] == [event.step for event in events if isinstance(event, Evaluation)]
    assert len(predictions) > 3
    done, record = events[-1], record_of(events)
    assert isinstance(done, Done) and record.probe and done.best_step == 12
    assert record.document["probe"]["prompt"] == "Anna likes"
    assert record.document["probe"]["predictions"] == [[one.step, [*map(list, one.next)]] for one in predictions]

    words = next_words(NumpyRuntime(done.checkpoint), ready.tokenizer, "Anna likes", evaluations=EVALUATIONS).words
    expected = [("…" * word.continues + word.text, pytest.approx(word.probability, abs=1e-3)) for word in words]
    assert [*predictions[-1].next] == expected[:LIKELIEST] != []

    samples = [[event.step, event.text] for event in events if isinstance(event, Sample)]
    pieces = generate(NumpyRuntime(done.checkpoint), ready.tokenizer, "Anna", SamplingConfig(max_tokens=SAMPLE_TOKENS))
    assert samples[-1] == [12, "".join(piece.text for piece in pieces)] and len(samples) > 3
    assert record.document["samples"] == {"prompt": "Anna", "texts": samples}

    stopped = [event for event in run_until(ready, 6, **prompts) if isinstance(event, State)]
    assert_same_end(events, run(ready, resume_from=through_a_file(ready, stopped[-1]), **prompts))


def previews(path: Path, clock: Callable[[Prepared], Clock], seconds: float) -> tuple[Previews, Prepared]:
    ready = prepared(path)
    ready = replace(ready, plan=replace(ready.plan, train=replace(ready.plan.train, seconds=seconds)))
    return Previews(RunData(ready, probe="Anna"), clock(ready)), ready


def test_in_a_timed_run_previews_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    now = iter(range(100))
    made, ready = previews(
        tmp_path / "c.txt", lambda ready: Clock(ready.plan.train, 0.0, now=lambda: float(next(now))), 1000.0
    )
    weights = {name: np.zeros(shape, np.float32) for name, shape in ready.plan.model.tensor_shapes().items()}
    assert made.are_wanted
    [prediction] = made.make(3, weights)
    assert isinstance(prediction, Prediction) and 0 < len(prediction.next) <= LIKELIEST
    assert sum(share for _, share in prediction.next) < 1
    assert not made.are_wanted  # it took a second (of this clock), 1% of the next 100 s
    weights["model.norm.weight"] += np.nan
    assert [*made.make(4, weights)] == []


def test_a_busy_machine_makes_no_previews_that_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 s, 0.3 may be for previews. Copying the weights takes 0.2 s of processor time, here 4 s after the start."""
    parameters = prepared(tmp_path / "c.txt").plan.model.parameters
    monkeypatch.setattr("llmcli.training.loop.previews.COPYING_SECONDS_PER_MILLION", 0.2e6 / parameters)
    for processor_seconds, wanted in ((4.0, True), (3.0, True), (2.0, False)):
        made, _ = previews(
            tmp_path / "c.txt",
            lambda ready, used=processor_seconds: Clock(
                ready.plan.train, 0.0, now=lambda: 4.0, processor_time=lambda: used
            ),
            10.0,
        )
        assert made.are_wanted == wanted


def test_only_predictions_of_the_kept_model_are_shown() -> None:
    record = TrainingRecord.from_json({
        "steps": 30, "best_step": 30, "distillation": {"from_step": 10, "teacher_bits_per_byte": 2.0},
        "curve": {"eval_step": [10, 20, 30], "eval_bits_per_byte": [2.0, 1.5, 1.0]},
        "probe": {"prompt": "The", "predictions": [[10, [["a", 0.5]]], [20, [["b", 0.5]]], [25, [["c", 1]]], [30, []]]},
    })  # fmt: skip
    assert [(step, bits) for step, bits, _ in probe_points(record)] == [(20, 1.5), (25, None)]
