"""Initial embeddings by spelling: which tokens are similar, and what stays random."""

import numpy as np
import pytest

from llmcli.models.spelling import spelled_embeddings

SIZE = 4096  # large, so that the cosine of independent rows is about 1 / sqrt(SIZE) = 0.016


def cosine(one: bytes, other: bytes) -> float:
    a, b = spelled_embeddings([one, other], SIZE, seed=0)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_entries_have_variance_1() -> None:
    tokens = [bytes([i]) for i in range(256)] + [b" The", "日本".encode(), b""]
    embeddings = spelled_embeddings(tokens, SIZE, seed=0)
    assert embeddings.dtype == np.float32
    assert np.allclose(embeddings.var(axis=1), 1, atol=0.15)
    assert abs(embeddings.mean()) < 0.01


def test_similarity_follows_from_the_properties() -> None:
    weights = 1 + 3 * 0.5**2 + 6 * 0.4**2  # squares of all weights
    for token, other, shared in (  # squares of the weights of the properties that both have
        (b"the", b" The", weights - 2 * 0.4**2),  # all but the space and the capital letter
        (b"king", b"sing", 3 * 0.5**2 + 4 * 0.4**2),  # last three characters, length, script, no space, no capital
        (b"unable", b"unseen", 6 * 0.4**2),  # first two characters
        ("学校".encode(), "学生".encode(), 5 * 0.4**2),
        (b"\xe6\x97", b"\xe6\x98", 5 * 0.4**2),  # parts of characters, by their first byte
        (b"the", b" 12345", 0.4**2),  # no capital
        (b"", b"", 0),  # control tokens are independent
    ):
        assert cosine(token, other) == pytest.approx(0.9 * shared / weights, abs=0.06), (token, other)


def test_the_seed_determines_the_embeddings() -> None:
    first, second, other = (spelled_embeddings([b"a", b"b"], 64, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.allclose(first, other)
