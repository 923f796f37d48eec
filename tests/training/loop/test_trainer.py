"""Training as a function: it learns, is deterministic, keeps the best weights, and can be stopped."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, count, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.torch import runtime as torch_runtime
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.prepare import Prepared
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop import final_evaluation, validation
from llmcli.training.loop.best_weights import BestWeights
from llmcli.training.loop.events import Done, Evaluation, State, Step
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import PlanRequest
from llmcli.training.step.training_step import accumulate_gradients
from tests.data.corpora import read_corpus
from tests.training.plans import prepare
from tests.training.small_runs import (
    LINES,
    Compute,
    Schedule,
    SimulatedMachine,
    assert_same_end,
    losses,
    prepared,
    run,
    run_to_end,
    run_until,
    ticking,
    train,
    with_slice,
)

OFTEN = Schedule(training_per_evaluated=1)


def fine_tuning(base: Checkpoint, directory: Path, **request: object) -> Prepared:
    """A run that fine-tunes a model on the text that it was trained on."""
    corpus, tokenizer = read_corpus([str(directory / "c.txt")]), Tokenizer.from_json(base.tokenizer_json)
    return with_slice(prepare(PlanRequest(**request), corpus, tokenizer=tokenizer, base=base.config))


@pytest.mark.slow
def test_the_loss_falls_and_fine_tuning_starts_where_the_base_model_is(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", layers=3, width=64, dtype="float32")
    events = run(ready)
    per_step, done = losses(events), events[-1]
    assert len(per_step) == 40
    assert per_step[0] == pytest.approx(math.log(ready.plan.model.vocab_size), rel=0.01)
    assert per_step[-1] < 0.3 * per_step[0]
    assert done.score is not None and done.score.bits_per_byte < 1.0
    assert done.checkpoint.record.bits_per_byte == pytest.approx(done.score.bits_per_byte, abs=1e-6)

    events = run(fine_tuning(done.checkpoint, tmp_path, steps=2, batch_tokens=512), done.checkpoint)
    assert isinstance(events[0], Evaluation) and events[0].step == 0  # of the base model
    assert events[1].loss < 1.2
    tuned = events[-1]
    assert isinstance(tuned, Done) and tuned.base_score and tuned.score
    assert tuned.score.bits_per_byte <= tuned.base_score.bits_per_byte * 1.01


# ---- which weights are kept


class ScriptedEvaluations:
    """Each evaluation finds the next of some bits per byte; `weights` are those that were evaluated, in order."""

    def __init__(self, tokenizer: Tokenizer, bits_per_byte: Iterable[float]) -> None:
        self._byte_lengths = np.array([len(data) for data in tokenizer.token_bytes])
        self._remaining = iter(bits_per_byte)
        self._embedding: torch.Tensor | None = None
        self.weights: list[dict[str, np.ndarray]] = []
        self.compute = Compute(score=self._score)

    def _score(self, model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embedding = model.model.embed_tokens.weight
        if self._embedding is None or not torch.equal(embedding, self._embedding):
            self._embedding = embedding.detach().clone()
            self._bits = next(self._remaining)
            self.weights.append(model.to_arrays())
        nats = self._bits * math.log(2) * self._byte_lengths[ids[:, 1:]]
        return nats, np.ones(nats.shape, bool)


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [0.1, 0.0])
def test_the_best_weights_are_kept_not_the_last(tmp_path: Path, held_out: float) -> None:
    """By the validation slice, so that nothing need be held out."""
    (tmp_path / "c.txt").write_text(LINES, "utf-8")
    corpus = read_corpus([str(tmp_path / "c.txt")])
    ready = with_slice(prepare(PlanRequest(steps=30, batch_tokens=512, context=32), corpus, held_out=held_out))
    scripted = ScriptedEvaluations(ready.tokenizer, chain([3.0, 1.0, 2.0, 2.5, 2.6], repeat(2.7)))
    done = run_to_end(ready, compute=scripted.compute, schedule=OFTEN)
    assert 0 < done.best_step < 30 and bool(done.score) == bool(held_out)
    for name, array in scripted.weights[1].items():
        assert np.array_equal(done.checkpoint.tensors[name], array)


def test_without_memory_for_the_final_evaluation_the_weights_are_kept_all_the_same(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=4)
    models: list[LanguageModel] = []

    def gradients(model: LanguageModel, *rest: object) -> torch.Tensor:
        models.append(model)
        return accumulate_gradients(model, *rest)  # type: ignore[arg-type]

    def score(model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if model is not models[0]:
            raise RuntimeError(message)
        return torch_runtime.score(model, ids)

    message = "CUDA out of memory. Tried to allocate 4.60 GiB"
    done, whole = run_to_end(ready, compute=Compute(gradients, score)), run_to_end(ready)
    assert done.score is None and not done.problem and not done.interrupted
    assert done.checkpoint.record.not_evaluated == "out of memory"
    assert "not_evaluated" not in whole.checkpoint.record.document
    for name, array in whole.checkpoint.tensors.items():
        assert np.array_equal(done.checkpoint.tensors[name], array)
    models.clear()
    message = "size mismatch"
    with pytest.raises(RuntimeError, match="size mismatch"):
        run_to_end(ready, compute=Compute(gradients, score))


def test_of_two_nearly_equal_evaluations_the_later_is_kept(tmp_path: Path) -> None:
    """The last of four evaluations is worse than the one before by a little less than TIE_MARGIN, or a little more."""
    for worse, best_step in [(0.9, 10), (1.1, 9)]:
        ready = prepared(tmp_path / "c.txt", steps=10)
        last = 2.0 * (1 + worse * recipe.TIE_MARGIN)
        scripted = ScriptedEvaluations(ready.tokenizer, [3.0, 2.5, 2.0, last, last])
        schedule = Schedule(training_per_evaluated=0, min_progress=0.3)
        assert run_to_end(ready, compute=scripted.compute, schedule=schedule).best_step == best_step


@pytest.mark.slow
def test_the_held_out_text_has_no_influence_on_the_weights(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(LINES, "utf-8")
    (tmp_path / "same.txt").write_text(LINES[:2000], "utf-8")
    (tmp_path / "other.txt").write_text("zzq. pkx, vvb; " * 200, "utf-8")
    request = PlanRequest(steps=40, batch_tokens=512, context=32)
    corpus = read_corpus([str(tmp_path / "c.txt")])
    same, other = (
        run_to_end(
            with_slice(prepare(request, corpus, held_out=read_corpus([str(tmp_path / f"{name}.txt")]))), schedule=OFTEN
        )
        for name in ("same", "other")
    )
    assert same.score and other.score
    assert same.score.bits_per_byte < 1 < other.score.bits_per_byte  # worse than a uniform guess, and than at first
    assert same.best_step == other.best_step
    for name, array in same.checkpoint.tensors.items():
        assert np.array_equal(array, other.checkpoint.tensors[name])


@pytest.mark.slow
def test_the_slice_is_not_trained_on_and_is_what_evaluations_measure(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=10)
    count = len(ready.tokens)
    changed = np.array(ready.tokens)
    starts = [int((i + 0.5) / 10 * (count - 33)) for i in range(10)]  # ten windows of 33 tokens
    for start in starts:
        changed[start : start + 33] = ready.tokens[0]
    first, second = run(ready, schedule=OFTEN), run(replace(ready, tokens=changed), schedule=OFTEN)
    assert losses(first) == losses(second)
    ours, theirs = ([one.bits_per_byte for one in events if isinstance(one, Evaluation)] for events in (first, second))
    assert len(ours) == len(theirs) > 1 and not set(ours) & set(theirs)
    assert first[-1].checkpoint.record.document["validation"] == {"tokens": 330}  # type: ignore[union-attr]


# ---- a loss that becomes NaN


def nan_gradients(from_step: int, loss: float = math.nan) -> Compute:
    """From a step on, all gradients are NaN; the loss of these steps is `loss`."""
    steps = count(1)

    def gradients(model: LanguageModel, *rest: Any) -> torch.Tensor:
        result = accumulate_gradients(model, *rest)
        if next(steps) < from_step:
            return result
        for parameter in model.parameters():
            parameter.grad.fill_(math.nan)
        return torch.tensor(loss)

    return Compute(gradients)


def test_a_loss_or_weights_of_nan_at_once_are_an_error_with_advice(tmp_path: Path) -> None:
    advice = r"became NaN or infinite at step 1; lower the learning rate: `lr` 0.25 `overwrite=True`"
    with pytest.raises(LLMError, match=advice):
        run(prepared(tmp_path / "c.txt"), compute=nan_gradients(from_step=1))
    # the last step makes all weights NaN; its own loss was still a number
    with pytest.raises(LLMError, match="became NaN or infinite"):
        run(prepared(tmp_path / "c.txt", steps=1), compute=nan_gradients(from_step=1, loss=1.0))


@pytest.mark.slow
def test_a_loss_that_becomes_nan_ends_the_run_with_the_best_weights_so_far(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=40)
    whole = [event for event in run(ready) if isinstance(event, Evaluation)]
    events = run(ready, compute=nan_gradients(from_step=31))
    done = events[-1]
    assert done.problem == (
        "the loss became NaN or infinite at step 31; lower the learning rate: `lr` 0.25 `overwrite=True`"
    )
    record = done.checkpoint.record.to_json()
    assert (done.step, record["steps"], record["interrupted"], record["problem"]) == (30, 30, False, done.problem)
    assert 0 < done.best_step <= 30
    assert all(np.isfinite(array).all() for array in done.checkpoint.tensors.values())
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    assert evaluations == whole[: len(evaluations)]


# ---- runs with a time limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("speed", "slow_evaluation"),
    [
        (lambda time: 90.0, 0),
        (lambda time: 90.0 if time < 100 else 30.0, 0),
        (lambda time: 30.0 if time < 100 else 90.0, 0),
        (lambda time: 90.0 if time < 180 else 30.0, 0),
        (lambda time: 90.0 if time // 20 % 2 else 30.0, 0),
        (lambda time: 90.0, 9),
        (lambda time: 90.0, -1),
    ],
)
def test_a_timed_run_ends_on_time_with_the_regularization_for_its_epochs(tmp_path, speed, slow_evaluation) -> None:
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=200.0, batch_tokens=64)
    machine = SimulatedMachine(speed, slow_evaluation)
    changes = {"dropout": 0.2, "token_split": 0.15, "eval_tokens": 64, "calibration_tokens": 66}
    settings = replace(ready.plan.train, steps=10**9, **changes)
    ready = replace(ready, task=replace(ready.task, request=PlanRequest(seconds=200.0)))
    regularize = RunData(ready).regularization
    events = run(
        replace(ready, plan=replace(ready.plan, train=settings)),
        reserve_seconds=5.0,
        processor_time=lambda: machine.time / 2,  # beside another program
        **machine.options(),
    )
    done = events[-1]
    assert isinstance(done, Done) and done.score
    assert 0.97 * 200 <= done.seconds + 2 * 5.0 <= 1.03 * 200
    steps = [event for event in events if isinstance(event, Step)]
    assert max(step.rate for step in steps) == 1.0 and steps[-1].rate < 0.02  # the schedule came to its end
    epochs = steps[-1].epoch
    _, expected, dropout, token_split = done.checkpoint.record.document["regularization"][-1]
    assert expected == pytest.approx(epochs, rel=0.5)
    assert (dropout, token_split) in {regularize(share * epochs) for share in (0.85, 1.0, 1.15)}


@pytest.mark.parametrize("speed", [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
def test_a_timed_run_of_few_steps_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    monkeypatch.setattr(validation, "BATCH_TOKENS", 64)  # the simulated machine does not interrupt a batch
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=200.0, batch_tokens=64)
    ready = replace(ready, task=replace(ready.task, request=PlanRequest(seconds=200.0)))
    done = run_to_end(ready, **SimulatedMachine(lambda time: speed).options())
    assert done.step > 1 and done.seconds < 250


@pytest.mark.parametrize("seconds", [200.0, None])
def test_a_model_without_time_to_load_it_again_is_not_evaluated(tmp_path: Path, seconds, monkeypatch) -> None:
    monkeypatch.setattr(final_evaluation, "LOADING_SECONDS_PER_MILLION", 1e6)
    ready = prepared(tmp_path / "c.txt", steps=None if seconds else 2, seconds=seconds, batch_tokens=64)
    done = run_to_end(ready, **SimulatedMachine(lambda time: 2.0).options())
    assert done.checkpoint.tensors and bool(done.score) == (seconds is None)


@pytest.mark.slow
@pytest.mark.parametrize("fine_tunes", [False, True])
def test_evaluations_without_end_do_not_make_a_run_late(tmp_path: Path, fine_tunes: bool) -> None:
    """A step takes two seconds. Each pass of an evaluation would take an hour; it is asked every second whether to
    stop."""
    base = run_to_end(prepared(tmp_path / "c.txt", steps=4)).checkpoint if fine_tunes else None
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=200.0, batch_tokens=64)
    if base:
        ready = fine_tuning(base, tmp_path, seconds=200.0, batch_tokens=64)
    machine = SimulatedMachine(lambda time: ready.plan.train.tokens_per_step / 2)

    def score(model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(3600):
            machine.time += 1.0
            if model.between_layers:
                model.between_layers()
        pytest.fail("an evaluation has no deadline")

    options = machine.options() | {"compute": Compute(machine.compute.gradients, score)}
    done = run_to_end(ready, base, reserve_seconds=2.0, **options)
    assert done.score is None and not done.interrupted
    assert done.step >= 5 and done.best_step == done.step  # no evaluation chose any weights
    assert done.seconds <= 200 + 5


@pytest.mark.slow
def test_a_timed_run_with_compiled_layers_begins_once_they_are_compiled(tmp_path: Path, monkeypatch) -> None:
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=400.0, batch_tokens=64)
    settings, machine = replace(ready.plan.train, steps=10**9), SimulatedMachine(lambda time: 90.0)
    compiled = set[object]()

    def compile_once(key: object) -> None:
        machine.time += 0.0 if key in compiled else 40.0
        compiled.add(key)

    def gradients(model: LanguageModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        compile_once(ids.shape[1])
        return machine.compute.gradients(model, ids, *rest)

    def score(model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        compile_once("evaluation")
        return machine.compute.score(model, ids)

    monkeypatch.setattr("llmcli.training.loop.run.compile_layers", lambda model, settings: True)
    events = run(
        replace(ready, plan=replace(ready.plan, train=settings)),
        started_at=0.0,
        clock=lambda: machine.time,
        compute=Compute(gradients, score),
    )
    steps, done = [event for event in events if isinstance(event, Step)], events[-1]
    assert len(compiled) == 3
    assert steps[0].seconds > 40 and steps[0].progress < 0.01  # the learning rate still rises
    assert all(after.progress > before.progress for before, after in pairwise(steps))
    assert isinstance(done, Done) and 0.97 * 400 <= done.seconds <= 1.03 * 400
    assert steps[-1].rate < 0.02


# ---- stopping


def test_a_stop_request_cuts_the_calibration_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(tmp_path / "c.txt")
    ready = replace(ready, plan=replace(ready.plan, train=replace(ready.plan.train, calibrates=True)))

    def cut_short(*_: object) -> float:
        raise CutShortError

    monkeypatch.setattr("llmcli.training.loop.best_weights.fit_inverse_temperature", cut_short)
    done = run_until(ready, 3)[-1]
    assert isinstance(done, Done) and done.interrupted and done.best_step == 3
    assert done.checkpoint.record.document["sharpness"] == 1.0


def test_fine_tuning_stopped_in_the_evaluation_of_its_base_begins_with_it(tmp_path: Path, monkeypatch) -> None:
    base = run_to_end(prepared(tmp_path / "c.txt", steps=4)).checkpoint
    ready = fine_tuning(base, tmp_path, steps=2, batch_tokens=512)
    states = []
    with monkeypatch.context() as cut, pytest.raises(LLMError, match="stopped before the first training step"):
        cut.setattr(BestWeights, "evaluate", lambda self, **_: None)
        for event in train(ready, base, stop=lambda: True):
            states.append(event)
    (state,) = states
    assert isinstance(state, State) and state.step == 0
    resumed = run(ready, base, resume_from=state)
    assert isinstance(resumed[0], Evaluation) and resumed[0].step == 0
    assert_same_end(resumed, run(ready, base))


def test_a_long_first_step_is_given_up_when_the_run_is_stopped(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt")
    events = []
    with pytest.raises(LLMError, match="stopped before the first training step was finished; no model was written"):
        for event in train(ready, stop=lambda: True, clock=ticking(2.0)):
            events.append(event)
    assert [type(event) for event in events] == [State]  # from which the run can be resumed


@pytest.mark.slow
def test_a_long_step_is_given_up_without_a_trace_when_the_run_is_stopped(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt")
    answers = iter([False] * 20 + [True] * 1000)
    events = run(ready, stop=lambda: next(answers), clock=ticking(2.0))
    steps = [event for event in events if isinstance(event, Step)]
    (state,) = [event for event in events if isinstance(event, State)]
    done = events[-1]
    assert isinstance(done, Done) and done.interrupted
    assert 0 < len(steps) < 40 and state.step == done.step == len(steps)
    resumed, whole = run_to_end(ready, resume_from=state), run_to_end(ready)
    for name, array in whole.checkpoint.tensors.items():
        assert np.array_equal(resumed.checkpoint.tensors[name], array)


def test_a_time_limit_that_ends_within_the_first_step_is_an_error(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=5.0, layers=8)
    with pytest.raises(LLMError, match=r"no training step could be finished in `seconds` 5s: .*; give more time"):
        run(ready, clock=ticking(2.0), started_at=0.0)


def test_the_state_is_saved_before_a_long_final_evaluation(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=3)
    assert not [event for event in run(ready) if isinstance(event, State)]
    events = run(ready, schedule=Schedule(long_evaluation=0))
    (state,) = [event for event in events if isinstance(event, State)]
    assert state.step == 3
    last_step = next(event for event in events if isinstance(event, Step) and event.step == 3)
    assert events.index(state) == events.index(last_step) + 1  # nothing was measured in between
    assert_same_end(run(ready, resume_from=state), events)
