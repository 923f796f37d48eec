"""A GGUF written by hand, byte for byte: what is read from it, and what is refused in one line."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig, RopeScaling
from llmcli.data import tokenizer_json
from llmcli.data.token_names import byte_level_alphabet
from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats import atomic_io, gguf_config, gguf_header, gguf_writer, loading
from llmcli.formats.loading import open_tokenizer
from tests.conftest import random_checkpoint

CONFIG = ModelConfig(300, 32, 64, 1, 4, 2, 8, 40, True, 1e-5, 5000.0, 1, "llama")
ALPHABET = list(byte_level_alphabet())
TOKENS = ["<start>", "<end>", *ALPHABET, "Ġa", "ab"]
TOKENS += [f"<fill {i}>" for i in range(300 - len(TOKENS))]


def text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def value(found: Any) -> bytes:
    """A kind and what is of it."""
    if isinstance(found, bool):
        return struct.pack("<I?", 7, found)
    if isinstance(found, int):
        small = 0 <= found < 1 << 32
        return struct.pack("<II", 4, found) if small else struct.pack("<Iq", 11, found)
    if isinstance(found, float):
        return struct.pack("<If", 6, found)
    if isinstance(found, str):
        return struct.pack("<I", 8) + text(found)
    inner = value(found[0])[:4]
    return struct.pack("<I", 9) + inner + struct.pack("<Q", len(found)) + b"".join(value(one)[4:] for one in found)


FACTS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "By hand",
    "general.license": "mit",
    "llama.block_count": 1,
    "llama.context_length": 40,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, *[1] * 298],
    "tokenizer.ggml.merges": ["Ġ a", "a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + D/2 of each head side by side, as llama.cpp has them."""
    D = len(weight) // heads
    order = [head * D + half * (D // 2) + i for head in range(heads) for i in range(D // 2) for half in range(2)]
    return weight[order]


MODEL = random_checkpoint(CONFIG)
THEIRS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
    "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
    "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
    "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
}


def by_hand(
    facts: dict[str, Any] | None = None, tensors: dict[str, tuple[int, tuple[int, ...], bytes]] | None = None
) -> bytes:
    """The bytes of a GGUF: magic, version, counts, keys, descriptions of tensors, filling, tensors."""
    facts = FACTS if facts is None else facts
    if tensors is None:
        tensors = {}
        for theirs, ours in THEIRS.items():
            weight = np.asarray(MODEL.tensors[ours], "<f4")
            heads = {"attn_q": 4, "attn_k": 2}.get(theirs.split(".")[-2])
            tensors[theirs] = 0, weight.shape, (interleaved(weight, heads) if heads else weight).tobytes()
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    header += b"".join(text(key) + value(found) for key, found in facts.items())
    body = b""
    for name, (kind, shape, data) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += text(name) + dimensions + struct.pack("<IQ", kind, len(body))
        body += data + b"\0" * (-len(data) % 32)
    return header + b"\0" * (-len(header) % 32) + body


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand())
    found = loading.load(path)
    assert found.config == ModelConfig(300, 32, 64, 1, 4, 2, 8, 40, True, 1e-5, 5000.0, 1, "llama", bos_token_id=0)
    for name in CONFIG.tensor_shapes():
        np.testing.assert_array_equal(found.tensors[name], MODEL.tensors[name])
    told = found.record["imported"]
    assert (told["name"], told["license"], told["form"]) == ("By hand", "mit", "GGUF")
    assert json.loads(found.tokenizer_config_json)["chat_template"] == "{{ messages }}"
    tokenizer = open_tokenizer(found)
    assert tokenizer.encode(" ab") == [TOKENS.index("Ġa"), TOKENS.index("b")]  # the merge that was learned first
    assert tokenizer.eos_ids == {0, 1} or tokenizer.eos_ids == {1}
    assert tokenizer.bos_ids == []


def test_a_start_that_the_file_asks_for_is_put_before_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(FACTS | {"tokenizer.ggml.add_bos_token": True}))
    tokenizer = open_tokenizer(loading.load(path))
    assert tokenizer.bos_ids == [0] and tokenizer.bos_id == 0
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.bos_ids == [0]


def test_halves(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    facts = FACTS | {"llama.attention.head_count": 1, "llama.attention.head_count_kv": 1}
    values = np.array([1.5, -2.0, 0.25, 3.0], np.float32)
    bfloat = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    rows = {
        "token_embd.weight": (0, (300, 32), MODEL.tensors["model.embed_tokens.weight"].tobytes()),
        "blk.0.ffn_up.weight": (1, (4,), values.astype("<f2").tobytes()),
        "blk.0.ffn_norm.weight": (30, (4,), bfloat),
    }
    path.write_bytes(by_hand(facts, rows))
    header = loading.read_header(path)
    for name in ("mlp.up_proj.weight", "post_attention_layernorm.weight"):
        tensor = header.tensors[f"model.layers.0.{name}"]
        assert header.decode is not None
        assert np.concatenate([*header.decode(tensor)]).tolist() == values.tolist()


def test_four_bits_by_hand(tmp_path: Path) -> None:
    """Q4_0: a half for the scale, then 32 codes of which the first 16 are the lower halves of the bytes."""
    pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    codes = np.arange(32) % 16
    block = np.float16(0.5).tobytes() + bytes(int(codes[i]) | int(codes[i + 16]) << 4 for i in range(16))
    rows = {
        "token_embd.weight": (0, (300, 32), MODEL.tensors["model.embed_tokens.weight"].tobytes()),
        "blk.0.ffn_up.weight": (2, (1, 32), block),
    }
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(FACTS, rows))
    header = loading.read_header(path)
    assert header.decode is not None
    found = np.concatenate([*header.decode(header.tensors["model.layers.0.mlp.up_proj.weight"])])
    assert found.tolist() == ((codes - 8) * 0.5).tolist()


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new, 1)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"general.architecture": "gpt2"}, "architecture 'gpt2'; supported: llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "has no llama.expert_used_count"),
        ({"tokenizer.ggml.pre": "falcon"}, "its pre-tokenizer is 'falcon'; gpt-2, smollm"),
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert'; gpt2 and llama"),
        ({"llama.rope.scaling.type": "yarn"}, "scaled by 'yarn'"),
        ({"llama.attention.head_count": 0}, "num_attention_heads must be"),
        ({"llama.block_count": 2}, "layers.1.input_layernorm.weight is missing"),
        ({"tokenizer.ggml.eos_token_id": 300}, "not below vocab_size"),
        ({"tokenizer.ggml.tokens": ["a"]}, "invalid header|token"),
        ({"general.alignment": 0}, "alignment is 0"),
        ({"general.type": "adapter"}, "has no model: its general.type is 'adapter'; merge an adapter"),
        ({"general.type": "mmproj"}, "has no model: its general.type is 'mmproj'$"),
        ({"split.count": 2}, "one of the 2 files of a model; join them first: llama-gguf-split --merge"),
        ({"llama.rope.dimension_count": 4}, "sets llama.rope.dimension_count to 4; supported: 8"),
        ({"llama.attention.value_length": 16}, "sets llama.attention.value_length to 16"),
        ({"llama.logit_scale": 2.0}, "sets llama.logit_scale to 2.0"),
        ({"llama.attention.causal": False}, "sets llama.attention.causal to False"),
        ({"llama.attention.scale": 0.5}, r"sets llama.attention.scale to 0.5; supported: 1 / sqrt\(8\)"),
        ({"llama.final_logit_softcapping": 30.0}, "sets llama.final_logit_softcapping to 30.0"),
        ({"llama.rope.scaling.attn_factor": 1.5}, "sets llama.rope.scaling.attn_factor to 1.5"),
        ({"llama.rope.dimension_sections": [2, 2, 0, 0]}, "sets llama.rope.dimension_sections to"),
        ({"llama.rope.scaling.factor": "4"}, "by a factor of 4; expected a number"),
        ({"llama.expert_count": 2, "llama.expert_used_count": 1, "llama.expert_gating_func": 2}, "expert_gating_func"),
        ({"llama.expert_count": 2, "llama.expert_used_count": 1, "llama.expert_weights_norm": False}, "weights_norm"),
        ({"llama.expert_count": 2, "llama.expert_used_count": 1, "llama.expert_weights_scale": 2.5}, "weights_scale"),
    ],
)
def test_what_is_not_supported_says_what_it_is(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(FACTS | facts))
    with pytest.raises(LLMError, match=message) as caught:
        loading.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:3], "cut off|not a safetensors"),
        (lambda data: data[:20], "cut off inside its header"),
        (lambda data: data[: len(data) // 3], "cut off"),
        (lambda data: data[:-40], "the tensors end at byte"),
        (replaced(struct.pack("<I", 3), struct.pack("<I", 1)), "version 1; 2 and 3"),
        (replaced(struct.pack("<Q", len(THEIRS)), struct.pack("<Q", 1 << 60)), "at most 131,072 are supported"),
        (replaced(text("general.name"), struct.pack("<Q", 1 << 62) + b"general.name"), "cut off inside its header"),
        (replaced(text("blk.0.ffn_up.weight"), text("blk.0.ffn_upp.weight")[:-1]), "."),
    ],
)
def test_damage_is_told_in_one_line(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(change(by_hand()))
    with pytest.raises(LLMError, match=message) as caught:
        loading.load(path)
    assert "\n" not in str(caught.value)


WHOLE = by_hand()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 9000), st.binary(min_size=1, max_size=8), st.integers(0, len(WHOLE)))
def test_no_damage_gives_anything_but_a_model_or_one_line(tmp_path_factory, place: int, some: bytes, end: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "m.gguf"
    path.write_bytes((WHOLE[:place] + some + WHOLE[place + len(some) :])[: max(end, 9000)])
    try:
        model = loading.load(path)
        open_tokenizer(model).encode("ab")
        for name in model.config.tensor_shapes():
            model.tensors[name]
    except LLMError as error:
        assert "\n" not in str(error)


def test_writing_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LLMError, match=r"pip install 'llmcli\[gguf\]'"):
        gguf_writer.write(tmp_path / "m.gguf", MODEL, "f32", {})


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_what_is_written_is_read_again(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat " * 50], 280)
    config = ModelConfig(tokenizer.vocab_size, 64, 96, 2, 4, 2, 16, 40)
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    gguf_writer.write(tmp_path / "m.gguf", model, dtype, {"name": "x"})
    found = loading.load(tmp_path / "m.gguf")
    assert found.config == config
    assert open_tokenizer(found).encode("the cat's hat 12 りんご") == tokenizer.encode("the cat's hat 12 りんご")
    off = {"f32": 0.0, "f16": 1e-3, "bf16": 8e-3, "q8_0": 8e-3, "q4_0": 0.13}[dtype]
    for name in config.tensor_shapes():
        wanted = model.tensors[name]
        assert np.abs(found.tensors[name] - wanted).max() <= off * np.abs(wanted).max()


def test_characters_are_written_as_llama_cpp_has_them(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    tokenizer = Tokenizer.train_char(["the cat りんご"])
    config = ModelConfig(tokenizer.vocab_size, 64, 96, 2, 4, 2, 16, 40)
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    gguf_writer.write(tmp_path / "m.gguf", model, "f32", {})
    again = open_tokenizer(loading.load(tmp_path / "m.gguf"))
    assert again.kind == "char"
    assert again.encode("a cat ごX") == tokenizer.encode("a cat ごX")
    both = Tokenizer.train_char([f"a {tokenizer_json.SPACE}"])
    model = random_checkpoint(ModelConfig(both.vocab_size, 64, 96, 2, 4, 2, 16, 40), tokenizer_json=both.to_json())
    with pytest.raises(LLMError, match="both a space and"):
        gguf_writer.write(tmp_path / "b.gguf", model, "f32", {})


def test_a_disk_without_space_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    tokenizer = Tokenizer.train_char(["the cat"])
    config = ModelConfig(tokenizer.vocab_size, 64, 96, 2, 4, 2, 16, 40)
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    monkeypatch.setattr(atomic_io.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(LLMError, match=r"the disk of .* has 0\.0 MB left, .*m\.gguf will take"):
        gguf_writer.write(tmp_path / "m.gguf", model, "f32", {})
    assert list(tmp_path.iterdir()) == []


LLAMA_3 = [
    (10000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 1024)),
    (500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 32)),
    (500000.0, RopeScaling("llama3", 32.0, 1.0, 2.0, 8192)),
    (10000.0, RopeScaling("linear", 3.3)),
]


@pytest.mark.parametrize(("theta", "scaling"), LLAMA_3)
def test_rotary_positions_that_we_write_are_read_exactly(tmp_path: Path, theta: float, scaling: RopeScaling) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat " * 50], 280)
    config = ModelConfig(
        tokenizer.vocab_size, 64, 96, 2, 4, 2, 16, 40, rope_theta=theta, model_type="llama", rope_scaling=scaling
    )
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    gguf_writer.write(tmp_path / "m.gguf", model, "f32", {})
    assert loading.load(tmp_path / "m.gguf").config == config
    keys = set(gguf.GGUFReader(tmp_path / "m.gguf").fields)
    assert scaling.rope_type == "linear" or "llama.rope.scaling.type" not in keys  # llama.cpp would scale twice


@pytest.mark.parametrize("told", ["{}", "[", '{"rope_type": "llama3", "factor": 2.0}', '{"factor": []}', "[" * 99999])
def test_what_does_not_give_the_factors_is_not_believed(told: str) -> None:
    theta, scaling = 500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    plain = [theta ** (-2 * i / 64) for i in range(32)]
    factors = [f / scaling.scaled(f) for f in plain]
    assert gguf_config._llama3_scaling(factors, theta, told) == scaling  # guessed, as of others' files
    with pytest.raises(LLMError, match="not Llama 3's"):
        gguf_config._llama3_scaling([factor**2 for factor in factors], theta, told)


def test_tokens_that_the_file_does_not_name_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """Of a tokenizer like GPT-2's 11 both, of SentencePiece's 1 and 2; Llama 3's begin a text without being asked."""
    path = tmp_path / "m.gguf"
    for changes, ends, start in (
        ({"tokenizer.ggml.eos_token_id": LEFT_OUT}, 11, []),
        ({"tokenizer.ggml.bos_token_id": LEFT_OUT, "tokenizer.ggml.add_bos_token": True,
          "tokenizer.ggml.token_type": [3, 3, *[1] * 9, 3, *[1] * 288]}, 1, [11]),
        ({"tokenizer.ggml.pre": "llama3"}, 1, [0]),
        ({"tokenizer.ggml.pre": "dbrx"}, 1, []),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0] * 300,
          "tokenizer.ggml.bos_token_id": LEFT_OUT, "tokenizer.ggml.eos_token_id": LEFT_OUT}, 2, [1]),
    ):  # fmt: skip
        path.write_bytes(by_hand({key: value for key, value in (FACTS | changes).items() if value != LEFT_OUT}))
        found = loading.load(path)
        assert (found.config.eos_token_id, open_tokenizer(found).bos_ids) == (ends, start), changes
        whole = json.loads(found.tokenizer_json)["model"].get("ignore_merges", False)
        assert whole == (changes.get("tokenizer.ggml.pre") == "llama3")


LEFT_OUT = "left out"


@pytest.mark.parametrize(
    ("facts", "factor"),
    [
        ({"llama.rope.scaling.factor": 4.0}, 4.0),  # as in llama.cpp, linear where no type is told
        ({"llama.rope.scale_linear": 4.0}, 4.0),  # the old name
        ({"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 4.0}, 2.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.type": "linear"}, None),
        ({"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 4.0}, None),
        ({"llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
    ],
)
def test_a_factor_of_rotary_positions_in_any_spelling(tmp_path: Path, facts: dict[str, Any], factor: float) -> None:
    (tmp_path / "m.gguf").write_bytes(by_hand(FACTS | facts))
    wanted = RopeScaling("linear", factor) if factor else None
    assert loading.load(tmp_path / "m.gguf").config.rope_scaling == wanted


@pytest.mark.parametrize(
    "facts",
    [
        {"llama.logit_scale": 1.0, "llama.attention.causal": True, "llama.rope.dimension_count": 8},
        {"llama.attention.value_length": 8, "llama.attention.scale": float(np.float32(8**-0.5))},
        {"llama.expert_weights_norm": False, "llama.expert_gating_func": 2},  # of experts, of which there are none
        {"general.type": "model", "split.count": 1, "split.no": 0, "llama.pooling_type": 3},
        {"llama.rope.dimension_sections": [0, 0, 0, 0], "llama.rope.scaling.finetuned": True},
    ],
)
def test_keys_that_change_nothing_are_passed_over(tmp_path: Path, facts: dict[str, Any]) -> None:
    (tmp_path / "m.gguf").write_bytes(by_hand())
    wanted = loading.load(tmp_path / "m.gguf").config
    (tmp_path / "m.gguf").write_bytes(by_hand(FACTS | facts))
    assert loading.load(tmp_path / "m.gguf").config == wanted


def with_factors(factors: list[float]) -> dict[str, Any]:
    row = np.array(factors, "<f4")
    embedding = 0, (300, 32), MODEL.tensors["model.embed_tokens.weight"].tobytes()
    return {"token_embd.weight": embedding, "rope_freqs.weight": (0, row.shape, row.tobytes())}


def test_rotary_positions_that_are_scaled_twice_or_by_too_few_numbers(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(FACTS | {"llama.rope.scaling.factor": 2.0}, with_factors([1.0, 1.0, 8.0, 8.0])))
    with pytest.raises(LLMError, match=r"are scaled twice, by 2.0 and by rope_freqs.weight"):
        loading.load(path)
    path.write_bytes(by_hand(FACTS, with_factors([8.0, 8.0])))
    with pytest.raises(LLMError, match=r"rope_freqs.weight has 2 numbers; expected 4"):
        loading.load(path)


def test_scaling_of_llama_3_that_llama_cpp_would_not_load_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    config = ModelConfig(300, 32, 64, 1, 4, 2, 8, 40, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32))
    with pytest.raises(LLMError, match="in models of type llama only, not qwen3; use --to hf"):
        gguf_writer.write(tmp_path / "m.gguf", random_checkpoint(config), "f32", {})


def without(*keys: str) -> dict[str, Any]:
    return {key: found for key, found in FACTS.items() if key not in keys}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (without("tokenizer.ggml.tokens"), "it has no tokenizer.ggml.tokens$"),
        (without("tokenizer.ggml.merges"), "it has no tokenizer.ggml.merges$"),
        (without("tokenizer.ggml.pre"), "it has no tokenizer.ggml.pre, the name"),
        (FACTS | {"tokenizer.ggml.model": "llama"}, "it has no tokenizer.ggml.scores$"),
        (FACTS | {"tokenizer.ggml.merges": "a b"}, "its tokenizer.ggml.merges is not a list of str"),
        (FACTS | {"tokenizer.ggml.token_type": [1, 2]}, "300 tokens, but 2 entries in tokenizer.ggml.token_type"),
        (FACTS | {"tokenizer.ggml.tokens": TOKENS[:256], "tokenizer.ggml.token_type": [1] * 256,
                  "tokenizer.ggml.eos_token_id": 299}, "its token 299 is none of its 256 tokens"),
        (without("llama.attention.head_count"), "it has no llama.attention.head_count$"),
        (FACTS | {"llama.attention.head_count": [4, 2]}, r"head_count is \[4, 2\]; expected one number for all layers"),
        (FACTS | {"llama.context_length": "many"}, "context_length is many; expected one number"),
        (FACTS | {"llama.attention.layer_norm_rms_epsilon": "small"}, "epsilon is small; expected one number"),
        (FACTS | {"llama.attention.head_count_kv": 3}, "3 key-value heads do not divide 4 heads$"),
        (FACTS | {"llama.attention.key_length": 7}, "head_dim must be even for rotary positions, found 7$"),
    ],
)  # fmt: skip
def test_a_header_that_lacks_something_says_what(tmp_path: Path, facts: dict[str, Any], message: str, llm) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(facts))
    with pytest.raises(LLMError, match=message) as caught:
        loading.load(path)
    assert caught.value.exit_code == 1 and str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("kind", "name"), [(20, "IQ4_NL"), (39, "MXFP4"), (99, "number 99")])
def test_a_type_that_is_not_read_is_named(tmp_path: Path, kind: int, name: str) -> None:
    path = tmp_path / "m.gguf"
    row = b"x" * (17 if kind == 39 else 18)
    path.write_bytes(by_hand(FACTS, {"blk.0.ffn_up.weight": (kind, (1, 32), row)}))
    with pytest.raises(LLMError, match=rf"m.gguf: tensor blk.0.ffn_up.weight is of type {name}, .*; F32, F16, .* are$"):
        loading.load(path)


FOREIGN: dict[str, Any] = {
    "general.architecture": "gemma3", "general.name": "By hand", "gemma3.block_count": 2, "gemma3.context_length": 40,
    "gemma3.embedding_length": 32, "gemma3.attention.head_count": [4, 2], "gemma3.attention.sliding_window": 16,
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS, "llmcli": "9", "tokenizer.json": "{",
}  # fmt: skip
FOREIGN_TENSORS = {
    "token_embd.weight": (0, (300, 32), np.arange(9600, dtype="<f4").tobytes()),
    "blk.0.attn_q.weight": (20, (4, 64), bytes([0x00, 0x3C, *range(0, 256, 16)] * 8)),  # IQ4_NL, of scale 1
    "blk.0.post_ffw_norm.weight": (1, (32,), np.ones(32, "<f2").tobytes()),
    "blk.0.ffn_up.weight": (39, (2, 32), bytes(34)),  # MXFP4
    "odd.weight": (26, (3,), np.array([1, -2, 7], "<i4").tobytes()),
}


def test_inspect_shows_a_file_of_any_architecture_and_type(tmp_path: Path, llm) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(FOREIGN, FOREIGN_TENSORS))
    truth = {
        t.name: (t.tensor_type.name, [int(n) for n in reversed(t.shape)], int(t.n_bytes))
        for t in gguf.GGUFReader(path).tensors
    }
    answer = llm("inspect", path, "--json")
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert {t["name"]: (t["dtype"], t["shape"], t["bytes"]) for t in found["tensors"]} == truth
    assert found["problem"] == "it is of architecture 'gemma3'; supported: llama, qwen2, qwen3, qwen3moe"
    assert found["config"] == {
        "model_type": "gemma3", "num_hidden_layers": 2, "max_position_embeddings": 40, "hidden_size": 32,
        "num_attention_heads": [4, 2], "vocab_size": 300,
    }  # fmt: skip
    assert found["tokenizer"] == {} and found["sha256"] is None
    shown = llm("inspect", path).stdout
    for said in ("m.gguf: a GGUF file", "can show it but not run it: it is of architecture 'gemma3'", "By hand",
                 "gemma3.attention.sliding_window", "300 entries"):  # fmt: skip
        assert said in shown
    numbers = json.loads(llm("inspect", path, "--tensor", "odd.weight", "--json").stdout)
    assert (numbers["min"], numbers["max"], numbers["mean"]) == pytest.approx((-2, 7, 2))
    rows = np.frombuffer(FOREIGN_TENSORS["blk.0.attn_q.weight"][2], np.uint8).reshape(4, 36)
    wanted = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.IQ4_NL)
    numbers = json.loads(llm("inspect", path, "--tensor", "blk.0.attn_q.weight", "--json").stdout)
    assert numbers["max"] == pytest.approx(float(wanted.max())) and numbers["mean"] == pytest.approx(wanted.mean())
    assert (
        llm("inspect", path, "--html", "page.html").exit_code == 0 and "not run here" in Path("page.html").read_text()
    )
    for words in (["generate", "x", "-m", path], ["import", path, "-o", "x.safetensors"], ["explain", "x", "-m", path]):
        refused = llm(*words)
        assert refused.exit_code == 1 and "architecture 'gemma3'" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"general.architecture": "gpt2"}, "it is of architecture 'gpt2'"),
        ({"llama.rope.scaling.type": "yarn"}, "its rotary positions are scaled by 'yarn'"),
        ({"tokenizer.ggml.pre": "falcon"}, "its pre-tokenizer is 'falcon'"),
    ],
)
def test_inspect_says_why_a_file_is_not_run(tmp_path: Path, facts: dict[str, Any], problem: str, llm) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(FACTS | facts))
    found = json.loads(llm("inspect", path, "--json").stdout)
    assert problem in found["problem"] and {tensor["name"] for tensor in found["tensors"]} == set(THEIRS)
    path.write_bytes(by_hand())
    assert "problem" not in json.loads(llm("inspect", path, "--json").stdout)


def test_every_type_has_its_name() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    known = {number: name for number, (name, _, _) in gguf_header.TYPES.items()} | {
        number: name for number, (name, _, _) in gguf_header.TYPES_WITHOUT_VALUES.items()
    }
    assert {kind.value: kind.name for kind in gguf.GGMLQuantizationType}.items() <= known.items()
    sizes = {
        name: (block, size) for name, block, size in (gguf_header.TYPES | gguf_header.TYPES_WITHOUT_VALUES).values()
    }
    theirs = {kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType}
    assert theirs.items() <= sizes.items()


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "is empty; expected a GGUF file"), (b"no model at all", "is not a GGUF file")]
)
def test_what_is_called_gguf_should_be_one(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(LLMError, match=said):
        loading.load(tmp_path / "m.gguf")


def test_a_tensor_of_no_known_name_is_looked_into(tmp_path: Path, llm) -> None:
    names = {"token_embd.weight": (300, 32), "odd": (2, 4), "blk.0.attn_q.weight": (3, 32)}
    tensors = {name: (0, shape, bytes(4 * math.prod(shape))) for name, shape in names.items()}
    (tmp_path / "m.gguf").write_bytes(by_hand(FACTS, tensors))
    assert llm("inspect", tmp_path / "m.gguf", "--tensor", "odd").exit_code == 0
    answer = llm("inspect", tmp_path / "m.gguf", "--tensor", "model.layers.0.self_attn.q_proj.weight")
    assert answer.exit_code == 1 and "does not fit" in answer.stderr and answer.stderr.count("\n") == 1


def test_rotary_positions_of_no_base_are_told_in_one_line(tmp_path: Path) -> None:
    path, factors = tmp_path / "m.gguf", np.full(4, 8.0, "<f4").tobytes()
    tensors = {"token_embd.weight": (0, (300, 32), bytes(300 * 32 * 4)), "rope_freqs.weight": (0, (4,), factors)}
    path.write_bytes(by_hand(FACTS | {"llama.rope.freq_base": 0.0}, tensors))
    with pytest.raises(LLMError, match="invalid header"):
        loading.load(path)
