"""Which cache a prompt gets, on runtimes that only record what is asked of them."""

import numpy as np

from llmcli.generation.engine.prefix_cache import Prefix, PrefixCache


class Model:
    def fork(self, length=0):
        return "fork", self, length


def kept(cache, ids, size=10, model="m"):
    runtime = Model()
    cache.keep(Prefix(model, runtime, np.array(ids), size))
    return runtime


def test_a_cache_that_the_prompt_continues_is_handed_over_once():
    cache = PrefixCache(100)
    runtime = kept(cache, [1, 2, 3, 4, 5])
    assert cache.take("m", [1, 2, 3, 4, 5, 6]) == (runtime, 5)
    assert cache.take("m", [1, 2, 3, 4, 5, 6]) is None and (len(cache), cache.bytes) == (0, 0)


def test_a_cache_that_differs_later_is_copied_as_far_as_it_is_the_same():
    cache = PrefixCache(100)
    kept(cache, [1, 2, 3, 4, 9])
    runtime = kept(cache, [1, 2, 3, 4, 5, 6, 7])
    assert cache.take("m", [1, 2, 3, 4, 5, 8]) == (("fork", runtime, 5), 5)
    assert len(cache) == 2


def test_at_most_256_caches_are_kept_those_used_last():
    cache = PrefixCache(10**9)
    runtimes = [kept(cache, [n, 1, 2, 3, 4]) for n in range(258)]
    assert len(cache) == 256 and cache.take("m", [1, 1, 2, 3, 4, 5]) is None
    assert cache.take("m", [2, 1, 2, 3, 4, 5]) == (runtimes[2], 5)


def test_caches_of_other_models_and_short_prefixes_are_not_used():
    cache = PrefixCache(100)
    kept(cache, [1, 2, 3, 4, 5], model="other")
    kept(cache, [1, 2, 3, 7, 8])
    assert cache.take("m", [1, 2, 3, 4, 5]) is None


def test_a_cache_in_use_is_only_copied():
    cache, live = PrefixCache(100), Model()
    taken = cache.take("m", [1, 2, 3, 4], [Prefix("m", live, np.array([1, 2, 3, 4]), 10)])
    assert taken == (("fork", live, 4), 4)


def test_a_longer_cache_replaces_its_beginning():
    cache = PrefixCache(100)
    kept(cache, [1, 2, 3, 4])
    kept(cache, [1, 2, 3, 4, 5])
    assert len(cache) == 1 and cache.bytes == 10


def test_the_least_recently_used_is_dropped_when_the_bytes_are_full():
    cache = PrefixCache(30)
    first, _, third = (kept(cache, [i] * 5) for i in range(3))
    cache.take("m", [0] * 4)  # the first is used again
    kept(cache, [9] * 5)
    assert cache.bytes == 30
    assert cache.take("m", [1] * 5) is None
    assert cache.take("m", [0] * 6) == (first, 5) and cache.take("m", [2] * 6) == (third, 5)
    kept(cache, [7] * 5, size=31)  # it does not fit alone
    assert cache.bytes == 10
