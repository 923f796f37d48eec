"""Sampling: each filter compared with vectors computed by hand, the draws with softmax."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmcli.config import SamplingConfig
from llmcli.generation.generator import generate
from llmcli.generation.sampler import Sampler, min_p, repetition_penalty, temperature, top_k, top_p
from llmcli.models.logits import softmax
from tests.generation.fakes import Digits, FakeRuntime
from tests.models.test_logits import PROBABILITIES, logits_of

INF = math.inf
PLAIN = SamplingConfig(temperature=1.0, min_p=0.0)  # no filter


def vector(*values):
    return np.array(values, np.float32)


def draws(config, logits, count, seen=()):
    sampler = Sampler(config)
    return [sampler(logits, seen)[0] for _ in range(count)]


def kept(logits):
    return set(np.isfinite(logits).nonzero()[0].tolist())


def test_top_k_keeps_the_k_most_likely():
    for k, expected in [
        (0, [1, 3, 2, 0]),
        (1, [-INF, 3, -INF, -INF]),
        (2, [-INF, 3, 2, -INF]),
        (4, [1, 3, 2, 0]),
        (1000, [1, 3, 2, 0]),
    ]:
        np.testing.assert_array_equal(top_k(vector(1, 3, 2, 0), k), vector(*expected))
    np.testing.assert_array_equal(top_k(vector(1, 3, 1, 0), 2), vector(1, 3, 1, -INF))  # ties with the last one stay


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    rng = np.random.default_rng(1)
    for scale, p in itertools.product((0.1, 1, 5), (0.0, 1e-9, 0.1, 0.5, 0.9, 0.999)):
        logits = rng.normal(0, scale, 3000).astype(np.float32)
        logits[::7] = -INF
        ranked = np.argsort(-logits)
        cumulative = softmax(logits)[ranked].cumsum(dtype=np.float64)
        expected = set(ranked[: 1 + int((cumulative < p).sum())].tolist())
        found = top_p(logits, p)
        assert kept(found) == expected, (scale, p)
        np.testing.assert_array_equal(found[sorted(expected)], logits[sorted(expected)])
        np.testing.assert_array_equal(top_p(logits, 1.0), logits)


def test_min_p_keeps_tokens_at_least_p_times_as_likely_as_the_most_likely():
    for p, expected in [
        (0.0, {0, 1, 2, 3}),
        (0.3, {1, 2, 3}),
        (0.8, {1}),
        (1.0, {1}),
    ]:
        logits = logits_of(PROBABILITIES)
        found = min_p(logits, p)
        assert kept(found) == expected, (p, expected)
        np.testing.assert_array_equal(found[sorted(expected)], logits[sorted(expected)])


def test_temperature_raises_probabilities_to_its_inverse():
    for value, expected in [
        (1.0, PROBABILITIES),
        (0.5, [0.01 / 0.30, 0.16 / 0.30, 0.04 / 0.30, 0.09 / 0.30]),  # squares
        (2.0, [math.sqrt(p) / sum(math.sqrt(q) for q in PROBABILITIES) for p in PROBABILITIES]),  # roots
    ]:
        np.testing.assert_allclose(softmax(temperature(logits_of(PROBABILITIES), value)), expected, rtol=1e-5)


def test_repetition_penalty_divides_positive_and_multiplies_negative():
    for seen, penalty, expected in [
        ([0, 1], 2.0, [1, -4, 1, 0]),  # positive divided, negative multiplied
        ([0, 0, 0], 2.0, [1, -2, 1, 0]),  # once, however often it was seen
        ([0, 1], 0.5, [4, -1, 1, 0]),
        ([0, 1], 1.0, [2, -2, 1, 0]),
        ([], 2.0, [2, -2, 1, 0]),
    ]:
        np.testing.assert_array_equal(repetition_penalty(vector(2, -2, 1, 0), seen, penalty), vector(*expected))


def test_filters_apply_in_the_order_penalty_temperature_top_k_top_p_min_p():
    for options, seen, expected in [
        ({}, (), {0, 1, 2, 3}),
        ({"repetition_penalty": 8.0, "top_k": 1}, [0], {1}),  # penalty before top-k, or only 0 would be left
        ({"temperature": 0.1, "top_p": 0.85}, (), {0}),  # temperature before top-p, or 1 and 2 would be left too
        ({"temperature": 2.0, "top_p": 0.35}, (), {0, 1}),  # ... or only 0
        ({"temperature": 2.0, "min_p": 0.8}, (), {0, 1}),  # temperature before min-p, or only 0
        ({"top_k": 2, "top_p": 0.5}, (), {0}),  # top-k before top-p, or 1 would be left too
        ({"top_p": 0.5, "min_p": 0.6}, (), {0, 1}),  # top-p before min-p, or only 0
    ]:
        logits = logits_of([0.4, 0.3, 0.2, 0.1])
        assert set(draws(replace(PLAIN, **options), logits, 300, seen)) == expected, (options, seen, expected)


ANY_LOGITS = st.lists(st.floats(-30, 30, width=32) | st.just(-INF), min_size=1, max_size=12)
ANY_OPTIONS = st.builds(
    SamplingConfig, temperature=st.sampled_from([0.3, 1.0, 2.5]), top_k=st.integers(0, 14), top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(ANY_LOGITS, ANY_OPTIONS, st.sets(st.integers(0, 11)))
def test_logprobs_are_those_of_the_raw_logits(values, config, seen):
    assume(max(values) > -INF)
    logits = vector(*values)
    before = logits.copy()
    config = replace(config, repetition_penalty=1.5)
    token, logprob = Sampler(config)(logits, [i for i in seen if i < len(values)])
    total = math.log(sum(math.exp(value - max(values)) for value in values)) + max(values)
    assert logprob == pytest.approx(values[token] - total, abs=1e-4)
    np.testing.assert_array_equal(logits, before)  # the runtime's array is not modified


def test_tiny_temperatures_do_not_overflow_and_take_the_most_likely():
    for value in [0.0, 1e-3, 1e-6, 1e-30, 5e-324]:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            assert draws(replace(PLAIN, temperature=value), vector(-1e4, 1e4, 9e3, -INF), 20) == [1] * 20, value


def test_huge_temperatures_do_not_overflow_and_draw_uniformly():
    for value in [1e6, 1e30, 1e300]:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            found = Counter(draws(replace(PLAIN, temperature=value), vector(-9, 9, 3, 0), 400))
        assert all(found[i] > 60 for i in range(4)), value


def test_the_sampler_receives_each_seen_token_once():
    given = []

    class Spy(Sampler):
        def __call__(self, logits, seen=(), **values):
            given.append(len(seen))
            return super().__call__(logits, seen, **values)

    config = SamplingConfig(max_tokens=90, repetition_penalty=1.5)
    model = FakeRuntime(200, lambda _: vector(-INF, 2.0, 1.7, 1.4, 1.0))
    list(generate(model, Digits(*"abcd"), "1" * 9, Spy(config)))
    assert given[0] == 1 and max(given) <= 4
