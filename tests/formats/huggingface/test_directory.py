"""A Hugging Face directory: round trips, the variants that exist, and errors of one line."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcli.errors import LLMError
from llmcli.formats import checkpoint, loading
from llmcli.formats.huggingface import directory as hf_directory
from llmcli.formats.safetensors import file as safetensors_file
from tests import platforms


@pytest.fixture
def directory(tiny_model: Path, tmp_path: Path) -> Path:
    there = tmp_path / "there"
    hf_directory.write(there, loading.load(tiny_model), {}, "# A model\n")
    return there


def test_the_variants_of_stored_tensors(directory: Path) -> None:
    """Tables that are not weights, no output head, a tied head without an embedding."""
    tensors = weights_of(directory)
    without_head = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    safetensors_file.write_tensors(directory / "model.safetensors", tensors | extra, {})
    assert set(loading.load(directory).tensors) == set(tensors)
    changed_config(directory, tie_word_embeddings="left out")
    safetensors_file.write_tensors(directory / "model.safetensors", without_head, {})
    assert loading.load(directory).config.tie_word_embeddings
    changed_config(directory, tie_word_embeddings=True)
    expected = without_head["lm_head.weight"] = without_head.pop("model.embed_tokens.weight")
    safetensors_file.write_tensors(directory / "model.safetensors", without_head, {})
    np.testing.assert_array_equal(loading.load(directory).tensors["model.embed_tokens.weight"], expected)


def changed_config(directory: Path, **values) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({k: v for k, v in (config | values).items() if v != "left out"}))


def weights_of(directory: Path) -> dict[str, np.ndarray]:
    model = loading.load(directory)
    return {name: np.array(model.tensors[name]) for name in model.config.tensor_shapes()}


@pytest.mark.parametrize("type_name", ["F32", "F16"])
def test_a_head_that_equals_the_embedding_is_tied(directory: Path, type_name: str) -> None:
    tensors = weights_of(directory)
    embedding = tensors["model.embed_tokens.weight"]
    embedding[...] = embedding.astype(np.float16)  # so that both types can hold it
    tensors["lm_head.weight"] = embedding.copy()
    stored = {name: (type_name if name == "lm_head.weight" else "F32", array.shape) for name, array in tensors.items()}

    def written() -> checkpoint.Checkpoint:
        safetensors_file.write(directory / "model.safetensors", tensors, stored, {"format": "pt"})
        return loading.load(directory)

    changed_config(directory, tie_word_embeddings=True)
    assert written().config.tie_word_embeddings
    tensors["lm_head.weight"][-1, -1] = 1
    result = written()
    assert not result.config.tie_word_embeddings
    np.testing.assert_array_equal(result.tensors["lm_head.weight"], tensors["lm_head.weight"])
    np.testing.assert_array_equal(result.tensors["model.embed_tokens.weight"], embedding)


def test_a_base_model_is_supported_if_its_embeddings_are_tied(directory: Path, llm) -> None:
    expected = weights_of(directory)
    expected.pop("lm_head.weight", None)
    base = {name.removeprefix("model."): array for name, array in expected.items()}
    safetensors_file.write_tensors(directory / "model.safetensors", base, {})
    changed_config(directory, tie_word_embeddings=True, architectures=["Qwen3Model"])
    result = loading.load(directory)
    for name, array in expected.items():
        np.testing.assert_array_equal(result.tensors[name], array)
    changed_config(directory, tie_word_embeddings=False)
    with pytest.raises(LLMError, match=r"has no output head \(lm_head.weight\); get the model"):
        loading.load(directory)
    shown = llm("inspect", directory)
    assert shown.exit_code == 0 and "a Hugging Face directory" in shown.stdout


def test_weights_that_are_quantized_are_read_as_a_file(directory: Path, tiny_model: Path) -> None:
    checkpoint.save(directory / "model.safetensors", replace(loading.load(tiny_model), quantization="int8"))
    with pytest.raises(LLMError, match=r"quantized as int8, which is only read as a file: .*there/model.safetensors$"):
        loading.load(directory)
    with pytest.raises(LLMError, match=r"has no config\.json; name a model in it: .*there$"):
        hf_directory.read_header(directory.parent)


def test_an_eos_token_that_only_the_tokenizer_config_names(directory: Path) -> None:
    changed_config(directory, eos_token_id="left out")
    (directory / "generation_config.json").unlink()
    tokenizer = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    assert loading.load(directory).config.eos_token_id == tokenizer["added_tokens"][0]["id"]
    tokenizer["added_tokens"][0]["content"] = "<|another|>"
    added = tokenizer["added_tokens"][0] | {"id": 7, "content": "<|end|>"}
    (directory / "tokenizer.json").write_text(
        json.dumps(tokenizer | {"added_tokens": [*tokenizer["added_tokens"], added]})
    )
    (directory / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert loading.load(directory).config.eos_token_id == 7


def test_eos_tokens_chat_template_and_license_come_from_all_files(directory: Path, llm) -> None:
    (directory / "generation_config.json").write_text('{"eos_token_id": [0, 7, 9]}')
    (directory / "chat_template.jinja").write_text("{{ messages }} é\n", "utf-8")
    (directory / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nlicense: gpl\n")
    result = loading.load(directory)
    assert (result.config.eos_token_id, result.config.extra_eos_ids) == (0, (7, 9))
    origin = {"file": "there", "form": "Hugging Face directory", "license": "mit"}
    assert result.record.to_json() == {"imported": origin}
    assert llm("export", directory, "there2", "--to", "hf").exit_code == 0
    assert Path("there2/chat_template.jinja").read_text("utf-8") == "{{ messages }} é\n"
    Path("there2/chat_template.jinja").unlink()  # it is in tokenizer_config.json, too
    assert json.loads(loading.load("there2").tokenizer_config_json)["chat_template"] == "{{ messages }} é\n"
    assert loading.load("there2").tokenizer_config_json == result.tokenizer_config_json


def write(text: str):
    return lambda path: path.write_text(text)


INDEX = "model.safetensors.index.json"


def rename(name: str):
    return lambda path: path.rename(path.with_name(name))


def test_a_damaged_directory_is_an_error_of_one_line(directory: Path) -> None:
    cases = [
        ("config.json", Path.unlink, "has no config.json"),
        ("config.json", write("{"), "config.json is not JSON"),
        ("config.json", write("[]"), r"config.json is not valid: it is \[\]; expected an object"),
        ("tokenizer.json", Path.unlink, "has no tokenizer.json"),
        ("model.safetensors", Path.unlink, "has no model.safetensors"),
        ("model.safetensors", write("no"), "is cut off"),
        ("model.safetensors", rename("pytorch_model.bin"), "Python pickles, which can run code"),
        (INDEX, write('{"weight_map": {"a": "../../etc/passwd"}}'), "must name files in the same directory"),
        (INDEX, write('{"weight_map": {"a": []}}'), "must name files in the same directory"),
        (INDEX, write('{"weight_map": {"a": "b.safetensors"}}'), "b.safetensors is missing: the download is"),
        (INDEX, write("{}"), "has no valid weight_map"),
        ("generation_config.json", write('{"eos_token_id": 10000}'), "is not below vocab_size"),
    ]
    for number, (name, change, message) in enumerate(cases):
        change(shutil.copytree(directory, Path(f"{number}")) / name)
        with pytest.raises(LLMError, match=message) as caught:
            loading.load(f"{number}")
        assert "\n" not in str(caught.value)


READ = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
    "model.safetensors.index.json", "model.safetensors",
)  # fmt: skip


@platforms.named_pipes
@pytest.mark.usefixtures("no_hang")
def test_a_pipe_in_place_of_a_file_is_named_once(directory: Path, llm) -> None:
    for name in READ:
        path = shutil.copytree(directory, Path("copies", name)) / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        advice = "; name a safetensors file" if name == "model.safetensors" else ""
        assert llm("inspect", path.parent).stderr == f"error: {path} is not a regular file{advice}\n"


def test_a_tensor_in_two_files_is_an_error(directory: Path) -> None:
    shutil.copy(directory / "model.safetensors", directory / "other.safetensors")
    with pytest.raises(LLMError, match=r"2 .safetensors files but no model.safetensors.index.json"):
        (directory / "model.safetensors").rename(directory / "one.safetensors")
        loading.load(directory)
    index = {"weight_map": {"a": "one.safetensors", "b": "other.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LLMError, match="is in two of its files"):
        loading.load(directory)


def test_export_does_not_replace_a_directory_without_force(directory: Path, tiny_model: Path, monkeypatch, llm) -> None:
    """And with it, neither one that holds the model or is the current directory."""
    before = tiny_model.read_bytes()
    result = llm("export", tiny_model, directory, "--to", "hf")
    assert result.exit_code == 1 and "--force" in result.stderr
    assert llm("export", tiny_model, directory, "--to", "hf", "--force", "-q").exit_code == 0
    assert llm("export", tiny_model, tiny_model, "--to", "hf").exit_code == 1
    assert llm("export", tiny_model, "no/where", "--to", "hf").exit_code == 1
    for output in (tiny_model.parent, "."):
        result = llm("export", tiny_model, output, "--to", "hf", "--force")
        assert result.exit_code == 1 and " contains " in result.stderr and "the model to export" in result.stderr
    assert tiny_model.read_bytes() == before
    empty = tiny_model.parent.joinpath("empty").absolute()
    empty.mkdir()
    for current in (directory.absolute(), empty):
        monkeypatch.chdir(current)
        result = llm("export", tiny_model, ".", "--to", "hf", "--force")
        assert result.exit_code == 1 and "the current directory; name another directory, such as model" in result.stderr


def inside(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@platforms.posix
@pytest.mark.slow
def test_a_full_disk_leaves_the_existing_model(directory: Path, tiny_model: Path) -> None:
    """`ulimit -f`, which is not known before here, refuses the weights, after config and tokenizer were written.
    Without -B it would cut off .pyc files."""
    before = inside(directory)
    code = (
        "from llmcli.cli import main; from llmcli.formats import atomic_io; "
        "atomic_io.check_space = lambda *_: None; main.main()"
    )
    for target, result in ((directory, before), (directory.with_name("new"), None)):
        command = f"ulimit -f 20; exec {sys.executable} -B -c '{code}' export {tiny_model} {target} --to hf --force"
        run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert run.returncode == 1 and "nothing there was changed" in run.stderr and "Traceback" not in run.stderr
        assert (inside(target) if target.exists() else None) == result
    assert sorted(file.name for file in directory.parent.iterdir()) == ["model.safetensors", "there"]


def test_files_of_the_older_model_are_not_left_beside_the_new_one(directory: Path, llm) -> None:
    expected = sorted(inside(directory))
    assert llm("import", directory, "-o", "m.safetensors").exit_code == 0
    for name in ("chat_template.jinja", "special_tokens_map.json", "model-00001-of-00002.safetensors"):
        (directory / name).write_text("{{ of another model }}")
    assert llm("export", "m.safetensors", directory, "--to", "hf", "--force").exit_code == 0
    assert sorted(inside(directory)) == expected


def test_files_that_are_not_of_a_model_are_never_deleted(directory: Path, llm) -> None:
    for name in ("notes.txt", "runs"):
        (directory / name).mkdir() if name == "runs" else (directory / name).write_text("mine")
        before = sorted(directory.iterdir())
        result = llm("export", "model.safetensors", directory, "--to", "hf", "--force")
        assert result.exit_code == 1 and f"contains {name}," in result.stderr
        assert sorted(directory.iterdir()) == before
        (directory / name).rename(f"{name}.kept")


@pytest.fixture
def shards(directory: Path) -> Path:
    whole = loading.load(directory)
    names = list(whole.config.tensor_shapes())
    parts = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in parts.items():
        safetensors_file.write_tensors(directory / file, {name: whole.tensors[name] for name in part}, {})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()
    return directory


@platforms.symbolic_links
def test_no_file_of_the_model_being_read_is_overwritten(shards: Path, llm) -> None:
    before = inside(shards)
    Path("c.txt").write_text("The cat sat on the mat. " * 200)
    Path("other").symlink_to(shards)
    for name in ("model-00001-of-00002.safetensors", "config.json", "model.safetensors"):
        output = shards / name
        for words in (
            *(
                ("export", shards, output, *option.split())
                for option in ("--quantize int8", "--to gguf", "--to tokenizer")
            ),
            ("import", shards, "-o", output),
            ("mix", shards, "model.safetensors", "-o", output),
            ("train", "c.txt", "--from", "other", "--steps", 1, "-o", output),
        ):
            result = llm(*words, "--force")
            assert result.exit_code == 1 and "another name" in result.stderr, words
            assert "part of " in result.stderr or f"{name} exists and does not begin like a" in result.stderr
            assert ("with -o" in result.stderr) == (words[0] != "export")
            assert inside(shards) == before


NO_UTF8 = os.fsdecode(b"hf\xff")


@pytest.mark.slow
def test_names_that_are_not_utf8_have_replacement_characters(directory: Path, llm) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    there = directory.rename(directory.with_name(NO_UTF8))
    text = Path(os.fsdecode(b"text\xff.txt"))
    text.write_text("The cat sat on the mat. " * 200)
    assert llm("import", there, "-o", "a.safetensors").exit_code == 0
    assert loading.load("a.safetensors").record.document["imported"]["file"] == "hf\ufffd"
    taught = llm("train", text, "--from", there, "-o", NO_UTF8 + ".safetensors", "--steps", 1)
    assert taught.exit_code == 0, taught.stderr
    record = loading.load(NO_UTF8 + ".safetensors").record.to_json()
    assert record["base"]["file"] == "hf\ufffd" and record["corpus"][0]["name"] == "text\ufffd.txt"
    for words in ((NO_UTF8 + ".gguf", "--to", "gguf"), (NO_UTF8 + "-2", "--to", "hf", "--name", NO_UTF8)):
        run = subprocess.run([sys.executable, "-m", "llmcli", "export", there, *words], capture_output=True)
        assert run.returncode == 0, run.stderr
        assert llm("import", words[0], "-o", "b.safetensors", "--force").exit_code == 0
    assert llm("mix", "a.safetensors", there, "-o", NO_UTF8 + "-3").exit_code == 0
    assert llm("generate", "The", "-m", NO_UTF8 + "-3", "-n", 2).exit_code == 0


def test_an_unsupported_architecture_is_named(directory: Path) -> None:
    """Whatever its tensors are called: the output head of gptj is not lm_head.weight."""
    for model_type in ["gptj", "phi"]:
        changed_config(directory, model_type=model_type, tie_word_embeddings=False)
        supported = f"model_type to '{model_type}'; supported: qwen3, qwen2, llama, mistral, qwen3_moe, mixtral"
        assert supported in hf_directory.read_header(directory).problem, model_type  # llm inspect shows it
        with pytest.raises(LLMError, match=supported):
            loading.load(directory)


def test_a_name_without_its_suffix_is_completed_in_the_error() -> None:
    for suffix in (".gguf", ".safetensors"):
        Path(f"food{suffix}").touch()
        with pytest.raises(LLMError, match=rf"no file food, but there is food\{suffix}; name that one"):
            loading.load("food")


def test_a_directory_of_models_names_them(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.gguf", "x.resume.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(LLMError, match=r"has no config\.json; name a model in it: .*a\.gguf, .*b\.safetensors$"):
        hf_directory.read_header(tmp_path)
