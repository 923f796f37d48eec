"""Granite and Phi-3 as Llama: factors and byte ranges by hand, and errors of one line. Logits: tests/ecosystem."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.header import TensorInfo
from llmcli.formats.huggingface import directory as hf_directory
from llmcli.formats.huggingface.rewriting import rewrite
from llmcli.formats.safetensors.file import read_tensor
from llmcli.formats.safetensors.header import read_header
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import random_checkpoint

SHAPE: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
}  # fmt: skip
GRANITE = SHAPE | {
    "model_type": "granite", "embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5,
    "logits_scaling": 8.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
PHI3 = SHAPE | {"model_type": "phi3"}


def tensors(**shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    """bfloat16 tensors that start at byte 100."""
    return {
        (full := name.replace("__", ".")): TensorInfo(full, "BF16", shape, 100, 100 + 2 * int(np.prod(shape)))
        for name, shape in shapes.items()
    }


def test_the_multipliers_of_granite_are_factors_of_tensors() -> None:
    layer = "model__layers__11__"
    shapes = {f"{layer}self_attn__{which}_proj__weight": (8, 8) for which in "qko"}
    shapes |= {f"{layer}mlp__down_proj__weight": (8, 6), "model__norm__weight": (8,)}
    config, rewritten = rewrite(GRANITE, tensors(**shapes))
    factors = {name.split(".")[-2]: tensor.factor for name, tensor in rewritten.items()}
    assert factors == {"q_proj": 0.5, "k_proj": 1, "o_proj": 0.5 / 12, "down_proj": 0.5 / 12, "norm": 1 / 8}
    assert config["model_type"] == "llama" and config["rms_norm_eps"] == 1e-5 / 144
    assert config["logits_scaling"] is None


def test_the_stacked_matrices_of_phi3_are_ranges_of_rows() -> None:
    stacked = tensors(
        model__layers__3__self_attn__qkv_proj__weight=(32, 8), model__layers__3__mlp__gate_up_proj__weight=(12, 8)
    )
    config, rewritten = rewrite(PHI3, stacked)
    ranges = {name.removeprefix("model.layers.3."): (t.shape, t.start, t.end) for name, t in rewritten.items()}
    assert ranges == {  # a row has 16 bytes
        "self_attn.q_proj.weight": ((16, 8), 100, 356), "self_attn.k_proj.weight": ((8, 8), 356, 484),
        "self_attn.v_proj.weight": ((8, 8), 484, 612), "mlp.gate_proj.weight": ((6, 8), 100, 196),
        "mlp.up_proj.weight": ((6, 8), 196, 292),
    }  # fmt: skip
    assert config["rms_norm_eps"] == 1e-5 and config["eos_token_id"] == 32000  # defaults
    assert rewrite(PHI3 | {"rms_norm_eps": 1e-6}, stacked)[0]["rms_norm_eps"] == 1e-6


def test_the_rows_of_a_stacked_matrix_are_read() -> None:
    stacked = np.arange(32 * 8, dtype=np.float32).reshape(32, 8)
    save_file({"model.layers.0.self_attn.qkv_proj.weight": stacked}, "x.safetensors")
    header = read_header("x.safetensors")
    _, split = rewrite(PHI3, header.tensors)
    parts = [read_tensor(header, split[f"model.layers.0.self_attn.{which}_proj.weight"]) for which in "qkv"]
    assert [len(part) for part in parts] == [16, 8, 8] and np.array_equal(np.concatenate(parts), stacked)


def test_other_architectures_are_not_changed() -> None:
    some = tensors(model__norm__weight=(8,))
    for model_type in ("llama", "gemma3_text", None, ["phi3"]):
        config = SHAPE | {"model_type": model_type}
        assert rewrite(config, some) == (config, some)


def test_what_cannot_be_rewritten_is_an_error() -> None:
    cases = [
        (GRANITE | {"residual_multiplier": "2"}, "residual_multiplier to '2'; supported: a positive number"),
        (GRANITE | {"embedding_multiplier": 0}, "embedding_multiplier to 0; supported"),
        (GRANITE | {"attention_multiplier": True}, "attention_multiplier to True; supported"),
        (GRANITE | {"rms_norm_eps": None}, "rms_norm_eps to None; supported: a number"),
        (PHI3 | {"num_attention_heads": 0}, "num_attention_heads to 0; supported: a number of at least 1"),
        (PHI3 | {"intermediate_size": 7}, r"mlp.gate_up_proj.weight has shape \[12, 8\]; its config requires 14 rows"),
    ]
    for config, message in cases:
        with pytest.raises(LLMError, match=message):
            rewrite(config, tensors(model__layers__0__mlp__gate_up_proj__weight=(12, 8)))


def test_a_directory_of_granite_is_read_as_a_llama(tmp_path: Path) -> None:
    config = ModelConfig(300, 32, 48, 2, 4, 2, 8, 64, model_type="llama", rms_norm_eps=1e-5)
    model = random_checkpoint(config)
    there = tmp_path / "there"
    hf_directory.write(there, replace(model, dtypes=dict.fromkeys(config.tensor_shapes(), "F16")), {}, "# A model\n")
    document = json.loads((there / "config.json").read_text("utf-8"))
    granite = {key: value for key, value in GRANITE.items() if key not in SHAPE}
    (there / "config.json").write_text(json.dumps(document | granite), "utf-8")
    opened = loading.load(there)
    assert (opened.record.imported or {})["architecture"] == "granite"
    name = "model.layers.1.mlp.down_proj.weight"
    expected = model.tensors[name].astype(np.float16).astype(np.float32) * (0.5 / 12)
    np.testing.assert_allclose(opened.tensors[name], expected, rtol=1e-6)
    assert name not in opened.dtypes and opened.dtypes["model.layers.1.mlp.up_proj.weight"] == "F16"
    assert np.isfinite(NumpyRuntime(opened).logits([1, 2, 3])).all()
    (there / "config.json").write_text(json.dumps(document | granite | {"logits_scaling": "x"}), "utf-8")
    with pytest.raises(LLMError, match="logits_scaling to 'x'"):
        loading.load(there)
