"""Low-rank adapters: only they are trained, and merging them gives the model that the run saves."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import adapters, checkpoint, loading
from llmcli.formats.safetensors import file as safetensors_file
from llmcli.formats.safetensors import header as safetensors_header
from llmcli.formats.training_record import seen_bytes
from tests.conftest import random_checkpoint, write_tiny_model
from tests.formats.test_quantization import CONFIG
from tests.sample_models import run

TEXT = "The dog ate the hat. The cat sat on the mat.\n" * 60


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a text, a model trained on it with adapters for the tiny model, and these adapters alone."""
    directory = tmp_path_factory.mktemp("trained")
    base = write_tiny_model(directory / "model.safetensors")
    (directory / "c.txt").write_text(TEXT)
    same = ("train", directory / "c.txt", "--from", base, "--lora", 4, "--steps", 12, "--context", 16, "--threads", 1)
    for name, more in (("merged", ()), ("alone", ("--adapter-only",))):
        assert run(*same, "-q", "-o", directory / f"{name}.safetensors", *more).exit_code == 0
    return directory


@pytest.fixture
def trained(tiny_model: Path, trained_once: Path) -> tuple[Path, Path]:
    """(the merged model, its adapters alone), of the same run on c.txt, all of them here."""
    for name in ("c.txt", "merged.safetensors", "alone.safetensors"):
        shutil.copy(trained_once / name, name)
    return Path("merged.safetensors"), Path("alone.safetensors")


@pytest.mark.slow
def test_the_model_of_a_run_is_its_base_with_its_adapters(trained: tuple[Path, Path], tiny_model: Path, llm) -> None:
    base, merged = loading.load(tiny_model), loading.load(trained[0])
    assert llm("import", tiny_model, "--adapter", trained[1], "-o", "again.safetensors").exit_code == 0
    again = loading.load("again.safetensors")
    header = safetensors_header.read_header(trained[1])
    changed = 0
    for name in base.config.tensor_shapes():
        changed += not np.array_equal(merged.tensors[name], base.tensors[name])
        np.testing.assert_allclose(again.tensors[name], merged.tensors[name], atol=1e-6)
    assert changed == 7 * base.config.num_hidden_layers and len(header.tensors) == 2 * changed
    numbers = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    assert adapters.parameter_count(base.config, 4) == numbers
    record = merged.record.to_json()
    assert record["bits_per_byte"] < record["bits_per_byte_before"]
    assert record["base"] == {"file": tiny_model.name, "sha256": loading.fingerprint(base)}
    assert record["train"]["recipe"] == "lora" and record["train"]["lora_rank"] == 4


@pytest.mark.slow
def test_adapters_are_neither_a_model_nor_for_a_model_of_another_shape(trained: tuple[Path, Path], llm) -> None:
    result = llm("generate", "The", "-m", trained[1])
    assert result.exit_code == 1 and "llm import MODEL --adapter" in result.stderr
    swapped = llm("import", trained[0], "--adapter", trained[0], "-o", "m.safetensors")
    assert swapped.exit_code == 1 and "merged.safetensors is a model, not adapters" in swapped.stderr
    assert "LoRA adapters made by llmcli" in llm("inspect", trained[1]).stdout
    with pytest.raises(LLMError, match=r"it was trained on model\.safetensors"):
        adapters.merged_tensors(random_checkpoint(CONFIG), safetensors_header.read_header(trained[1]))


def test_experts_and_routers_get_no_adapters() -> None:
    config = ModelConfig(10, 8, 12, 2, 2, 1, 4, 48, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)
    attention = (8 + 8) + (4 + 8) + (4 + 8) + (8 + 8)  # rows and columns of the matrices q, k, v and o
    assert adapters.parameter_count(config, rank=3) == 2 * 3 * attention


@pytest.mark.slow
def test_a_merged_model_has_the_record_of_its_run_and_its_base(
    trained: tuple[Path, Path], tiny_model: Path, llm
) -> None:
    base = loading.load(tiny_model)
    base_text = {"name": "b.txt", "bytes": 9, "sha256": "b"}
    base.record = base.record | {"corpus": [base_text], "train_bytes": 9, "seen_bytes": b"xyz".hex()}
    checkpoint.save(Path("base.safetensors"), base)
    assert llm("import", "base.safetensors", "--adapter", trained[1], "-o", "again.safetensors").exit_code == 0
    record, run_record = (loading.load(name).record.to_json() for name in ("again.safetensors", trained[0]))
    [stage] = record.pop("earlier_stages")
    assert stage == {"stage": "base model", "file": "base.safetensors", "corpus": [base_text], "train_bytes": 9}
    assert record == run_record | {"adapter": "alone.safetensors"} and "seen_bytes" not in record

    header = safetensors_header.read_header(trained[1])
    foreign = {name: safetensors_file.read_tensor(header, tensor) for name, tensor in header.tensors.items()}
    config = {key: text for key, text in header.metadata.items() if key == "adapter_config.json"}
    known = {"training.json": json.dumps(run_record | {"seen_bytes": b"abc".hex()})}
    for metadata, seen, corpus in ((config, None, [base_text]), (config | known, b"abcxyz", run_record["corpus"])):
        safetensors_file.write_tensors(Path("other.safetensors"), foreign, metadata)
        merging = ("import", "base.safetensors", "--adapter", "other.safetensors", "-o", "f.safetensors")
        assert llm(*merging, "--force").exit_code == 0
        merged = loading.load("f.safetensors")
        assert seen_bytes(merged.records) == seen and merged.record.document["corpus"] == corpus


@pytest.mark.slow
@pytest.mark.baselines
def test_a_directory_of_adapters_has_the_two_files_of_peft(trained: tuple[Path, Path], tiny_model: Path, llm) -> None:
    same = ("train", "c.txt", "--from", tiny_model, "--lora", 4, "--steps", 1, "--context", 16, "--threads", 1)
    made = llm(*same, "--adapter-only", "-o", "adapter")
    assert made.exit_code == 0 and "--adapter adapter/adapter_model.safetensors" in made.stderr
    names = {file.name for file in Path("adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    header, alone = (safetensors_header.read_header(path) for path in ("adapter/adapter_model.safetensors", trained[1]))
    assert header.tensors.keys() == alone.tensors.keys()
    assert Path("adapter/adapter_config.json").read_text("utf-8") == header.metadata["adapter_config.json"]
    assert llm("import", tiny_model, "--adapter", "adapter", "-o", "again.safetensors").exit_code == 0
    assert "already exists" in llm(*same, "--adapter-only", "-o", "adapter").stderr
    assert llm(*same, "--adapter-only", "-o", "adapter/", "--force", "-q").exit_code == 0


def test_a_directory_for_adapters_is_made_only_when_a_file_is_written(tiny_model: Path, llm) -> None:
    Path("c.txt").write_text(TEXT)
    same = ("train", "c.txt", "--from", tiny_model, "--lora", 2, "--steps", 1, "--threads", 1, "--adapter-only")
    assert llm(*same, "-o", "new", "--dry-run").exit_code == 0
    assert llm(*same, "-o", "new", "--context", 9000).exit_code == 2
    assert not Path("new").exists()
    missing = llm(*same, "-o", "no/where")
    assert missing.exit_code == 1 and not Path("no").exists()
    assert missing.stderr.endswith(f"make it first: mkdir -p {Path('no').resolve()}\n")
    Path("file").write_text("mine")
    taken = llm(*same, "-o", "file", "--force")
    assert taken.exit_code == 1 and "file is a file; give a name that ends in .safetensors" in taken.stderr
    Path("there").mkdir()
    Path("there/adapter_config.json").write_text("mine")
    kept = llm(*same, "-o", "there")
    assert kept.exit_code == 1 and "there/adapter_config.json exists and does not begin like" in kept.stderr
    assert Path("there/adapter_config.json").read_text() == Path("file").read_text() == "mine"
    Path("hf").mkdir()
    Path("hf/config.json").write_text("{}")
    for output in ("hf", "hf/adapter_model.safetensors"):
        assert "hf holds a model (config.json)" in llm(*same, "-o", output, "--dry-run").stderr


@pytest.mark.slow
def test_merging_adapters_into_another_model_is_noted(trained: tuple[Path, Path], tiny_model: Path, llm) -> None:
    base = loading.load(tiny_model)
    checkpoint.save("other.safetensors", random_checkpoint(base.config, 1, base.tokenizer_json))
    for source, warned in ((tiny_model, False), ("other.safetensors", True)):
        result = llm("import", source, "--adapter", trained[1], "-o", "m.safetensors", "--force", "-q")
        assert result.exit_code == 0
        sha256 = loading.fingerprint(loading.load(tiny_model))
        message = f"alone.safetensors was trained on model.safetensors (sha256 {sha256[:16]})"
        assert (message in result.stderr and "other.safetensors is a different model" in result.stderr) == warned


@pytest.mark.slow
def test_a_model_is_the_same_in_either_form(tiny_model: Path, llm) -> None:
    Path("c.txt").write_text(TEXT)
    for words in (
        ("export", tiny_model, "there", "--to", "hf"),
        ("import", "there", "-o", "ours.safetensors"),
        ("train", "c.txt", "--from", "there", "--lora", 2, "--steps", 1, "--adapter-only", "-o", "1.safetensors"),
        ("train", "c.txt", "--from", "ours.safetensors", "--lora", 2, "--steps", 1, "--adapter-only", "-o",
         "2.safetensors"),
    ):  # fmt: skip
        assert llm(*words).exit_code == 0
    for source in ("there", "ours.safetensors"):
        for adapter in ("1.safetensors", "2.safetensors"):
            result = llm("import", source, "--adapter", adapter, "-o", "m.safetensors", "--force")
            assert result.exit_code == 0 and "another model" not in result.stderr


UNSUPPORTED = [
    {"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 8}}, {"alpha_pattern": {"q_proj": 8}},
    {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"}, {"layer_replication": [[0, 1], [0, 2]]},
    {"alora_invocation_tokens": [1, 2]}, {"trainable_token_indices": [3]}, {"peft_type": "IA3"},
]  # fmt: skip


@pytest.mark.slow
def test_plain_lora_in_a_directory_of_peft_is_read(trained: tuple[Path, Path], tiny_model: Path, llm) -> None:
    header = safetensors_header.read_header(trained[1])
    config = json.loads(header.metadata["adapter_config.json"])
    tensors = {name: safetensors_file.read_tensor(header, tensor) for name, tensor in header.tensors.items()}
    Path("peft").mkdir()
    merging = ("import", tiny_model, "--adapter", "peft", "--force", "-o")
    missing = llm(*merging, "m.safetensors")
    assert missing.exit_code == 1 and "there is no file peft/adapter_model.safetensors" in missing.stderr
    shutil.copy(trained[1], "peft/adapter_model.safetensors")  # with its configuration in it
    before = trained[1].read_bytes()
    assert llm(*merging, "m.safetensors").exit_code == 0
    over = llm(*merging, "peft/adapter_model.safetensors")
    assert over.exit_code == 1 and "is the adapter to merge" in over.stderr
    assert Path("peft/adapter_model.safetensors").read_bytes() == before
    safetensors_file.write_tensors("peft/adapter_model.safetensors", tensors, {"format": "pt"})
    Path("peft/adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "gaussian"}))
    assert llm(*merging, "m.safetensors").exit_code == 0
    for change in UNSUPPORTED:
        Path("peft/adapter_config.json").write_text(json.dumps(config | change))
        result = llm(*merging, "m.safetensors")
        assert result.exit_code == 1 and "only plain LoRA" in result.stderr, change
