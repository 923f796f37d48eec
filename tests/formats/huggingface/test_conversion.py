"""Models in transformers' layout: tensors by hand, GPT's both ways, and errors of one line. Logits:
tests/ecosystem."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ARCHITECTURES, ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.header import TensorInfo
from llmcli.formats.huggingface import directory as hf_directory
from llmcli.formats.huggingface.conversion import convert_config, convert_tensors
from llmcli.formats.safetensors.file import read_tensor, write_tensors
from llmcli.formats.safetensors.header import read_header
from llmcli.formats.tensor_names import TRANSFORMERS
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import TEXT, random_checkpoint

C, L, H, F, CONTEXT = 12, 2, 2, 20, 16
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe([TEXT], 280)


def gpt2(V: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    config = {"model_type": "gpt2", "n_embd": C, "n_layer": L, "n_head": H, "n_inner": F, "n_positions": CONTEXT,
              "vocab_size": V, "eos_token_id": 0, "bos_token_id": 0, "activation_function": "gelu_new"}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (V, C), "transformer.wpe.weight": (CONTEXT, C)}
    for name in ("ln_f", *(f"h.{i}.ln_{n}" for i in range(L) for n in (1, 2))):
        shapes |= {f"transformer.{name}.{kind}": (C,) for kind in ("weight", "bias")}
    for i in range(L):
        for name, inputs, outputs in (
            ("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C), ("mlp.c_fc", C, F), ("mlp.c_proj", F, C),
        ):  # fmt: skip
            start = f"transformer.h.{i}.{name}"
            shapes |= {f"{start}.weight": (inputs, outputs), f"{start}.bias": (outputs,)}
    return config, shapes


def gpt_neox(V: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    config = {"model_type": "gpt_neox", "hidden_size": C, "num_hidden_layers": L, "num_attention_heads": H,
              "intermediate_size": F, "max_position_embeddings": CONTEXT, "vocab_size": V, "eos_token_id": 0,
              "bos_token_id": 0, "rotary_pct": 2 / 3}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (V, C), "embed_out.weight": (V, C)}
    norms = (f"layers.{i}.{name}" for i in range(L) for name in ("input_layernorm", "post_attention_layernorm"))
    for name in ("final_layer_norm", *norms):
        shapes |= {f"gpt_neox.{name}.{kind}": (C,) for kind in ("weight", "bias")}
    for i in range(L):
        for name, inputs, outputs in (
            ("attention.query_key_value", C, 3 * C), ("attention.dense", C, C), ("mlp.dense_h_to_4h", C, F),
            ("mlp.dense_4h_to_h", F, C),
        ):  # fmt: skip
            start = f"gpt_neox.layers.{i}.{name}"
            shapes |= {f"{start}.weight": (outputs, inputs), f"{start}.bias": (outputs,)}
    return config, shapes


FOO_MODULES = (
    *(f"self_attn.{which}_proj" for which in "qkvo"),
    *(f"mlp.{which}_proj" for which in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)
FAMILIES = {"gpt2": gpt2, "gpt_neox": gpt_neox}


def write_model(directory: Path, kind: str, tokenizer: Tokenizer, **changes: Any) -> Arrays:
    config, shapes = FAMILIES[kind](tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.5, shape).astype("f4") for name, shape in shapes.items()}
    directory.mkdir()
    write_tensors(directory / "model.safetensors", arrays, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config | changes), "utf-8")
    (directory / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    return arrays


def test_the_matrices_of_gpt2_are_transposed_and_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    theirs = write_model(tmp_path / "m", "gpt2", tokenizer)
    ours = loading.load(tmp_path / "m").tensors
    for i, which in enumerate("qkv"):
        name, columns = f"model.layers.1.self_attn.{which}_proj", slice(i * C, (i + 1) * C)
        np.testing.assert_array_equal(
            ours[f"{name}.weight"], theirs["transformer.h.1.attn.c_attn.weight"][:, columns].T
        )
        np.testing.assert_array_equal(ours[f"{name}.bias"], theirs["transformer.h.1.attn.c_attn.bias"][columns])
    np.testing.assert_array_equal(
        ours["model.layers.0.mlp.down_proj.weight"], theirs["transformer.h.0.mlp.c_proj.weight"].T
    )
    np.testing.assert_array_equal(ours["model.embed_positions.weight"], theirs["transformer.wpe.weight"])


def test_the_rotated_part_of_a_head_of_gpt_neox_is_the_start_of_both_halves(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    theirs = write_model(tmp_path / "m", "gpt_neox", tokenizer)
    model = loading.load(tmp_path / "m")
    # a head has 6 elements, of which (0, 2) and (1, 3) are rotated; here the pairs are (0, 3), (1, 4), (2, 5)
    order = [0, 1, 4, 2, 3, 5]
    for kind in ("weight", "bias"):
        heads = theirs[f"gpt_neox.layers.0.attention.query_key_value.{kind}"].reshape(H, 3, 6, -1)
        for i, which in enumerate("qkv"):
            expected = heads[:, i] if which == "v" else heads[:, i][:, order]
            found = model.tensors[f"model.layers.0.self_attn.{which}_proj.{kind}"]
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    assert model.config.rope_frequencies() == [1.0, 10000 ** (-2 / 4), 0.0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_export_has_the_tensors_and_the_config_of_the_original(
    kind: str, tmp_path: Path, tokenizer: Tokenizer, llm
) -> None:
    theirs = write_model(tmp_path / "m", kind, tokenizer)
    assert llm("import", tmp_path / "m", "-o", "ours.safetensors").exit_code == 0
    assert llm("export", "ours.safetensors", tmp_path / "back", "--to", "hf").exit_code == 0
    header = read_header(tmp_path / "back" / "model.safetensors")
    assert header.tensors.keys() == theirs.keys()
    for name, tensor in header.tensors.items():
        np.testing.assert_array_equal(read_tensor(header, tensor), theirs[name], name)
    config, back = FAMILIES[kind](tokenizer.vocab_size)[0], json.loads((tmp_path / "back" / "config.json").read_text())
    same_function = {"activation_function": "gelu_pytorch_tanh"}
    assert {key: back[key] for key in config} == config | {k: v for k, v in same_function.items() if k in config}
    ids = list(range(5, 15))
    logits = [NumpyRuntime(loading.load(path)).logits(ids) for path in (tmp_path / "m", tmp_path / "back")]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("kind", FAMILIES)
def test_older_files_have_no_prefix_and_causal_masks(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    arrays = write_model(tmp_path / "m", kind, tokenizer)
    masks = {"h.0.attn.bias": np.ones((1, 1, 4, 4), "f4"), "layers.0.attention.masked_bias": np.zeros((), "f4")}
    write_model(tmp_path / "older", kind, tokenizer)
    bare = {name.removeprefix("transformer.").removeprefix("gpt_neox."): array for name, array in arrays.items()}
    write_tensors(tmp_path / "older" / "model.safetensors", bare | masks, {})
    ours = [loading.load(tmp_path / name).tensors for name in ("m", "older")]
    assert ours[0].keys() == ours[1].keys()
    for name in ours[0]:
        np.testing.assert_array_equal(ours[0][name], ours[1][name])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gpt2", {"scale_attn_weights": False}, "sets scale_attn_weights to false; supported: true"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx to true; supported: false",
        ),
        ("gpt2", {"add_cross_attention": True}, "sets add_cross_attention to true; supported: false"),
        ("gpt2", {"activation_function": "relu"}, "sets hidden_act to 'relu'; supported: silu"),
        ("gpt2", {"n_head": "2"}, "num_attention_heads must be an integer, found '2'"),
        ("gpt2", {"n_layer": 2**31 - 1}, "its config has 2,147,483,647 layers, but the file has fewer tensors"),
        ("gpt2", {"n_positions": 20}, r"transformer.wpe.weight has shape \[16, 12\]; its config requires \[20, 12\]"),
        ("gpt2", {"n_inner": None}, r"c_fc.weight has shape \[12, 20\]; its config requires \[12, 48\]"),
        ("gpt_neox", {"attention_bias": False}, "sets attention_bias to false; supported: true"),
        ("gpt_neox", {"rotary_pct": 0.5}, "partial_rotary_factor must be an even part of the head size 6, found 0.5"),
        ("gpt_neox", {"rotary_pct": "all"}, "partial_rotary_factor"),
        ("gpt_neox", {"use_parallel_residual": 2}, "use_parallel_residual must be true or false, found 2"),
    ],
)
def test_what_is_not_supported_names_the_key(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write_model(tmp_path / "m", kind, tokenizer, **change)
    with pytest.raises(LLMError, match=message) as caught:
        loading.load(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert hf_directory.read_header(tmp_path / "m").problem  # llm inspect shows it


def test_an_architecture_with_other_names_of_tensors_is_a_row_and_a_table(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ARCHITECTURES["llama"]._replace(transformers_class="FooForCausalLM", qkv_bias=True)
    monkeypatch.setitem(ARCHITECTURES, "foo", row)
    names = {"foo.words": "model.embed_tokens", "foo.last": "model.norm", "out": "lm_head"}
    names |= {f"foo.#.{name.rpartition('.')[2]}": name for name in FOO_MODULES}
    monkeypatch.setitem(TRANSFORMERS, "foo", names)
    config = ModelConfig(tokenizer.vocab_size, C, F, L, H, H, C // H, CONTEXT, model_type="foo")
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    hf_directory.write(tmp_path / "foo", model, {}, "# Foo\n")
    stored = read_header(tmp_path / "foo" / "model.safetensors").tensors
    assert {"foo.words.weight", "foo.1.q_proj.bias", "foo.0.down_proj.weight", "out.weight"} <= stored.keys()
    back = loading.load(tmp_path / "foo")
    assert back.config == config
    assert all(np.array_equal(back.tensors[name], tensor) for name, tensor in model.tensors.items())


SHAPE: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "vocab_size": 300, "num_hidden_layers": 1, "max_position_embeddings": 64,
}  # fmt: skip
GRANITE = SHAPE | {
    "model_type": "granite", "embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5,
    "logits_scaling": 8.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
PHI3 = SHAPE | {"model_type": "phi3", "vocab_size": 32064}


def in_layer(number: int, **shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    names = {f"model.layers.{number}.{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}
    return {name: TensorInfo(name, "BF16", shape, 0, 0) for name, shape in names.items()}


def test_the_multipliers_of_granite_are_factors_of_tensors() -> None:
    stored = in_layer(11, self_attn__q_proj=(8, 8), self_attn__k_proj=(8, 8), self_attn__o_proj=(8, 8))
    stored |= in_layer(11, mlp__down_proj=(8, 6)) | {"model.norm.weight": TensorInfo("", "BF16", (8,), 0, 0)}
    factors = {name.split(".")[-2]: tensor.factor for name, tensor in convert_tensors(GRANITE, stored).items()}
    assert factors == {"q_proj": 0.5, "k_proj": 1, "o_proj": 0.5 / 12, "down_proj": 0.5 / 12, "norm": 1 / 8}
    config = convert_config(GRANITE)
    assert config["model_type"] == "llama" and config["rms_norm_eps"] == 1e-5 / 144
    assert config["logits_scaling"] is None


def test_the_stacked_matrices_of_phi3_are_split() -> None:
    stored = in_layer(0, self_attn__qkv_proj=(32, 8), mlp__gate_up_proj=(12, 8))
    stacked = {name: np.arange(8 * tensor.shape[0]).reshape(tensor.shape) for name, tensor in stored.items()}
    split = convert_tensors(PHI3, stored)
    for name, parts in (("qkv_proj", {"q": 16, "k": 8, "v": 8}), ("gate_up_proj", {"gate": 6, "up": 6})):
        theirs = next(full for full in stored if name in full)
        ours = [split[theirs.replace(name, f"{part}_proj")] for part in parts]
        assert [tensor.shape for tensor in ours] == [(rows, 8) for rows in parts.values()]
        assert ours[0].start == stored[theirs].start and ours[-1].end == stored[theirs].end  # shown by llm inspect
        rows = [tensor.view(stacked[theirs]) for tensor in ours if tensor.view]
        np.testing.assert_array_equal(np.concatenate(rows), stacked[theirs])
    config = convert_config(PHI3)
    assert config["rms_norm_eps"] == 1e-5 and config["eos_token_id"] == 32000  # defaults
    assert convert_config(PHI3 | {"rms_norm_eps": 1e-6})["rms_norm_eps"] == 1e-6


def test_what_cannot_be_converted_is_an_error() -> None:
    cases = [
        (GRANITE | {"residual_multiplier": "2"}, "residual_multiplier to '2'; supported: a positive number"),
        (GRANITE | {"embedding_multiplier": 0}, "embedding_multiplier to 0; supported"),
        (GRANITE | {"attention_multiplier": True}, "attention_multiplier to True; supported"),
        (GRANITE | {"rms_norm_eps": None}, "rms_norm_eps to None; supported: a positive number"),
        (PHI3 | {"num_attention_heads": 0}, "num_attention_heads` must be between 1"),
        (
            PHI3 | {"intermediate_size": 7},
            r"mlp.gate_up_proj.weight has shape \[12, 8\]; its config requires \[14, 8\]",
        ),
    ]
    for config, message in cases:
        with pytest.raises(LLMError, match=message):
            convert_tensors(config, in_layer(0, mlp__gate_up_proj=(12, 8)))


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
