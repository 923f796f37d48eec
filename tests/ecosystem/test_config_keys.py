"""Each key of a config.json, omitted or changed: the logits are those of transformers, or the config is an error.

Transformers builds a tiny model of each architecture from the changed config. It is read here from a directory with the
same config.json. Equal logits or an error of one line are right, other logits never.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ARCHITECTURES, REWRITTEN, ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.huggingface.config import dump_config, parse_config
from llmcli.formats.huggingface.directory import published_config
from llmcli.formats.safetensors.file import read_tensor, write_tensors
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.platforms import FULL

TOKENS = 40  # in the window that is compared
SHAPE: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 48, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {"embedding_multiplier": 12.0, "attention_multiplier": 0.2, "residual_multiplier": 0.22,
                "logits_scaling": 1.5},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 250, "sliding_window": 8,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": {"rotary_pct": 0.5}, "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": None},
    "olmo2": {"pad_token_id": None}, "phi3": {"pad_token_id": None}, "qwen3": {"head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
# without LLMCLI_FULL only with the keys that Llama does not have
RELATIVES = ("gemma3_text", "gpt2", "gpt_neox", "granite", "olmo2", "phi3", "qwen3_moe", "smollm3")
ROPE_KEYS: dict[str, set[str]] = {"gpt2": set(), "gpt_neox": {"rope_parameters"}}  # of the others: see their test
DELETED = object()


def without(rules: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in rules.items() if key not in keys}


# the values of each key; keys that a config of the architecture does not have are added
VALUES: dict[str, list[Any]] = {
    "activation_function": ["gelu", "gelu_pytorch_tanh", "relu", "silu", None],
    "add_cross_attention": [True, None],
    "attention_bias": [True, False, None],
    "attention_chunk_size": [8],
    "attention_dropout": [0.5],
    "attn_logit_softcapping": [2.0, 0.0],
    "attention_multiplier": [0.5, 0.0, -1.0, "1", None, DELETED],
    "bos_token_id": [3, None, DELETED],
    "chunk_size_feed_forward": [4],
    "decoder_sparse_step": [2, 3],
    "embedding_multiplier": [3.0, 1e9, None, DELETED],
    "eos_token_id": [3, [3, 5], None],
    "head_dim": [4, 8, 6, None, DELETED],
    "final_logit_softcapping": [2.0],
    "hidden_activation": ["silu", "gelu", "relu", "gelu_pytorch_tanh", None],
    "hidden_act": ["silu", "swish", "gelu", "relu", "gelu_pytorch_tanh", "gelu_new", None],
    "hidden_size": [32],
    "initializer_range": [0.5],
    "intermediate_size": [48],
    "is_causal": [False, True, None],
    "is_decoder": [False],
    "is_encoder_decoder": [True],
    "layer_types": [
        DELETED, None, ["full_attention"] * 2, ["sliding_attention"] * 2, ["full_attention", "sliding_attention"],
        ["full_attention"], ["chunked_attention"] * 2, ["attention"] * 2, "full_attention",
    ],
    "layer_norm_eps": [0.1, None],
    "layer_norm_epsilon": [0.1, None],
    "logit_scale": [2.0],
    "logits_scaling": [8, None, DELETED],
    "max_position_embeddings": [20, 4096],
    "max_window_layers": [0, 1, 2, None, DELETED],
    "mlp_bias": [True, False],
    "mlp_only_layers": [[], [0], [5], None],
    "moe_intermediate_size": [16],
    "n_ctx": [20],
    "n_embd": [32],
    "n_head": [2],
    "n_inner": [None, 48],
    "n_layer": [1],
    "n_positions": [44, 64],
    "no_rope_layer_interval": [1, 2, 4, 0, None, DELETED],
    "no_rope_layers": [
        [1, 1], [0, 0], [0, 1], [1], [1, 1, 0], [True, False], [2, 0], [0.5, 0], ["0", 1], None, DELETED,
    ],
    "norm_topk_prob": [True, False, DELETED],
    "num_attention_heads": [2, 8],
    "num_experts": [3, 8],
    "num_experts_per_tok": [1, 3, DELETED],
    "num_hidden_layers": [1, 3],
    "num_key_value_heads": [1, 4, None, DELETED],
    "num_local_experts": [3, 8],
    "original_max_position_embeddings": [24],
    "output_router_logits": [True],
    "pad_token_id": [3],
    "partial_rotary_factor": [0.5, 1.0],
    "per_layer_config": [{"0": {"rms_norm_eps": 0.1}}, {"1": {"sliding_window": 4}}, {}, None],
    "pretraining_tp": [2],
    "qk_layernorm": [True],
    "query_pre_attn_scalar": [8, 30, 8.5, 0, None, DELETED],
    "reorder_and_upcast_attn": [True],
    "residual_multiplier": [1.0, None, DELETED],
    "rms_norm_eps": [0.1, 1e-5, DELETED],
    "rope_local_base_freq": [100.0],
    "rope_parameters": [
        DELETED, None, {}, {"rope_theta": 100.0}, {"rope_type": "default", "rope_theta": 100.0},
        {"rope_type": "linear", "factor": 3.0}, {"rope_type": "linear", "factor": 3.0, "rope_theta": 50},
        {"rope_type": "linear", "factor": 0.5, "rope_theta": 50.0}, {"rope_type": "linear"},
        {"type": "linear", "factor": 2.0, "rope_theta": 20.0}, {"rope_type": "linear", "type": "yarn", "factor": 2.0},
        {**LLAMA3, "rope_theta": 1e4}, LLAMA3, without(LLAMA3, "original_max_position_embeddings"),
        without(LLAMA3, "low_freq_factor"), without(LLAMA3, "high_freq_factor"), without(LLAMA3, "factor"),
        {**LLAMA3, "factor": 0.5}, {**LLAMA3, "low_freq_factor": 4.0}, {**LLAMA3, "attention_factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0, 2.0], "long_factor": [2.0, 3.0]},
        {"rope_type": "proportional"}, {"rope_type": None}, {"rope_type": "nonsense"},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e2}, "sliding_attention": {"rope_theta": 10.0}},
        {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}},
        {"full_attention": LLAMA3, "sliding_attention": {"rope_type": "default", "rope_theta": 30}},
        {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
        {"sliding_attention": {"rope_type": "default", "rope_theta": 30.0}},
        [LLAMA3], "linear",
    ],
    "rope_scaling": [
        None, {}, {"type": "linear", "factor": 3.0}, {"rope_type": "linear", "factor": 3.0},
        {"type": "linear", "rope_type": "default", "factor": 3.0}, LLAMA3,
        without(LLAMA3, "original_max_position_embeddings"), {"type": "yarn", "factor": 4.0},
        {"type": "dynamic", "factor": 4.0}, {"type": "su", "factor": 4.0}, {"factor": 4.0}, {"mrope_section": [1, 1]},
    ],
    "rope_theta": [100, 1e6, None],
    "rotary_emb_base": [100, None, DELETED],
    "rotary_pct": [0.5, 1.0, 0.3, None, DELETED],
    "router_aux_loss_coef": [0.5],
    "router_jitter_noise": [0.5],
    "scale_attn_by_inverse_layer_idx": [True, None],
    "scale_attn_weights": [False, None],
    "sliding_window": [8, 39, 40, 48, 100, 0, None, "8", 8.0, DELETED],
    "sliding_window_pattern": [1, 2, 3, None],
    "tie_word_embeddings": [True, False],
    "use_bidirectional_attention": [True],
    "use_cache": [False],
    "use_parallel_residual": [False, True, None],
    "use_sliding_window": [True, None],
    "vocab_size": [64],
}  # fmt: skip
TOGETHER: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": DELETED, "rope_theta": 100.0},
    {"rope_scaling": LLAMA3, "rope_parameters": DELETED, "rope_theta": 1e5},
    {"rope_scaling": LLAMA3, "rope_parameters": DELETED, "original_max_position_embeddings": 12},
    {"rope_parameters": DELETED, "rope_theta": 300.0, "rope_scaling": None},
    {"rope_parameters": {**LLAMA3, "rope_theta": 10.0}, "rope_theta": 300.0},
    {"rope_parameters": LLAMA3, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": LLAMA3, "original_max_position_embeddings": 12},
    {"rope_parameters": DELETED, "rms_norm_eps": DELETED},
    *({"use_sliding_window": True, "sliding_window": window, "layer_types": types, "max_window_layers": layers}
      for window in (8, None) for types in (DELETED, ["full_attention"] * 2, ["sliding_attention", "full_attention"])
      for layers in (0, 1, 2, 28)),
    {"use_sliding_window": False, "sliding_window": 8, "layer_types": DELETED, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": DELETED, "layer_types": DELETED, "max_window_layers": 0},
    *({"layer_types": DELETED, "sliding_window_pattern": pattern} for pattern in (1, 2, 3, 0, None, DELETED)),
    {"rope_parameters": DELETED, "rope_theta": 300.0, "rope_local_base_freq": 30.0},
    {"rope_parameters": DELETED, "rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    {"rope_parameters": DELETED, "rope_theta": 300.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    {"norm_topk_prob": True, "num_experts_per_tok": 3},
    *({"no_rope_layers": DELETED, "no_rope_layer_interval": interval} for interval in (1, 2, 3, 0, None, DELETED)),
    {"no_rope_layers": DELETED, "num_hidden_layers": 4, "layer_types": DELETED},
]  # fmt: skip


def changes(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of a config: each key omitted, each key set to each of its values, and combinations."""
    yield {}
    for key in config:
        yield {key: DELETED}
    for key, values in VALUES.items():
        yield from ({key: value} for value in values if value is not DELETED or key not in config)
    yield from TOGETHER


def applied(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | change).items() if value is not DELETED}


class Built:
    """A model that transformers builds from a config: its logits, and a directory with its weights."""

    def __init__(self, config: dict[str, Any], place: Path) -> None:
        """Raises all that transformers raises. Models with the same weights share a directory of `place`."""
        import torch
        import transformers

        own = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
        model = transformers.AutoModelForCausalLM.from_config(own, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():  # a function of name and shape alone
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                if weight.ndim == 1 and not name.endswith("bias"):
                    weight.uniform_(0.5, 1.5, generator=generator)
                else:
                    weight.normal_(0, 0.3, generator=generator)
        with torch.inference_mode():
            self.logits = model(torch.tensor([IDS])).logits[0].numpy()
        shapes = [own.model_type, *((name, *weight.shape) for name, weight in model.named_parameters())]
        self.directory = place / f"{zlib.crc32(repr(shapes).encode()):08x}"
        if not self.directory.exists():  # saving takes longer than all the rest
            model.save_pretrained(self.directory)


IDS = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], TOKENS).tolist()


def own_logits(config: dict[str, Any], directory: Path) -> tuple[ModelConfig, np.ndarray]:
    """(our config, our logits within our context length). Raises LLMError."""
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    (directory / "tokenizer.json").write_text("{}", "utf-8")
    checkpoint = loading.load(directory)
    runtime = NumpyRuntime(checkpoint)
    return checkpoint.config, runtime.logits(IDS[: runtime.context])


@pytest.mark.parametrize("tied", [False, True] if FULL else [False])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, *REWRITTEN] if FULL else ["llama", *RELATIVES])
def test_each_config_key_has_the_effect_of_transformers_or_is_an_error(tmp_path: Path, kind: str, tied: bool) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    own = transformers.CONFIG_MAPPING[kind](**SHAPE | MORE.get(kind, {}), tie_word_embeddings=tied)
    base = json.loads(own.to_json_string())
    other, run, effective = [], 0, set()
    own_eps = next(key for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if key in base)
    own_keys = base.keys() - transformers.LlamaConfig().to_dict().keys()
    own_keys |= {"rms_norm_eps", "rope_local_base_freq", "sliding_window"}
    before: np.ndarray | None = None
    for change in changes(base):
        config = applied(base, change)
        if not FULL and kind in RELATIVES and not change.keys() & own_keys:
            continue
        if config.get("model_type") != kind or (tied and config.get("tie_word_embeddings") is not True):
            continue  # another architecture, or weights that are not stored
        try:
            (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
            published_config(tmp_path / "config.json")  # if that is an error, no model need be built
            try:
                built = Built(config, tmp_path)
            except Exception:  # transformers has no exception class of its own
                continue
            result, logits = own_logits(config, built.directory)
        except LLMError as error:
            assert "\n" not in str(error), change
            assert change, error
            continue
        theirs = built.logits
        run += 1
        before = theirs if before is None else before
        if before.shape == theirs.shape and np.abs(before - theirs).max() > 1e-3:
            effective |= change.keys()
        tolerance = 1e-4 if result.hidden_size < 500 else 1e-3  # by default of n_embd; both round by 5e-4
        if len(logits) < 1 or np.abs(logits - theirs[: len(logits)]).max() > tolerance:
            other.append(applied({}, change) | {key: "omitted" for key, v in change.items() if v is DELETED})
        assert parse_config(dump_config(result)) == result, change
    assert not other, "\n".join(map(str, other))
    if FULL or kind not in RELATIVES:
        assert run > 60
        assert ROPE_KEYS.get(kind, {"rope_parameters", "rope_scaling", "rope_theta"}) <= effective
    if kind == "gemma3_text":
        own = {"hidden_activation", "layer_types", "query_pre_attn_scalar", "rope_local_base_freq"}
        assert own | {"sliding_window", "sliding_window_pattern"} <= effective
    assert own_eps in effective, (tied, kind)  # the comparison can fail


def directory_of(kind: str, place: Path, **more: Any) -> Path:
    import transformers

    own = transformers.CONFIG_MAPPING[kind](**SHAPE | MORE.get(kind, {}), **more)
    directory = Built(json.loads(own.to_json_string()), place).directory
    (directory / "tokenizer.json").write_text("{}", "utf-8")
    return directory


def logits_of_both(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """(our logits, those of transformers) of the model in a directory."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return NumpyRuntime(loading.load(directory)).logits(IDS), model(torch.tensor([IDS])).logits[0].numpy()


def test_the_head_of_a_tied_model_is_treated_as_in_transformers(tmp_path: Path) -> None:
    for kind in ["llama", "mixtral", "qwen3"]:
        directory = directory_of(kind, tmp_path)
        config = json.loads((directory / "config.json").read_text("utf-8"))
        (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}), "utf-8")
        other = logits_of_both(directory)
        np.testing.assert_allclose(*other, atol=1e-4)
        header = loading.read_header(directory)
        tensors = {name: read_tensor(header, tensor) for name, tensor in header.tensors.items()}
        write_tensors(
            directory / "model.safetensors", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},
            {"format": "pt"},
        )  # fmt: skip
        same = logits_of_both(directory)
        np.testing.assert_allclose(*same, atol=1e-4)
        assert np.abs(same[0] - other[0]).max() > 1 and loading.load(directory).config.tie_word_embeddings, kind
