"""The JSON of a request: its fields by name, with their types and bounds checked.

null stands for a field that is left out. A field that a route does not read is refused, because it could change the
answer, unless it is listed here as harmless.
"""

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from llmcli.errors import brief
from llmcli.server.errors import ApiError, invalid

# fields of OpenAI, vLLM, llama.cpp and others that never change a text, or only together with one that is refused
HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "parallel_tool_calls", "request_id", "priority", "cache_salt", "include_reasoning",
        "spaces_between_special_tokens", "cache_prompt", "id_slot", "n_keep", "timings_per_token", "return_progress",
        "reasoning_format", "keep_alive", "ttl", "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length",
        "dry_penalty_last_n", "dry_sequence_breakers", "xtc_threshold", "dynatemp_exponent", "repeat_last_n",
    }
)  # fmt: skip


def parse_object(data: bytes) -> dict[str, Any]:
    """The object of a request's body. Raises ApiError for anything else, also for NaN, infinity and text that is not
    Unicode."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails for half of a surrogate pair
    except UnicodeError as error:
        raise ApiError("the body must be UTF-8 text, without lone surrogates") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body must be JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise ApiError(f"the body must be a JSON object, found {brief(value)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


class Fields:
    """Reads the fields of an object. Each method raises ApiError, naming the field, for a value of another kind."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._known: set[str] = set()  # fields that were read
        self._refusable: set[str] = set()

    def raw(self, name: str) -> Any:
        """The value as it stands; None if it is missing."""
        self._known.add(name)
        return self._values.get(name)

    @property
    def values(self) -> Mapping[str, Any]:
        """All fields as they stand."""
        return self._values

    def given(self, *names: str) -> str | None:
        """The first of these fields that has a value."""
        self._known.update(names)
        return next((name for name in names if self._values.get(name) is not None), None)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise invalid(name, f"must be an integer from {low} to {high}, found {brief(value)}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise invalid(name, f"must be a number from {low:g} to {high:g}, found {brief(value)}")
        return float(value) if math.isfinite(value) else default

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(name, f"must be true or false, found {brief(value)}")
        return value

    def text(self, name: str, default: str | None = None, max_characters: int | None = None) -> str:
        value = self.raw(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise invalid(name, "is missing; give a text" if value is None else f"must be a text, found {brief(value)}")
        if max_characters is not None and len(value) > max_characters:
            raise invalid(name, f"must have at most {max_characters:,} characters, found {len(value):,}")
        return value

    def texts(self, name: str, max_count: int, max_characters: int) -> tuple[str, ...]:
        """A text, or a list of texts, none of them empty; () if it is missing."""
        value = self.raw(name)
        values = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
            raise invalid(name, f"must be a text or a list of texts, none of them empty, found {brief(value)}")
        if len(values) > max_count or any(len(one) > max_characters for one in values):
            raise invalid(name, f"must have at most {max_count} texts of at most {max_characters:,} characters")
        return tuple(values)

    def object(self, name: str) -> "Fields":
        """The fields of an object in this one; none if it is missing."""
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            raise invalid(name, f"must be an object, found {brief(value)}")
        return Fields(value or {})

    def refuse(self, neutral_values: Mapping[str, tuple[Any, ...]]) -> None:
        """Raise ApiError for a field that is known and not supported, unless its value is without effect: null, or one
        of those listed for it."""
        for name, neutral in neutral_values.items():
            self._refusable.add(name)
            value = self._values.get(name)
            if value is not None and value not in neutral:
                raise invalid(name, f"is not supported, found {brief(value)}; leave it out", "unsupported_parameter")

    def refuse_others(self) -> None:
        """Raise ApiError for a field that nobody has read, unless it is harmless. Called when all others are read."""
        for name, value in self._values.items():
            if value is not None and name not in self._known | self._refusable | HARMLESS:
                similar = difflib.get_close_matches(name[:100], self._known, 1)
                hint = f"; did you mean {similar[0]}?" if similar else "; leave it out"
                raise invalid(name[:100], f"is not supported here{hint}", "unsupported_parameter")
