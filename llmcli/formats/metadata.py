"""The JSON documents stored with a model, and the types of the keys that this program reads in them.

Documents may come from untrusted files. They are checked once, when a model is opened, so that later code can rely on
the types. config.json is also checked by `config.ModelConfig`. Standard library only.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmcli.errors import LLMError, brief

MAX_INTEGER = (1 << 53) - 1  # the largest integer that is exact and unambiguous in a double
MAX_DEPTH = 100  # nesting of lists and objects


@dataclass(frozen=True)
class Scalar:
    """The schema of a value that is neither a list nor an object."""

    description: str
    is_valid: Callable[[Any], bool]


# A list has one schema for all entries, an object one for each key, which may be missing unless its name ends in "!";
# keys without a schema may hold anything. A tuple has alternative schemas.
Schema: TypeAlias = "Scalar | list[Schema] | dict[str, Schema] | tuple[Schema, ...]"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (abs(value) <= 1e30 or (type(value) is float and not math.isfinite(value)))


TEXT = Scalar("a string", lambda value: isinstance(value, str))
FLAG = Scalar("true or false", lambda value: isinstance(value, bool))
COUNT = Scalar("a whole number of at least 0", _is_count)
POSITIVE_COUNT = Scalar("a whole number of at least 1", lambda value: _is_count(value) and value > 0)
NUMBER = Scalar("a number", _is_number)  # including NaN and infinity, which a diverged run records
AMOUNT = Scalar("a number of at least 0", lambda value: _is_number(value) and 0 <= value <= 1e30)
POSITIVE_NUMBER = Scalar("a number above 0", lambda value: _is_number(value) and 1e-30 <= value <= 1e30)
FRACTION = Scalar("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
NULL = Scalar("null", lambda value: value is None)
OBJECT: dict[str, Schema] = {}
_SAMPLE = Scalar(
    "a list of a step and a text",
    lambda value: isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and isinstance(value[1], str),
)

_TOKEN_IDS: Schema = (COUNT, [COUNT], NULL)
_OPTIONAL_TEXT: Schema = (TEXT, NULL)
_OPTIONAL_NUMBER: Schema = (NUMBER, NULL)
_ROPE: Schema = (
    {
        "type": _OPTIONAL_TEXT, "rope_type": _OPTIONAL_TEXT, "rope_theta": _OPTIONAL_NUMBER, "factor": _OPTIONAL_NUMBER,
    },
    NULL,
)  # fmt: skip
_FILE: dict[str, Schema] = {
    "name": TEXT, "path": TEXT, "bytes": COUNT, "sha256": TEXT, "shape": TEXT, "conversations": COUNT,
}  # fmt: skip
_STAGE: dict[str, Schema] = {  # training text and held-out text
    "corpus": [{**_FILE, "held_out": COUNT, "left_out": COUNT}],
    # "from": how it was held out, in words; "of": "answers" if conversations were held out
    "held_out": {"bytes": COUNT, "tokens": COUNT, "from": TEXT, "of": TEXT, "files": [_FILE], "seen_by_base": FLAG},
    "conversations": {
        "training": COUNT, "held_out": COUNT, "held_out_share": (FRACTION, NULL), "train_tokens": COUNT,
        "train_bytes": COUNT, "from_step": COUNT, "epochs": AMOUNT,
    },
    "train_bytes": COUNT,
}  # fmt: skip
_RECORD: dict[str, Schema] = {  # of a training run
    **_STAGE,
    "adapter": TEXT, "problem": TEXT, "average_of": [TEXT], "verdict": [TEXT], "interrupted": FLAG,
    "steps": COUNT, "best_step": COUNT, "train_tokens": COUNT, "read_bytes": COUNT, "epochs": AMOUNT,
    "bits_per_byte": _OPTIONAL_NUMBER, "bits_per_byte_without_cache": NUMBER, "bits_per_byte_before": NUMBER,
    "bits_per_byte_before_without_cache": NUMBER,
    "imported": OBJECT, "train": OBJECT, "versions": OBJECT,
    "answers": (  # near: almost the reference answer; garbled: like no answer; seen: the reference is a training answer
        {
            "questions!": COUNT, "verbatim!": FRACTION, "exact!": FRACTION, "near": FRACTION, "garbled": FRACTION,
            "seen": FRACTION,
        },
        NULL,
    ),
    "base": {"file": TEXT, "sha256": TEXT, "source_sha256": TEXT},
    "clock": {
        "seconds": AMOUNT, "tokens_per_second": AMOUNT, "planned_tokens_per_second": AMOUNT, "planned_epochs": AMOUNT,
    },
    "curve": {"step": [COUNT], "loss": [NUMBER], "eval_step": [COUNT], "eval_bits_per_byte": [NUMBER]},
    "distillation": {"from_step": COUNT, "teacher_bits_per_byte": NUMBER},
    "earlier_stages": [{**_STAGE, "stage": TEXT, "file": TEXT}],
    "expert_shares": [[NUMBER]],
    "held_out_measured": ({"bytes": COUNT, "tokens": COUNT, "cached_tokens": COUNT}, NULL),
    # a key of stored files: it keeps its British spelling
    "memorised": ({"share!": FRACTION, "held_out_share!": (FRACTION, NULL)}, NULL),
    "plain_text": {"from": TEXT, "tokens": COUNT, "before": _OPTIONAL_NUMBER, "after": NUMBER},
    "samples": {"prompt": TEXT, "texts": [_SAMPLE]},
    "validation": {"tokens": COUNT, "conversations": COUNT},
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Schema]] = {
    "config.json": {
        "eos_token_id": _TOKEN_IDS, "tie_word_embeddings": (FLAG, NULL), "rope_scaling": _ROPE, "rope_parameters": _ROPE
    },
    "generation_config.json": {"eos_token_id": _TOKEN_IDS},
    "tokenizer_config.json": {"chat_template": (TEXT, [{"name": TEXT, "template": TEXT}], NULL)},
    "training.json": _RECORD | {"experts": [_RECORD]},
    "adapter_config.json": {"peft_type!": TEXT, "r!": POSITIVE_COUNT, "lora_alpha!": POSITIVE_NUMBER},
    "model.safetensors.index.json": OBJECT,
    "config.json of an ensemble": {"experts!": [OBJECT], "names!": [TEXT]},
    "training.json of an ensemble": {"experts!": [_RECORD]},
}  # fmt: skip


def parse_document(text: str, name: str, label: str = "") -> dict[str, Any]:
    """Parse a document as an object that fits SCHEMAS[name]. `label` is its name in messages.

    Raises LLMError if it is not JSON, does not fit, or has a lone surrogate, which cannot be written to a file.
    """
    label = label or f"its {name}"
    try:
        document = parse_json(text)
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise LLMError(f"{label} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise LLMError(f"{label} is not an object")
    if problem := validation_error(document, SCHEMAS[name]):
        raise LLMError(f"{label} is not valid: {problem}")
    return document


def parse_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError if it is not JSON, or nested more than MAX_DEPTH deep."""
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
    """Return the first violation of a schema with its path in the document, or ""."""
    alternatives = schema if isinstance(schema, tuple) else (schema,)
    errors: list[str] = []
    for one in alternatives:
        if isinstance(one, Scalar) and one.is_valid(value):
            return ""
        if type(value) is type(one):  # a list or an object: the inner error is the most helpful
            errors.append(_error_inside(value, one, place))
    if errors:
        return "" if "" in errors else errors[0]
    expected = " or ".join(
        one.description if isinstance(one, Scalar) else "a list" if isinstance(one, list) else "an object"
        for one in alternatives
    )
    return f"{place} is {brief(value)}; expected {expected}"


def _error_inside(value: Any, schema: Any, place: str) -> str:
    """Return the first violation inside a list or object."""
    if isinstance(schema, list):
        errors = (validation_error(entry, schema[0], f"{place}[{i}]") for i, entry in enumerate(value))
        return next(filter(None, errors), "")
    for key, inner in schema.items():
        name = key.removesuffix("!")
        inner_place = name if place == "it" else f"{place}.{name}"
        if name in value:
            if error := validation_error(value[name], inner, inner_place):
                return error
        elif name != key:
            return f"{inner_place} is missing"
    return ""
