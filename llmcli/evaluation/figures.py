"""The two figures for a model on a text, in bits per byte, with the same names everywhere.

- network: the network alone, which has seen only the training text, like static compressors
- adapting: the network with its n-gram cache, which also adapts to the text so far, like adaptive compressors
"""

from typing import NamedTuple

from llmcli import units
from llmcli.formats.training_record import TrainingRecord

NETWORK = "network"
ADAPTING = "adapting"
# minimum share of the held-out text in the training text that is mentioned with every figure
KNOWN_SHARE = 0.1


class Figures(NamedTuple):
    """A model's bits per byte on a text."""

    network: float
    adapting: float | None = None  # None if the model has no n-gram cache

    @classmethod
    def of_record(cls, record: TrainingRecord, *, before: bool = False) -> "Figures | None":
        """Read the figures on the held-out text, after the run or `before` it; None if they were not
        measured."""
        as_it_runs = record.bits_per_byte_before if before else record.bits_per_byte
        network = record.bits_per_byte_before_without_cache if before else record.bits_per_byte_without_cache
        if as_it_runs is None:
            return None
        return cls(as_it_runs) if network is None else cls(network, as_it_runs)

    def as_record(self, when: str = "") -> dict[str, float]:
        """Return the entries of a training record, after the run or "_before" it."""
        key = f"bits_per_byte{when}"
        if self.adapting is None:
            return {key: round(self.network, 6)}
        return {key: round(self.adapting, 6), f"{key}_without_cache": round(self.network, 6)}

    def __str__(self) -> str:
        return f"{self.numbers} bits per byte"

    @property
    def numbers(self) -> str:
        network = f"{NETWORK} {units.bits_per_byte(self.network)}"
        return (
            network
            if self.adapting is None
            else f"{network}, {ADAPTING} {units.bits_per_byte(self.adapting)}"
        )


def known_text(share: float) -> str:
    """Describe the share of the held-out text that also occurs in the training text; "" if it is small.

    >>> known_text(0.3), known_text(0.01)
    ('30% of it also occurs in the training text', '')
    """
    return f"{share:.0%} of it also occurs in the training text" if share >= KNOWN_SHARE else ""


def change(before: Figures, after: Figures) -> str:
    """
    >>> change(Figures(1.3), Figures(1.25, 1.1))
    'network 1.300 before, 1.250 after; adapting 1.100 after'
    """
    shown = []
    for name, pair in (
        (NETWORK, (before.network, after.network)),
        (ADAPTING, (before.adapting, after.adapting)),
    ):
        known = zip(pair, ("before", "after"), strict=True)
        if values := [f"{units.bits_per_byte(bits)} {when}" for bits, when in known if bits is not None]:
            shown.append(f"{name} {', '.join(values)}")
    return "; ".join(shown)


def as_json(figures: Figures | None, when: str = "") -> dict[str, float | None]:
    """Return both figures as entries of an object: network_bits_per_byte, adapting_bits_per_byte."""
    bits = (figures.network, figures.adapting) if figures else (None, None)
    both = zip((NETWORK, ADAPTING), bits, strict=True)
    return {f"{name}_bits_per_byte{when}": None if bits is None else round(bits, 6) for name, bits in both}
