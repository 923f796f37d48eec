"""Tiny models of each architecture: the logits are those of transformers, and exports run in transformers and
llama.cpp."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmcli.config import SamplingConfig
from llmcli.formats import loading
from llmcli.formats.loading import open_tokenizer
from llmcli.formats.safetensors.file import write_tensors
from llmcli.formats.safetensors.header import read_header
from llmcli.formats.tensor_names import TRANSFORMERS
from llmcli.generation.generator import generate
from llmcli.models.numpy_runtime import NumpyRuntime

PROMPTS = ("the world", "12345 + 1", "私は東京で", "def f(x):\n    return")
GREEDY = 20


def greedy(path: Path, prompt: str, count: int = GREEDY) -> list[int]:
    model = loading.load(path)
    sampling = SamplingConfig(max_tokens=count, temperature=0.0)
    pieces = generate(NumpyRuntime(model), open_tokenizer(model), prompt, sampling, literal=True)
    return [piece.id for piece in pieces if piece.id is not None]


def check_logits_equal_those_of_transformers(reference):
    for length in [1, 2, 31, 64]:
        import torch

        from llmcli.models.torch.transformer import LanguageModel

        ids = np.random.default_rng(length).integers(0, 400, length).tolist()
        expected = reference.logits(ids)
        checkpoint = loading.load(reference.directory)
        np.testing.assert_allclose(NumpyRuntime(checkpoint).logits(ids), expected, atol=1e-4)
        model = LanguageModel(checkpoint.config).eval()
        model.load_arrays(checkpoint.tensors)
        with torch.inference_mode():
            np.testing.assert_allclose(model(torch.tensor([ids]))[0].numpy(), expected, atol=1e-4)


def check_gradients_equal_those_of_transformers(reference, tmp_path):
    import torch

    from llmcli.models.torch.transformer import LanguageModel

    checkpoint = loading.load(reference.directory)
    model = LanguageModel(checkpoint.config).eval()  # in training mode the loss also balances the experts
    model.load_arrays(checkpoint.tensors)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 400, (2, 33)))
    model.loss(ids).backward()
    reference.model.zero_grad()
    logits = reference.model(ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs = {name: weight.grad for name, weight in reference.model.named_parameters()}
    for name in [name for name in theirs if name.endswith("experts.gate_up_proj")]:
        layer = name.removesuffix("experts.gate_up_proj")
        theirs[layer + "gate_proj"], theirs[layer + "up_proj"] = theirs[name].chunk(2, dim=1)
        theirs[layer + "down_proj"] = theirs[layer + "experts.down_proj"]
    if (
        checkpoint.config.model_type in TRANSFORMERS
    ):  # read the gradients like weights: under other names, in other matrices
        shutil.copytree(reference.directory, tmp_path / "gradients")
        arrays = {name: gradient.numpy() for name, gradient in theirs.items()}
        write_tensors(tmp_path / "gradients" / "model.safetensors", arrays, {})
        read = loading.load(tmp_path / "gradients").tensors
        theirs = {name: torch.from_numpy(read[name]) for name in read}
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name], atol=2e-5, rtol=1e-3)


def check_a_model_round_trips_through_a_hugging_face_directory(reference, tmp_path, llm):
    import torch
    import transformers

    ours, back = tmp_path / "ours.safetensors", tmp_path / "back"
    assert llm("import", reference.directory, "-o", ours).exit_code == 0
    assert llm("export", ours, back, "--to", "hf").exit_code == 0
    opened = transformers.AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
    assert type(opened) is type(reference.model)
    ids = list(range(1, 60))
    with torch.inference_mode():
        np.testing.assert_allclose(opened(torch.tensor([ids])).logits[0].numpy(), reference.logits(ids), atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    text = "I like to eat りんご 123  !"
    assert tokenizer(text)["input_ids"] == open_tokenizer(loading.load(ours)).encode(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "license: " in (back / "README.md").read_text("utf-8") and "apache-2.0" in (back / "README.md").read_text(
        "utf-8"
    )


def check_16_bit_weights_stay_16_bit(reference, tmp_path, llm, dtype):
    import torch
    import transformers

    halves = transformers.AutoModelForCausalLM.from_pretrained(reference.directory, dtype=getattr(torch, dtype))
    there, ours, back = tmp_path / "halves", tmp_path / "ours.safetensors", tmp_path / "back"
    halves.save_pretrained(there)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (there / name).write_bytes((reference.directory / name).read_bytes())
    assert llm("import", there, "-o", ours).exit_code == 0
    header = read_header(ours)
    assert {t.dtype for t in header.tensors.values()} == {{"bfloat16": "BF16", "float16": "F16"}[dtype]}
    assert llm("export", ours, back, "--to", "hf").exit_code == 0
    assert json.loads((back / "config.json").read_text("utf-8"))["torch_dtype"] == dtype
    again = transformers.AutoModelForCausalLM.from_pretrained(back)
    for (_, one), (_, two) in zip(halves.named_parameters(), again.named_parameters(), strict=True):
        assert two.dtype == one.dtype and torch.equal(one, two)


def check_a_16_bit_directory_equals_the_conversion_of_transformers(reference, tmp_path, llm, dtype):
    import torch
    import transformers

    assert llm("export", reference.directory, tmp_path / "halves", "--to", "hf", "--dtype", dtype).exit_code == 0
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "halves", dtype="auto")
    assert opened.dtype == {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    for (name, weight), (_, whole) in zip(opened.named_parameters(), reference.model.named_parameters(), strict=True):
        assert torch.equal(weight, whole.to(opened.dtype)), name


def check_a_model_round_trips_through_a_gguf(reference, tmp_path, llm):
    from tests.ecosystem.conftest import LlamaCpp

    path = tmp_path / "model.gguf"
    result = llm("export", reference.directory, path, "--to", "gguf", "--name", "Tiny", "--license", "mit")
    if not loading.load(reference.directory).config.norm_topk_prob:
        assert result.exit_code == 1 and "do not sum to 1" in result.stderr and not path.exists()
        return
    if reference.model.config.model_type == "gpt_neox":
        assert result.exit_code == 1 and "type gpt_neox are not written as GGUF" in result.stderr
        return
    assert result.exit_code == 0 and path.with_suffix(".Modelfile").read_text().startswith("FROM ./model.gguf\n")
    ids = list(range(2, 62))
    np.testing.assert_allclose(NumpyRuntime(loading.load(path)).logits(ids), reference.logits(ids), atol=1e-4)
    theirs = LlamaCpp(path)
    for prompt in PROMPTS:
        assert [token for token in theirs.ids(prompt, GREEDY) if token] == greedy(reference.directory, prompt), prompt
    origin = loading.load(path).record.document["imported"]
    assert origin["name"] == "Tiny" and origin["license"] == "mit"


def check_transformers_reads_our_gguf(reference, tmp_path, llm):
    import torch
    import transformers

    kind = reference.directory.name.rstrip("0123456789")
    if kind not in ("llama", "llama-tied-no-groups", "qwen2"):
        return  # transformers reads neither rope scaling, nor the head size of Qwen3, nor Mistral from a GGUF
    assert llm("export", reference.directory, tmp_path / "m.gguf", "--to", "gguf").exit_code == 0
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = list(range(1, 50))
    with torch.inference_mode():
        np.testing.assert_allclose(opened(torch.tensor([ids])).logits[0].numpy(), reference.logits(ids), atol=1e-4)


def check_smaller_tensor_types_run_in_llama_cpp(reference, tmp_path, llm, dtype):
    from tests.ecosystem.conftest import LlamaCpp

    if "not-to-one" in str(reference.directory):
        return  # llama.cpp does not support experts whose weights do not sum to 1
    if "qwen3" not in str(reference.directory) and not str(reference.directory).rstrip("0123456789").endswith("llama"):
        return  # two architectures are enough
    path = tmp_path / "model.gguf"
    assert llm("export", reference.directory, path, "--to", "gguf", "--dtype", dtype).exit_code == 0
    runtime, theirs = NumpyRuntime(loading.load(path)), LlamaCpp(path)
    for first in range(2, 30):  # llama.cpp reports no token that ends the text or is part of a character
        ids = list(range(first, first + 28))
        if result := theirs.chosen(ids, 1):
            break
    ours = runtime.prefill(ids)
    top = {entry["id"]: entry["logprob"] for entry in result[0]["top_logprobs"]}
    expected = ours - ours.max() - np.log(np.exp(ours - ours.max()).sum())
    # llama.cpp rounds the activations that it multiplies with quantized weights to 8 bits
    for token, logprob in top.items():
        assert logprob == pytest.approx(float(expected[token]), abs=0.05 if dtype in ("f16", "bf16") else 0.5)


def test_a_model_of_each_architecture(reference, tmp_path, llm):
    places = iter(range(100))

    def place() -> Path:
        (path := tmp_path / str(next(places))).mkdir()
        return path

    check_logits_equal_those_of_transformers(reference)
    check_gradients_equal_those_of_transformers(reference, place())
    check_a_model_round_trips_through_a_hugging_face_directory(reference, place(), llm)
    for dtype in ("bfloat16", "float16"):
        check_16_bit_weights_stay_16_bit(reference, place(), llm, dtype)
    for dtype in ("bf16", "f16"):
        check_a_16_bit_directory_equals_the_conversion_of_transformers(reference, place(), llm, dtype)
    check_a_model_round_trips_through_a_gguf(reference, place(), llm)
    check_transformers_reads_our_gguf(reference, place(), llm)
    for dtype in ("f16", "bf16", "q8_0", "q4_0"):
        check_smaller_tensor_types_run_in_llama_cpp(reference, place(), llm, dtype)
