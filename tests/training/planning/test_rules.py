"""The rules of the planner: context, induction heads, batch size, regularization, calibration."""

from dataclasses import replace

import pytest

from llmcli.errors import LLMError
from llmcli.training.planning.cost_model import Machine
from llmcli.training.planning.plan import PlanRequest
from tests.training.plans import BASE, plan


def test_the_context_length_follows_the_text() -> None:
    for train_tokens, seconds, expected in [
        (9, 60, 8),
        (70, 60, 16),
        (1000, 60, 128),
        (100_000, 60, 256),
        (100_000, 3600, 1024),
        (99_999, 3600, 128),
    ]:
        assert plan(PlanRequest(seconds=seconds), train_tokens=train_tokens).train.context == expected


def test_induction_heads_where_they_help() -> None:
    for requested, train_tokens, context in [  # 0: no induction heads
        ({"seconds": 300.0}, 1_000_000, 1024),
        ({"seconds": 300.0}, 50_000, 0),  # a short text
        ({"seconds": 142.0}, 1_000_000, 512),  # long windows would take too much of the time
        ({"seconds": 142.0, "threads": 2}, 1_000_000, 1024),
        ({"seconds": 20.0}, 1_000_000, 0),
        ({"seconds": 20.0, "device": "cuda"}, 1_000_000, 1024),
        ({"seconds": 300.0, "tie": True}, 1_000_000, 0),  # no output embedding of its own
        ({"seconds": 300.0, "layers": 1}, 1_000_000, 0),
        ({"seconds": 300.0, "width": 32}, 1_000_000, 0),
        ({"steps": 10}, 1_000_000, 1024),
    ]:
        induction = context > 0
        result = plan(PlanRequest(**requested), train_tokens=train_tokens)
        assert result.train.induction is induction
        assert [row.value for row in result.rows if row.name == "initialization"] == (
            ["induction heads"] if induction else []
        )
        # long contexts only where induction heads can use them
        assert (result.train.context, result.model.rope_theta) == (
            (context, 1e6) if induction else (result.train.context, 1e4)
        )
        assert induction or result.train.context <= 256
        assert not plan(PlanRequest(seconds=300.0), train_tokens=train_tokens, base=BASE).train.induction


def test_a_model_that_cannot_hold_induction_heads_has_a_short_context():
    """With so large a vocabulary the embeddings of a small model are tied, those of a large one are not."""
    small = plan(PlanRequest(steps=10), train_tokens=5_000_000, vocab_size=8192)
    assert small.model.tie_word_embeddings and not small.train.induction
    assert (small.train.context, small.model.rope_theta) == (256, 1e4)
    large = plan(PlanRequest(steps=10**6), train_tokens=5_000_000, vocab_size=8192)
    assert large.train.induction and (large.train.context, large.model.rope_theta) == (1024, 1e6)


def test_dropout_grows_with_the_number_of_epochs():
    small = plan(PlanRequest(epochs=30.0, layers=2, width=64)).train
    assert (small.dropout, small.token_split) == (0.2, 0.15)
    large = plan(PlanRequest(epochs=30.0, layers=4, width=192)).train  # nine layer parameters per token
    assert (large.dropout, large.token_split) == (0.3, 0.3)
    assert plan(PlanRequest(epochs=10.0)).train.dropout == 0.1
    assert plan(PlanRequest(epochs=2.0)).train.dropout == 0.0


def test_the_size_of_the_validation_slice() -> None:
    for epochs, train_tokens, tokens in [
        (10.0, 200_000, 3125),
        (1.0, 3_200_000, 8000),
        (1.0, 100_000_000, 65_536),
        (10.0, 30_000, 0),
    ]:
        planned = plan(PlanRequest(epochs=epochs), train_tokens=train_tokens)
        assert planned.train.calibration_tokens == tokens
        [row] = [row for row in planned.rows if row.name == "validation"]
        assert row.value == (f"{tokens:,} tokens" if tokens else "none")


def test_the_temperature_is_calibrated_after_many_epochs_of_enough_text() -> None:
    for request_, train_tokens, calibrates in [
        (PlanRequest(epochs=10.0), 65_536, True),
        (PlanRequest(epochs=10.0), 65_535, False),  # the slice would have 1,023 tokens
        (PlanRequest(epochs=5.0), 200_000, False),  # few epochs do not make a model overconfident
        (PlanRequest(epochs=10.0, lora=4), 200_000, False),
    ]:
        assert plan(request_, train_tokens=train_tokens).train.calibrates == calibrates


def test_the_error_of_a_context_longer_than_the_text_names_the_longest_possible():
    with pytest.raises(LLMError, match=r"`context` 500 needs 501; add more text$"):
        plan(PlanRequest(context=500, context_reason="another's"), train_tokens=500)
    with pytest.raises(LLMError, match="`context` 500 needs 501") as caught:
        plan(PlanRequest(context=500), train_tokens=500)
    assert "`context` 499 or less" in str(caught.value)
    assert caught.value.exit_code == 1
    assert plan(PlanRequest(context=499), train_tokens=500).train.context == 499
    assert plan(PlanRequest(context=64), base=BASE).train.context == BASE.max_position_embeddings == 64


def test_a_context_of_nearly_the_whole_text_leaves_none_for_a_validation_slice():
    """Of 40,000 tokens it would have 625."""
    slices = {n: plan(PlanRequest(context=n), train_tokens=40_000).train.calibration_tokens for n in (39_000, 39_900)}
    assert slices == {39_000: 625, 39_900: 0}


def test_a_text_too_short_for_any_context_is_an_error() -> None:
    for train_tokens in [0, 1, 8]:
        with pytest.raises(
            LLMError, match=f"too short: {train_tokens} training tokens .* 9 .*`vocab_size` 261 "
        ) as caught:
            plan(train_tokens=train_tokens)
        assert caught.value.exit_code == 1


def test_adapters_for_a_text_get_small_batches_short_windows_and_twice_the_rate() -> None:
    base = replace(BASE, max_position_embeddings=8192)
    for seconds, requested, expected in [
        (200.0, {"lora": 8}, (256, 1, 2.0)),  # 25,632 tokens: their square root times 1.6 is 256
        (1000.0, {"lora": 8, "lr": 0.5}, (256, 2, 1.0)),  # 129,600 tokens: 576
        (1000.0, {}, (512, 2, 1.0)),
    ]:
        machine = Machine(lambda *_: 144.0)
        train = plan(PlanRequest(seconds=seconds, **requested), train_tokens=10**6, base=base, machine=machine).train
        assert (train.context, train.batch_size, train.lr) == expected
