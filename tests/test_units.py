"""Numbers as text: probabilities, bits, counts, sizes, durations, epochs."""

from llmcli import units
from llmcli.units import duration, number, size


def test_number_abbreviates_counts():
    for value, expected in [
        (0, "0"),
        (999, "999"),
        (1_000, "1.0 k"),
        (15_192_288, "15.19 M"),
        (68_976_648_192, "68.98 B"),
        (1_500_000_000_000, "1.50 T"),
        (999_999, "1.00 M"),  # not 1000.0 k
        (999_999_999, "1.00 B"),
    ]:
        assert number(value) == expected
    assert number(10**400).endswith("T")  # which a header can claim


def test_size_abbreviates_bytes():
    for count, expected in [
        (0, "0 bytes"),
        (1_000, "1.00 kB"),
        (3_753_201, "3.75 MB"),
        (137_953_316_864, "137.95 GB"),
        (2_000_000_000_000, "2.00 TB"),
        (999_999, "1.00 MB"),  # not 1000.00 kB
    ]:
        assert size(count) == expected


def test_duration():
    for seconds, expected in [
        (0, "0s"),
        (5.2, "5s"),
        (59.6, "1m"),
        (60, "1m"),
        (3599.7, "1h"),
        (3605, "1h 5s"),
        (3661, "1h 1m 1s"),
        (172_800, "48h"),
    ]:
        assert duration(seconds) == expected


def test_other_numbers():
    for text, expected in [
        (units.probability(0.37249), "0.372"),
        (units.bits(2.8151), "2.82"),
        (units.bits(0.0749, signed=True), "+0.07"),
        (units.bits(-0.004, signed=True), "0.00"),
        (units.change(0.0129), "+1.3%"),
        (units.change(-0.0004), "0.0%"),
        (units.count(1, "layer"), "1 layer"),
        (units.count(1024, "head"), "1,024 heads"),
        (units.bits_per_byte(0.21349), "0.213"),
        (units.entropy(2.82), "entropy 2.82 bits (perplexity 7.1)"),
        (units.explained_entropy(2.82, "words"), "As uncertain as a choice among 7 equally likely words."),
        (units.explained_entropy(0.1, "words"), "Nearly certain: one of the words has almost all of the probability."),
        (units.epochs(0.41), "0.41 epochs"),
        (units.epochs(1.0), "1 epoch"),
        (units.epochs(3.64), "3.6 epochs"),
    ]:
        assert text == expected
