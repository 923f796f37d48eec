"""A run starts over, once, where its first steps have another speed than the plan assumed. On simulated clocks."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from llmcli.cli.reports.training import show_event
from llmcli.cli.terminal.progress import TrainingView
from llmcli.config import ModelConfig, TrainConfig
from llmcli.formats.training_record import TrainingRecord
from llmcli.training import session
from llmcli.training.data.prepare import Prepared
from llmcli.training.loop.correction import Correction, MeasuredSpeeds
from llmcli.training.loop.events import Evaluation, Event, Restarted, Step
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import CorpusSize, Machine, Memory, estimated_speed, expected_loss
from llmcli.training.planning.model_shapes import candidates
from llmcli.training.planning.plan import Plan, PlanRequest
from llmcli.training.planning.planner import make_plan
from llmcli.training.planning.task import ConversationSize, Task
from llmcli.training.step import throughput
from llmcli.training.step.throughput import Throughput
from tests.conftest import Llm
from tests.training.small_runs import LINES, use_ticking_clock

RUN_OF_SESSION = session.run

TOKENS = 411_744
TEXT = CorpusSize(TOKENS, 1_003_855)  # the training text of tiny Shakespeare
MEMORY = Memory(1e12, 1e12)
# seconds: (parameters, tokens/s) of the plan for tiny Shakespeare on two cores of a Xeon with AMX
QUIET = {20: (225_728, 46_000), 60: (664_448, 45_000), 142: (1_722_048, 19_000), 300: (3_640_064, 9_000)}
START = 1.2  # the speed with the shortest windows, relative to the mean
PLANNING = 4.0  # seconds before the first step


def quiet_speed(model: ModelConfig, settings: TrainConfig, seconds: float) -> float:
    """Of a plan for `seconds`; the ratios between shapes are those of the estimate."""
    parameters, speed = QUIET[round(seconds)]
    chosen = next(one for one in CANDIDATES[settings.context] if one.parameters == parameters)
    return speed * estimated_speed(model, settings) / estimated_speed(chosen, settings)


class Planned:
    """A plan where `factor` times the speed of the quiet machine was measured, and its correction."""

    def __init__(
        self, factor: float, seconds: float, text: CorpusSize = TEXT, conversations: ConversationSize | None = None
    ) -> None:
        self.seconds = seconds

        def measure(model: ModelConfig, settings: TrainConfig, limit: float) -> Throughput:
            speed = factor * quiet_speed(model, settings, seconds)
            return Throughput(speed, START * speed)

        speeds = MeasuredSpeeds(measure)
        task = Task(PlanRequest(seconds=seconds, threads=2), text, 1024, 0, None, conversations)
        self.plan = make_plan(task, Machine(speeds, MEMORY))
        prepared = SimpleNamespace(
            plan=self.plan, tokens=np.zeros(text.tokens, np.uint16),
            record=TrainingRecord.from_json({"read_bytes": text.bytes}),
            encoded=SimpleNamespace(size=conversations) if conversations else None,
            plan_again=lambda machine, spent: make_plan(replace(task, seconds_spent=spent), machine),
        )  # fmt: skip
        self.correction = Correction(cast(Prepared, prepared), speeds, MEMORY)

    def steps(self, factor: Callable[[float], float]) -> Iterator[Step]:
        """The run at `factor` of the speed of the quiet machine, by the seconds since its first step."""
        settings, budget = self.plan.train, self.seconds
        seconds = PLANNING
        for step in range(1, settings.steps):
            speed = START * factor(seconds - PLANNING) * quiet_speed(self.plan.model, settings, budget)
            seconds += settings.tokens_per_step / speed
            progress = (seconds - PLANNING) / (budget - PLANNING)
            if progress >= 1:
                return
            yield Step(step, progress, 1.0, step * settings.tokens_per_step, 0.0, 1.0, seconds, speed)

    def restart(self, factor: Callable[[float], float]) -> Restarted | None:
        """With which plan the run starts over, if it does."""
        return next(filter(None, map(self.correction.restart, self.steps(factor))), None)


CANDIDATES = {
    context: candidates(Task(PlanRequest(), TEXT, 1024, 0, induction=context == 1024), TEXT, context)
    for context in (128, 256, 1024)
}  # of the planner


def shape(plan: Plan) -> tuple[int, int]:
    return plan.model.num_hidden_layers, plan.model.hidden_size


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "parameters"), [(seconds, QUIET[seconds][0]) for seconds in QUIET])
def test_at_the_speed_that_was_measured_the_size_stays(seconds: float, parameters: int) -> None:
    """Also where the speed is 15 % lower or higher all the time, and where it is halved for a moment."""
    for factor in (lambda time: 1.0, lambda time: 0.85, lambda time: 1.15, lambda time: 0.5 if time < 2 else 1.0):
        planned = Planned(1.0, seconds)
        assert planned.plan.model.parameters == parameters
        assert planned.restart(factor) is None


@pytest.mark.parametrize(
    ("seconds", "measured", "before", "after"),
    [
        pytest.param(142, 0.25, (2, 128), (3, 192), id="measured while the machine was busy"),
        pytest.param(300, 0.35, (3, 192), (4, 256), id="the same with five minutes"),
        pytest.param(142, 2.0, (4, 256), (3, 192), id="busy since the measurement"),
        pytest.param(142, 3.0, (3, 192), (3, 192), id="no time for two models"),
    ],
)
def test_another_speed_is_corrected_in_time_and_in_its_direction(
    seconds: float, measured: float, before: tuple[int, int], after: tuple[int, int]
) -> None:
    planned = Planned(measured, seconds)
    restarted = planned.restart(lambda time: 1.0)
    assert shape(planned.plan) == before
    assert restarted and shape(restarted.plan) == after
    assert restarted.seconds - PLANNING <= 2 * max(1.0, 0.025 * seconds) + 1.5  # two windows, and the steps around them
    assert restarted.plan.train.seconds == seconds  # of the whole run, with what is over
    assert restarted.before is planned.plan and restarted.speed == pytest.approx(1 / measured, rel=0.01)


def test_the_new_plan_is_for_the_time_that_is_left() -> None:
    restarted = Planned(0.25, 142).restart(lambda time: 1.0)
    assert restarted and restarted.plan.expected
    tokens = restarted.plan.expected.epochs * TOKENS
    assert restarted.plan.expected.tokens_per_second == pytest.approx(19_000, rel=0.02)
    assert tokens == pytest.approx((0.95 * (142 - restarted.seconds - 1) - 1) * 19_000, rel=0.02)


def test_what_is_not_sure_is_not_corrected() -> None:
    """A speed that alternates between more and less than the one that was measured, and one that changes later."""
    assert Planned(0.25, 142).restart(lambda time: 1.0 if time % 8 < 4 else 0.1) is None
    assert Planned(1.0, 142).restart(lambda time: 1.0 if time < 30 else 0.25) is None


def test_the_time_of_evaluations_does_not_count() -> None:
    planned, late = Planned(1.0, 142), 0.0
    for step in planned.steps(lambda time: 1.0):
        if step.step % 2:
            assert planned.correction.restart(Evaluation(step.step, 1.0, True)) is None
            late += 1.0
        assert planned.correction.restart(replace(step, seconds=step.seconds + late)) is None


@pytest.mark.slow
def test_a_size_is_given_up_only_for_one_that_is_better_in_the_time_left() -> None:
    """For every speed measured: what the restart is expected to reach beats going on by 1 %."""
    seen = set()
    for measured in np.geomspace(0.05, 10, 40):
        planned = Planned(float(measured), 142)
        restarted = planned.restart(lambda time: 1.0)
        if restarted is None or planned.plan.train.teacher_share:  # of two models each sees fewer tokens
            continue
        left = 0.95 * (142 - restarted.seconds) - 1
        speed = planned.plan.expected.tokens_per_second / measured if planned.plan.expected else 0.0
        done = restarted.step * planned.plan.train.tokens_per_step
        assert restarted.plan.expected
        better = expected_loss(restarted.plan.model.parameters, restarted.plan.expected.epochs * TOKENS, TEXT)
        assert 1.01 * better < expected_loss(planned.plan.model.parameters, done + left * speed, TEXT)
        assert (restarted.plan.model.parameters > planned.plan.model.parameters) is bool(measured < 1)
        seen.add((shape(planned.plan), shape(restarted.plan)))
    assert len(seen) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "speed", "expected", "epochs"),
    [
        pytest.param(0, 10_000, (2, 64), 0.4, id="the smallest is all there is"),
        pytest.param(0, 50_000, (2, 64), 2.0, id="not 2 x 96, which reads them 1.1 times"),
        pytest.param(0, 100_000, (2, 64), 4.0, id="not 2 x 96, which reads them 2.1 times, 1.5 at .7 of the speed"),
        pytest.param(0, 400_000, (3, 128), 4.2, id="not 3 x 192, which reads them 2.1 times"),
        pytest.param(0, 300_000, (3, 128), 3.1, id="time enough"),
        pytest.param(1_000_000, 400_000, (3, 128), 3.2, id="after text: not 3 x 192, which reads them 1.6 times"),
    ],
)
def test_pairs_are_read_twice_where_a_smaller_model_has_the_time(
    text: int, speed: float, expected: tuple[int, int], epochs: float
) -> None:
    """100,000 pairs of 32 tokens, 142 s, `speed` tokens/s for 2 x 64 and less in proportion to the parameters."""
    machine = Machine(lambda model, settings, seconds: speed * 225_728 / model.parameters)
    size = ConversationSize((32,) * 100_000, 8_000_000)
    plan = make_plan(
        Task(PlanRequest(seconds=142, threads=2), CorpusSize(text, 3 * text), 1024, 0, None, size), machine
    )  # fmt: skip
    assert plan.expected and plan.conversations
    rows = size.packed(plan.train.context).tokens
    assert shape(plan) == expected
    assert plan.conversations.share * plan.expected.epochs * (text + rows) / rows == pytest.approx(epochs, abs=0.06)


@pytest.mark.slow
def test_a_model_for_which_there_is_no_time_for_the_pairs_is_given_up() -> None:
    size = ConversationSize((32,) * 100_000, 8_000_000)
    planned = Planned(4.0, 142, CorpusSize(0, 0), size)
    restarted = planned.restart(lambda time: 1.0)
    assert planned.plan.expected and planned.plan.expected.epochs / 4 < 2
    assert restarted and restarted.plan.expected and restarted.plan.expected.epochs >= 2


@pytest.mark.parametrize("slow", range(4))
def test_a_slow_moment_while_speeds_are_measured_changes_no_plan(slow: int) -> None:
    count = 0

    def speed(model: ModelConfig, settings: TrainConfig, seconds: float) -> float:
        nonlocal count
        count += 1
        return quiet_speed(model, settings, 142) / (3 if count == slow + 1 else 1)

    plan = make_plan(Task(PlanRequest(seconds=142, threads=2), TEXT, 1024, 0), Machine(speed))
    assert count > slow and plan.model.parameters == 1_722_048


@pytest.mark.parametrize("seconds", QUIET)
def test_noisy_measurements_change_the_size_of_few_plans(seconds: float) -> None:
    rng, chosen = np.random.default_rng(0), []
    for _ in range(10):
        speeds = Machine(lambda *shape: quiet_speed(shape[0], shape[1], seconds) * float(rng.uniform(0.85, 1.0)))
        plan = make_plan(Task(PlanRequest(seconds=seconds, threads=2), TEXT, 1024, 0), speeds)
        chosen.append(plan.model.parameters)
    assert chosen.count(QUIET[round(seconds)][0]) >= 9


def far_too_fast(model: ModelConfig, settings: TrainConfig, seconds: float, **options: object) -> Throughput:
    speed = 50 * estimated_speed(model, settings)
    return Throughput(speed, speed)


@pytest.fixture
def overestimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every speed is measured as far too high, and the first tenths of a second of a run show another."""
    use_ticking_clock(monkeypatch, 0.01)
    monkeypatch.setattr(throughput, "measure_throughput", far_too_fast)
    monkeypatch.setattr(recipe, "RESTART_SECONDS", 0.1)
    monkeypatch.setattr(recipe, "CORRECTION_SECONDS", 0.2)
    monkeypatch.setattr(recipe, "CORRECTION_UNTIL", 0.6)
    monkeypatch.setattr(recipe, "SEARCH_MAX_BYTES", 0)
    Path("c.txt").write_text(LINES * 12, "utf-8")


COMMAND = ("train", "c.txt", "--tokenizer", "char", "--threads", 1, "--batch-tokens", 512, "--context", 64, "--json")


@pytest.mark.slow
def test_a_run_starts_over_once(llm: Llm, overestimated: None) -> None:
    answer = llm(*COMMAND, "--time", "5s")
    assert answer.exit_code == 0, answer.stderr
    events = [json.loads(line) for line in answer.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    at = kinds.index("restart")
    before, restart, after, *others = (events[0], *events[at : at + 2], *events[at + 2 :])
    assert kinds.count("restart") == 1 and after["event"] == "plan"
    assert [event["step"] for event in others if event["event"] == "step"][:2] == [1, 2]
    assert (before["config"]["hidden_size"], after["config"]["hidden_size"]) == (96, 64)
    assert restart["parameters"] < restart["parameters_before"] and restart["speed"] < 1
    done = events[-1]
    assert done["parameters"] == restart["parameters"]
    training = json.loads(llm("inspect", "--json").stdout)["training"]
    assert training["restart"] == {
        "after_seconds": round(restart["seconds"], 2), "speed": round(restart["speed"], 3),
        "parameters": restart["parameters_before"],
    }  # fmt: skip
    assert training["steps"] == done["steps"] and not Path("model.resume.safetensors").exists()


@pytest.mark.slow
def test_a_run_that_started_over_resumes_with_its_new_size(llm: Llm, overestimated: None, monkeypatch) -> None:
    events: list[Event] = []

    def stop_after_restart(*arguments: object, stop: Callable[[], bool], **options: object) -> Iterator[object]:
        run = RUN_OF_SESSION(*arguments, stop=lambda: len(events) > 1, **options)  # type: ignore[arg-type]
        for event in run:
            yield event
            if events or isinstance(event, Restarted):
                events.append(cast(Event, event))

    monkeypatch.setattr(session, "run", stop_after_restart)
    assert llm(*COMMAND, "--time", "5s").exit_code == 0
    restarted = events[0]
    assert isinstance(restarted, Restarted)
    monkeypatch.setattr(session, "run", RUN_OF_SESSION)
    answer = llm(*COMMAND, "--time", "5s")
    assert answer.exit_code == 0, answer.stderr
    resumed = [json.loads(line) for line in answer.stdout.splitlines()]
    assert "restart" not in [event["event"] for event in resumed]
    assert next(event["step"] for event in resumed if event["event"] == "step") == 2
    assert resumed[-1]["parameters"] == restarted.plan.model.parameters


@pytest.mark.parametrize(
    "options", [("--steps", 40), ("--epochs", 0.2), ("--time", "4s", "--layers", 2), ("--time", "4s", "--width", 96)]
)
@pytest.mark.slow
def test_what_the_user_fixed_is_not_corrected(llm: Llm, overestimated: None, options: tuple[object, ...]) -> None:
    answer = llm(*COMMAND, *options)
    assert answer.exit_code == 0, answer.stderr
    assert '"restart"' not in answer.stdout


def test_the_line_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    restarted = Planned(2.0, 142).restart(lambda time: 1.0)
    two_models = Planned(3.0, 142).restart(lambda time: 1.0)
    for event in (restarted, two_models):
        assert event
        show_event(event, TrainingView(4.0), json_=False)
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "step 45: training runs at 0.5 times the speed measured before the run, so it starts over with "
        "1.72 M parameters instead of 3.64 M"
    )
    assert second.endswith("so it starts over with another plan")
