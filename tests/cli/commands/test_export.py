"""`llm export` and `llm import`: what is written, and what is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmcli.formats import checkpoint, loading


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("out", "choose a format: --to hf, --to gguf, --to tokenizer or --quantize int8"),
        ("out --to onnx", "--to must be hf, gguf or tokenizer, found onnx"),
        ("a b c --to hf", "give one model and one output, found 3 names"),
        ("out --to hf --quantize int8", "--quantize writes a .safetensors file"),
        ("out --quantize int2", "--quantize must be int8 or int4"),
        ("out --to tokenizer --dtype f16", "--dtype has no effect without --to gguf or --to hf"),
        ("out --to hf --dtype q8_0", "--dtype must be f32, f16, bf16 with --to hf, found q8_0; for quantized weights"),
        ("out --to hf --dtype int8", "--dtype must be f32, f16, bf16 with --to hf, found int8"),
        ("out --to tokenizer --name x", "--name has no effect with --to tokenizer"),
    ],
)
def test_wrong_usage(tiny_model: Path, llm, words: str, message: str) -> None:
    found = llm("export", *words.split())
    assert found.exit_code == 2 and message in found.stderr
    assert not Path("out").exists()


def test_gguf_of_an_unknown_type(tiny_model: Path, llm) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    found = llm("export", "m.gguf", "--to", "gguf", "--dtype", "q2")
    assert found.exit_code == 2 and "--dtype must be f32, f16, bf16, q8_0, q4_0" in found.stderr


def test_the_tokenizer_alone(tiny_model: Path, llm) -> None:
    assert llm("export", "t.json", "--to", "tokenizer").exit_code == 0
    assert Path("t.json").read_text("utf-8") == checkpoint.load(tiny_model).tokenizer_json
    again = llm("export", "t.json", "--to", "tokenizer")
    assert again.exit_code == 1 and "--force" in again.stderr


@pytest.mark.parametrize(("dtype", "name"), [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16")])
def test_a_directory_has_the_type_that_was_asked_for(tiny_model: Path, llm, dtype: str, name: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    assert llm("export", "d", "--to", "hf", "--dtype", dtype).exit_code == 0
    found, before = load_file("d/model.safetensors"), load_file(tiny_model)
    assert found.keys() == before.keys()
    for key, tensor in found.items():
        assert tensor.dtype == getattr(torch, name) and torch.equal(tensor, before[key].to(tensor.dtype))
    config = json.loads(Path("d/config.json").read_text("utf-8"))
    assert config.get("dtype", config.get("torch_dtype")) == name
    assert llm("generate", "The cat", "-m", "d", "-n", 3, "-t", 0).exit_code == 0
    assert llm("export", "d", "again", "--to", "hf").exit_code == 0  # its own type, where none is asked for
    assert load_file("again/model.safetensors")["model.norm.weight"].dtype == getattr(torch, name)


def test_a_model_is_never_written_over(tiny_model: Path, llm) -> None:
    before = tiny_model.read_bytes()
    for words in (("--to", "tokenizer"), ("--quantize", "int8")):
        found = llm("export", tiny_model, tiny_model, "--force", *words)
        assert found.exit_code == 1 and "is the model to export" in found.stderr
    found = llm("import", tiny_model, "-o", tiny_model, "--force")
    assert found.exit_code == 1 and "is the model to import" in found.stderr
    assert tiny_model.read_bytes() == before


def test_what_float16_cannot_hold_is_told(tiny_model: Path, llm) -> None:
    model = checkpoint.load(tiny_model)
    tensors = {name: np.array(model.tensors[name]) for name in model.config.tensor_shapes()}
    tensors["model.norm.weight"][3] = -70000
    model.tensors = tensors
    checkpoint.save("big.safetensors", model)
    found = llm("export", "big.safetensors", "there", "--to", "hf", "--dtype", "f16")
    assert found.exit_code == 1 and "model.norm.weight contains 70000, the largest float16 is 65,504" in found.stderr
    assert not Path("there").exists()


def test_gguf_says_what_to_paste_for_ollama(tiny_model: Path, llm) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    found = llm("export", "m.gguf", "--to", "gguf", "--license", "mit", "--name", "Cat")
    assert found.exit_code == 0
    assert found.stdout == f"FROM {Path('m.gguf').resolve()}\n"
    assert "ollama create" in found.stderr
    told = loading.load("m.gguf").record["imported"]
    assert (told["name"], told["license"]) == ("Cat", "mit")
    said = llm("export", "m.gguf", "--to", "gguf", "--force", "--json")
    assert json.loads(said.stdout)["to"] == "gguf"


def test_few_bits_are_a_smaller_file_and_say_what_they_cost(tiny_model: Path, llm) -> None:
    found = llm("export", "small.safetensors", "--quantize", "int8", "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["bytes"] < tiny_model.stat().st_size and abs(told["bits_per_byte_lost"]) < 0.05
    Path("t.txt").write_text("The cat sat on the mat. " * 30)
    rows = json.loads(llm("eval", "t.txt", "-m", tiny_model, "-m", "small.safetensors", "--json").stdout)["results"]
    assert rows[0]["bits_per_byte"] == pytest.approx(rows[1]["bits_per_byte"], rel=0.01)
    assert llm("generate", "The", "-m", "small.safetensors", "-n", 2).exit_code == 0
    again = llm("export", "small.safetensors", "smaller.safetensors", "--quantize", "int8")
    assert again.exit_code == 1 and "already quantized as int8" in again.stderr
    assert "U8" in llm("inspect", "small.safetensors").stdout


def test_eval_shows_what_few_bits_cost(tiny_model: Path, llm) -> None:
    Path("t.txt").write_text("The cat sat on the mat. " * 30)
    found = llm("eval", "t.txt", "--quantize", "int8", "--json")
    assert found.exit_code == 0 and "multiples of 16" in found.stderr  # the tiny model's heads are of 8
    rows = json.loads(found.stdout)["results"]
    assert rows[0]["bits_per_byte"] == pytest.approx(rows[1]["bits_per_byte"], rel=0.01)
    assert rows[0]["bits_per_byte"] != rows[1]["bits_per_byte"]


def test_import_of_our_own_file_is_a_copy(tiny_model: Path, llm) -> None:
    assert llm("import", tiny_model, "-o", "again.safetensors").exit_code == 0
    one, two = checkpoint.load(tiny_model), checkpoint.load("again.safetensors")
    assert one.config == two.config and one.record == two.record
    for name in one.config.tensor_shapes():
        np.testing.assert_array_equal(one.tensors[name], two.tensors[name])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "there is no file or directory nothing"),
        (".", "has no config.json"),
        ("c.txt", "is not a safetensors file|cut off"),
    ],
)
def test_import_of_what_is_no_model(llm, source: str, message: str) -> None:
    import re

    Path("c.txt").write_text("Some text, and no model at all.")
    found = llm("import", source, "-o", "m.safetensors")
    assert found.exit_code == 1 and re.search(message, found.stderr)
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize(
    ("divergence", "message"),
    [
        (-0.0016, "from the original: less than 0.001 bits"),
        (0.0004, "from the original: less than 0.001 bits"),
        (0.0123, "from the original: 0.0123 bits"),
    ],
)
def test_a_cost_below_nothing_is_none(tiny_model: Path, llm, monkeypatch, divergence: float, message: str) -> None:
    monkeypatch.setattr("llmcli.evaluation.divergence.kl_divergence", lambda *_: divergence)
    found = llm("export", "small.safetensors", "--quantize", "int4")
    assert found.exit_code == 0 and message in found.stderr and "-0.0" not in found.stderr


def test_what_is_there_is_told_without_an_option_that_export_lacks(tiny_model: Path, llm) -> None:
    Path("t.json").write_text("mine")
    Path("d").mkdir()
    for words in (("t.json", "--to", "tokenizer"), ("d", "--to", "tokenizer"), ("model.safetensors", "--to", "gguf")):
        found = llm("export", *words)
        assert found.exit_code == 1 and "name" in found.stderr and "-o" not in found.stderr
