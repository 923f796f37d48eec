"""The figures of the published tables, looked up in the stored results. What is not measured yet is None or empty."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.benchmarks import load
from tests.benchmarks.measure import Measurement, score
from tests.benchmarks.publish import NANOGPT_BUDGET, SEEDS
from tests.benchmarks.results import Stored


@dataclass(frozen=True)
class Figures:
    """All stored results, by the names of their measurements."""

    results: Mapping[str, Stored]

    def result(self, *measurement: Any) -> dict[str, Any] | None:
        """That of one measurement."""
        stored = self.results.get(Measurement(*measurement).name)
        return stored["result"] if stored else None

    def runs(self, text: str, budget: str, beside: str = load.NOTHING, kind: str = "ours") -> list[dict[str, Any]]:
        """Those of all seeds; of three runs at once, all three."""
        found = (self.result(kind, text, budget, seed, beside) for seed in SEEDS)
        return [run for result in found if result for run in result["runs"]]

    def median(self, text: str, budget: str, figure: str) -> float | None:
        """The median over the seeds of one of the two figures."""
        return median(score(run, figure) for run in self.runs(text, budget))

    def compressor(self, kind: str, text: str, key: str = "bits_per_byte") -> float | None:
        result = self.result(kind, text)
        return result[key] if result else None

    def nanogpt(self, text: str, budget: str = NANOGPT_BUDGET, key: str = "bits_per_byte") -> float | None:
        """Of its own number of steps if the budget is empty."""
        result = self.result("nanogpt", text, budget)
        return result[key] if result else None

    def trained(self) -> list[Stored]:
        """The results that depend on the engine, the machine and the versions."""
        return [stored for stored in self.results.values() if stored["measurement"]["kind"] in ("ours", "fixed")]


def median(values: Iterable[float | None]) -> float | None:
    """
    >>> median([3.0, None, 1.0, 2.0]), median([])
    (2.0, None)
    """
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def planned_epochs(run: Mapping[str, Any]) -> float | None:
    """The number of times that the plan expected the text to be read."""
    tokens = "".join(filter(str.isdigit, run["plan"].get("training tokens", "")))
    read = run["record"].get("train_tokens")
    return int(tokens) / read if tokens and read else None
