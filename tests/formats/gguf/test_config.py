"""The fields of a GGUF as a config: what is supported, and the errors for what is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ModelConfig, RopeScaling
from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.gguf import config as gguf_config
from llmcli.formats.gguf import conventions
from tests.formats.gguf_by_hand import FIELDS, MODEL, TOKENS, gguf_bytes

UNSUPPORTED: list[tuple[dict[str, Any], str]] = [  # (changes, None for a field that is left out; the message)
    ({"tokenizer.ggml.tokens": None}, "it has no tokenizer.ggml.tokens$"),
    ({"tokenizer.ggml.pre": None}, "it has no tokenizer.ggml.pre, the name"),
    ({"llama.attention.head_count": None}, "it has no llama.attention.head_count$"),
    ({"general.architecture": "bert"}, "architecture 'bert'; supported: gpt2, olmo2"),
    ({"llama.expert_count": 8}, "has no llama.expert_used_count"),
    ({"tokenizer.ggml.pre": "falcon"}, "its pre-tokenizer is 'falcon'; gpt-2, smollm"),
    ({"tokenizer.ggml.model": "bert"}, "kind 'bert'; gpt2 and llama"),
    ({"tokenizer.ggml.model": "llama"}, "it has no tokenizer.ggml.scores$"),
    ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling is of type 'yarn'"),
    ({"llama.attention.head_count": 0}, "`num_attention_heads` must be"),
    ({"llama.attention.head_count": [4, 2]}, r"head_count is \[4, 2\]; expected one number for all"),
    ({"llama.context_length": "many"}, "context_length is many; expected one number"),
    ({"llama.block_count": 2}, "layers.1.input_layernorm.weight is missing"),
    ({"tokenizer.ggml.eos_token_id": 300}, "not below vocab_size"),
    ({"tokenizer.ggml.tokens": ["a"]}, "invalid header|token"),
    ({"tokenizer.ggml.merges": "a b"}, "its tokenizer.ggml.merges is not a list of str"),
    ({"tokenizer.ggml.token_type": [1, 2]}, "300 tokens, but 2 entries in tokenizer.ggml.token_type"),
    ({"tokenizer.ggml.tokens": TOKENS[:256], "tokenizer.ggml.token_type": [1] * 256,
      "tokenizer.ggml.eos_token_id": 299}, "its token 299 is not among its 256 tokens"),
    ({"general.alignment": 0}, "alignment is 0"),
    ({"general.type": "adapter"}, "has no model: its general.type is 'adapter'; merge an adapter"),
    ({"general.type": "mmproj"}, "has no model: its general.type is 'mmproj'$"),
    ({"split.count": 2}, "one of the 2 files of a model; join them first: llama-gguf-split --merge"),
    ({"llama.rope.dimension_count": 4}, "sets llama.rope.dimension_count to 4; supported: 8"),
    ({"llama.attention.value_length": 16}, "sets llama.attention.value_length to 16"),
    ({"llama.attention.scale": 0.5}, r"sets llama.attention.scale to 0.5; supported: 1 / sqrt\(8\)"),
    ({"llama.rope.scaling.attn_factor": 1.5}, "sets llama.rope.scaling.attn_factor to 1.5"),
    ({"llama.rope.dimension_sections": [2, 2, 0, 0]}, "sets llama.rope.dimension_sections to"),
    ({"llama.rope.scaling.factor": "4"}, "RoPE scaling factor is 4; supported: a number"),
    *[({"llama.expert_count": 2, "llama.expert_used_count": 1, f"llama.{key}": value}, key)
      for key, value in (("expert_gating_func", 2), ("expert_weights_norm", False), ("expert_weights_scale", 2.5))],
]  # fmt: skip


def test_the_error_names_what_is_missing_or_invalid(tmp_path: Path) -> None:
    for changes, message in UNSUPPORTED:
        fields = {key: value for key, value in (FIELDS | changes).items() if value is not None}
        path = tmp_path / "m.gguf"
        path.write_bytes(gguf_bytes(fields))
        with pytest.raises(LLMError, match=message) as caught:
            loading.load(path)
        assert caught.value.exit_code == 1 and "\n" not in str(caught.value) and str(path) in str(caught.value), fields


def test_a_stored_rope_scaling_that_does_not_give_the_factors_is_ignored() -> None:
    for stored in ["{}", "[", '{"rope_type": "llama3", "factor": 2.0}', '{"factor": []}', "[" * 99999]:
        theta, scaling = 500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
        plain = [theta ** (-2 * i / 64) for i in range(32)]
        factors = [f / scaling.scaled(f) for f in plain]
        # found by trying, as for files of other programs
        assert gguf_config._llama3_scaling(factors, theta, stored) == scaling, stored
        with pytest.raises(LLMError, match="RoPE scaling factors are not Llama 3's"):
            gguf_config._llama3_scaling([factor**2 for factor in factors], theta, stored)


def test_fields_with_neutral_values_are_ignored(tmp_path: Path) -> None:
    cases = [
        {"llama.logit_scale": 1.0, "llama.attention.causal": True, "llama.rope.dimension_count": 8},
        {"llama.attention.value_length": 8, "llama.attention.scale": float(np.float32(8**-0.5))},
        {"llama.expert_weights_norm": False, "llama.expert_gating_func": 2},  # of experts, of which there are none
        {"general.type": "model", "split.count": 1, "split.no": 0, "llama.pooling_type": 3},
        {"llama.rope.dimension_sections": [0, 0, 0, 0], "llama.rope.scaling.finetuned": True},
    ]
    for fields in cases:
        (tmp_path / "m.gguf").write_bytes(gguf_bytes())
        expected = loading.load(tmp_path / "m.gguf").config
        (tmp_path / "m.gguf").write_bytes(gguf_bytes(FIELDS | fields))
        assert loading.load(tmp_path / "m.gguf").config == expected, fields


def with_factors(factors: list[float]) -> dict[str, Any]:
    row = np.array(factors, "<f4")
    embedding = 0, (300, 32), MODEL.tensors["model.embed_tokens.weight"].tobytes()
    return {"token_embd.weight": embedding, "rope_freqs.weight": (0, row.shape, row.tobytes())}


def test_factors_that_cannot_be_used_are_an_error(tmp_path: Path) -> None:
    for fields, factors, message in (
        ({"rope.scaling.factor": 2.0}, [1.0, 1.0, 8.0, 8.0], "factor is 2.0; supported: a number, or a tensor"),
        ({}, [8.0, 8.0], "rope_freqs.weight has 2 numbers; expected 4"),
        ({"rope.freq_base": 0.0}, [8.0] * 4, "invalid header"),
    ):
        named = {f"llama.{key}": value for key, value in fields.items()}
        (tmp_path / "m.gguf").write_bytes(gguf_bytes(FIELDS | named, with_factors(factors)))
        with pytest.raises(LLMError, match=message):
            loading.load(tmp_path / "m.gguf")


def test_gemma_3_27b_is_recognized_by_its_62_layers() -> None:
    for layers, expected in ((61, 16), (62, 8)):
        assert conventions.query_scalar(ModelConfig(300, 32, 64, layers, 4, 2, 16, 40)) == expected
