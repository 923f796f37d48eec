"""Random JSON schemas, of the keywords that docs/tasks.md lists."""

import random
from typing import Any

Json = dict[str, Any]
NAMES = ["name", "年齢", "🍎", "a b", 'quo"te', "x/y", "line\nbreak", "é"]
VALUES = ["りんご", "🍎🍏", "", "a", 'say "no"', "\\", "tab\t", 0, -1, 2.5, True, None, [], {"b": [1]}]
PATTERNS = ["^[a-c]{1,3}$", "^(りんご|みかん)$", "[0-9]{2}", "^\\d{4}-\\d{2}$", "^🍎?$"]


def random_schema(rng: random.Random) -> Json:
    """A schema whose texts have an end: strings and lists have a maximum length."""
    schema = _schema(rng, 3)
    if rng.random() < 0.2:
        schema = {"$ref": "#/$defs/part", "$defs": {"part": schema}}
    return schema


def _schema(rng: random.Random, depth: int) -> Json:
    kinds = [_integer, _number, _string, _fixed]
    if depth:
        kinds += [_array, _object, _object, _any_of]
    return rng.choice(kinds)(rng, depth)


def _integer(rng: random.Random, depth: int) -> Json:
    low = rng.randint(-200, 100)
    schema: Json = {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)}
    if rng.random() < 0.2:
        schema = {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + rng.randint(2, 300)}
    return schema


def _number(rng: random.Random, depth: int) -> Json:
    low = round(rng.uniform(-9, 9), 2)
    # rounded, since llguidance allows -3.69 below a maximum of -3.6900000000000004
    return {"type": "number", "minimum": low, "maximum": round(low + rng.randint(1, 50), 2)}


def _string(rng: random.Random, depth: int) -> Json:
    if rng.random() < 0.3:
        return {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 12}
    if rng.random() < 0.2:
        return {"type": "string", "format": rng.choice(["ipv4", "uuid"])}  # the checkers of dates and times differ
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 6)}


def _fixed(rng: random.Random, depth: int) -> Json:
    if rng.random() < 0.3:
        return rng.choice([{"type": "boolean"}, {"type": "null"}, {"const": rng.choice(VALUES)}])
    return {"enum": rng.sample(VALUES, rng.randint(1, 4))}


def _array(rng: random.Random, depth: int) -> Json:
    least = rng.randint(0, 2)
    schema = {"type": "array", "minItems": least, "maxItems": least + rng.randint(0, 2)}
    if rng.random() < 0.2:
        items = [_schema(rng, depth - 1) for _ in range(2)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": rng.randint(0, 2)}
    return schema | {"items": _schema(rng, depth - 1)}


def _object(rng: random.Random, depth: int) -> Json:
    names = rng.sample(NAMES, rng.randint(0, 4))
    required = [name for name in names if rng.random() < 0.6]
    properties = {name: _schema(rng, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _any_of(rng: random.Random, depth: int) -> Json:
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
