"""Adapters made here, read by PEFT itself."""

from pathlib import Path

import numpy as np
import pytest

from llmcli import importer
from llmcli.runtime import Runtime


def test_peft_reads_our_adapters(reference, tmp_path: Path, llm) -> None:
    peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[ecosystem]'")
    import torch
    import transformers

    if reference.directory.name.rstrip("0123456789") != "qwen3":
        pytest.skip("one kind is enough")
    Path("c.txt").write_text("The dog ate the hat. The cat sat on the mat.\n" * 60)
    same = ("train", "c.txt", "--from", reference.directory, "--lora", 4, "--steps", 12, "-q", "--context", 16)
    alone = tmp_path / "adapter"
    assert llm(*same, "--threads", 1, "-o", alone, "--adapter-only").exit_code == 0
    assert llm(*same, "--threads", 1, "-o", "merged.safetensors").exit_code == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(reference.directory, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, alone).eval()
    ids = list(range(2, 40))
    with torch.inference_mode():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    found = Runtime(importer.load("merged.safetensors")).logits(ids)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted - reference.logits(ids)).max() > 0.01  # it has learned something
