"""The JSON documents that are stored with a model, and the types of the keys that this program reads in them.

The documents may come from untrusted files. They are checked once, when a model is opened, so that code that reads a
key later can rely on its type. config.json is also checked by `config.ModelConfig`. Standard library only.
"""

import json
from typing import Any

from llmcli.errors import LLMError
from llmcli.formats.json_schema import (
    AMOUNT,
    COUNT,
    FLAG,
    FRACTION,
    NULL,
    NUMBER,
    OBJECT,
    POSITIVE_COUNT,
    POSITIVE_NUMBER,
    TEXT,
    Required,
    Schema,
    Tuple,
    parse_json,
    validation_error,
)

_TOKEN_IDS: Schema = (COUNT, [COUNT], NULL)
_OPTIONAL_TEXT: Schema = (TEXT, NULL)
_OPTIONAL_NUMBER: Schema = (NUMBER, NULL)
_ROPE_PARAMETERS: Schema = (
    {
        "type": _OPTIONAL_TEXT, "rope_type": _OPTIONAL_TEXT, "rope_theta": _OPTIONAL_NUMBER, "factor": _OPTIONAL_NUMBER,
    },
    NULL,
)  # fmt: skip
_FILE: dict[str, Schema] = {
    "name": TEXT,
    "path": TEXT,
    "bytes": COUNT,
    "sha256": TEXT,
    "shape": TEXT,
    "conversations": COUNT,
}
_STAGE: dict[str, Schema] = {  # what was trained on, and what was held out
    "corpus": [{**_FILE, "held_out": COUNT, "left_out": COUNT}],
    "held_out": {"bytes": COUNT, "tokens": COUNT, "from": TEXT, "of": TEXT, "files": [_FILE], "seen_by_base": FLAG},
    "conversations": {
        "training": COUNT,
        "held_out": COUNT,
        "held_out_share": (FRACTION, NULL),
        "train_tokens": COUNT,
        "train_bytes": COUNT,
        "from_step": COUNT,
        "epochs": AMOUNT,
    },
    "train_bytes": COUNT,
    "stage": TEXT,
    "file": TEXT,
}
_RECORD: dict[str, Schema] = {  # of a training run
    **{key: schema for key, schema in _STAGE.items() if key not in ("stage", "file")},
    "adapter": TEXT,
    "answers": (
        Required(questions=COUNT, verbatim=FRACTION, exact=FRACTION).with_optional(
            near=FRACTION, garbled=FRACTION, seen=FRACTION
        ),
        NULL,
    ),
    "average_of": [TEXT],
    "base": {"file": TEXT, "sha256": TEXT, "source_sha256": TEXT},
    "best_step": COUNT,
    "bits_per_byte": (NUMBER, NULL),
    "bits_per_byte_before": NUMBER,
    "bits_per_byte_before_without_cache": NUMBER,
    "bits_per_byte_without_cache": NUMBER,
    "clock": {
        "seconds": AMOUNT,
        "tokens_per_second": AMOUNT,
        "planned_tokens_per_second": AMOUNT,
        "planned_epochs": AMOUNT,
    },
    "curve": {"step": [COUNT], "loss": [NUMBER], "eval_step": [COUNT], "eval_bits_per_byte": [NUMBER]},
    "distillation": {"from_step": COUNT, "teacher_bits_per_byte": NUMBER},
    "earlier_stages": [_STAGE],
    "epochs": AMOUNT,
    "expert_shares": [[NUMBER]],
    "held_out_measured": ({"bytes": COUNT, "tokens": COUNT, "cached_tokens": COUNT}, NULL),
    "imported": OBJECT,
    "interrupted": FLAG,
    "memorised": (Required(share=FRACTION, held_out_share=(FRACTION, NULL)), NULL),
    "plain_text": {"from": TEXT, "tokens": COUNT, "before": (NUMBER, NULL), "after": NUMBER},
    "problem": TEXT,
    "read_bytes": COUNT,
    "samples": {"prompt": TEXT, "texts": [Tuple((COUNT, TEXT))]},
    "steps": COUNT,
    "train": OBJECT,
    "train_tokens": COUNT,
    "validation": {"tokens": COUNT, "conversations": COUNT},
    "verdict": [TEXT],
    "versions": OBJECT,
}
SCHEMAS: dict[str, dict[str, Schema]] = {
    "config.json": {
        "eos_token_id": _TOKEN_IDS,
        "rope_scaling": _ROPE_PARAMETERS,
        "rope_parameters": _ROPE_PARAMETERS,
        "tie_word_embeddings": (FLAG, NULL),
    },
    "generation_config.json": {"eos_token_id": _TOKEN_IDS},
    "tokenizer_config.json": {"chat_template": (TEXT, [{"name": TEXT, "template": TEXT}], NULL)},
    "training.json": _RECORD | {"experts": [_RECORD]},
    "adapter_config.json": Required(peft_type=TEXT, r=POSITIVE_COUNT, lora_alpha=POSITIVE_NUMBER),
    "model.safetensors.index.json": OBJECT,
    "config.json of an ensemble": Required(experts=[OBJECT], names=[TEXT]),
    "training.json of an ensemble": Required(experts=[_RECORD]),
}


def parse_document(text: str, name: str, label: str = "") -> dict[str, Any]:
    """A document as an object that fits SCHEMAS[name]. `label` is its name in messages.

    Raises LLMError when it is not JSON, does not fit, or has a lone surrogate, which cannot be written to a file.
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
