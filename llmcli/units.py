"""Numbers as text: probabilities, bits, counts, sizes, durations, epochs."""

from collections.abc import Sequence

# Decimal places, the same in a terminal and on HTML pages
PROBABILITY_DIGITS = 3
BITS_DIGITS = 2  # entropy, surprisal, effect of an ablation
BITS_PER_BYTE_DIGITS = 3


def probability(value: float) -> str:
    """
    >>> probability(0.37249)
    '0.372'
    """
    return f"{value:.{PROBABILITY_DIGITS}f}"


def bits(value: float, *, signed: bool = False) -> str:
    """
    >>> bits(2.8151), bits(0.0749, signed=True), bits(-0.004, signed=True)
    ('2.82', '+0.07', '0.00')
    """
    text = f"{value:{'+' if signed else ''}.{BITS_DIGITS}f}"
    return text if float(text) else text.lstrip("+-")


def change(share: float) -> str:
    """A relative change.

    >>> change(0.0129), change(-0.0004)
    ('+1.3%', '0.0%')
    """
    text = f"{share:+.1%}"
    return text if text[1:] != "0.0%" else "0.0%"


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "layer"), count(1024, "head")
    ('1 layer', '1,024 heads')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def bits_per_byte(value: float) -> str:
    """
    >>> bits_per_byte(0.21349)
    '0.213'
    """
    return f"{value:.{BITS_PER_BYTE_DIGITS}f}"


def entropy(value: float, *, at_least: bool = False) -> str:
    """An entropy in bits, and as a perplexity.

    >>> entropy(2.82)
    'entropy 2.82 bits (perplexity 7.1)'
    """
    return f"entropy {'at least ' * at_least}{bits(value)} bits (perplexity {2.0 ** min(value, 64.0):,.1f})"


def choice(value: float, what: str) -> str:
    """An entropy in bits, explained as a choice among equally likely outcomes.

    >>> choice(2.82, "words")
    'As uncertain as a choice among 7 equally likely words.'
    >>> choice(0.1, "words")
    'Nearly certain: one of the words has almost all of the probability.'
    """
    outcomes = round(2.0 ** min(value, 64.0))
    if outcomes < 2:
        return f"Nearly certain: one of the {what} has almost all of the probability."
    return f"As uncertain as a choice among {outcomes:,} equally likely {what}."


def number(value: float) -> str:
    """A count with a unit prefix.

    >>> [number(n) for n in (950, 541_792, 15_192_288, 68_976_648_192)]
    ['950', '541.8 k', '15.19 M', '68.98 B']
    """
    return _scaled(value, ("", " k", " M", " B", " T"), (0, 1, 2, 2, 2))


def size(count: float) -> str:
    """A number of bytes with a unit prefix.

    >>> [size(n) for n in (12, 3_753_201, 137_953_316_864)]
    ['12 bytes', '3.75 MB', '137.95 GB']
    """
    return _scaled(count, (" bytes", " kB", " MB", " GB", " TB"), (0, 2, 2, 2, 2))


def _scaled(value: float, units: Sequence[str], digits: Sequence[int]) -> str:
    """A value in the first unit in which it rounds to less than 1000; each unit is 1000 times the one before."""
    if value >= 10**18:
        return f"over 1,000,000{units[-1]}"
    power = next((p for p, places in enumerate(digits) if round(value / 1000**p, places) < 1000), len(units) - 1)
    return f"{value / 1000**power:,.{digits[power]}f}{units[power]}"


def duration(seconds: float) -> str:
    """
    >>> [duration(s) for s in (5.2, 90, 300, 5400)]
    ['5s', '1m 30s', '5m', '1h 30m']
    """
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    return " ".join(f"{n}{unit}" for n, unit in parts if n) or "0s"


def epochs(count: float) -> str:
    """
    >>> [epochs(n) for n in (0.0041, 0.41, 1.0, 3.64, 19.98)]
    ['0.0041 epochs', '0.41 epochs', '1 epoch', '3.6 epochs', '20 epochs']
    """
    nearest = round(count)
    text = f"{count:.2g}" if count < 0.95 else f"{nearest}" if abs(count - nearest) < 0.05 else f"{count:.1f}"
    return f"{text} epoch{'s' * (text != '1')}"
