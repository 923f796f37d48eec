"""Compressors as a measure: against the standard library's xz, PPM's own decoder, texts whose information is known."""

import lzma
import random
from pathlib import Path

import pyppmd
import pytest

from llmcli.evaluation import compressors
from llmcli.evaluation.compressors import affordable, baselines, most_past, ppm_size, static_ppm, xz_size

FOOD = (Path(__file__).parent.parent.parent / "examples" / "food.txt").read_bytes()


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


@pytest.mark.parametrize("data", [b"", b"a", FOOD, noise(5000)], ids=["empty", "a", "food", "noise"])
def test_xz_is_the_program_without_its_container(data: bytes) -> None:
    container = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) - xz_size(data)
    assert 0 < container < 80


@pytest.mark.parametrize("data", [b"a", FOOD, noise(5000)], ids=["a", "food", "noise"])
def test_ppm_can_be_decoded_from_so_many_bytes(data: bytes) -> None:
    encoder = pyppmd.Ppmd7Encoder(6, 1 << 24)
    coded = encoder.encode(data) + encoder.flush()
    assert len(coded) == ppm_size(data)
    assert pyppmd.Ppmd7Decoder(6, 1 << 24).decode(coded, len(data)) == data


def test_noise_costs_eight_bits_and_what_the_past_holds_next_to_nothing() -> None:
    text = noise(20_000, 1)
    for found in baselines(text, noise(20_000, 2)):
        assert 7.9 < found.bits_per_byte < 9, found
    for found in baselines(text[5000:9000], text):
        assert found.bits_per_byte < 1.2, found


def test_a_past_helps_and_learning_from_the_text_too() -> None:
    cut = len(FOOD) * 9 // 10
    past, text = FOOD[:cut], FOOD[cut:]
    alone = {b.name: b for b in baselines(text)}
    after = {b.name: b for b in baselines(text, past)}
    assert list(alone) == ["xz", "PPM, adapting"] and list(after) == ["xz", "PPM, adapting", "PPM, static"]
    assert all(after[name].bits_per_byte < alone[name].bits_per_byte for name in alone)
    assert all((b.bytes, b.past_bytes) == (len(text), cut) for b in after.values())
    assert all(b.past_bytes == 0 for b in alone.values())


def test_the_figures_are_sizes_by_their_definition() -> None:
    text, past = FOOD[-3000:], FOOD[:5000]
    xz, adapting, static = baselines(text, past)
    assert xz.bits_per_byte == (xz_size(past + text) - xz_size(past)) * 8 / 3000
    assert adapting.bits_per_byte == (ppm_size(past + text) - ppm_size(past)) * 8 / 3000
    pieces = [text[:1024], text[1024:2048], text[2048:]]  # few enough to take all
    bits = sum(ppm_size(past + piece) - ppm_size(past) for piece in pieces) * 8
    assert static.bits_per_byte == pytest.approx(bits / 3000, abs=1e-12) and static.pieces == 3


def test_some_pieces_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    text, past = FOOD[-30_000:], FOOD[:-30_000]
    some = static_ppm(text, past)
    monkeypatch.setattr(compressors, "MOST_PIECES", 1000)
    whole = static_ppm(text, past)
    assert some.pieces == 24 and whole.pieces == 30
    assert some.bits_per_byte == pytest.approx(whole.bits_per_byte, abs=0.03)


def test_a_long_past_is_cut_to_its_end() -> None:
    past = noise(200_000, 3)
    found = baselines(past[-4000:], past, seconds=0.1)
    assert [b.past_bytes for b in found] == [22_500, 40_000, 25_000] and most_past(0.1) == 40_000
    assert all(b.bits_per_byte < 1.5 for b in found)
    assert baselines(past[-4000:], past[-most_past(0.1) :], seconds=0.1) == found
    assert all(b.bits_per_byte > 7.5 for b in baselines(past[:4000], past, seconds=0.1))


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025])
def test_short_texts(size: int) -> None:
    assert all(b.bits_per_byte >= 0 and b.bytes == size for b in baselines(FOOD[:size], b"a"))
    assert baselines(b"", b"a") == []


def test_what_a_time_affords_is_a_past_that_is_read_nearly_whole() -> None:
    for seconds in (0.5, 3.0, 10.0):
        past = b"".join(b"%d " % i for i in range(most_past(seconds) // 6))
        if affordable(1000, len(past), seconds):
            read = [found.past_bytes for found in baselines(b"some text " * 100, past, seconds=seconds)]
            assert min(read) >= 0.9 * len(past)
    assert affordable(1000, 1000, 1.0)
    assert not affordable(1000, 10**9, 10.0)
    assert not affordable(10**8, 1000, 10.0)
