"""A small schema language for JSON: which types the values of a document must have. Standard library only.

A schema is a Scalar, a Tuple, a list of one schema for each entry, a dict of schemas by key, or a tuple of alternative
schemas. A key may be missing from an object unless its schema is Required; keys without a schema may hold anything.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmcli.errors import brief

MAX_INTEGER = (1 << 53) - 1  # that every JSON reader keeps exact
MAX_DEPTH = 100  # of nested lists and objects

Schema: TypeAlias = "Scalar | Tuple | list[Schema] | dict[str, Schema] | tuple[Schema, ...]"


class Required(dict[str, Schema]):
    """The schema of an object in which none of these keys may be missing, except those of `with_optional`."""

    optional: frozenset[str] = frozenset()

    def with_optional(self, **schemas: Schema) -> "Required":
        schema = Required(self | schemas)
        schema.optional = frozenset(schemas)
        return schema


@dataclass(frozen=True)
class Scalar:
    """The schema of a value that is neither a list nor an object."""

    description: str
    is_valid: Callable[[Any], bool]


@dataclass(frozen=True)
class Tuple:
    """The schema of a list of fixed length, with one schema for each entry."""

    entries: tuple[Schema, ...]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (abs(value) <= 1e30 or (type(value) is float and not math.isfinite(value)))


TEXT = Scalar("a string", lambda value: isinstance(value, str))
FLAG = Scalar("true or false", lambda value: isinstance(value, bool))
COUNT = Scalar("a whole number of at least 0", _is_count)
POSITIVE_COUNT = Scalar("a whole number of at least 1", lambda value: _is_count(value) and value > 0)
NUMBER = Scalar("a number", _is_number)  # NaN and infinity included, which a diverged run records
AMOUNT = Scalar("a number of at least 0", lambda value: _is_number(value) and 0 <= value <= 1e30)
POSITIVE_NUMBER = Scalar("a number above 0", lambda value: _is_number(value) and 1e-30 <= value <= 1e30)
FRACTION = Scalar("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
NULL = Scalar("null", lambda value: value is None)
OBJECT: dict[str, Schema] = {}


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError when it is not JSON, or nested more than MAX_DEPTH deep."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        children = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        level = [child for child in children if isinstance(child, dict | list)]
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return value


def validation_error(value: Any, schema: Schema, place: str = "it") -> str:
    """The first violation of a schema, with its path in the document; "" if there is none.

    >>> validation_error({"corpus": [{"bytes": "many"}]}, {"corpus": [{"bytes": COUNT}]})
    "corpus[0].bytes is 'many'; expected a whole number of at least 0"
    """
    if isinstance(schema, tuple):
        return _alternatives_error(value, schema, place)
    if isinstance(schema, Scalar):
        return "" if schema.is_valid(value) else _type_error(value, schema, place)
    if not isinstance(value, _python_type(schema)):
        return _type_error(value, schema, place)
    if isinstance(schema, Tuple):
        is_valid = len(value) == len(schema.entries) and not any(map(validation_error, value, schema.entries))
        return "" if is_valid else _type_error(value, schema, place)
    if isinstance(schema, list):
        errors = (validation_error(entry, schema[0], f"{place}[{i}]") for i, entry in enumerate(value))
        return next((error for error in errors if error), "")
    return _object_error(value, schema, place)


def _alternatives_error(value: Any, schemas: tuple[Schema, ...], place: str) -> str:
    """Where no alternative fits, the error inside the one of the right type is the most helpful."""
    errors = [validation_error(value, schema, place) for schema in schemas]
    inside = [error for schema, error in zip(schemas, errors, strict=True) if isinstance(value, _python_type(schema))]
    if "" in errors:
        return ""
    return inside[0] if inside else _type_error(value, schemas, place)


def _object_error(value: dict[str, Any], schema: dict[str, Schema], place: str) -> str:
    for key, inner in schema.items():
        inner_place = key if place == "it" else f"{place}.{key}"
        if key not in value:
            if isinstance(schema, Required) and key not in schema.optional:
                return f"{inner_place} is missing"
        elif error := validation_error(value[key], inner, inner_place):
            return error
    return ""


def _python_type(schema: Schema) -> Any:
    """The Python type of values of a schema; () for a Scalar."""
    return list if isinstance(schema, list | Tuple) else dict if isinstance(schema, dict) else ()


def _type_error(value: Any, schema: Schema, place: str) -> str:
    return f"{place} is {brief(value)}; expected {_describe(schema)}"


def _describe(schema: Schema) -> str:
    if isinstance(schema, tuple):
        return " or ".join(map(_describe, schema))
    if isinstance(schema, Scalar):
        return schema.description
    if isinstance(schema, Tuple):
        return f"a list of {', '.join(map(_describe, schema.entries))}"
    return "a list" if isinstance(schema, list) else "an object"
