"""A permutation of a range that is computed for single positions."""

import numpy as np
import pytest

from llmcli.data.tokens.batches import permuted


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097, 100_000])
def test_each_number_occurs_once(size: int) -> None:
    for seed in range(3):
        assert np.array_equal(np.sort(permuted(np.arange(size), size, [seed, 7])), np.arange(size))


def test_a_number_does_not_depend_on_those_computed_with_it() -> None:
    whole = permuted(np.arange(3000), 3000, [1])
    assert permuted(np.array([2999, 0, 17]), 3000, [1]).tolist() == whole[[2999, 0, 17]].tolist()


def test_seeds_give_other_orders_without_correlation() -> None:
    size = 50_000
    one, other = permuted(np.arange(size), size, [1]), permuted(np.arange(size), size, [2])
    for first, second in ((one, np.arange(size)), (one, other), (one[1:], one[:-1])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(size)  # five standard deviations


def test_numbers_beyond_32_bits() -> None:
    size = 3 * 2**40
    numbers = permuted(np.arange(10_000), size, [0])
    assert len(set(numbers.tolist())) == 10_000
    assert numbers.min() >= 0 and numbers.max() < size
    assert abs(numbers.mean() / size - 0.5) < 5 / np.sqrt(12 * 10_000)
