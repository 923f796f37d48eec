"""A real model, SmolLM2-135M-Instruct in Q4_1, compared with transformers and llama.cpp on the same file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import SamplingConfig
from llmcli.formats import loading
from llmcli.formats.loading import open_tokenizer
from llmcli.generation.generator import generate
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.ecosystem import texts
from tests.platforms import FULL, in_full

TOKENS = 64
PROMPTS = (
    "The capital of France is", "Once upon a time, there was a little girl who", "def fibonacci(n):\n",
    "The three laws of thermodynamics are", "La capitale de la France est", "Water boils at 100 degrees",
    "In 1969, the first man on the moon", "Dear Sir or Madam,\n\n", "1 + 1 =", "<h1>Welcome</h1>\n<p>",
    "日本の首都は", "To make a cake you need", "Q: Who wrote Hamlet?\nA:", "The meaning of life",
    "import numpy as np\n\n", "My favourite colour is blue because", "Photosynthesis is the process by which",
    "She opened the door and saw", "SELECT name FROM users WHERE", "😀😀😀",
)  # fmt: skip


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> tuple[NumpyRuntime, Any]:
    model = loading.load(smollm2)
    return NumpyRuntime(model), open_tokenizer(model)


@pytest.fixture(scope="module")
def theirs(smollm2: Path, parsed_once: None) -> Any:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    return model.eval()


def continued(ours: tuple[NumpyRuntime, Any], prompt: str, count: int) -> list[int]:
    runtime, tokenizer = ours
    sampling = SamplingConfig(max_tokens=count, temperature=0.0)
    return [p.id for p in generate(runtime, tokenizer, prompt, sampling, literal=True) if p.id is not None]


def test_greedy_text_and_logits_equal_those_of_transformers(ours, theirs):
    for prompt in PROMPTS if FULL else PROMPTS[:1]:
        import torch

        runtime, tokenizer = ours
        ids = tokenizer.encode(prompt)
        mine = continued(ours, prompt, TOKENS)
        with torch.inference_mode():
            logits = theirs(torch.tensor([ids + mine])).logits[0].numpy()
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == mine, prompt
        if len(mine) < TOKENS:
            assert logits[-1].argmax() in tokenizer.eos_ids
        runtime.rewind()
        np.testing.assert_allclose(runtime.logits(ids + mine), logits, atol=1e-3)


def test_token_ids_equal_those_of_llama_cpp(ours, smollm2):
    from tests.ecosystem.conftest import LlamaCpp

    _, tokenizer = ours
    theirs = LlamaCpp(smollm2)
    for string in texts.varied(10_000 if FULL else 2_000):
        ids = tokenizer.encode(string)
        assert ids == theirs.tokenize(string) and tokenizer.decode(ids) == string, string


@in_full  # without it test_gguf_keys.py compares small models
def test_llama_cpp_generates_the_same_text_from_our_export(smollm2, tmp_path, ours, llm):
    from tests.ecosystem.conftest import LlamaCpp

    path = tmp_path / "smol.gguf"
    assert llm("export", smollm2, path, "--to", "gguf", "--dtype", "f32").exit_code == 0
    model = LlamaCpp(path, context=256)
    _, tokenizer = ours
    for prompt in PROMPTS if FULL else PROMPTS[:2]:
        assert model.text(prompt, TOKENS) == tokenizer.decode(continued(ours, prompt, TOKENS)), prompt


def test_inspect_shows_all_its_facts(smollm2, llm):
    shown = llm("inspect", smollm2).stdout
    for message in ("134.52 M parameters", "layers x 30", "apache-2.0", "49,152 tokens", "chat template", "GGUF"):
        assert message in shown, message
