"""Numbers as text: probabilities, bits, counts, sizes, durations, epochs."""

from collections.abc import Sequence

# decimal places, the same in a terminal and on HTML pages
PROBABILITY_DIGITS = 3
BITS_DIGITS = 2  # entropy, surprisal, effect of an ablation
BITS_PER_BYTE_DIGITS = 3


def probability(value: float) -> str:
    """0.37249 -> "0.372"."""
    return f"{value:.{PROBABILITY_DIGITS}f}"


def bits(value: float, *, signed: bool = False) -> str:
    """2.8151 -> "2.82"; signed: 0.0749 -> "+0.07", -0.004 -> "0.00"."""
    text = f"{value:{'+' if signed else ''}.{BITS_DIGITS}f}"
    return text if float(text) else text.lstrip("+-")


def change(share: float) -> str:
    """A relative change: 0.0129 -> "+1.3%", -0.0004 -> "0.0%"."""
    text = f"{share:+.1%}"
    return text if text[1:] != "0.0%" else "0.0%"


def count(number: int, noun: str) -> str:
    """1024, "head" -> "1,024 heads"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Sequence[str], limit: int) -> str:
    """List the first names and count the others: "a.txt, b.txt and 3 more"."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def file_name(name: str, member: str = "") -> str:
    """Return the last part of a file's name; for a page in a web archive, the name of the archive.

    >>> file_name("notes/2024/diary.txt")
    'diary.txt'
    >>> file_name("crawl/site.warc/https://example.com/a", "https://example.com/a")
    'site.warc'
    """
    return (name.removesuffix(f"/{member}") if "://" in member else name).rpartition("/")[2]


def bits_per_byte(value: float) -> str:
    """0.21349 -> "0.213"."""
    return f"{value:.{BITS_PER_BYTE_DIGITS}f}"


def entropy(value: float, *, at_least: bool = False) -> str:
    """Format an entropy in bits and as a perplexity: "entropy 2.82 bits (perplexity 7.1)"."""
    shown = f"at least {bits(value)}" if at_least else bits(value)
    return f"entropy {shown} bits (perplexity {2.0 ** min(value, 64.0):,.1f})"


def explained_entropy(value: float, what: str) -> str:
    """Explain an entropy in bits as a choice among equally likely outcomes."""
    outcomes = round(2.0 ** min(value, 64.0))
    if outcomes < 2:
        return f"Nearly certain: one of the {what} has almost all of the probability."
    return f"As uncertain as a choice among {outcomes:,} equally likely {what}."


def number(value: float) -> str:
    """Format a count with a unit prefix: "950", "541.8 k", "15.19 M", "68.98 B"."""
    return _scaled(value, ("", " k", " M", " B", " T"), (0, 1, 2, 2, 2))


def size(count: float) -> str:
    """Format a number of bytes with a unit prefix: "12 bytes", "3.75 MB"."""
    return _scaled(count, (" bytes", " kB", " MB", " GB", " TB"), (0, 2, 2, 2, 2))


def _scaled(value: float, units: Sequence[str], digits: Sequence[int]) -> str:
    """Format a value in the smallest of `units` in which it rounds to less than 1000; each unit is 1000 times
    the one before."""
    if value >= 10**18:
        return f"over 1,000,000{units[-1]}"
    power = next(
        (p for p, places in enumerate(digits) if round(value / 1000**p, places) < 1000), len(units) - 1
    )
    return f"{value / 1000**power:,.{digits[power]}f}{units[power]}"


def duration(seconds: float) -> str:
    """5.2 -> "5s", 90 -> "1m 30s", 5400 -> "1h 30m"."""
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    return " ".join(f"{n}{unit}" for n, unit in parts if n) or "0s"


def epochs(count: float) -> str:
    """0.0041 -> "0.0041 epochs", 1.0 -> "1 epoch", 3.64 -> "3.6 epochs"."""
    nearest = round(count)
    text = f"{count:.1f}"
    if count < 0.95:
        text = f"{count:.2g}"
    elif abs(count - nearest) < 0.05:
        text = f"{nearest}"
    return "1 epoch" if text == "1" else f"{text} epochs"
