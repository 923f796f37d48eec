"""The JSON documents that travel with a model: parsed, and the types of what this program reads in them checked.

Strangers write such documents. They are checked once, when a model is opened, so that whoever reads a key later can
rely on its type. A key may be missing unless its object is Complete; keys that are not named here may hold anything.
config.json has a second check of its own, by the fields of `config.ModelConfig`. Standard library only.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmcli.errors import LLMError, brief

LARGEST = (1 << 53) - 1  # of whole numbers: what every JSON reader keeps exact
DEEPEST = 100  # lists and objects one in another


class Complete(dict[str, Any]):
    """The shape of an object in which none of these keys may be missing."""


@dataclass(frozen=True)
class Value:
    """The shape of a value that is no list and no object."""

    wanted: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Row:
    """The shape of a list of as many entries, each of a shape of its own."""

    entries: tuple[Any, ...]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (abs(value) <= 1e30 or (type(value) is float and not math.isfinite(value)))


TEXT = Value("a text", lambda value: isinstance(value, str))
FLAG = Value("true or false", lambda value: isinstance(value, bool))
COUNT = Value("a whole number of at least 0", _is_count)
NUMBER = Value("a number", _is_number)  # or NaN or infinite, as a run that went wrong has it
AMOUNT = Value("a number of at least 0", lambda value: _is_number(value) and 0 <= value <= 1e30)
SHARE = Value("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
NOTHING = Value("null", lambda value: value is None)
OBJECT: dict[str, Any] = {}

# A shape is a Value, a Row, a list of the one shape that each entry has, a dict of shapes by key, or a tuple of shapes
# of which any will do.
TOKENS = (COUNT, [COUNT], NOTHING)
NAMED, NUMBERED = (TEXT, NOTHING), (NUMBER, NOTHING)
ROPE = ({"type": NAMED, "rope_type": NAMED, "rope_theta": NUMBERED, "factor": NUMBERED}, NOTHING)
DOCUMENT = {"name": TEXT, "bytes": COUNT, "sha256": TEXT}
RECORD: dict[str, Any] = {
    "adapter": TEXT,
    "average_of": [TEXT],
    "base": {"file": TEXT, "sha256": TEXT, "source_sha256": TEXT},
    "best_step": COUNT,
    "bits_per_byte": (NUMBER, NOTHING),
    "bits_per_byte_before": NUMBER,
    "clock": Complete(seconds=AMOUNT, tokens_per_second=AMOUNT),
    "corpus": [DOCUMENT],
    "curve": {"step": [COUNT], "loss": [NUMBER], "eval_step": [COUNT], "eval_bits_per_byte": [NUMBER]},
    "epochs": AMOUNT,
    "expert_shares": [[NUMBER]],
    "held_out_measured": ({"bytes": COUNT, "tokens": COUNT}, NOTHING),
    "imported": OBJECT,
    "interrupted": FLAG,
    "memorised": (Complete(share=SHARE, held_out_share=(SHARE, NOTHING)), NOTHING),
    "problem": TEXT,
    "read_bytes": COUNT,
    "samples": {"prompt": TEXT, "texts": [Row((COUNT, TEXT))]},
    "steps": COUNT,
    "train": OBJECT,
    "train_bytes": COUNT,
    "train_tokens": COUNT,
    "verdict": [TEXT],
    "versions": OBJECT,
}
SHAPES: dict[str, dict[str, Any]] = {
    "config.json": {
        "eos_token_id": TOKENS,
        "rope_scaling": ROPE,
        "rope_parameters": ROPE,
        "tie_word_embeddings": (FLAG, NOTHING),
    },
    "generation_config.json": {"eos_token_id": TOKENS},
    "tokenizer_config.json": {"chat_template": (TEXT, [{"name": TEXT, "template": TEXT}], NOTHING)},
    "training.json": RECORD | {"experts": [RECORD]},
    "adapter_config.json": Complete(
        peft_type=TEXT,
        r=Value("a whole number of at least 1", lambda value: _is_count(value) and value > 0),
        lora_alpha=Value("a number above 0", lambda value: _is_number(value) and 1e-30 <= value <= 1e30),
    ),
    "model.safetensors.index.json": OBJECT,
    "config.json of a mixture": Complete(experts=[OBJECT], names=[TEXT]),
    "training.json of a mixture": Complete(experts=[RECORD]),
}


def document(text: str, name: str, said: str = "") -> dict[str, Any]:
    """What a document says: an object whose keys have the types of SHAPES[name]. `said` is what a message calls it.
    Raises LLMError when it is not JSON, not such an object, or holds half a character, which no file can."""
    said = said or f"its {name}"
    try:
        found = parsed(text)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise LLMError(f"{said} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise LLMError(f"{said} is not an object")
    if fault := problem(found, SHAPES[name]):
        raise LLMError(f"{said} is not usable: {fault}")
    return found


def parsed(text: str) -> Any:
    """What a JSON text says. Raises ValueError when it is none, or nested deeper than anything that is meant."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level, depth = [found] if isinstance(found, dict | list) else [], 0
    while level:
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        level = [inner for inner in level if isinstance(inner, dict | list)]
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
    return found


def problem(value: Any, shape: Any, where: str = "it") -> str:
    """What of a value is of another shape; "" if nothing is.

    >>> problem({"corpus": [{"bytes": "many"}]}, {"corpus": [{"bytes": COUNT}]})
    "corpus[0].bytes is 'many'; a whole number of at least 0 is wanted"
    """
    if isinstance(shape, tuple):
        faults = [problem(value, one, where) for one in shape]
        deep = [fault for one, fault in zip(shape, faults, strict=True) if isinstance(value, _type_of(one))]
        return "" if "" in faults else deep[0] if deep else _fault(value, shape, where)
    if isinstance(shape, Value):
        return "" if shape.fits(value) else _fault(value, shape, where)
    if not isinstance(value, _type_of(shape)):
        return _fault(value, shape, where)
    if isinstance(shape, Row):
        fits = len(value) == len(shape.entries) and not any(map(problem, value, shape.entries))
        return "" if fits else _fault(value, shape, where)
    if isinstance(shape, list):
        return next((fault for i, one in enumerate(value) if (fault := problem(one, shape[0], f"{where}[{i}]"))), "")
    for key, inner in shape.items():
        place = key if where == "it" else f"{where}.{key}"
        if key not in value:
            if isinstance(shape, Complete):
                return f"{place} is missing"
        elif fault := problem(value[key], inner, place):
            return fault
    return ""


def _type_of(shape: Any) -> Any:
    """What JSON makes of such a shape; () if it is a Value."""
    return list if isinstance(shape, list | Row) else dict if isinstance(shape, dict) else ()


def _fault(value: Any, shape: Any, where: str) -> str:
    return f"{where} is {brief(value)}; {_wanted(shape)} is wanted"


def _wanted(shape: Any) -> str:
    if isinstance(shape, tuple):
        return " or ".join(map(_wanted, shape))
    if isinstance(shape, Value):
        return shape.wanted
    if isinstance(shape, Row):
        return f"a list of {', '.join(map(_wanted, shape.entries))}"
    return "a list" if isinstance(shape, list) else "an object"
