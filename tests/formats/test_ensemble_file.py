"""Ensembles: the file, models that cannot be mixed, and the commands that take an ensemble."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats import ensemble_file, loading
from llmcli.formats.checkpoint import Checkpoint, save
from llmcli.formats.safetensors.header import read_header
from llmcli.formats.training_record import TrainingRecord
from tests.conftest import TEXT, random_checkpoint

TOKENIZER = Tokenizer.train_bpe([TEXT], 300)
CONFIG = ModelConfig(TOKENIZER.vocab_size, 32, 64, 2, 4, 2, 8, 32)


def model(seed: int = 0, **changes: object) -> Checkpoint:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    result = random_checkpoint(config, seed=seed, tokenizer_json=TOKENIZER.to_json())
    corpus = [{"name": f"{seed}.txt", "bytes": 9, "sha256": str(seed)}]
    result.record = TrainingRecord.from_json({"corpus": corpus, "bits_per_byte": 2.5})
    return result


@pytest.fixture
def two_models(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of different shapes, a.safetensors and b.safetensors."""
    save("a.safetensors", model(1))
    save("b.safetensors", model(2, hidden_size=48, num_hidden_layers=1))
    return Path("a.safetensors"), Path("b.safetensors")


def test_an_ensemble_round_trips(two_models, llm) -> None:
    result = llm("mix", *two_models, "-o", "m.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["parameters"] == sum(loading.load(path).parameters for path in two_models)
    mixed = loading.load_any("m.safetensors")
    assert isinstance(mixed, ensemble_file.Ensemble) and mixed.names == ("a", "b")
    for path, expert in zip(two_models, mixed.experts, strict=True):
        alone = loading.load(path)
        assert expert.config == alone.config and expert.record == alone.record
        assert expert.tokenizer_json == alone.tokenizer_json
        for name in alone.config.tensor_shapes():
            np.testing.assert_array_equal(expert.tensors[name], alone.tensors[name])
    before = Path("m.safetensors").read_bytes()
    assert llm("mix", *two_models, "-o", "m.safetensors").exit_code == 1  # without --force
    assert llm("mix", *two_models, "-o", "m.safetensors", "--force").exit_code == 0
    assert Path("m.safetensors").read_bytes() == before
    tensors = safetensors.numpy.load_file("m.safetensors")
    assert "experts.1.model.layers.0.self_attn.q_proj.weight" in tensors
    safetensors.numpy.save_file(tensors, "again.safetensors", read_header("m.safetensors").metadata)
    assert loading.load_any("again.safetensors").records == mixed.records


@pytest.mark.slow
def test_commands_take_an_ensemble(two_models, llm) -> None:
    """tests/golden has more of them."""
    assert llm("mix", *two_models).exit_code == 0
    path = "mixture.safetensors"
    shown = llm("inspect", path)
    assert shown.exit_code == 0 and "a\t2 layers, hidden size 32\t1.txt\tnetwork 2.500" in shown.stdout
    assert llm("inspect", path, "--verify").exit_code == 0
    assert llm("export", path, "tokenizer.json", "--to", "tokenizer").exit_code == 0
    fields = json.loads(llm("generate", "The cat", "-m", path, "-n", 5, "--seed", 1, "--experts", "--json").stdout)
    spoken = llm("generate", "The cat", "-m", path, "-n", 5, "--seed", 1, "--experts")
    assert spoken.exit_code == 0 and spoken.stdout == fields["text"] + "\n"
    rows = [line.split("\t") for line in spoken.stderr.splitlines()]
    assert rows.pop(0) == ["expert", "tokens", "share", "mean weight"]
    assert [row[0] for row in rows] == ["a", "b"] and sum(int(row[1]) for row in rows) == len(fields["tokens"])
    Path("0.txt").write_text("The dog ate the mat. " * 400)
    alike = llm("train", "0.txt", "--like", path, "--steps", 2, "-o", "c.safetensors", "-q")
    assert alike.exit_code == 0, alike.stderr
    made = loading.load("c.safetensors")
    assert made.tokenizer_json == TOKENIZER.to_json() and made.config.max_position_embeddings == 32
    assert llm("mix", *two_models, "c.safetensors", "-o", "three.safetensors").exit_code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("short_search")
def test_explain_shows_the_expert_of_largest_weight_and_the_probabilities_of_the_ensemble(two_models, llm) -> None:
    llm("mix", *two_models)
    words = "The cat sat", "-m", "mixture.safetensors", "--literal", "--json"
    fields = llm("explain", *words)
    assert fields.exit_code == 0 and "ensemble of 2 models" in fields.stderr, fields.stderr
    result = json.loads(fields.stdout)
    from llmcli.models.ensemble import EnsembleRuntime
    from llmcli.models.open_runtime import open_runtime

    runtime = open_runtime(loading.load_any("mixture.safetensors"))
    assert isinstance(runtime, EnsembleRuntime)
    chances = np.exp(runtime.prefill([token["id"] for token in result["tokens"]]).astype(np.float64))
    for token in result["next_tokens"]:
        assert token["probability"] == pytest.approx(chances[token["id"]], abs=2e-6)
    most = int(runtime.expert_weights()[0].argmax())
    assert result["expert"] == {
        "name": "ab"[most],
        "weight": pytest.approx(float(runtime.expert_weights()[0][most]), abs=1e-5),
    }
    message = json.loads(llm("generate", *words, "-n", 1, "-t", 0).stdout)
    assert message["tokens"][0]["id"] == result["next_tokens"][0]["id"]
    assert message["tokens"][0]["logprob"] == pytest.approx(result["next_tokens"][0]["logprob"], abs=1.1e-6)
    layers = loading.load_any("mixture.safetensors").experts[most].config
    assert len(result["attention"]["weights"]) == layers.num_hidden_layers


def test_commands_that_need_one_model_name_those_of_the_ensemble(two_models, llm) -> None:
    llm("mix", *two_models)
    Path("0.txt").write_text("The dog ate the mat. " * 400)
    for command in (
        "export M x --to hf",
        "export M x --to gguf",
        "import M -o y",
        "train 0.txt --from M -o y",
        "explain The -m M --html x",
    ):
        result = llm(*command.replace("M", "mixture.safetensors").split())
        expected = "is an ensemble of models; name the file of one of them: a, b"
        assert result.exit_code == 1 and expected in result.stderr, command
        assert not Path("x").exists() and not Path("y").exists(), command


def test_models_that_cannot_be_mixed_are_an_error(llm) -> None:
    other = Tokenizer.train_bpe([TEXT.upper()], 300).to_json()
    cases = [
        (replace(model(2), tokenizer_source=other), "b.safetensors has a different tokenizer from a.safetensors"),
        (model(2, max_position_embeddings=64), "b.safetensors has a context length of 64 tokens, a"),
        (replace(model(2), dtypes=dict.fromkeys(CONFIG.tensor_shapes(), "BF16")),
         "b.safetensors has weights in BF16, a.safetensors in F32"),
        (model(2, vocab_size=TOKENIZER.vocab_size + 7), "has embeddings of"),
        (replace(model(2), quantization="int8"), "b.safetensors has quantized weights"),
    ]  # fmt: skip
    save("a.safetensors", model(1))
    for second, message in cases:
        save("b.safetensors", second)
        result = llm("mix", "a.safetensors", "b.safetensors", "-o", "m.safetensors")
        assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
        assert not Path("m.safetensors").exists(), message


def test_wrong_usage_of_mix_is_an_error_of_one_line(two_models, llm) -> None:
    llm("mix", *two_models)
    before = {path: path.read_bytes() for path in Path().glob("*.safetensors")}
    for words, message in (
        ("a.safetensors c.safetensors -o y.safetensors", "there is no file c.safetensors"),
        ("a.safetensors mixture.safetensors -o y.safetensors", "mixture.safetensors is already an ensemble"),
        ("a.safetensors b.safetensors -o b.safetensors --force", "b.safetensors is one of the models to mix"),
    ):
        result = llm("mix", *words.split())
        assert result.exit_code in (1, 2) and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
        assert before == {path: path.read_bytes() for path in Path().glob("*.safetensors")}, (words, message)


def test_equal_names_are_numbered() -> None:
    mixed = ensemble_file.combine({"x/a": model(1), "y/a": model(2)})
    assert ensemble_file.with_short_names(mixed, ["a", "a"]).names == ("a", "a-2")


def test_a_damaged_ensemble_is_an_error_of_one_line(two_models, llm) -> None:
    llm("mix", *two_models)
    header = read_header("mixture.safetensors")
    config = json.loads(header.metadata["config.json"])
    norm = header.tensors["experts.1.model.norm.weight"]
    for metadata, tensors in (
        ({"config.json": json.dumps(config | {"names": ["a"]})}, {}),
        ({"config.json": json.dumps(config | {"names": ["a", "b" * 61]})}, {}),
        ({"config.json": json.dumps(config | {"experts": 7})}, {}),
        ({"config.json": json.dumps({"names": ["a", "b"]})}, {}),
        ({"training.json": "[]"}, {}),
        *(({}, {name: norm}) for name in ("experts.9.x", "experts.01.x", "experts", "x", "experts.1.x")),
    ):
        damaged = replace(header, metadata=header.metadata | metadata, tensors=header.tensors | tensors)
        with pytest.raises(LLMError, match=r"mixture\.safetensors"):
            ensemble_file.from_header(damaged)
