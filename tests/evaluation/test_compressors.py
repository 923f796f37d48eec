"""Compressors as baselines: compared with the xz program, with PPM's decoder, and on texts of known entropy."""

import lzma
import random
from pathlib import Path

import pyppmd
import pytest

from llmcli.evaluation import compressors
from llmcli.evaluation.compressors import affordable, baselines, max_past_bytes, ppm_size, static_ppm, xz_size

FOOD = (Path(__file__).parent.parent.parent / "examples" / "food.txt").read_bytes()


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def test_xz_size_is_that_of_the_program_without_its_container() -> None:
    for data in [b"", b"a", FOOD, noise(5000)]:
        container = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) - xz_size(data)
        assert 0 < container < 80, data


def test_ppm_size_is_that_of_a_stream_that_can_be_decoded() -> None:
    for data in [b"a", FOOD, noise(5000)]:
        encoder = pyppmd.Ppmd7Encoder(6, 1 << 24)
        coded = encoder.encode(data) + encoder.flush()
        assert len(coded) == ppm_size(data), data
        assert pyppmd.Ppmd7Decoder(6, 1 << 24).decode(coded, len(data)) == data, data


def test_noise_takes_eight_bits_per_byte_and_a_copy_of_the_past_almost_none() -> None:
    text = noise(20_000, 1)
    for baseline in baselines(text, noise(20_000, 2)):
        assert 7.9 < baseline.bits_per_byte < 9, baseline
    for baseline in baselines(text[5000:9000], text):
        assert baseline.bits_per_byte < 1.2, baseline


def test_results_are_differences_of_sizes() -> None:
    text, past = FOOD[-3000:], FOOD[:5000]
    assert [(b.name, b.past_bytes) for b in baselines(text)] == [("xz", 0), ("PPM, adaptive", 0)]
    xz, adapting, static = baselines(text, past)
    assert xz.bits_per_byte == (xz_size(past + text) - xz_size(past)) * 8 / 3000
    assert adapting.bits_per_byte == (ppm_size(past + text) - ppm_size(past)) * 8 / 3000
    pieces = [text[:1024], text[1024:2048], text[2048:]]  # few enough to use all
    bits = sum(ppm_size(past + piece) - ppm_size(past) for piece in pieces) * 8
    assert static.bits_per_byte == pytest.approx(bits / 3000, abs=1e-12) and static.pieces == 3


@pytest.mark.slow
def test_a_sample_of_pieces_estimates_the_mean_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    text, past = FOOD[-30_000:], FOOD[:-30_000]
    sample = static_ppm(text, past)
    monkeypatch.setattr(compressors, "MAX_PIECES", 1000)
    complete = static_ppm(text, past)
    assert sample.pieces == 24 and complete.pieces == 30
    assert sample.bits_per_byte == pytest.approx(complete.bits_per_byte, abs=0.03)


def test_only_the_end_of_a_long_past_is_read() -> None:
    past = noise(200_000, 3)
    results = baselines(past[-4000:], past, seconds=0.1)
    assert [b.past_bytes for b in results] == [22_500, 40_000, 25_000] and max_past_bytes(0.1) == 40_000
    assert all(b.bits_per_byte < 1.5 for b in results)
    assert baselines(past[-4000:], past[-max_past_bytes(0.1) :], seconds=0.1) == results
    assert all(b.bits_per_byte > 7.5 for b in baselines(past[:4000], past, seconds=0.1))


def test_short_texts() -> None:
    for size in [1, 2, 1023, 1024, 1025]:
        assert all(b.bits_per_byte >= 0 and b.bytes == size for b in baselines(FOOD[:size], b"a")), size
        assert baselines(b"", b"a") == [], size


def test_an_affordable_past_is_read_nearly_whole() -> None:
    for seconds in (0.5, 3.0, 10.0):
        past = b"".join(b"%d " % i for i in range(max_past_bytes(seconds) // 6))
        if affordable(1000, len(past), seconds):
            read = [baseline.past_bytes for baseline in baselines(b"some text " * 100, past, seconds=seconds)]
            assert min(read) >= 0.9 * len(past)
    assert affordable(1000, 1000, 1.0)
    assert not affordable(1000, 10**9, 10.0)
    assert not affordable(10**8, 1000, 10.0)
