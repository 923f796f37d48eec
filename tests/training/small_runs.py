"""Training runs of seconds, and a simulated machine for runs with a clock."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from llmcli.config import TrainConfig
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training import session
from llmcli.training.data.prepare import Prepared
from llmcli.training.data.run_data import RunData
from llmcli.training.files import resume
from llmcli.training.files.resume import StateSaver
from llmcli.training.loop import run as run_module
from llmcli.training.loop import trainer, validation
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Done, Event, State, Step
from llmcli.training.loop.run import Run
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import PlanRequest
from llmcli.training.step import training_step
from tests.data.corpora import read_corpus
from tests.training.plans import prepare

LINES = "".join(f"{a} likes {b}.\n" for a in ("Anna", "Ben", "Cleo") for b in ("tea", "milk", "rice", "bread")) * 30


class Compute(NamedTuple):
    """What takes the place of the two computations that take nearly all the time of a run."""

    gradients: Any = training_step.accumulate_gradients
    score: Any = validation.score_with_torch


class Schedule(NamedTuple):
    """How much training lies between two evaluations."""

    training_per_evaluated: float = recipe.TRAINING_PER_EVALUATED
    min_progress: float = recipe.EVALUATION_INTERVAL
    long_evaluation: float = run_module.LONG_EVALUATION


REAL, USUAL = Compute(), Schedule()


def prepared(path: Path, **request: object) -> Prepared:
    """A run of 40 small steps on LINES, written to `path`, unless `request` says otherwise."""
    path.write_text(LINES, "utf-8")
    small = PlanRequest(**{"steps": 40, "batch_tokens": 512, "context": 32, "layers": 2, "width": 32, **request})  # type: ignore[arg-type]
    return with_slice(prepare(small, read_corpus([str(path)])))


def with_slice(ready: Prepared, tokens: int = 330) -> Prepared:
    """The same run with a validation slice, for which its text would be too short."""
    return replace(ready, plan=replace(ready.plan, train=replace(ready.plan.train, calibration_tokens=tokens)))


def with_base(ready: Prepared, base: Checkpoint | None) -> Prepared:
    return replace(ready, inputs=replace(ready.inputs, base=base))


def train(
    ready: Prepared,
    start: Checkpoint | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    started_at: float | None = None,
    reserve_seconds: float = 0.0,
    processor_time: Callable[[], float] = lambda: 0.0,
    resume_from: State | None = None,
    compute: Compute = REAL,
    schedule: Schedule = USUAL,
    sample_prompt: str | None = None,
    probe: str | None = None,
    **options: object,
) -> Iterator[Event]:
    """The events of a run; `options` are those of `trainer.train`."""
    data = RunData(with_base(ready, start), sample_prompt=sample_prompt, probe=probe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "accumulate_gradients", compute.gradients)
        patch.setattr(validation, "score_with_torch", compute.score)
        patch.setattr(recipe, "TRAINING_PER_EVALUATED", schedule.training_per_evaluated)
        patch.setattr(recipe, "EVALUATION_INTERVAL", schedule.min_progress)
        patch.setattr(run_module, "LONG_EVALUATION", schedule.long_evaluation)
        timer = Clock(ready.plan.train, started_at, reserve_seconds, clock, stop, processor_time)
        begun = Run(data, timer)
        begun.begin(resume_from)
        yield from trainer.train(begun, **options)  # type: ignore[arg-type]


def run(ready: Prepared, start: Checkpoint | None = None, **options: object) -> list[Event]:
    events = list(train(ready, start, **options))  # type: ignore[arg-type]
    assert all(
        json.dumps(event.checkpoint.record.to_json()) for event in events if isinstance(event, Done)
    )  # it can be saved
    return events


def run_until(ready: Prepared, step: int, **options: object) -> list[Event]:
    """The events of a run that is asked to stop after a step."""
    events: list[Event] = []
    options["stop"] = lambda: any(isinstance(event, Step) and event.step >= step for event in events)
    for event in train(ready, **options):  # type: ignore[arg-type]
        events.append(event)
    return events


def run_to_end(ready: Prepared, start: Checkpoint | None = None, **options: object) -> Done:
    done = run(ready, start, **options)[-1]
    assert isinstance(done, Done)
    return done


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Step)]


def assert_same_end(first: list[Event], second: list[Event]) -> None:
    """The same record and weights, to the bit."""
    ours, theirs = first[-1], second[-1]
    assert ours.checkpoint.record == theirs.checkpoint.record
    assert ours.checkpoint.tensors.keys() == theirs.checkpoint.tensors.keys()
    for name, array in ours.checkpoint.tensors.items():
        assert np.array_equal(array, theirs.checkpoint.tensors[name]), name


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that advances by `seconds` with each reading."""
    readings = count(1)
    return lambda: seconds * next(readings)


def use_ticking_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The time budgets of runs pass by `seconds` with each reading of the clock, however busy the machine is."""
    now = ticking(seconds)

    def clock(
        settings: TrainConfig, began: float, reserve: float, stop_requested: Callable[[], bool], **_: object
    ) -> Clock:
        return Clock(settings, 0.0, reserve, now, stop_requested)

    monkeypatch.setattr(session, "Clock", clock)


class SimulatedMachine:
    """A machine with a clock of its own: steps and evaluations only let time pass, at a speed that changes."""

    def __init__(self, speed: Callable[[float], float], slow_evaluation: int = 0) -> None:
        """`speed` is in tokens trained per second, by time. Evaluation is three times as fast; but the batch of the
        number `slow_evaluation` takes 30 times as long as that, or every batch 10 times, if it is negative."""
        self.time = 0.0
        self.speed = speed
        self.slow_evaluation = slow_evaluation
        self.evaluated = 0
        self.compute = Compute(self._gradients, self._score)

    def options(self) -> dict[str, Any]:
        """Those of a run on this machine, from the time 0."""
        return {"started_at": 0.0, "clock": lambda: self.time, "compute": self.compute}

    def _gradients(self, _: LanguageModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.time += ids.shape[0] * (ids.shape[1] - 1) / self.speed(self.time)
        return torch.tensor(1.0)

    def _score(self, model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.evaluated += 1
        slower = 30.0 if self.evaluated == self.slow_evaluation else 10.0 if self.slow_evaluation < 0 else 1.0
        tokens = ids.shape[0] * (ids.shape[1] - 1)
        self.time += slower * tokens / (3 * self.speed(self.time))
        return np.ones((ids.shape[0], ids.shape[1] - 1)), np.ones((ids.shape[0], ids.shape[1] - 1), bool)


def stop_after_saving(patch: pytest.MonkeyPatch) -> None:
    """Runs are stopped by an error after their first step, whose state they have saved."""
    save = StateSaver.save

    def save_and_fail(saver: StateSaver, run: resume.StoppedRun) -> None:
        save(saver, run)
        raise LLMError("stopped")

    patch.setattr(StateSaver, "is_due", lambda saver: True)
    patch.setattr(StateSaver, "save", save_and_fail)


def assert_resumes_to_the_same_end(
    ready: Prepared, steps: Iterable[int], start: Checkpoint | None = None, schedule: Schedule = USUAL
) -> list[Event]:
    """From its state after each of these steps. Returns the events of the whole run, with its states."""
    whole = run(ready, start, schedule=schedule, save_due=lambda: True)
    for state in [event for event in whole if isinstance(event, State) and event.step in steps]:
        rest = run(ready, start, schedule=schedule, resume_from=through_a_file(ready, state))
        assert losses(rest) == losses(whole)[state.step :]
        assert_same_end(whole, rest)
    return whole


def through_a_file(ready: Prepared, state: State) -> State:
    """A state that was saved as a resume file, in model.resume.safetensors here, and read again."""
    path = Path("model.resume.safetensors")
    resume.save(path, resume.StoppedRun({}, ready.plan, ready.tokenizer.to_json(), state))
    loaded = resume.load(path)
    assert loaded.plan == ready.plan and loaded.tokenizer_json == ready.tokenizer.to_json()
    return loaded.state
