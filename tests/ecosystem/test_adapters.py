"""Adapters of this program in PEFT, and adapters of PEFT here."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from llmcli.formats import loading
from llmcli.models.numpy_runtime import NumpyRuntime

# it is imported in the tests: that takes seconds, in every process that collects them
pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft: pip install -e '.[ecosystem]'")
ONE_KIND = pytest.mark.parametrize("reference", ["qwen3"], indirect=True)


@ONE_KIND
def test_peft_reads_our_adapters(reference, tmp_path: Path, llm) -> None:
    import peft
    import torch
    import transformers

    Path("c.txt").write_text("The dog ate the hat. The cat sat on the mat.\n" * 60)
    same = ("train", "c.txt", "--from", reference.directory, "--lora", 4, "--steps", 12, "-q", "--context", 16)
    alone = tmp_path / "adapter"
    assert llm(*same, "--threads", 1, "-o", alone, "--adapter-only").exit_code == 0
    assert llm(*same, "--threads", 1, "-o", "merged.safetensors").exit_code == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(reference.directory, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, alone).eval()
    ids = list(range(2, 40))
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    result = NumpyRuntime(loading.load("merged.safetensors")).logits(ids)
    np.testing.assert_allclose(result, expected, atol=1e-4)
    assert np.abs(expected - reference.logits(ids)).max() > 0.01  # training changed it


@ONE_KIND
def test_adapters_saved_by_peft_are_read(reference, tmp_path: Path, llm) -> None:
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(reference.directory, dtype=torch.float32)
    torch.manual_seed(0)
    targets = ["q_proj", "down_proj", "lm_head"]  # for the last one, PEFT also saves the weights of the base model
    settings = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, init_lora_weights=False)
    theirs = peft.get_peft_model(base, settings).eval()
    theirs.save_pretrained(tmp_path / "peft")
    result = llm("import", reference.directory, "--adapter", tmp_path / "peft", "-o", "merged.safetensors")
    assert result.exit_code == 0, result.stderr
    ids = list(range(2, 40))
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(NumpyRuntime(loading.load("merged.safetensors")).logits(ids), expected, atol=1e-4)
    assert np.abs(expected - reference.logits(ids)).max() > 0.01


@pytest.mark.parametrize("reference", ["qwen2"], indirect=True)  # its embeddings are tied
def test_what_cannot_be_merged_is_named(reference, tmp_path: Path, llm) -> None:
    import peft
    import torch
    import transformers

    matrix = ["q_proj"]
    kinds = {
        "sets modules_to_save to ['norm']": peft.LoraConfig(target_modules=matrix, modules_to_save=["norm"]),
        "has model.embed_tokens.lora_embedding_A": peft.LoraConfig(target_modules=[*matrix, "embed_tokens"]),
        "adapts lm_head, which this model shares": peft.LoraConfig(target_modules=[*matrix, "lm_head"]),
        "has model.layers.0.self_attn.q_proj.base_layer.bias": peft.LoraConfig(target_modules=matrix, bias="lora_only"),
        "is of type 'IA3'": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        "is of type 'LOHA'": peft.LoHaConfig(target_modules=matrix),
        "is of type 'PROMPT_TUNING'": peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    }
    for number, (found, settings) in enumerate(kinds.items()):
        base = transformers.AutoModelForCausalLM.from_pretrained(reference.directory, dtype=torch.float32)
        directory = tmp_path / str(number)
        peft.get_peft_model(base, settings).save_pretrained(directory)
        result = llm("import", reference.directory, "--adapter", directory, "-o", "merged.safetensors")
        assert result.exit_code == 1 and result.stderr.count("\n") == 1, found
        assert found in result.stderr and "only plain LoRA of matrices is supported" in result.stderr, result.stderr
