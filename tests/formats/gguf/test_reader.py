"""A GGUF written byte by byte is read as a model."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.formats import loading
from llmcli.formats.gguf import reader
from llmcli.formats.gguf.conventions import ARCHITECTURES
from llmcli.formats.loading import open_tokenizer
from tests.formats.gguf_by_hand import CONFIG, FIELDS, MODEL, TOKENS, gguf_bytes


def test_a_gguf_made_by_hand_is_read_as_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes())
    result = loading.load(path)
    assert result.config == ModelConfig(300, 32, 64, 1, 4, 2, 8, 40, True, 1e-5, 5000.0, 1, "llama", bos_token_id=0)
    for name in CONFIG.tensor_shapes():
        np.testing.assert_array_equal(result.tensors[name], MODEL.tensors[name])
    fields = result.record.document["imported"]
    assert (fields["name"], fields["license"], fields["form"]) == ("By hand", "mit", "GGUF")
    assert json.loads(result.tokenizer_config_json)["chat_template"] == "{{ messages }}"
    tokenizer = open_tokenizer(result)
    assert tokenizer.encode(" ab") == [TOKENS.index("Ġa"), TOKENS.index("b")]  # the first merge has priority
    assert tokenizer.eos_ids == {0, 1} or tokenizer.eos_ids == {1}
    assert tokenizer.bos_ids == []


def test_a_large_tensor_is_decoded_in_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes())
    for values in (1, 100, 1000):
        monkeypatch.setattr(reader, "BLOCK_VALUES", values)
        tensor = loading.read_header(path).tensors["model.embed_tokens.weight"]
        rows = max(1, values // 32)
        assert len([*reader._row_blocks(tensor)]) == math.ceil(300 / rows)
        result = loading.load(path)
        for name in CONFIG.tensor_shapes():
            np.testing.assert_array_equal(result.tensors[name], MODEL.tensors[name])


def test_float16_bfloat16_and_4_bits_by_hand(tmp_path: Path) -> None:
    """Q4_0: the scale in float16, then 32 codes, of which the first 16 are the low nibbles of the bytes."""
    values, codes = np.array([1.5, -2.0, 0.25, 3.0], np.float32), np.arange(32) % 16
    block = np.float16(0.5).tobytes() + bytes(int(codes[i]) | int(codes[i + 16]) << 4 for i in range(16))
    rows = {
        "token_embd.weight": (0, (300, 32), MODEL.tensors["model.embed_tokens.weight"].tobytes()),
        "blk.0.ffn_up.weight": (1, (4,), values.astype("<f2").tobytes()),
        "blk.0.ffn_gate.weight": (30, (4,), (values.view(np.uint32) >> 16).astype("<u2").tobytes()),
        "blk.0.ffn_down.weight": (2, (1, 32), block),
    }
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(FIELDS, rows))
    header = loading.read_header(tmp_path / "m.gguf")
    assert header.decode is not None
    for name, expected in (("up", values), ("gate", values), ("down", (codes - 8) * 0.5)):
        decoded = header.decode(header.tensors[f"model.layers.0.mlp.{name}_proj.weight"])
        assert np.concatenate([*decoded]).ravel().tolist() == expected.tolist(), name


LEFT_OUT = "left out"


def test_bos_and_eos_default_to_those_of_llama_cpp(tmp_path: Path) -> None:
    """11 and 11 for a byte-level BPE, 1 and 2 for SentencePiece; Llama 3 has a bos token by default."""
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
        path.write_bytes(gguf_bytes({key: value for key, value in (FIELDS | changes).items() if value != LEFT_OUT}))
        result = loading.load(path)
        assert (result.config.eos_token_id, open_tokenizer(result).bos_ids) == (ends, start), changes
        whole = json.loads(result.tokenizer_json)["model"].get("ignore_merges", False)
        assert whole == (changes.get("tokenizer.ggml.pre") == "llama3")


FOREIGN: dict[str, Any] = {
    "general.architecture": "falcon", "general.name": "By hand", "falcon.block_count": 2, "falcon.context_length": 40,
    "falcon.embedding_length": 32, "falcon.attention.head_count": [4, 2], "falcon.attention.sliding_window": 16,
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS, "llmcli": "9", "tokenizer.json": "{",
}  # fmt: skip

FOREIGN_TENSORS = {
    "token_embd.weight": (0, (300, 32), np.arange(9600, dtype="<f4").tobytes()),
    "blk.0.attn_q.weight": (20, (4, 64), bytes([0x00, 0x3C, *range(0, 256, 16)] * 8)),  # IQ4_NL, of scale 1
    "blk.0.post_ffw_norm.weight": (1, (32,), np.ones(32, "<f2").tobytes()),
    "blk.0.ffn_up.weight": (39, (2, 32), bytes(34)),  # MXFP4
    "odd.weight": (26, (3,), np.array([1, -2, 7], "<i4").tobytes()),
}


def test_inspect_shows_a_file_of_any_architecture_and_tensor_type(tmp_path: Path, llm) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(FOREIGN, FOREIGN_TENSORS))
    truth = {
        t.name: (t.tensor_type.name, [int(n) for n in reversed(t.shape)], int(t.n_bytes))
        for t in gguf.GGUFReader(path).tensors
    }
    answer = llm("inspect", path, "--json")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert {t["name"]: (t["dtype"], t["shape"], t["bytes"]) for t in result["tensors"]} == truth
    supported = ", ".join(ARCHITECTURES)
    assert result["problem"] == f"it is of architecture 'falcon'; supported: {supported}"
    assert result["config"] == {
        "model_type": "falcon", "num_hidden_layers": 2, "max_position_embeddings": 40, "hidden_size": 32,
        "num_attention_heads": [4, 2], "vocab_size": 300,
    }  # fmt: skip
    assert result["tokenizer"] == {} and result["sha256"] is None
    shown = llm("inspect", path).stdout
    for message in ("m.gguf: a GGUF file", "can show it but not run it: it is of architecture 'falcon'", "By hand",
                 "falcon.attention.sliding_window", "300 entries"):  # fmt: skip
        assert message in shown
    numbers = json.loads(llm("inspect", path, "--tensor", "odd.weight", "--json").stdout)
    assert (numbers["min"], numbers["max"], numbers["mean"]) == pytest.approx((-2, 7, 2))
    rows = np.frombuffer(FOREIGN_TENSORS["blk.0.attn_q.weight"][2], np.uint8).reshape(4, 36)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.IQ4_NL)
    numbers = json.loads(llm("inspect", path, "--tensor", "blk.0.attn_q.weight", "--json").stdout)
    assert numbers["max"] == pytest.approx(float(expected.max())) and numbers["mean"] == pytest.approx(expected.mean())
    for words in (["generate", "x", "-m", path], ["import", path, "-o", "x.safetensors"], ["explain", "x", "-m", path]):
        refused = llm(*words)
        assert refused.exit_code == 1 and "architecture 'falcon'" in refused.stderr and refused.stderr.count("\n") == 1


def test_inspect_shows_a_tensor_with_an_unknown_name(tmp_path: Path, llm) -> None:
    names = {"token_embd.weight": (300, 32), "odd": (2, 4), "blk.0.attn_q.weight": (3, 32)}
    tensors = {name: (0, shape, bytes(4 * math.prod(shape))) for name, shape in names.items()}
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(FIELDS, tensors))
    assert llm("inspect", tmp_path / "m.gguf", "--tensor", "odd").exit_code == 0
    name = "model.layers.0.self_attn.q_proj.weight"
    assert llm("inspect", tmp_path / "m.gguf", "--tensor", name).exit_code == 0
