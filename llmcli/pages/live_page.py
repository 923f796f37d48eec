"""A page with a model inside: one HTML file that runs the model in any browser, without a network.

The page has the weights, the config, the tokenizer and the training record as data, and the run program as JavaScript
(live/model.js is numpy_runtime.py, one token at a time), which a worker runs.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.analysis.comparison import initialized_heads
from llmcli.config import ModelConfig
from llmcli.data.conversations.example_prompt import example_prompts
from llmcli.errors import LLMError
from llmcli.formats.atomic_io import name_of
from llmcli.formats.cache_weights import CacheWeights
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.loading import open_chat_template, open_tokenizer
from llmcli.formats.training_record import TrainingRecord
from llmcli.pages.inspection_page import inspection_data
from llmcli.pages.live_text import chat_data, tokenizer_data
from llmcli.pages.live_weights import check_size, choose_dtype, pack
from llmcli.pages.model_facts import training_record
from llmcli.pages.template import fill, joined, json_for_script
from llmcli.training.files.summary import probe_points

if TYPE_CHECKING:
    from llmcli.formats.safetensors.header import Header

MODEL_SCRIPTS = (
    "tokenizer", "vocabulary", "model", "ngram_cache", "sampler", "token_healing", "generator", "inside", "worker",
)  # fmt: skip
PAGE_SCRIPTS = (
    "templates/shared.js", "templates/curve.js", "templates/arcs.js", "live/texts.js", "live/record_texts.js",
    "live/inside_view.js", "live/compare_view.js", "live/record.js", "live/page.js",
)  # fmt: skip
_CONFIG_KEYS = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
    "rms_norm_eps", "num_experts", "num_experts_per_tok", "norm_topk_prob", "hidden_act", "no_rope_layers",
    "use_parallel_residual", "parameters",
)  # fmt: skip


def live_page(
    model: Checkpoint,
    header: "Header",
    dtype: str | None,
    on_note: Callable[[str], None],
    *,
    prompt: str | None = None,
    compare: str | None = None,
    without: Sequence[str] = (),
    if_too_large: str | None = None,
) -> bytes:
    """Write the page of a model. The data type of its weights is chosen unless `dtype` is given.

    With a `prompt`, the page opens at its prediction, with the parts `without` switched off ("2": layer 2, "2.3": head
    3 of layer 2); with `compare` as well, at both prompts side by side. Raises LLMError for a model that pages do not
    support, or that is too large: its advice is `if_too_large`, or another dtype or format of `llm export`.
    """
    if model.config.joint_qk_norm or model.config.is_gemma:
        raise LLMError(f"pages do not support models of type {model.config.model_type}; export it to hf or gguf")
    tokenizer = open_tokenizer(model)
    dtype, note = choose_dtype(model, tokenizer, dtype, if_too_large)
    template = open_chat_template(model, tokenizer)
    chat = template and chat_data(template, tokenizer)
    if template and not chat:
        on_note("pages do not support the model's chat template, so this one continues text but has no chat")
    entries, weights = pack(model, dtype)
    cache = CacheWeights.of_record(model.record, model.path)
    data: dict[str, Any] = {
        "config": _config_data(model.config),
        "tensors": entries,
        "tokenizer": tokenizer_data(tokenizer, model.tokenizer_json),
        "ngram_cache": cache and cache.orders,
        "chat": chat,
        "planted": initialized_heads(model),
        "parameters": units.number(model.parameters),
        "dtype": dtype,
        "record": _record_data(header, note),
    }
    sample = data["record"]["prompt"]
    example = next(iter(example_prompts(sample)), sample)  # the last word is left to predict
    data["start"] = {
        "view": ("write" if prompt is None else "inside") if compare is None else "compare",
        "text": example if prompt is None else prompt,
        "compare": compare or "",
        "without": list(without),
    }
    name = name_of(header.path.resolve())
    page = fill(
        "live/page.html", ("templates/page.css", "live/page.css"), PAGE_SCRIPTS,
        name if header.path.is_dir() else Path(name).stem, "worker-src blob:; ",
        data=json_for_script(data), weights=base64.b64encode(weights).decode(),
        worker='"use strict";\n' + joined([f"live/{script}.js" for script in MODEL_SCRIPTS]),
    )  # fmt: skip
    check_size(model.config, dtype, len(page), if_too_large)
    on_note(f"weights: {note}")
    return page


def _config_data(config: ModelConfig) -> dict[str, Any]:
    frequencies = [] if config.learned_positions else config.rope_frequencies()
    return {key: getattr(config, key) for key in _CONFIG_KEYS} | {"rope_frequencies": frequencies}


def _record_data(header: "Header", weights: str) -> dict[str, Any]:
    shown, record = inspection_data(header, lambda note: None), training_record(header)
    return {
        "rows": [("weights in this page", weights), *(row for row in shown["record"] if row[0] != "summary")],
        "verdict": [value for name, value in shown["record"] if name == "summary"],
        "plan": _plan_rows(record.document),
        "probe": _probe_data(record),
        **{key: shown[key] for key in ("curve", "samples", "prompt")},
    }


def _probe_data(record: TrainingRecord) -> dict[str, Any] | None:
    if not (record.probe and (points := probe_points(record))):
        return None
    return {
        "prompt": record.probe.prompt,
        "points": [[point.step, point.bits_per_byte, point.likeliest] for point in points],
    }


def _plan_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """List the choices of the plan, (name, value, reason); a record from elsewhere may hold anything there."""
    plan = document.get("plan")
    rows = [row for row in plan if isinstance(row, dict)] if isinstance(plan, list) else []
    return [[str(row.get(key, "")) for key in ("name", "value", "reason")] for row in rows]
