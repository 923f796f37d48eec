"""Training as a function: it learns, it repeats itself, it keeps the best, it can be stopped."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmcli.config import EVALUATION_CONTEXT, ModelConfig, SamplingConfig, TrainConfig
from llmcli.data.corpus import read_corpus
from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation.evaluator import evaluate
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.models.induction import has_room, with_induction
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.transformer import LanguageModel
from llmcli.training import trainer
from llmcli.training.plan import Regularization, Request
from llmcli.training.planner import make_plan
from llmcli.training.prepare import Prepared, prepare
from llmcli.training.rules import regularization

BYTES = Tokenizer.train_bpe(["a"], 257)  # one token for each byte
LINES = "".join(f"{a} likes {b}.\n" for a in ("Anna", "Ben", "Cleo") for b in ("tea", "milk", "rice", "bread")) * 30


def prepared(path: Path, **wishes: object) -> Prepared:
    path.write_text(LINES, "utf-8")
    return prepare(Request(**{"steps": 40, "batch_tokens": 512, "context": 32, **wishes}), read_corpus([str(path)]))  # type: ignore[arg-type]


def run(ready: Prepared, **options: object) -> list[trainer.Event]:
    return list(
        trainer.train(ready.plan, ready.tokenizer, None, ready.tokens, ready.held_out, ready.record, **options)  # type: ignore[arg-type]
    )


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    events = run(prepared(tmp_path / "c.txt"))
    losses = [event.loss for event in events if isinstance(event, trainer.Step)]
    done = events[-1]
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(prepared(tmp_path / "c.txt").plan.model.vocab_size), rel=0.01)
    assert losses[-1] < 0.3 * losses[0]
    assert isinstance(done, trainer.Done)
    assert done.figures is not None and done.figures.bits_per_byte < 1.0
    assert done.checkpoint.record["bits_per_byte"] == pytest.approx(done.figures.bits_per_byte, abs=1e-6)


def test_the_held_out_figure_is_what_the_numpy_graph_computes(tmp_path: Path) -> None:
    """Another graph, every token scored with the same windows: the same bits per byte."""
    ready = prepared(tmp_path / "c.txt", dtype="float32")
    done = run(ready)[-1]
    assert isinstance(done, trainer.Done) and done.figures is not None
    ids = np.concatenate([[ready.tokenizer.eos_id], ready.held_out]).astype(np.int64)
    lengths = np.array([len(data) for data in ready.tokenizer.token_bytes])
    wanted = evaluate(ids, lengths, 32, NumpyRuntime(done.checkpoint).score)
    assert wanted.bytes == done.figures.bytes == len(LINES.encode()) - ready.record["train_bytes"]
    assert done.figures.bits_per_byte == pytest.approx(wanted.bits_per_byte, abs=1e-4)


def test_the_same_run_gives_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    first, again, other = (run(prepared(tmp_path / "c.txt", steps=6, seed=s, dropout=0.1))[-1] for s in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(first.checkpoint.tensors[name], again.checkpoint.tensors[name])
    assert first.checkpoint.record == again.checkpoint.record
    assert not np.array_equal(first.checkpoint.tensors[name], other.checkpoint.tensors[name])


def test_what_it_said_on_the_way_is_kept_and_the_last_is_what_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "EVAL_SHARE", 1)
    ready = prepared(tmp_path / "c.txt", dtype="float32")
    events = run(ready, sample_prompt="Anna")
    done = events[-1]
    assert isinstance(done, trainer.Done)
    kept = done.checkpoint.record["samples"]
    assert kept["prompt"] == "Anna" and len(kept["texts"]) > 3
    assert kept["texts"] == [(event.step, event.text) for event in events if isinstance(event, trainer.Sample)]
    pieces = generate(
        NumpyRuntime(done.checkpoint), ready.tokenizer, "Anna", SamplingConfig(max_tokens=trainer.SAMPLE_TOKENS)
    )
    assert done.best_step == 40 and kept["texts"][-1] == (40, "".join(piece.text for piece in pieces))
    assert run(ready)[-1].checkpoint.record["samples"] == {"prompt": None, "texts": []}


def test_dropout_changes_training(tmp_path: Path) -> None:
    without, with_ = (run(prepared(tmp_path / "c.txt", steps=3, dropout=p)) for p in (0.0, 0.3))
    assert [e.loss for e in without if isinstance(e, trainer.Step)][1:] != [
        e.loss for e in with_ if isinstance(e, trainer.Step)
    ][1:]


def test_the_best_weights_are_kept_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out figures are made to be best at the second look; its weights must come out."""
    looks = iter([3.0, 1.0, 2.0, 2.5, 2.6] + [2.7] * 50)
    kept = {}
    real = trainer._Measure.now

    def now(self: trainer._Measure, *limit: Any) -> object:
        figures = real(self, *limit)
        object.__setattr__(figures, "nats", next(looks) * math.log(2) * figures.bytes)
        kept[len(kept)] = self._model.to_arrays()
        return figures

    monkeypatch.setattr(trainer._Measure, "now", now)
    monkeypatch.setattr(trainer, "EVAL_SHARE", 1)
    done = run(prepared(tmp_path / "c.txt", steps=30))[-1]
    assert isinstance(done, trainer.Done)
    assert 0 < done.best_step < 30
    for name, array in kept[1].items():
        assert np.array_equal(done.checkpoint.tensors[name], array)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_batch_in_parts_gives_the_loss_and_gradients_of_the_whole(parts: int) -> None:
    found = []
    for n in (1, parts):
        model = LanguageModel(ModelConfig(50, 16, 32, 2, 2, 2, 8, 12))
        model.initialize(torch.Generator().manual_seed(0))
        ids = torch.from_numpy(np.random.default_rng(1).integers(50, size=(5, 13)))
        loss = trainer._loss_and_gradients(model, ids, n)
        found.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*found)


def test_of_two_alike_the_later_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three looks is worse than the second by less than says anything, then by more."""
    real = trainer._Measure.now
    monkeypatch.setattr(trainer, "EVAL_SHARE", 0)
    monkeypatch.setattr(trainer, "EVAL_EVERY", 0.3)
    for last, best in ((2.0 * (1 + 0.9 * trainer.ALIKE), 10), (2.0 * (1 + 1.1 * trainer.ALIKE), 9)):
        looks = iter([3.0, 2.5, 2.0, last])

        def now(self: trainer._Measure, *limit: Any, looks: Any = looks) -> object:
            figures = real(self, *limit)
            object.__setattr__(figures, "nats", next(looks) * math.log(2) * figures.bytes)
            return figures

        monkeypatch.setattr(trainer._Measure, "now", now)
        done = run(prepared(tmp_path / "c.txt", steps=10))[-1]
        assert isinstance(done, trainer.Done) and done.best_step == best


def test_calibration_is_a_factor_on_the_last_gain_and_its_text_is_not_learned_from(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=30)
    apart = replace(ready, plan=replace(ready.plan, train=replace(ready.plan.train, calibration_tokens=66)))
    count = len(ready.tokens)  # two windows of 33, in the middle of each half
    aside = [int(share * (count - 33)) + i for share in (0.25, 0.75) for i in range(33)]
    without = replace(ready, tokens=np.delete(ready.tokens, aside))
    first, second = run(apart), run(without)
    losses = [[event.loss for event in events if isinstance(event, trainer.Step)] for events in (first, second)]
    assert losses[0] == losses[1]
    ours, theirs = (events[-1].checkpoint for events in (first, second))  # type: ignore[union-attr]
    factor = ours.record["sharpness"]
    assert factor != 1.0 and theirs.record["sharpness"] == 1.0
    for name, array in theirs.tensors.items():
        assert np.allclose(ours.tensors[name], array * (factor if name == "model.norm.weight" else 1.0), rtol=1e-6)


def test_stopping_ends_after_the_step_with_what_there_is(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    events = run(prepared(tmp_path / "c.txt"), stop=lambda: next(asked))
    done = events[-1]
    assert [event.step for event in events if isinstance(event, trainer.Step)] == [1, 2, 3]
    assert isinstance(done, trainer.Done) and done.interrupted and done.step == 3
    assert done.checkpoint.record["interrupted"] is True


def test_without_held_out_text_the_last_weights_are_kept(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(LINES, "utf-8")
    ready = prepare(Request(steps=4, context=32), read_corpus([str(tmp_path / "c.txt")]), held_out=0.0)
    done = run(ready)[-1]
    assert isinstance(done, trainer.Done) and done.figures is None and done.best_step == 4


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.LanguageModel, "loss", lambda self, ids: self.model.norm.weight.sum() * float("nan"))
    with pytest.raises(
        LLMError, match=r"no longer a number at step 1; lower the learning rate: --lr-scale 0.25 --force"
    ):
        run(prepared(tmp_path / "c.txt"))


def test_a_loss_that_becomes_no_number_ends_with_the_best_weights_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = prepared(tmp_path / "c.txt", steps=40)
    whole = [event for event in run(ready) if isinstance(event, trainer.Evaluation)]
    real, steps = trainer.LanguageModel.loss, iter(range(1, 100))
    monkeypatch.setattr(
        trainer.LanguageModel, "loss", lambda self, ids: real(self, ids) * (float("nan") if next(steps) > 30 else 1.0)
    )
    events = run(ready)
    done = events[-1]
    assert isinstance(done, trainer.Done)
    assert done.problem == "the loss is no longer a number at step 31; lower the learning rate: --lr-scale 0.25 --force"
    record = done.checkpoint.record
    assert (done.step, record["steps"], record["interrupted"], record["problem"]) == (30, 30, False, done.problem)
    assert 0 < done.best_step <= 30
    assert all(np.isfinite(array).all() for array in done.checkpoint.tensors.values())
    looks = [event for event in events if isinstance(event, trainer.Evaluation)]
    assert looks == whole[: len(looks)]


def test_weights_that_are_no_numbers_are_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of a run moves the weights to where they are none; its own loss was still a number."""
    monkeypatch.setattr(trainer.Optimizer, "step", lambda self, progress: self._matrices[0][0].data.fill_(math.nan))
    with pytest.raises(LLMError, match="no longer a number"):
        run(prepared(tmp_path / "c.txt", steps=1))


def test_going_on_from_a_model_starts_where_it_was(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", dtype="float32")
    done = run(ready)[-1]
    assert isinstance(done, trainer.Done)
    tokenizer = Tokenizer.from_json(done.checkpoint.tokenizer_json)
    second = prepare(
        Request(steps=2, batch_tokens=512), read_corpus([str(tmp_path / "c.txt")]), tokenizer=tokenizer,
        base=done.checkpoint.config,
    )  # fmt: skip
    events = list(trainer.train(second.plan, tokenizer, done.checkpoint, second.tokens, second.held_out, second.record))
    assert isinstance(events[0], trainer.Evaluation) and events[0].step == 0  # of what it goes on from
    assert isinstance(events[1], trainer.Step)
    assert events[1].loss < 1.2
    last = events[-1]
    assert isinstance(last, trainer.Done) and last.before and last.figures
    assert last.figures.bits_per_byte <= last.before.bits_per_byte * 1.01


def test_the_curve_is_thinned_to_means() -> None:
    curve = trainer._Curve()
    for step in range(1, 2 * trainer.CURVE_POINTS + 1):
        curve.add(float(step))
    thinned = curve.thinned()
    assert len(thinned["step"]) == trainer.CURVE_POINTS
    assert thinned["step"][:2] == [2, 4]
    assert thinned["loss"][:2] == [1.5, 3.5]


@pytest.mark.parametrize(
    ("progress", "context", "wanted"),
    [(0.0, 256, 64), (0.19, 256, 64), (0.2, 256, 128), (0.5, 256, 256), (1.0, 256, 256), (0.0, 32, 16), (0.0, 8, 8),
     (0.0, 100, 25), (0.0, 90, 30), (0.2, 90, 45), (0.0, 77, 77), (0.3, 77, 77)],
)  # fmt: skip
def test_windows_grow(progress: float, context: int, wanted: int) -> None:
    settings = TrainConfig(steps=1, context=context)
    assert trainer._context_at(progress, settings) == wanted
    assert trainer._context_at(progress, replace(settings, recipe="fine-tune")) == context


@pytest.mark.parametrize(
    ("progress", "context", "wanted"),
    [(0.0, 1024, 512), (0.49, 1024, 512), (0.5, 1024, 1024), (1.0, 1024, 1024), (0.0, 32, 16), (0.0, 24, 24),
     (0.0, 8, 8)],
)  # fmt: skip
def test_windows_begin_long_where_weights_can_copy(progress: float, context: int, wanted: int) -> None:
    assert trainer._context_at(progress, TrainConfig(steps=1, context=context, induction=True)) == wanted


def test_weights_that_can_copy_are_what_a_run_begins_with(tmp_path: Path) -> None:
    """The loss of the first step is that of the weights of step 0 with the circuit in them."""
    ready = prepared(tmp_path / "c.txt", layers=2, width=64)
    settings = replace(ready.plan.train, induction=True, dropout=0.0)
    first = next(
        e for e in run(replace(ready, plan=replace(ready.plan, train=settings))) if isinstance(e, trainer.Step)
    )
    model = LanguageModel(ready.plan.model)
    model.load_arrays(
        with_induction(ready.plan.model, trainer.fresh_weights(ready.plan.model, settings.seed), settings.seed)
    )
    ids = trainer._Source(ready.tokens, settings, ready.tokenizer).batch(0, 0.0)
    assert has_room(ready.plan.model)
    assert first.loss == pytest.approx(model.loss(torch.from_numpy(ids)).item(), rel=1e-5)


def test_every_batch_has_the_same_number_of_tokens(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", context=64)
    source = trainer._Source(ready.tokens, ready.plan.train, ready.tokenizer)
    shapes = [source.batch(3, progress).shape for progress in (0.0, 0.3, 0.9)]
    assert shapes == [(32, 17), (16, 33), (8, 65)]


def test_a_run_goes_through_its_text_token_by_token_while_windows_grow(tmp_path: Path) -> None:
    """All targets of a run of three epochs whose windows are of three lengths, epoch by epoch."""
    ready = prepared(tmp_path / "c.txt", context=64)
    tokens = np.arange(1000, dtype=np.uint16)
    settings = replace(ready.plan.train, batch_size=5, steps=9, token_split=0.0)
    source = trainer._Source(tokens, settings, ready.tokenizer)
    progress = [0.0, 0.1, 0.2, 0.21, 0.4, 0.5, 0.6, 0.8, 1.0]
    batches = [source.batch(step, done) for step, done in enumerate(progress)]
    assert {batch.shape for batch in batches} == {(20, 17), (10, 33), (5, 65)}
    targets = np.concatenate([batch[:, 1:].ravel() for batch in batches]).reshape(3, -1)
    assert targets.shape[1] == 960  # of 1,000: fifteen blocks
    assert [len(set(epoch.tolist())) for epoch in targets] == [960] * 3


def test_the_text_is_not_held_in_memory(tmp_path: Path) -> None:
    """What is made of 10 MB of mapped tokens takes a tenth of that: tokens set aside, batches, held-out figures."""
    ready = prepared(tmp_path / "c.txt", layers=1, width=32)
    settings = replace(ready.plan.train, context=256, batch_size=2)
    model = LanguageModel(replace(ready.plan.model, max_position_embeddings=256))
    np.zeros(5_000_000, np.uint16).tofile(tmp_path / "tokens")
    tokens = np.memmap(tmp_path / "tokens", np.uint16, "r")
    tracemalloc.start()
    try:
        learned, aside = trainer._set_aside(tokens, 8192, 256)
        source = trainer._Source(learned, settings, ready.tokenizer)
        assert source.batch(0, 0.0).size + source.batch(10**6, 1.0).size > 1000
        measure = trainer._Measure(model, ready.tokenizer, tokens, settings)
        assert measure.now().tokens >= settings.eval_tokens
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(learned) + aside.size == len(tokens)
    assert peak < 1_000_000


def test_near_the_end_every_token_is_whole(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt")
    settings = replace(ready.plan.train, token_split=0.5)
    plain = trainer._Source(ready.tokens, ready.plan.train, ready.tokenizer)
    split = trainer._Source(ready.tokens, settings, ready.tokenizer)
    assert not np.array_equal(plain.batch(3, 0.7), split.batch(3, 0.7))
    assert np.array_equal(plain.batch(3, 0.9), split.batch(3, 0.9))


def simulate_clock(monkeypatch: pytest.MonkeyPatch, seconds_per_token: float) -> None:
    """A clock that only steps of training move, by so much for each of their tokens."""
    now = [100.0]
    real = trainer._loss_and_gradients

    def step(model: LanguageModel, ids: torch.Tensor, parts: int, *_: object) -> torch.Tensor:
        now[0] += ids[:, 1:].numel() * seconds_per_token
        return real(model, ids, parts)

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(trainer, "_loss_and_gradients", step)
    monkeypatch.setattr(trainer, "time", clock)


def test_a_speed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_clock(monkeypatch, seconds_per_token=1 / 4096)
    config = ModelConfig(300, 16, 32, 2, 2, 2, 8, 32)
    found = trainer.measured_speed(config, TrainConfig(steps=1, context=32, batch_size=16), 0.0)
    assert found == pytest.approx(4096)


class Simulated:
    """A machine with a clock of its own: steps and evaluations only let it pass, at a speed that changes."""

    def __init__(self, speed: Callable[[float], float], slow_look: int = 0) -> None:
        self.time, self.speed, self.slow_look, self.looks = 0.0, speed, slow_look, 0

    def step(self, model: LanguageModel, ids: torch.Tensor, *_: object) -> torch.Tensor:
        self.time += ids.shape[0] * (ids.shape[1] - 1) / self.speed(self.time)
        return torch.tensor(1.0)

    def score(self, model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.looks += 1
        slower = 30.0 if self.looks == self.slow_look else 10.0 if self.slow_look < 0 else 1.0
        tokens = ids.shape[0] * (ids.shape[1] - 1)
        self.time += slower * tokens / (3 * self.speed(self.time))
        return np.ones((ids.shape[0], ids.shape[1] - 1)), np.ones((ids.shape[0], ids.shape[1] - 1), bool)


@pytest.mark.parametrize(
    ("speed", "slow_look"),
    [
        pytest.param(lambda time: 90.0, 0, id="constant"),
        pytest.param(lambda time: 90.0 if time < 100 else 30.0, 0, id="slower from half of it on"),
        pytest.param(lambda time: 30.0 if time < 100 else 90.0, 0, id="faster from half of it on"),
        pytest.param(lambda time: 90.0 if time < 180 else 30.0, 0, id="slower near the end"),
        pytest.param(lambda time: 90.0 if time // 20 % 2 else 30.0, 0, id="slower now and then"),
        pytest.param(lambda time: 90.0, 9, id="one slow evaluation"),
        pytest.param(lambda time: 90.0, -1, id="every evaluation is slow"),
    ],
)
def test_a_timed_run_ends_on_time_with_the_regularization_of_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: Callable[[float], float], slow_look: int
) -> None:
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=200.0, batch_tokens=64)
    machine = Simulated(speed, slow_look)
    monkeypatch.setattr(trainer, "_loss_and_gradients", machine.step)
    monkeypatch.setattr(trainer, "score", machine.score)
    planned = replace(ready.plan.train, steps=10**9, dropout=0.2, token_split=0.15, eval_tokens=64)
    request = Request(seconds=200.0)
    events = run(
        replace(ready, plan=replace(ready.plan, train=planned)),
        began=0.0,
        spare=2.0,
        now=lambda: machine.time,
        regularize=partial(regularization, request, ready.plan.model, len(ready.tokens)),
    )
    done = events[-1]
    assert isinstance(done, trainer.Done) and done.figures
    after = 2 * min(2.0, max(map(speed, range(200))) / speed(done.seconds))
    assert 0.97 * 200 <= done.seconds + after <= 1.03 * 200
    rates = [event.rate for event in events if isinstance(event, trainer.Step)]
    assert max(rates) == 1.0 and rates[-1] < 0.02  # the schedule came to its end
    steps = [event for event in events if isinstance(event, trainer.Step)]
    epochs = steps[-1].epoch
    _, expected, dropout, split = done.checkpoint.record["regularization"][-1]
    assert expected == pytest.approx(epochs, rel=0.5)
    right = {
        regularization(request, ready.plan.model, len(ready.tokens), share * epochs) for share in (0.85, 1.0, 1.15)
    }
    assert Regularization(dropout, split) in right


def test_the_clock_is_shared_between_training_and_what_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 150 seconds spare of 200, training ends after about 50."""
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=200.0, batch_tokens=64)
    machine = Simulated(lambda time: 30.0)
    monkeypatch.setattr(trainer, "_loss_and_gradients", machine.step)
    monkeypatch.setattr(trainer, "score", machine.score)
    done = run(ready, began=0.0, spare=150.0, now=lambda: machine.time)[-1]
    assert isinstance(done, trainer.Done)
    assert 45 < done.seconds < 50 + 2 * 64 / 30  # two steps


def test_a_model_with_a_long_context_is_evaluated_with_a_shorter_one_that_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after fine-tuning a model of 131,072 positions no window is longer than EVALUATION_CONTEXT."""
    long = ModelConfig(300, 16, 32, 1, 1, 1, 16, 131_072)
    model = LanguageModel(long)
    model.initialize(torch.Generator().manual_seed(0))
    base = Checkpoint(long, BYTES.to_json(), model.to_arrays(), {})
    tokens = np.random.default_rng(0).integers(256, size=12_000).astype(np.uint16)
    plan = make_plan(Request(steps=2, batch_tokens=64), train_tokens=len(tokens), vocab_size=300, eos_id=0, base=long)
    lengths, real = [], trainer.score
    monkeypatch.setattr(trainer, "score", lambda model, ids: lengths.append(ids.shape[1] - 1) or real(model, ids))
    done = list(trainer.train(plan, BYTES, base, tokens, tokens, {}))[-1]
    assert isinstance(done, trainer.Done) and done.figures and done.before
    assert max(lengths) == EVALUATION_CONTEXT
    assert done.checkpoint.record["held_out_measured"]["context"] == EVALUATION_CONTEXT
    assert (done.before.tokens, done.before.bytes) == (done.figures.tokens, done.figures.bytes)


class Ticking:
    """A clock of which each look takes two seconds."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 2.0
        return self.time


def test_a_step_that_takes_long_is_given_up_when_the_run_is_stopped(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt")
    stopping = iter([False] * 20 + [True] * 1000)
    events = []
    with pytest.raises(LLMError, match="stopped before the first training step was finished; no model was written"):
        for event in trainer.train(
            ready.plan, ready.tokenizer, None, ready.tokens, ready.held_out, ready.record,
            stop=lambda: True, now=Ticking(),
        ):  # fmt: skip
            events.append(event)
    assert [type(event) for event in events] == [trainer.State]  # with which it can go on
    events = run(ready, stop=lambda: next(stopping), now=Ticking())
    steps = [event for event in events if isinstance(event, trainer.Step)]
    (state,) = [event for event in events if isinstance(event, trainer.State)]
    done = events[-1]
    assert isinstance(done, trainer.Done) and done.interrupted
    assert 0 < len(steps) < 40 and state.step == done.step == len(steps)
    again = run(ready, go_on=state)[-1]
    assert isinstance(again, trainer.Done)
    whole = run(ready)[-1]
    assert isinstance(whole, trainer.Done)
    for name, array in whole.checkpoint.tensors.items():  # what was given up left no trace
        assert np.array_equal(again.checkpoint.tensors[name], array)


def test_a_time_that_ends_within_the_first_step_is_an_error(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=None, seconds=5.0, layers=8)
    with pytest.raises(LLMError, match=r"no training step could be finished in --time 5s: .*; give more time"):
        run(ready, now=Ticking(), began=0.0)


def test_the_state_is_kept_before_evaluations_that_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(tmp_path / "c.txt", steps=3)
    assert not [event for event in run(ready) if isinstance(event, trainer.State)]
    monkeypatch.setattr(trainer, "LONG_EVALUATION", 0)
    events = run(ready)
    (state,) = [event for event in events if isinstance(event, trainer.State)]
    assert state.step == 3
    again, whole = run(ready, go_on=state)[-1], events[-1]
    assert isinstance(again, trainer.Done) and isinstance(whole, trainer.Done)
    assert again.checkpoint.record == whole.checkpoint.record
    for name, array in whole.checkpoint.tensors.items():
        assert np.array_equal(again.checkpoint.tensors[name], array)
