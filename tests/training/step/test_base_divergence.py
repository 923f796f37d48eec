"""The divergence from the base model that is added to the loss of fine-tuning on conversations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmcli.config import TrainConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.plain_text import GENERATED_LENGTH
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import stop_between_layers
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Done, State
from llmcli.training.loop.run import Run
from llmcli.training.step import base_divergence
from llmcli.training.step.base_divergence import BaseDivergence
from tests.platforms import in_full
from tests.training.data.test_appended_tokens import base, fine_tune, fine_tuning
from tests.training.data.test_plain_text import BYTES, model
from tests.training.small_runs import assert_resumes_to_the_same_end, run_to_end, train, with_base

SETTINGS = TrainConfig(steps=16, context=64, batch_size=16)


def divergence(of: LanguageModel, tokenizer: Tokenizer = BYTES, weight: float = 2.0) -> BaseDivergence:
    made = base_divergence.generate(of, tokenizer, SETTINGS, weight)
    assert made
    return made


def gradients(of: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in of.named_parameters() if weight.grad is not None}


def test_the_gradients_are_those_of_the_divergence() -> None:
    """Weight 2, of four texts: a quarter of the tokens of a batch of 16 x 64, in texts of 64 tokens; compared with
    torch's own divergence on the same texts."""
    tuned, original = model(1), model(1)
    added = divergence(tuned)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    texts = np.random.default_rng([0, 5, base_divergence.SEED]).choice(64, 4, replace=False)
    ids = added.ids[torch.from_numpy(texts), :-1]
    added.add_gradients(5)
    found = gradients(tuned)
    tuned.zero_grad(set_to_none=True)
    logs, base_logs = (torch.log_softmax(one(ids).flatten(0, 1), -1) for one in (tuned, original))
    torch.autograd.backward(2.0 * F.kl_div(logs, base_logs.detach(), log_target=True, reduction="batchmean"))
    expected = gradients(tuned)
    assert found.keys() == expected.keys() and any(one.abs().max() > 1e-3 for one in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name


def test_each_step_has_its_texts() -> None:
    tuned = model(1)
    added = divergence(tuned)
    with torch.no_grad():
        tuned.lm_head.weight.add_(torch.randn(261, 32, generator=torch.Generator().manual_seed(1)))
    found = []
    for step in (0, 0, 1):
        tuned.zero_grad(set_to_none=True)
        added.add_gradients(step)
        found.append(gradients(tuned)["lm_head.weight"])
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


class PassingTime:
    """A clock that goes on by a second with each reading."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1.0
        return self.time


def prepared_text(
    seconds: float | None, spent: float = 0.0, stop: bool = False, **request: object
) -> tuple[int, float]:
    """(tokens of the base model's text before the first step, seconds that it took) in a run of which reading and
    planning took `spent` seconds. The clock is read before each of two layers."""
    ready, start = fine_tuning(base(context=128), **request)
    settings = replace(ready.plan.train, seconds=seconds)
    clock = PassingTime()
    timer = Clock(settings, -spent, now=clock, stop_requested=lambda: stop)
    ready = with_base(replace(ready, plan=replace(ready.plan, train=settings)), start)
    run = Run(RunData(ready), timer)
    began = clock.time
    run.begin(None)
    divergence = run._base_divergence
    return divergence.ids[:, 1:].numel() if divergence else 0, clock.time - began


def test_the_text_of_the_base_model_keeps_its_share_of_the_time() -> None:
    """64 texts, of whose tokens each takes two seconds: 11 in a tenth of 240 s, none that are long enough in a tenth of
    100 s, nor in a quarter of the 40 s that are left of 240 s."""
    tokens, seconds = prepared_text(240.0)
    assert tokens == 64 * 11 and seconds <= 240 / 10 + 4
    for budget, spent in ((100.0, 0.0), (240.0, 200.0)):
        tokens, seconds = prepared_text(budget, spent)
        assert tokens == 0 and seconds <= 10 + 4


@pytest.mark.slow
def test_without_a_time_budget_the_text_does_not_depend_on_the_clock() -> None:
    assert prepared_text(None, steps=100)[0] == 64 * GENERATED_LENGTH
    assert prepared_text(None)[0] == 3 * GENERATED_LENGTH  # one text for each of three steps
    assert prepared_text(1e9)[0] == 64 * GENERATED_LENGTH


def test_shorter_texts_are_the_beginnings_of_the_whole_ones() -> None:
    whole = base_divergence.generate(model(1), BYTES, SETTINGS, 2.0)
    short, readings = model(1), iter(range(10**6))
    with stop_between_layers(short, lambda: next(readings) >= 2 * 10):
        part = base_divergence.generate(short, BYTES, SETTINGS, 2.0)
    assert whole and part and part.hidden.shape == (64, 10, 32)
    assert torch.equal(part.ids, whole.ids[:, :11]) and torch.equal(part.hidden, whole.hidden[:, :10])


def test_a_stop_request_ends_the_text_at_once() -> None:
    assert prepared_text(None, stop=True)[1] <= 4
    ready, start = fine_tuning(base(context=128))
    events = []
    with pytest.raises(LLMError, match="stopped before the first training step"):
        for event in train(ready, start, stop=lambda: True):
            events.append(event)
    assert [type(event) for event in events] == [State]  # not even the base model is evaluated


@pytest.mark.slow
def test_a_timed_run_without_time_for_the_divergence_trains_without_it() -> None:
    ready, start = fine_tuning(base(context=128))
    plan = replace(ready.plan, train=replace(ready.plan.train, seconds=50.0, steps=3))
    done = run_to_end(replace(ready, plan=plan), start, clock=PassingTime(), started_at=0.0)
    assert done.step > 0
    assert done.checkpoint.record.document["conversations"]["base_tokens"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("lora", [pytest.param(0, marks=in_full), 2])
def test_a_run_resumed_from_any_step_ends_the_same(tmp_path: Path, lora: int) -> None:
    ready, start = fine_tuning(base(context=128), steps=6, lora=lora, lr=3.0)
    assert_resumes_to_the_same_end(ready, (1, 4), start)


@pytest.mark.parametrize("lora", [0, pytest.param(2, marks=in_full)])
@pytest.mark.slow
def test_a_run_forgets_less(monkeypatch: pytest.MonkeyPatch, lora: int) -> None:

    def rise() -> float:
        done = fine_tune(base(context=128), steps=30, lora=lora, lr=3.0)
        assert isinstance(done, Done) and done.best_step > 0
        scores = done.checkpoint.record.document["plain_text"]
        return float(scores["after"] - scores["before"])

    kept = rise()
    monkeypatch.setattr(BaseDivergence, "add_gradients", lambda self, step: None)
    assert 0 < kept < 0.7 * rise()
