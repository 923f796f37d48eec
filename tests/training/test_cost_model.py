"""The cost model: FLOPs and micro-batches counted by hand, and how repeated text counts."""

import itertools

from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.cost_model import (
    MICRO_BATCH_VALUES,
    CorpusSize,
    expected_loss,
    flops_per_token,
    memory_needed,
    micro_batches,
)


def test_flops_by_hand():
    """One layer: q, k, v, o of 4 x 4, three SwiGLU matrices of 4 x 32, a head of 10 x 4; a context of 16."""
    model = ModelConfig(10, 4, 32, 1, 2, 2, 2, 16)
    assert flops_per_token(model, 16) == 6 * (4 * 16 + 3 * 128 + 40 + 16 * 4)


def test_repeated_text_counts_less_and_less():
    text, twice_as_long = CorpusSize(10**6, 3 * 10**6), CorpusSize(2 * 10**6, 6 * 10**6)
    losses = [expected_loss(10**6, epochs * 10**6, text) for epochs in (0.5, 1, 2, 4, 40, 400, 4000)]
    gains = [before - after for before, after in itertools.pairwise(losses)]
    assert all(gain >= 0 for gain in gains)
    assert gains[-1] < 1e-6 < gains[-3]
    twice, fresh = losses[2], expected_loss(10**6, 2 * 10**6, twice_as_long)
    assert fresh < twice < expected_loss(10**6, 1.7 * 10**6, twice_as_long)  # twice is nearly fresh text


def test_a_large_batch_is_split_into_micro_batches_and_takes_no_more_memory():
    model = ModelConfig(1024, 256, 704, 6, 4, 4, 64, 1024)
    batches = [TrainConfig(steps=1, context=1024, batch_size=n) for n in (1, 2, 4, 5, 16)]
    assert [micro_batches(model, batch) for batch in batches] == [1, 1, 2, 2, 6]
    for batch in batches:
        assert 6 * 256 * 1024 * (batch.batch_size / micro_batches(model, batch)) <= MICRO_BATCH_VALUES
    assert len({memory_needed(model, batch) for batch in batches[1:3]}) == 1
    wide = ModelConfig(1024, 2048, 4096, 12, 32, 32, 64, 1024)
    assert micro_batches(wide, batches[2]) == 4  # at least a window each
    assert micro_batches(model, TrainConfig(steps=1, context=1024, batch_size=16, device="cuda")) == 1
