"""A Hugging Face directory: read as it comes, refused in one line when it is none, written whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmcli import checkpoint, hf_directory, importer
from llmcli.errors import LLMError


@pytest.fixture
def directory(tiny_model: Path, tmp_path: Path) -> Path:
    there = tmp_path / "there"
    hf_directory.write(there, checkpoint.load(tiny_model), {}, "# A model\n")
    return there


def test_it_is_the_same_model(directory: Path, tiny_model: Path) -> None:
    one, two = checkpoint.load(tiny_model), importer.load(directory)
    assert one.config == two.config and one.tokenizer_json == two.tokenizer_json
    for name in one.config.tensor_shapes():
        np.testing.assert_array_equal(one.tensors[name], two.tensors[name])
    assert two.record == {"imported": {"file": "there", "form": "Hugging Face directory"}}


def test_shards_are_one_model(directory: Path) -> None:
    whole = importer.load(directory)
    names = list(whole.config.tensor_shapes())
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, some in parts.items():
        checkpoint.write_tensors(directory / file, {name: whole.tensors[name] for name in some}, {})
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    wanted = {name: whole.tensors[name] for name in names}
    (directory / "model.safetensors").unlink()
    found = importer.load(directory)
    for name in names:
        np.testing.assert_array_equal(found.tensors[name], wanted[name])


def test_what_a_model_needs_not_is_passed_over(directory: Path) -> None:
    whole = importer.load(directory)
    tensors = {name: whole.tensors[name] for name in whole.config.tensor_shapes()}
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    checkpoint.write_tensors(directory / "model.safetensors", tensors | extra, {})
    assert set(importer.load(directory).tensors) == set(tensors)


def test_a_head_that_is_not_there_is_the_embedding(directory: Path) -> None:
    whole = importer.load(directory)
    tensors = {name: whole.tensors[name] for name in whole.config.tensor_shapes() if name != "lm_head.weight"}
    checkpoint.write_tensors(directory / "model.safetensors", tensors, {})
    config = json.loads((directory / "config.json").read_text())
    del config["tie_word_embeddings"]
    (directory / "config.json").write_text(json.dumps(config))
    assert importer.load(directory).config.tie_word_embeddings


def test_ends_and_chat_template_are_taken_from_where_they_stand(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"eos_token_id": [0, 7, 9]}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    found = importer.load(directory)
    assert (found.config.eos_token_id, found.config.other_end_ids) == (0, (7, 9))
    assert json.loads(found.tokenizer_config_json)["chat_template"] == "{{ messages }}"


def test_the_licence_of_the_model_card_goes_along(directory: Path) -> None:
    (directory / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nlicense: gpl\n")
    assert importer.load(directory).record["imported"]["license"] == "mit"


def write(text: str):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", Path.unlink, "has no config.json"),
        ("config.json", write("{"), "config.json is not JSON"),
        ("config.json", write("[]"), "config.json is not an object"),
        ("config.json", write('{"model_type": "gpt2"}'), "model_type 'gpt2'; this program runs qwen3, qwen2, llama"),
        ("tokenizer.json", Path.unlink, "has no tokenizer.json"),
        ("model.safetensors", Path.unlink, "has no model.safetensors"),
        ("model.safetensors", write("no"), "is cut off"),
        ("model.safetensors.index.json", write('{"weight_map": {"a": "../../etc/passwd"}}'), "not beside it"),
        ("model.safetensors.index.json", write('{"weight_map": {"a": "b.safetensors"}}'), "no file .*b.safetensors"),
        ("model.safetensors.index.json", write("{}"), "has no weight_map"),
        ("generation_config.json", write('{"eos_token_id": 10000}'), "is not below vocab_size"),
    ],
)
def test_a_broken_directory_is_told_in_one_line(directory: Path, name: str, change, message: str) -> None:
    change(directory / name)
    with pytest.raises(LLMError, match=message) as caught:
        importer.load(directory)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(LLMError, match="Python pickles, which can run code"):
        importer.load(directory)


def test_a_tensor_in_two_files_is_told(directory: Path) -> None:
    shutil.copy(directory / "model.safetensors", directory / "other.safetensors")
    with pytest.raises(LLMError, match=r"2 .safetensors files but no model.safetensors.index.json"):
        (directory / "model.safetensors").rename(directory / "one.safetensors")
        importer.load(directory)
    index = {"weight_map": {"a": "one.safetensors", "b": "other.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LLMError, match="is in two of its files"):
        importer.load(directory)


def test_every_command_takes_a_directory(directory: Path, llm) -> None:
    Path("text.txt").write_text("The cat sat on the mat. " * 200)
    assert llm("generate", "The cat", "-m", directory, "-n", 3).exit_code == 0
    assert llm("tokenize", "The cat", "-m", directory).exit_code == 0
    assert llm("eval", "text.txt", "-m", directory).exit_code == 0
    shown = llm("inspect", directory)
    assert shown.exit_code == 0 and "a Hugging Face directory" in shown.stdout and "layers x 2" in shown.stdout
    assert llm("train", "text.txt", "--from", directory, "-o", "new.safetensors", "--steps", 1).exit_code == 0
    assert "taught by llmcli from a Hugging Face directory" in llm("inspect", "new.safetensors").stdout


def test_export_keeps_what_is_there(directory: Path, tiny_model: Path, llm) -> None:
    found = llm("export", tiny_model, directory, "--to", "hf")
    assert found.exit_code == 1 and "--force" in found.stderr
    assert llm("export", tiny_model, directory, "--to", "hf", "--force", "-q").exit_code == 0
    assert llm("export", tiny_model, tiny_model, "--to", "hf").exit_code == 1
    assert llm("export", tiny_model, "no/where", "--to", "hf").exit_code == 1
