"""The JSON documents stored with a model, converted to types.

Documents may come from untrusted files. They are checked once, when a model is opened, so that later code can
rely on the types. config.json is checked by `config.ModelConfig`. Standard library only.
"""

import json
import math
from collections.abc import Callable
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from llmcli.errors import LLMError, brief, prefixed

MAX_INTEGER = (1 << 53) - 1  # the largest integer that is exact and unambiguous in a double
MAX_DEPTH = 100  # nesting of lists and objects
Json = dict[str, Any]  # an object
_hints = lru_cache(get_type_hints)
_WANTED = {
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    NoneType: "null",
    object: "any value",
}


class JsonObject:
    """An object in a JSON document, with an attribute for each key that is read; optional keys have a
    default. Not a dataclass, because creating dataclasses would delay every command that opens a model."""

    document: Json  # the whole object

    def __init__(self, **values: Any) -> None:
        vars(self).update({"document": {}} | values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)


def is_number(value: Any, low: float = -1e30, high: float = 1e30) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _is_hexadecimal(value: Any) -> bool:
    return isinstance(value, str) and len(value) % 2 == 0 and set(value) <= set("0123456789abcdef")


# in `Annotated`, a description and a function replace the check by type
Count = Annotated[int, "a whole number of at least 0", _is_count]
# including NaN and infinity, which a diverged run records
Number = Annotated[
    float,
    "a number",
    lambda value: is_number(value) or (type(value) is float and not math.isfinite(value)),
]
Amount = Annotated[float, "a number of at least 0", lambda value: is_number(value, 0)]
PositiveNumber = Annotated[float, "a number above 0", lambda value: is_number(value, 1e-30)]
Fraction = Annotated[float, "a number from 0 to 1", lambda value: is_number(value, 0, 1)]
Hexadecimal = Annotated[str, "bytes in hexadecimal", _is_hexadecimal]


def parse_document(text: str, label: str, kind: Any = dict) -> Any:
    """Parse a document as an object of a kind that `read_as` supports. `label` is its name in messages.

    Raises LLMError if it is not JSON, does not fit `kind`, or has a lone surrogate, which cannot be written
    to a file.
    """
    try:
        document = parse_json(text)
        (json.dumps(document, ensure_ascii=False) if "\\u" in text else text).encode("utf-8")
    except ValueError as error:
        raise LLMError(f"{label} is not JSON: {error}") from error
    with prefixed(f"{label} is not valid"):
        return read_as(kind, document)


def parse_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError if it is not JSON, or nested more than MAX_DEPTH deep."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value] if isinstance(value, dict | list) else []
    depth = 0
    while level:
        children = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        level = [child for child in children if isinstance(child, dict | list)]
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return value


def read_as(kind: Any, value: Any, place: str = "it") -> Any:
    """Read a JSON value as a type: a JsonObject or NamedTuple with a field for each key that is read, a
    tuple, a key of _WANTED, `Annotated` as above, or a union of these. The message of an LLMError names the
    place in the document."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for expected in kinds:
        if _check(expected)[1](value):
            if get_origin(expected) is tuple:
                return _read_list(get_args(expected), value, place)
            if expected in _WANTED or get_origin(expected):
                return value
            return _read_object(expected, value, place)
    wanted = " or ".join(_check(expected)[0] for expected in kinds)
    raise LLMError(f"{place} is {brief(value)}; expected {wanted}")


@lru_cache
def _check(kind: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return (description of valid values, whether a value is valid)."""
    if get_origin(kind) is Annotated:
        return kind.__metadata__
    json_type = list if get_origin(kind) is tuple else dict
    if kind in _WANTED:
        json_type = kind
    return _WANTED[json_type], lambda value: isinstance(value, json_type)


def _read_list(kinds: tuple[Any, ...], value: list[Any], place: str) -> tuple[Any, ...]:
    """Read a list as a tuple of these types; of any length if the last one is "..."."""
    entry = kinds[0]
    if kinds[-1] is not ...:
        if len(value) != len(kinds):
            raise LLMError(f"{place} is {brief(value)}; expected a list of {len(kinds)} values")
    elif get_origin(entry) is Annotated and all(map(_check(entry)[1], value)):  # such as a long curve
        return tuple(value)
    else:
        kinds = (entry,) * len(value)
    return tuple(
        read_as(kind, inner, f"{place}[{i}]")
        for i, (kind, inner) in enumerate(zip(kinds, value, strict=True))
    )


def _read_object(kind: Any, value: Json, place: str) -> Any:
    """Read an object as a class. A field `from_` is the key "from"; a field `document` is the object
    itself."""
    fields: Json = {}
    defaults = getattr(kind, "_field_defaults", None)  # a NamedTuple has them
    for name, hint in _hints(kind, include_extras=True).items():
        key = name.removesuffix("_")
        inner = key if place == "it" else f"{place}.{key}"
        if name == "document":
            fields[name] = value
        elif key in value:
            fields[name] = read_as(hint, value[key], inner)
        elif not (hasattr(kind, name) if defaults is None else name in defaults):
            raise LLMError(f"{inner} is missing")
    return kind(**fields)
