"""The page of a model, in two forms that differ only in the runtime.

- A page with a model inside: one HTML file that runs the model offline in any browser. It contains the
  weights, the config, the tokenizer and the training record as data. The runtime is JavaScript in a web
  worker (live/model.js corresponds to numpy_runtime.py, one token at a time). A trainable page also trains a
  model: in addition to live/, training/ has a tab and a trainer for the worker.
- The page of `llm serve`: the runtime is live/http.js, which requests results, and the facts about a model,
  from the server.
"""

import base64
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.explain import initialized_heads
from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.conversations.example_prompt import example_prompts
from llmcli.errors import LLMError, OnNote
from llmcli.formats.atomic_io import name_of
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.loading import open_chat_template, open_tokenizer
from llmcli.formats.metadata import Json
from llmcli.pages.live_text import chat_data, tokenizer_data
from llmcli.pages.live_weights import check_size, choose_dtype, pack
from llmcli.pages.record_data import record_data
from llmcli.pages.template import compressed, fill, joined, json_for_script, script_of, source_hash
from llmcli.pages.training_data import TRAINING_SCRIPTS, example_texts, training_data

if TYPE_CHECKING:
    from llmcli.formats.header import Header

MODEL_SCRIPTS = (
    "shown",
    "tokenizer",
    "vocabulary",
    "model",
    "ngram_cache",
    "sampler",
    "token_healing",
    "generator",
    "inside",
    "worker",
)
VIEW_SCRIPTS = (
    "templates/curve.js",
    "templates/arcs.js",
    "live/settings_view.js",
    "live/inside_view.js",
    "live/compare_view.js",
    "live/chat_view.js",
    "live/record.js",
    "live/page.js",
)
PAGE_SCRIPTS = ("templates/shared.js", "live/texts.js", "live/local.js", *VIEW_SCRIPTS)
SERVED_SCRIPTS = (
    "templates/shared.js",
    "live/shown.js",
    "live/texts.js",
    "live/class.js",
    "live/http.js",
    *VIEW_SCRIPTS,
)
TRAINABLE_SCRIPTS = (*PAGE_SCRIPTS, "training/train_view.js")
TEXTS = ("page", "record")
_DEFAULTS = SamplingConfig()
# positions of the sliders for answers, and for the samples of a model in training
CHAT_SLIDERS = {
    "temperature": _DEFAULTS.temperature,
    "topP": _DEFAULTS.top_p,
    "minP": _DEFAULTS.min_p,
}
MAX_EXAMPLES = 4
STYLES = ("templates/page.css", "live/page.css")
_WITHOUT_TAB = {"train_tab": "", "train_panel": ""}  # placeholders for the tab Train
_CONFIG_KEYS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "num_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "hidden_act",
    "no_rope_layers",
    "use_parallel_residual",
    "parameters",
)


def live_page(
    model: Checkpoint,
    dtype: str | None,
    on_note: OnNote,
    *,
    prompt: str | None = None,
    compare: str | None = None,
    without: Sequence[str] = (),
    if_too_large: str | None = None,
    trainable: bool = False,
) -> bytes:
    """Write the page of a model that was opened from a file. The data type of its weights is chosen unless
    `dtype` is given. A `trainable` page can replace the model by a model trained in the page.

    With a `prompt`, the page opens at its prediction, with the parts `without` switched off ("2": layer 2,
    "2.3": head 3 of layer 2); with `compare` too, it opens at both prompts side by side. Raises LLMError for
    a model that pages do not support or that is too large; the advice is then `if_too_large`, or another
    dtype or format of `llm export`.
    """
    if model.config.architecture.joint_qk_norm or model.config.is_gemma:
        raise LLMError(
            f"pages do not support models of type {model.config.model_type}; export it to hf or gguf"
        )
    header = model.header
    tokenizer = open_tokenizer(model)
    assert header, "it was opened from a file"
    dtype, note = choose_dtype(model, tokenizer, dtype, if_too_large)
    template = open_chat_template(model, tokenizer)
    chat = template and chat_data(template, tokenizer)
    if template and not chat:
        on_note("pages do not support the model's chat template, so this one continues text but has no chat")
    entries, weights = pack(model, dtype)
    data: Json = {
        "config": _config_data(model.config),
        "tensors": entries,
        "tokenizer": tokenizer_data(tokenizer, model.tokenizer_json),
        "ngram_cache": model.record.ngram_cache and model.record.ngram_cache.weights,
        "chat": chat,
        "dtype": dtype,
        **_facts(model, header),
    }
    data["record"]["rows"].insert(0, ("weights in this page", note))
    data["start"] |= {"compare": compare or "", "without": list(without)}
    if prompt is not None:
        data["start"] |= {"view": "inside" if compare is None else "compare", "text": prompt}
    name = name_of(header.path.resolve())
    title = name if header.path.is_dir() else Path(name).stem
    page = _page(title, data, weights, trainable=trainable)
    check_size(model.config, dtype, len(page), if_too_large)
    on_note(f"weights: {note}")
    return page


def training_page() -> bytes:
    """Write the trainable page without a model."""
    return _page("llmcli", {}, b"", trainable=True)


def _page(title: str, data: Json, weights: bytes, *, trainable: bool) -> bytes:
    worker = '"use strict";\n' + joined([f"live/{script}.js" for script in MODEL_SCRIPTS])
    values = _WITHOUT_TAB | {"icon": "", "weights": base64.b64encode(weights).decode(), "worker": worker}
    styles = [*STYLES]
    script = script_of(PAGE_SCRIPTS, TEXTS, CHAT_SLIDERS=CHAT_SLIDERS)
    sources = "; worker-src blob:"
    program = "live/program.html"
    if trainable:
        data = data | {"training": training_data()}
        trainer = joined([f"training/{script}.js" for script in TRAINING_SCRIPTS])
        page = script_of(
            TRAINABLE_SCRIPTS, (*TEXTS, "train"), CHAT_SLIDERS=CHAT_SLIDERS, EXAMPLES=example_texts()
        )
        values |= {name: joined([f"training/{name}.html"]) for name in _WITHOUT_TAB}
        values |= {"worker": compressed(f"{worker}\n{trainer}"), "page": compressed(page)}
        styles = [*STYLES, "training/train.css"]
        script = joined(["training/unpack.js"])
        program = "training/program.html"
        sources = f" '{source_hash(page)}' 'wasm-unsafe-eval'{sources}"  # WebAssembly for matrix products
    values |= {"data": json_for_script(data), "program": Template(joined([program])).substitute(values)}
    return fill("live/page.html", styles, script, title, sources, **values)


@cache
def served_page() -> bytes:
    """Write the page of `llm serve`, which is the same for all models."""
    icon = '<link rel="icon" href="data:,">'  # otherwise the browser requests one from the server
    sources = "; connect-src 'self'; img-src data:"
    styles = (*STYLES, "live/class.css")
    values = _WITHOUT_TAB | {"icon": icon, "data": "{}", "program": ""}
    script = script_of(SERVED_SCRIPTS, (*TEXTS, "class"), CHAT_SLIDERS=CHAT_SLIDERS)
    return fill("live/page.html", styles, script, "llm serve", sources, **values)


def served_facts(source: Checkpoint | Ensemble, header: "Header") -> Json:
    """Collect what the page of `llm serve` shows about a model. Raises LLMError for another program's
    record."""
    config = source.shared.config
    shape = {key: getattr(config, key) for key in ("num_hidden_layers", "num_attention_heads")}
    return _facts(source, header) | {
        "config": shape | {"parameters": source.parameters},
        "has_switches": isinstance(source, Checkpoint),
    }


def _facts(source: Checkpoint | Ensemble, header: "Header") -> Json:
    record = record_data(header)
    prompt = record["prompt"]
    samples = record["samples"]
    prompts = example_prompts(prompt)  # without the last word, which the model is to predict
    more = example_prompts(prompt + samples[-1][1]) if samples else []
    return {
        "planted": initialized_heads(source) if isinstance(source, Checkpoint) else {},
        "parameters": units.number(source.parameters),
        "record": record,
        "examples": {
            "prompts": list(dict.fromkeys([*prompts, *more]))[:MAX_EXAMPLES],
            "questions": [prompt] if prompt else [],
        },
        "start": {"view": "write", "text": next(iter(prompts), prompt), "compare": "", "without": []},
    }


def _config_data(config: ModelConfig) -> Json:
    frequencies = [] if config.architecture.learned_positions else config.rope_frequencies()
    return {key: getattr(config, key) for key in _CONFIG_KEYS} | {"rope_frequencies": frequencies}
