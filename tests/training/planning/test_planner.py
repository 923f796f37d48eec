"""Plans: they can be trained, follow the speed of the machine, and keep what the user requests."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import CorpusSize, Machine, estimated_speed, expected_loss
from llmcli.training.planning.plan import PlanRequest
from llmcli.training.planning.rules import token_shares
from llmcli.training.planning.task import ConversationSize
from tests.training.plans import BASE, budgets, machines, plan, row, times, tokens

SHAPES = len(recipe.SHAPES)
LONG_BASE = replace(BASE, max_position_embeddings=8192)


@pytest.mark.parametrize(("speed", "windows"), [(200.0, 1), (400.0, 1), (500.0, 2)])
def test_on_a_slow_machine_batches_are_smaller_so_that_there_are_thirty_steps(speed: float, windows: int) -> None:
    """Also at seven tenths of the measured speed, if a batch of one window allows that."""
    result = plan(PlanRequest(seconds=120), base=LONG_BASE, machine=Machine(lambda *_: speed))
    tokens = result.train.batch_size * result.train.context
    assert tokens == windows * 512
    assert 0.9 * 120 * speed / tokens >= 30 and (0.7 * 0.9 * 120 * speed / tokens >= 30 or windows == 1)
    assert not result.warning


def test_lora_on_few_conversations_takes_thirty_steps_or_says_that_it_does_not() -> None:
    """36 pairs of 57 tokens, one to a row of 64. A tenth of the time is for generating text, and a step takes 1.4 times
    as long as its batch."""
    pairs = ConversationSize((57,) * 36, 36 * 150)
    for speed, rows, warning in ((2000.0, 9, ""), (60.0, 1, ""), (25.0, 1, "only about 27 of 30 steps fit in 2m; ")):
        result = plan(
            PlanRequest(seconds=120, lora=8), base=LONG_BASE, train_tokens=0,
            conversations=pairs, machine=Machine(lambda *_, speed=speed: speed),
        )  # fmt: skip
        assert (result.train.batch_size, result.train.context) == (rows, 64)
        assert result.warning.startswith(warning) and bool(result.warning) == bool(warning)


def test_a_time_budget_for_fewer_steps_gives_a_warning() -> None:
    for speed, warning in (
        (10.0, "only about 2 of 30 steps fit in 2m; give `seconds` 28m27s or more, or a smaller `context`"),
        (1.0, "less than one of 30 steps fits in 2m; give `seconds` 4h44m27s or more, or a smaller `context`"),
    ):
        result = plan(PlanRequest(seconds=120), base=LONG_BASE, machine=Machine(lambda *_, speed=speed: speed))
        assert result.warning == warning
    assert not plan(PlanRequest(steps=2)).warning


def test_a_time_budget_that_reading_uses_up_gives_a_warning_with_one_that_is_enough() -> None:
    """Of 2 s with 1.9 s over, a tenth is planned for, in which there is time for 10 steps of 1,024 tokens."""
    task = {"train_tokens": 50_000, "machine": Machine(lambda *_: 60_000.0), "seconds_spent": 1.9}
    result = plan(PlanRequest(seconds=2), **task)
    assert result.warning == "reading and planning take most of 2s; give `seconds` 4s or more"
    assert not plan(PlanRequest(seconds=4), **task).warning


def test_a_short_run_is_planned_for_the_time_that_reading_leaves() -> None:
    """At 1,000 tokens per second: of 10 s with 2 s over, 95 % of 8 s less 1 s; of 142 s still nine tenths."""
    for seconds, spent, trained in ((10, 2.0, 6600), (10, 9.9, 1000), (142, 2.0, 127_800)):
        result = plan(
            PlanRequest(seconds=seconds), train_tokens=20_000, machine=Machine(lambda *_: 1000.0), seconds_spent=spent
        )
        assert result.expected and result.expected.epochs * 20_000 == pytest.approx(trained)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(tokens, budgets, machines, st.integers(261, 70_000))
def test_every_plan_can_be_trained(train_tokens, budget, machine, vocab_size):
    result = plan(PlanRequest(**budget, **machine), train_tokens=train_tokens, vocab_size=vocab_size)
    model, train = result.model, result.train  # their own checks have passed
    assert model.hidden_size / 3 <= model.head_dim * model.num_attention_heads <= model.hidden_size
    assert (model.num_hidden_layers, model.hidden_size) in recipe.SHAPES
    assert model.vocab_size == vocab_size
    assert 8 <= train.context == model.max_position_embeddings < train_tokens
    assert train.batch_size >= 1
    assert train.batch_size * train.context <= train_tokens
    assert train.steps >= 1
    assert (train.device, train.threads) == (machine["device"], machine["threads"])
    assert all(row.value and row.reason for row in result.rows)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(tokens, machines, st.sampled_from(["seconds", "steps"]), st.tuples(*[st.integers(1, 200_000)] * 2))
def test_more_time_or_steps_never_make_a_smaller_model(train_tokens, machine, unit, both):
    """Unless it is enough for two of them."""
    less, more = (plan(PlanRequest(**machine, **{unit: n}), train_tokens=train_tokens) for n in sorted(both))
    if less.train.teacher_share == more.train.teacher_share:
        assert less.model.parameters <= more.model.parameters


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(tokens, min_size=2, max_size=2), budgets.filter(lambda b: "epochs" in b or "steps" in b), machines)
def test_more_text_never_makes_a_smaller_model_without_a_time_budget(both, budget, machine):
    less, more = (plan(PlanRequest(**budget, **machine), train_tokens=n).model for n in sorted(both))
    assert less.parameters <= more.parameters


@settings(max_examples=100, deadline=None)
@given(tokens, times, st.lists(st.floats(0.05, 20), min_size=SHAPES, max_size=SHAPES), st.integers(1, 64))
@example(53_596, 2.0, [2.0] + [1.0] * 14, 8)  # less than half of the time is for steps
@example(1_033_148, 28_815.0, [1.0] * 10 + [2.0, 1.0, 1.0], 1)  # two models: what was measured for one counts
@pytest.mark.slow
def test_the_plan_follows_the_measured_speed_and_measures_rarely(train_tokens, seconds, factors, threads):
    measured = []

    def speed(model, train, allowed=0.0):
        assert 0 <= allowed <= min(recipe.MAX_MEASUREMENT_SECONDS, 0.0055 * seconds)
        measured.append((model.num_hidden_layers, model.hidden_size))
        return factors[recipe.SHAPES.index(measured[-1])] * estimated_speed(model, train)

    request = PlanRequest(seconds=seconds, threads=threads)
    result = plan(request, train_tokens=train_tokens, machine=Machine(speed))
    share = token_shares(result.train.teacher_share)[1]
    rest = recipe.SHARE_OF_REST * seconds - recipe.AROUND_TRAINING_SECONDS
    training_seconds = max(recipe.MIN_TRAINING_SHARE * seconds, min(recipe.TRAINING_SHARE * seconds, rest))
    assert 1 <= len(set(measured)) <= recipe.MAX_MEASUREMENTS * (2 if share < 1 else 1)
    assert max(map(measured.count, measured)) <= 2
    # the shape chosen was measured, and no other measured one has a lower expected loss
    shape = (result.model.num_hidden_layers, result.model.hidden_size)
    assert shape in measured

    def loss(other):
        model = plan(replace(request, layers=other[0], width=other[1]), train_tokens=train_tokens).model
        in_time = training_seconds * speed(model, result.train)
        if share < 1 and in_time < recipe.DISTILLATION_EPOCHS * train_tokens:
            return math.inf  # there would be no time for two of them
        seen = min(recipe.MAX_EPOCHS * train_tokens, share * in_time)
        return expected_loss(model.parameters, seen, CorpusSize(train_tokens, 3 * train_tokens))

    assert loss(shape) <= 1.02 * min(loss(other) for other in list(measured))


@settings(deadline=None)
@given(budgets.filter(lambda budget: "steps" in budget or "epochs" in budget))
@pytest.mark.slow
def test_without_a_time_budget_nothing_is_measured(budget):
    def speed(model, train, allowed):
        raise AssertionError

    assert plan(PlanRequest(**budget), machine=Machine(speed)) == plan(PlanRequest(**budget))


def test_budget_and_text_both_limit_the_size():
    def shape(seconds, train_tokens):
        model = plan(PlanRequest(seconds=seconds), train_tokens=train_tokens).model
        return model.num_hidden_layers, model.hidden_size

    assert shape(seconds=1, train_tokens=10**9) == shape(seconds=200_000, train_tokens=100) == recipe.SHAPES[0]
    assert shape(seconds=200_000, train_tokens=10**9) > shape(seconds=300, train_tokens=10**9) > recipe.SHAPES[0]


def test_requested_values_are_taken_and_the_reason_says_so() -> None:
    for requested, name, value in [
        ({"seconds": 90.0}, "budget", "1m 30s"),
        ({"layers": 5}, "model size", None),
        ({"width": 96}, "architecture", None),
        ({"context": 77}, "context length", "77 tokens"),
        ({"tie": True}, "tied embeddings", "yes"),
        ({"tie": False}, "tied embeddings", "no"),
        ({"batch_tokens": 2048}, "batch size", "2 x 1024 tokens"),
        ({"dropout": 0.0}, "dropout", "0"),
        ({"dropout": 0.35}, "dropout", "0.35"),
    ]:
        fixed, free = row(plan(PlanRequest(**requested)), name), row(plan(), name)
        assert fixed.reason == "as requested" != free.reason
        assert value is None or fixed.value == value


def test_every_requested_setting_is_in_the_train_config():
    requested = {"lr": 0.5, "seed": 9, "device": "cuda", "dtype": "bfloat16", "threads": 3, "dropout": 0.25}
    train = plan(PlanRequest(**requested, context=64, batch_tokens=512, seconds=90.0)).train
    assert {name: getattr(train, name) for name in requested} == requested
    assert (train.batch_size, train.seconds) == (8, 90.0)
