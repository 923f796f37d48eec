"""The weights of an n-gram cache (models/ngram_cache.py), as stored in a training record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.errors import LLMError
from llmcli.formats.training_record import TrainingRecord

FEATURES = 4  # per context, each with a weight
MAX_ORDERS = 16  # per model
MAX_WEIGHT = 1e3  # a larger weight means damage


@dataclass(frozen=True)
class CacheWeights:
    """The weights w_k of the gates, [K][FEATURES]."""

    orders: tuple[tuple[float, ...], ...]

    @classmethod
    def of_record(cls, record: TrainingRecord, path: object = None) -> "CacheWeights | None":
        """Return the weights in a training record, or None. Raises LLMError if they are damaged."""
        value = record.ngram_cache
        if value is None:
            return None
        rows: Any = value.get("weights") if isinstance(value, Mapping) else None
        if (
            not isinstance(rows, list)
            or not 1 <= len(rows) <= MAX_ORDERS
            or not all(isinstance(row, list) and len(row) == FEATURES for row in rows)
            or not all(
                type(weight) in (int, float) and abs(weight) <= MAX_WEIGHT for row in rows for weight in row
            )
        ):
            expected = f"expected weights, 1 to {MAX_ORDERS} rows of {FEATURES} numbers; run it without: `cache=False`"
            raise LLMError(
                f"{path or 'the model'}: the n-gram cache in its training.json is damaged: {expected}"
            )
        return cls(tuple(tuple(float(weight) for weight in row) for row in rows))

    def as_record(self) -> dict[str, Any]:
        return {"weights": [[round(weight, 4) for weight in row] for row in self.orders]}
