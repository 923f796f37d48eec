"""Distillation: of two models trained one after the other, the second learns from the first, too."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from llmcli.config import ModelConfig
from llmcli.models.torch.transformer import LanguageModel, Teacher
from llmcli.training.data.position import Position
from llmcli.training.data.prepare import Prepared
from llmcli.training.loop.best_weights import BestWeights
from llmcli.training.loop.events import Done, Evaluation, Event, State, Step, TeacherTrained
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import PlanRequest
from tests.training.plans import plan
from tests.training.small_runs import (
    Schedule,
    SimulatedMachine,
    assert_resumes_to_the_same_end,
    assert_same_end,
    losses,
    prepared,
    run,
    through_a_file,
)

CONFIG = ModelConfig(50, 32, 64, 2, 2, 2, 16, 64)
OFTEN = Schedule(training_per_evaluated=1)


def distilled(path: Path, share: float = 0.5, **request: object) -> Prepared:
    """A run that trains a teacher in a part of its steps."""
    ready = prepared(path, **request)
    return replace(ready, plan=replace(ready.plan, train=replace(ready.plan.train, teacher_share=share)))


def result(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


def only(events: list[Event], kind: type) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def new_model(seed: int) -> LanguageModel:
    model = LanguageModel(CONFIG)
    model.initialize(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # a fresh output embedding is zero
        model.lm_head.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def test_the_gradients_are_those_of_both_kinds_of_targets() -> None:
    for masked in [False, True]:
        model, teacher = new_model(0), new_model(1)
        ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(2))
        learned = torch.rand(3, 9, generator=torch.Generator().manual_seed(3)) < 0.5 if masked else None
        kept = torch.ones(3, 8, dtype=torch.bool) if learned is None else learned[:, 1:]

        logits = model(ids[:, :-1])[kept]
        by_text = F.cross_entropy(logits, ids[:, 1:][kept])
        with torch.no_grad():
            soft = torch.softmax(teacher(ids[:, :-1])[kept], -1)
        by_teacher = -(soft * torch.log_softmax(logits, -1)).sum(-1).mean()
        expected = torch.autograd.grad(0.7 * by_text + 0.3 * by_teacher, list(model.parameters()))

        model.teacher = Teacher(teacher, 0.3)
        loss = model.loss(ids, learned)
        torch.autograd.backward(loss)
        assert loss.item() == pytest.approx(by_text.item(), rel=1e-6)
        for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6), name
        assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.slow
def test_the_first_stage_is_the_run_of_one_model(tmp_path: Path) -> None:
    ready = distilled(tmp_path / "c.txt", steps=24, dropout=0.1)
    of_one = replace(ready.plan.train, steps=12, teacher_share=0.0)
    alone, both = run(replace(ready, plan=replace(ready.plan, train=of_one))), run(ready)
    assert losses(both)[:12] == losses(alone)
    rates = [event.rate for event in both if isinstance(event, Step)]
    assert rates[:12] == [event.rate for event in alone if isinstance(event, Step)]
    assert rates[12:] == pytest.approx(rates[:12])
    (teacher,) = only(both, TeacherTrained)
    evaluated = [event.bits_per_byte for event in both if isinstance(event, Evaluation) and event.step <= 12]
    assert teacher == TeacherTrained(12, min(evaluated))
    expected = {"from_step": 12, "teacher_bits_per_byte": min(evaluated)}
    assert result(both).checkpoint.record.document["distillation"] == expected
    assert "distillation" not in result(alone).checkpoint.record.document


@pytest.mark.slow
def test_the_teacher_is_kept_where_the_student_is_worse(tmp_path: Path) -> None:
    done = result(run(distilled(tmp_path / "c.txt", 0.925), schedule=OFTEN))
    record = done.checkpoint.record.to_json()
    assert record["distillation"]["from_step"] == 37 and record["steps"] == 40
    assert done.best_step <= 37
    assert min(record["curve"]["eval_bits_per_byte"]) == record["distillation"]["teacher_bits_per_byte"]


@pytest.mark.slow
def test_a_stopped_run_resumes_in_either_stage(tmp_path: Path) -> None:
    ready = distilled(tmp_path / "c.txt", steps=24, dropout=0.2)
    whole = assert_resumes_to_the_same_end(ready, (1, 11, 12, 13, 23), schedule=OFTEN)
    assert [state.step for state in only(whole, State)][10:13] == [11, 12, 12]  # of the teacher, then of the student


@pytest.mark.slow
def test_a_run_stopped_in_the_evaluation_of_the_teacher_resumes_with_it(tmp_path: Path, monkeypatch) -> None:
    ready, evaluate, cut = distilled(tmp_path / "c.txt", steps=24), BestWeights.evaluate, list[int]()

    def cut_short(self: BestWeights, *, hurried: bool) -> object:
        if not hurried and len(cut) < 2:  # when the teacher is trained, and when the student should begin
            cut.append(1)
            return None
        return evaluate(self, hurried=hurried)

    monkeypatch.setattr(BestWeights, "evaluate", cut_short)
    interrupted = run(ready, stop=lambda: bool(cut))
    assert result(interrupted).interrupted and result(interrupted).step == 12
    assert not only(interrupted, TeacherTrained)
    (state,) = only(interrupted, State)
    assert isinstance(state, State)
    rest, whole = run(ready, resume_from=through_a_file(ready, state)), run(ready)
    assert losses(rest) == losses(whole)[12:]
    assert_same_end(whole, rest)


def test_progress_that_decreases_gives_no_negative_learning_rate() -> None:
    """Where the machine becomes faster, less time has to be reserved for the final evaluations."""
    assert Position(progress=0.45, stage_start=0.5).stage_progress == 0.0
    assert Position(progress=0.75, stage_start=0.5).stage_progress == 0.5
    assert Position(progress=0.1, stage_end=0.4).stage_progress == pytest.approx(0.25)


@pytest.mark.slow
def test_with_a_time_limit_the_stages_share_the_time(tmp_path: Path) -> None:
    ready = distilled(tmp_path / "c.txt", 0.4, steps=None, seconds=200.0, batch_tokens=64)
    ready = replace(ready, plan=replace(ready.plan, train=replace(ready.plan.train, steps=10**9)))
    machine = SimulatedMachine(lambda time: 90.0 if time < 80 else 60.0)
    events = run(ready, **machine.options())
    (teacher,) = only(events, TeacherTrained)
    steps = [event for event in events if isinstance(event, Step)]
    began = next(event.seconds for event in steps if event.step == teacher.step)
    assert 0.38 * 200 < began < 0.42 * 200
    assert 190 < result(events).seconds < 204
    assert steps[-1].rate < 0.02


def planned(train_tokens: int = 200_000, **request: object) -> tuple[float, str]:
    made = plan(PlanRequest(**request), train_tokens=train_tokens)  # type: ignore[arg-type]
    (row,) = [row for row in made.rows if row.name == "distillation"]
    assert (row.value == "off") == (made.train.teacher_share == 0)
    return made.train.teacher_share, row.reason


def test_runs_of_many_epochs_train_a_teacher_first() -> None:
    reason = "over about 20 epochs, a student that also learns from a teacher's predictions beats a single model"
    assert planned(seconds=3600.0) == (recipe.TEACHER_SHARE, reason)
    assert planned(seconds=3600.0, train_tokens=100_000_000) == (0.0, "not needed for about 0.079 epochs")
    assert planned(epochs=20.0) == (0.0, "only used with a time budget")
    assert planned(seconds=3600.0, processes=2) == (0.0, "not used with several processes")
    assert planned(seconds=3600.0, train_tokens=99_999) == (0.0, "the text is too short")


def test_the_limit_of_epochs_is_that_of_each_model() -> None:
    """With time for far more, both are trained for 20 epochs: the dropout is that for 20, not for less."""
    made = plan(PlanRequest(seconds=36_000.0))
    assert made.train.steps * made.train.batch_size * made.train.context == pytest.approx(40 * 200_000, rel=0.01)
    assert made.train.dropout == plan(PlanRequest(epochs=20.0, layers=8, width=384)).train.dropout
    rows = {row.name: row for row in made.rows}
    assert rows["training tokens"].reason.startswith("about 40 epochs")
    assert rows["training tokens"].reason.endswith("ends before the time is up")
    assert "about 20 epochs" in rows["dropout"].reason
