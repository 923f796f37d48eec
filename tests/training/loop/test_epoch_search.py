"""A first run finds the number of epochs for a short text, and a second run trains on all of it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.training import session
from llmcli.training.files import resume
from llmcli.training.loop.epoch_search import find_epochs
from llmcli.training.loop.events import Step
from llmcli.training.planning.cost_model import CorpusSize, Machine, estimated_speed
from llmcli.training.planning.plan import EpochSearch, Plan, PlanRequest
from llmcli.training.planning.planner import make_plan
from llmcli.training.planning.task import Task
from llmcli.training.step import throughput
from tests.conftest import Llm
from tests.training.plans import row
from tests.training.small_runs import stop_after_saving, use_ticking_clock

TOKENS = 3600
TEXT = CorpusSize(TOKENS, 8100)
STEPS_PER_EPOCH = 4


def result_of(bits: Iterable[float], *, progress: float = 0.01) -> tuple[int, EpochSearch] | None:
    """(the step, the result) of a run with these validation losses, one after every two epochs."""
    plan = make_plan(Task(PlanRequest(seconds=600.0), TEXT, 512, 0), Machine(estimated_speed))
    assert plan.searches and plan.train.calibration_tokens == 300
    evaluations: list[tuple[int, float]] = []
    for index, loss in enumerate(bits, 1):
        step = 2 * STEPS_PER_EPOCH * index
        taken = Step(step, progress * index, 1.0, 0, step / STEPS_PER_EPOCH, 1.0, 5.0, 100.0)
        for added in ([], [(step, loss)]):
            evaluations += added
            if found := find_epochs(plan, evaluations, taken):
                return step, found
    return None


def test_the_number_of_epochs_is_the_one_with_the_lowest_validation_loss() -> None:
    """That of epoch 8, and a tenth more for the second run; it is certain at epoch 12, half as many later."""
    lowest = EpochSearch(8.8, confirmed=True)
    assert result_of([4.0, 3.0, 2.5, 2.4, 2.6, 2.8, 3.0, 3.2]) == (48, lowest)


def test_of_losses_that_hardly_differ_the_last_one_counts() -> None:
    """On a slice of 300 tokens, a difference of 1.15% may be chance."""
    for later, epochs in [(2.02, 8.8), (2.03, 6.6)]:
        result = result_of([4.0, 3.0, 2.0, later, 2.6, 2.8, 3.0, 3.2])
        assert result and result[1] == EpochSearch(epochs, confirmed=True)


def test_when_the_time_of_the_first_run_is_up_the_second_gets_half_as_many_epochs_again() -> None:
    """Its learning rate would fall from two fifths of its plan on, here after the fourth evaluation."""
    falling = [4.0 - i / 10 for i in range(20)]
    assert result_of(falling, progress=0.1) == (32, EpochSearch(1.5 * 6.0, confirmed=False))


def plan_of(text: CorpusSize, search: EpochSearch | None = None, **request: Any) -> Plan:
    machine = Machine(lambda *_: 20_000.0)
    return make_plan(Task(PlanRequest(**request), text, 512, 0, search=search), machine)


def test_a_short_text_is_searched_for_the_number_of_epochs() -> None:
    for text, request_, searches in [
        (TEXT, {}, True),
        (TEXT, {"seconds": 14.0}, True),  # 61 epochs
        (TEXT, {"seconds": 12.0}, False),  # 50 epochs: not enough for two runs
        (TEXT, {"epochs": 60.0}, False),
        (TEXT, {"processes": 2}, False),
        (CorpusSize(14_000, 32_000), {}, True),
        (CorpusSize(14_000, 32_001), {}, False),
        (CorpusSize(264, 3000), {}, True),
        (CorpusSize(263, 3000), {}, False),  # cannot spare a validation slice
    ]:
        plan = plan_of(text, **request_)
        assert plan.searches is searches
        assert bool(plan.train.calibration_tokens) is searches


def test_the_second_run_has_the_same_batches_and_all_of_the_text() -> None:
    first = plan_of(TEXT)
    second = plan_of(TEXT, EpochSearch(50.0, confirmed=True))
    assert first.train.tokens_per_step == second.train.tokens_per_step == 1024
    assert (first.train.calibration_tokens > 0, second.train.calibration_tokens) == (True, 0)
    assert second.train.steps == 176  # 50 epochs
    assert "50.1 epochs on all of the text: more did not lower" in row(second, "steps").reason
    assert "no time to find whether more would" in row(plan_of(TEXT, EpochSearch(50.0)), "steps").reason


@pytest.mark.slow
def test_a_run_on_a_short_text_that_was_stopped_resumes_and_starts_over_on_all_of_it(llm: Llm, monkeypatch) -> None:
    """There is nothing to learn but the frequencies of letters. The second run starts from fresh weights; the seconds
    before the stop count."""
    use_ticking_clock(monkeypatch, 0.01)
    monkeypatch.setattr(throughput, "measure_throughput", lambda *_, **__: 50_000.0)
    letters = np.random.default_rng(0).choice(list("aeiostrnl"), (180, 6))
    Path("c.txt").write_text("\n".join(map("".join, letters)) + "\n", "utf-8")
    command = ("train", "c.txt", "--layers", 1, "--width", 32, "--threads", 1, "--json", "--time", "600s")
    with monkeypatch.context() as patch:
        stop_after_saving(patch)
        assert llm(*command).exit_code == 1
    earlier = resume.load(Path("model.resume.safetensors")).state.values["seconds"]
    starts: list[float] = []
    run = session._train
    monkeypatch.setattr(
        session, "_train", lambda planned, *rest: (starts.append(planned.started), run(planned, *rest))[1]
    )
    answer = llm(*command)
    assert answer.exit_code == 0, answer.stderr
    first_began, second_began = starts
    assert first_began - second_began == pytest.approx(earlier)
    events = [json.loads(line) for line in answer.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    at = kinds.index("restart")
    assert kinds.count("restart") == 1 and kinds[at + 1] == "plan" and kinds[-1] == "done"
    first, second = events[0]["train"], events[at + 1]["train"]
    assert first["calibration_tokens"] > 0 == second["calibration_tokens"]
    assert "eval" in kinds[:at] and "eval" not in kinds[at:]  # nothing is left to validate on
    record = json.loads(llm("inspect", "--json").stdout)["training"]
    assert record["epoch_search"]["confirmed"] and record["steps"] == second["steps"]
    assert record["epochs"] == pytest.approx(record["epoch_search"]["found"], abs=1.0)
    assert any("more did not lower the validation loss" in row["reason"] for row in record["plan"])
