"""Training batches: a pure function of tokens, seed and step that visits each token once per epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.tokens.batches import Batches, PrefixedTokens, TokensWithoutSpans, split_merges


def ascending_tokens(length: int) -> np.ndarray:
    """Each token is its own position."""
    return np.arange(length, dtype=np.uint16)


@settings(max_examples=120, deadline=None)
@given(
    context=st.integers(1, 40),
    more=st.integers(1, 300),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 500),
)
def test_a_batch_is_slices_of_the_tokens_and_depends_on_seed_and_step_alone(
    context: int, more: int, batch_size: int, seed: int, step: int
) -> None:
    tokens = ascending_tokens(context + more)
    batches = Batches(tokens, context, batch_size, seed)
    result = batches.batch(step)
    assert result.shape == (batch_size, context + 1)
    assert result.dtype == np.int64
    assert (result == (result[:, :1] + np.arange(context + 1)) % len(tokens)).all()
    batches.batch(step + 1)
    assert np.array_equal(batches.batch(step), result)
    assert np.array_equal(Batches(tokens.copy(), context, batch_size, seed).batch(step), result)


def window_starts(batches: Batches, first: int, count: int) -> list[int]:
    """Where the windows of consecutive steps start, for ascending tokens and one window per batch."""
    return [int(batches.batch(step)[0, 0]) for step in range(first, first + count)]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), window=st.sampled_from([1, 2, 3, 5]), cuts=st.sampled_from([1, 2, 4, 6]))
@pytest.mark.slow
def test_each_token_is_a_target_once_in_an_epoch(data: st.DataObject, window: int, cuts: int) -> None:
    """Except for the remainder that fills no block. The length of the windows varies from step to step."""
    context = window * cuts
    tokens = data.draw(st.integers(context + 1, 12 * context))
    batch_size = data.draw(st.integers(1, 5))
    batches = Batches(ascending_tokens(tokens), context, batch_size, seed=data.draw(st.integers(0, 99)))
    lengths = [length for length in range(1, context + 1) if context % length == 0]
    targets: list[int] = []
    steps = 3 * batches.blocks  # so that epochs end where steps do, after batch_size of them or sooner
    for step in range(steps):
        result = batches.batch(step, data.draw(st.sampled_from(lengths)))
        assert result[:, 1:].size == batch_size * context  # every batch has the same number of tokens
        assert ((result[:, 1:] - result[:, :-1]) % tokens == 1).all()  # neighbours, the last and the first too
        targets += result[:, 1:].ravel().tolist()
    per_epoch = batches.blocks * context
    assert tokens - context < per_epoch <= tokens
    for first in range(0, len(targets), per_epoch):
        epoch = targets[first : first + per_epoch]
        assert len(set(epoch)) == len(epoch) == per_epoch


def test_short_windows_are_parts_of_the_blocks() -> None:
    batches = Batches(ascending_tokens(1000), 12, 3, seed=8)
    for step in (0, 5, 27, 28, 200):
        blocks = batches.batch(step)
        for window in (1, 2, 4, 6):
            cut = batches.batch(step, window)
            assert cut.shape == (36 // window, window + 1)
            assert np.array_equal(cut[:, :-1].reshape(3, 12), blocks[:, :-1])
            assert np.array_equal(cut[:, 1:].reshape(3, 12), blocks[:, 1:])
    with pytest.raises(ValueError, match="5 tokens do not fill blocks of 12"):
        batches.batch(0, 5)


def test_epochs_and_seeds_have_different_orders_and_offsets() -> None:
    batches = Batches(ascending_tokens(1000), 10, 1, seed=1)
    epochs = [window_starts(batches, epoch * batches.blocks, batches.blocks) for epoch in range(6)]
    assert len({tuple(visit) for visit in epochs}) == 6
    assert len({min(visit) for visit in epochs}) > 1
    assert window_starts(Batches(ascending_tokens(1000), 10, 1, seed=2), 0, batches.blocks) not in epochs
    assert epochs[0] != sorted(epochs[0])


def test_the_batch_size_does_not_change_the_order_of_blocks() -> None:
    one, four = Batches(ascending_tokens(87), 8, 1, seed=3), Batches(ascending_tokens(87), 8, 4, seed=3)
    assert one.blocks == 10  # so the third batch of four extends into the next epoch
    assert [int(start) for step in range(5) for start in four.batch(step)[:, 0]] == window_starts(one, 0, 20)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(0, 5))
def test_tokens_without_spans_are_the_remaining_tokens(data: st.DataObject, width: int, runs: int) -> None:
    gaps = data.draw(st.lists(st.integers(0, 9), min_size=runs + 1, max_size=runs + 1))
    firsts = np.cumsum(gaps[:-1], dtype=np.int64) + width * np.arange(runs)
    tokens = ascending_tokens(sum(gaps) + width * runs + 1)
    expected = np.delete(tokens, (firsts[:, None] + np.arange(width)).ravel())
    result = TokensWithoutSpans(tokens, firsts, width)
    assert len(result) == len(expected)
    assert result[np.arange(len(expected))].tolist() == expected.tolist()
    places = np.random.default_rng(0).integers(len(expected), size=(4, 3))
    assert np.array_equal(result[places], expected[places])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 20), st.integers(0, 22), st.integers(0, 22))
def test_prefixed_tokens_slice_like_the_joined_array(count: int, start: int, stop: int) -> None:
    tokens = ascending_tokens(count) + np.uint16(100)
    whole = np.concatenate([[7], tokens])
    result = PrefixedTokens(7, tokens)
    assert len(result) == len(whole)
    assert result[start:stop].tolist() == whole[start:stop].tolist()
    assert result[start:stop].dtype == tokens.dtype


MERGE_PAIRS = np.array([[-1, -1], [-1, -1], [-1, -1], [1, 2], [3, 1], [-1, -1]])  # 3 is 1 2, 4 is 3 1
TOKEN_TEXTS = {0: "x", 1: "a", 2: "b", 3: "ab", 4: "aba", 5: "c"}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_rows_with_split_tokens_spell_the_same_text(seed: int, share: float) -> None:
    ids = np.random.default_rng(seed).integers(0, 6, (5, 17))
    result = split_merges(ids, MERGE_PAIRS, share, [seed], keeps_repetitions=False)
    assert result.shape == ids.shape
    for before, after in zip(ids.tolist(), result.tolist(), strict=True):
        text, again = ("".join(TOKEN_TEXTS[i] for i in row) for row in (before, after))
        assert text.startswith(again)


def test_bpe_dropout_of_0_splits_no_token_and_of_1_every_merged_token() -> None:
    ids = np.array([[4, 3, 0, 5, 1, 2]])
    none, all_ = (split_merges(ids, MERGE_PAIRS, share, [7], keeps_repetitions=False).tolist() for share in (0, 1))
    assert none == ids.tolist() and all_ == [[3, 1, 1, 2, 0, 5]]


@pytest.mark.parametrize("keeps_repetitions", [True, False])
def test_the_fraction_of_split_tokens_is_the_bpe_dropout(keeps_repetitions: bool) -> None:
    ids = np.tile(np.array([3, 5]), (8000, 1))
    rows = split_merges(ids, MERGE_PAIRS, 0.25, [7], keeps_repetitions=keeps_repetitions)
    split = rows[:, 0] == 1
    assert abs(split.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(rows))  # five standard deviations


def test_a_window_that_keeps_repetitions_splits_all_occurrences_of_a_token_or_none() -> None:
    ids = np.tile(np.array([3, 0, 5] * 10), (20, 1))
    for keeps_repetitions in (True, False):
        rows = split_merges(ids, MERGE_PAIRS, 0.5, [7], keeps_repetitions=keeps_repetitions)
        whole, split = (rows == 3).any(axis=1), (rows == 1).any(axis=1)
        assert whole.any() and split.any()
        assert (whole & split).any() != keeps_repetitions


def test_the_seed_decides_which_tokens_are_split() -> None:
    ids = np.tile(np.array([4, 3, 0, 5, 1, 2]), (4, 6))
    first, again, other = (
        split_merges(ids, MERGE_PAIRS, 0.5, [seed, 3, 8], keeps_repetitions=False) for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, ids) and not np.array_equal(first, other)
