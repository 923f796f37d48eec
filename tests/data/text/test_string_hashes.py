"""Hashes of all strings of one length, compared with the written-out polynomial."""

import numpy as np

from llmcli.data.text import string_hashes as module
from llmcli.data.text.string_hashes import string_hashes


def test_hashes_are_polynomials() -> None:
    for count, length in [(5, 7), (7, 7), (200, 30), (module._CHUNK + 500, 120)]:
        for dtype in [np.uint8, np.uint32]:
            values = np.random.default_rng(0).integers(0, 256, count).astype(dtype)
            hashes = string_hashes(values, length)
            assert len(hashes) == max(0, count - length + 1), dtype
            for place in {
                *range(0, len(hashes), 997),
                *range(module._CHUNK - length - 2, min(len(hashes), module._CHUNK + 2)),
            }:
                if 0 <= place < len(hashes):
                    string = values[place : place + length].tolist()
                    expected = sum(value * module._FACTOR**i for i, value in enumerate(string)) % (1 << 64)
                    assert int(hashes[place]) == expected, dtype
