"""What a model would cost and bring, told before it is trained: arithmetic by hand, and how repeated text counts."""

import itertools

from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.cost_model import VALUES_AT_ONCE, expected_loss, memory_needed, operations, parts


def test_operations_by_hand():
    """One layer: q, k, v, o of 4 x 4, three SwiGLU matrices of 4 x 32, a head of 10 x 4; a context of 16."""
    model = ModelConfig(10, 4, 32, 1, 2, 2, 2, 16)
    assert operations(model, 16) == 6 * (4 * 16 + 3 * 128 + 40 + 16 * 4)


def test_repeated_text_counts_less_and_less():
    losses = [expected_loss(10**6, epochs * 10**6, 10**6, 3 * 10**6) for epochs in (0.5, 1, 2, 4, 40, 400, 4000)]
    gains = [before - after for before, after in itertools.pairwise(losses)]
    assert all(gain >= 0 for gain in gains)
    assert gains[-1] < 1e-6 < gains[-3]
    twice, fresh = losses[2], expected_loss(10**6, 2 * 10**6, 2 * 10**6, 6 * 10**6)
    assert fresh < twice < expected_loss(10**6, 1.7 * 10**6, 2 * 10**6, 6 * 10**6)  # twice is nearly fresh text


def test_a_large_batch_goes_in_parts_and_takes_no_more_memory():
    model = ModelConfig(1024, 256, 704, 6, 4, 4, 64, 1024)
    batches = [TrainConfig(steps=1, context=1024, batch_size=n) for n in (1, 2, 4, 5, 16)]
    assert [parts(model, batch) for batch in batches] == [1, 1, 2, 2, 6]
    for batch in batches:
        assert 6 * 256 * 1024 * (batch.batch_size / parts(model, batch)) <= VALUES_AT_ONCE
    assert len({memory_needed(model, batch) for batch in batches[1:3]}) == 1
    wide = ModelConfig(1024, 2048, 4096, 12, 32, 32, 64, 1024)
    assert parts(wide, batches[2]) == 4  # never less than a window
    assert parts(model, TrainConfig(steps=1, context=1024, batch_size=16, device="cuda")) == 1
