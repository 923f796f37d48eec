"""The divergence from the base model that is added to the loss of fine-tuning on conversations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmcli.config import TrainConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.models.transformer import LanguageModel
from llmcli.training import base_behaviour, trainer
from llmcli.training.base_behaviour import BaseBehaviour
from llmcli.training.events import Done, Event, State
from tests.platforms import in_full
from tests.training.small_runs import through_a_file
from tests.training.test_appended_tokens import base, fine_tune, fine_tuning
from tests.training.test_plain_text import BYTES, model

SETTINGS = TrainConfig(steps=9, context=64, batch_size=16)


def behaviour(of: LanguageModel, tokenizer: Tokenizer = BYTES, weight: float = 2.0) -> BaseBehaviour:
    return BaseBehaviour(of, tokenizer, SETTINGS, weight)


def gradients(of: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in of.named_parameters() if weight.grad is not None}


def test_the_base_model_itself_has_no_gradient() -> None:
    tuned = model(1)
    behaviour(tuned).add_gradients(0)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(tuned).values())


def test_the_gradients_are_those_of_the_divergence() -> None:
    """Weight 2, of four texts: a quarter of the tokens of a batch of 16 x 64, in texts of 64 tokens; compared with
    torch's own divergence on the same texts."""
    tuned, original = model(1), model(1)
    added = behaviour(tuned)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    texts = np.random.default_rng([0, 5, base_behaviour.SEED]).choice(64, 4, replace=False)
    ids = added._reference.ids[torch.from_numpy(texts), :-1]
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
    added = behaviour(tuned)
    with torch.no_grad():
        tuned.lm_head.weight.add_(torch.randn(261, 32, generator=torch.Generator().manual_seed(1)))
    found = []
    for step in (0, 0, 1):
        tuned.zero_grad(set_to_none=True)
        added.add_gradients(step)
        found.append(gradients(tuned)["lm_head.weight"])
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("lora", [pytest.param(0, marks=in_full), 2])
def test_a_run_resumed_from_any_step_ends_the_same(tmp_path: Path, lora: int) -> None:
    """The base model's text and predictions are those of the base model, and not of the state that goes on."""
    ready, start = fine_tuning(base(context=128), steps=6, lora=lora, lr=3.0)

    def run(**options: object) -> list[Event]:
        return list(
            trainer.train(
                ready.plan, ready.tokenizer, start, ready.tokens, ready.held_out, ready.record,
                conversations=ready.conversations, **options,  # type: ignore[arg-type]
            )
        )  # fmt: skip

    whole = run(save_due=lambda: True)
    saved = [event for event in whole if isinstance(event, State)]
    ours = whole[-1]
    assert isinstance(ours, Done) and [state.step for state in saved] == [1, 2, 3, 4, 5]
    for state in (saved[0], saved[3]):
        theirs = run(resume_from=through_a_file(ready, state))[-1]
        assert isinstance(theirs, Done) and ours.checkpoint.record == theirs.checkpoint.record
        for name, array in ours.checkpoint.tensors.items():
            assert np.array_equal(array, theirs.checkpoint.tensors[name]), name


@pytest.mark.parametrize("lora", [0, pytest.param(2, marks=in_full)])
@pytest.mark.slow
def test_a_run_forgets_less(monkeypatch: pytest.MonkeyPatch, lora: int) -> None:
    """Than without the divergence, on text that the base model generates for the comparison at the end."""

    def rise() -> float:
        done = fine_tune(base(context=128), steps=30, lora=lora, lr=3.0)
        assert isinstance(done, Done) and done.best_step > 0
        scores = done.checkpoint.record["plain_text"]
        return float(scores["after"] - scores["before"])

    kept = rise()
    monkeypatch.setattr(BaseBehaviour, "add_gradients", lambda self, step: None)
    assert 0 < kept < 0.7 * rise()
