"""Granite and Phi-3 become Llama when they are read: logits, gradients, exports and adapters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.formats import loading
from llmcli.formats.checkpoint import TensorsOnDisk
from llmcli.formats.gguf import conventions
from llmcli.formats.gguf import writer as gguf_writer
from llmcli.formats.tensor_names import in_gguf
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.ecosystem.conftest import LlamaCpp, Reference, made_by_transformers
from tests.ecosystem.test_architectures import greedy

SHAPE: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "granite": {
        "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22, "logits_scaling": 0.5,
        "tie_word_embeddings": True,
    },
    "phi3": {"pad_token_id": None, "sliding_window": 64},
}  # fmt: skip
IDS = list(range(2, 42))


@pytest.fixture(scope="module", params=list(KINDS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp(request.param)
    return made_by_transformers(request.param, SHAPE | KINDS[request.param], directory)


def test_logits_and_gradients_equal_those_of_transformers(family: Reference) -> None:
    import torch

    from llmcli.models.torch.transformer import LanguageModel

    checkpoint = loading.load(family.directory)
    assert checkpoint.config.model_type == "llama"
    assert checkpoint.config.tie_word_embeddings is family.model.config.tie_word_embeddings
    expected = family.logits(IDS)
    np.testing.assert_allclose(NumpyRuntime(checkpoint).logits(IDS), expected, atol=1e-4)
    model = LanguageModel(checkpoint.config).eval()
    model.load_arrays(checkpoint.tensors)
    ids = torch.tensor([IDS])
    model.loss(ids).backward()
    family.model.zero_grad()
    logits = family.model(ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs = {name: weight.grad for name, weight in family.model.named_parameters()}
    assert isinstance(checkpoint.tensors, TensorsOnDisk)
    compared = 0
    for name, weight in model.named_parameters():
        if name in theirs:
            factor = checkpoint.tensors.header.tensors[name].factor  # the chain rule
            torch.testing.assert_close(weight.grad * factor, theirs[name], atol=1e-4, rtol=1e-3)
            compared += 1
    assert compared > 8


def test_exports_are_llama_with_the_same_greedy_text(family: Reference, tmp_path: Path, llm: Any) -> None:
    import torch
    import transformers

    ours, back, gguf = tmp_path / "ours.safetensors", tmp_path / "back", tmp_path / "ours.gguf"
    assert llm("import", family.directory, "-o", ours).exit_code == 0
    kind = family.model.config.model_type
    assert (loading.load(ours).record.imported or {})["architecture"] == kind
    for target, to in ((back, "hf"), (gguf, "gguf")):
        assert llm("export", ours, target, "--to", to).exit_code == 0
    opened = transformers.AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
    assert type(opened) is transformers.LlamaForCausalLM
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": 399, "pad_token_id": 0}
    prompt = torch.tensor([IDS[:9]])
    tokens = family.model.generate(prompt, **settings)[0].tolist()
    assert tokens == opened.generate(prompt, **settings)[0].tolist()
    text = "the world"
    expected = greedy(family.directory, text)
    assert expected == greedy(ours, text) == [token for token in LlamaCpp(gguf).ids(text, 20) if token]


def gguf_of(family: Reference, path: Path, dtype: str) -> Path:
    """A GGUF with the tensors and fields of its own architecture, as llama.cpp's converter writes it."""
    import gguf

    kind, config = family.model.config.model_type, family.model.config
    llama = path.with_name("llama.gguf")
    converted = loading.load(family.directory)
    gguf_writer.write(llama, converted, "f32", {"name": "Tiny"})
    writer = gguf.GGUFWriter(path, kind)
    for key, field in gguf.GGUFReader(llama).fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and "rms_epsilon" not in key:
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key.replace("llama.", f"{kind}."), field.contents(), field.types[0], inner)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    else:
        writer.add_sliding_window(config.sliding_window)
    weights = {name: weight.detach().float().numpy() for name, weight in family.model.named_parameters()}
    names = {ours[0]: theirs for theirs, ours in in_gguf(converted.config, kind) if len(ours) == 1}
    names |= {
        f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{theirs}.weight"
        for layer in range(config.num_hidden_layers)
        for ours, theirs in (("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up"))  # Phi-3's
    }
    heads = conventions.interleaved_heads(converted.config, kind)
    for name, weight in weights.items():
        projection = name.split(".")[-2]
        if projection in heads:
            weight = conventions.reorder_rows(weight, heads[projection], interleave=True)
        quantization_type = gguf.GGMLQuantizationType[dtype if weight.ndim == 2 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(weight), quantization_type)
        writer.add_tensor(names[name], data, raw_dtype=quantization_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_before_rewriting(family: Reference, tmp_path: Path) -> None:
    path = gguf_of(family, tmp_path / "own.gguf", "F32")
    checkpoint = loading.load(path)
    assert (checkpoint.record.imported or {})["architecture"] == family.model.config.model_type
    np.testing.assert_allclose(NumpyRuntime(checkpoint).logits(IDS), family.logits(IDS), atol=1e-4)
    expected = [token for token in LlamaCpp(path).ids("the world", 20) if token]
    assert expected == greedy(path, "the world")
    quantized = NumpyRuntime(loading.load(gguf_of(family, tmp_path / "q8.gguf", "Q8_0"))).logits(IDS)
    assert 0 < np.abs(quantized - family.logits(IDS)).mean() < 0.1 * family.logits(IDS).std()


@pytest.mark.parametrize("family", ["granite"], indirect=True)
def test_adapters_for_the_model_before_rewriting(family: Reference, tmp_path: Path, llm: Any) -> None:
    peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[ecosystem]'")
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(family.directory, dtype=torch.float32)
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(base, settings).eval()
    theirs.save_pretrained(tmp_path / "peft")
    merged, ours = tmp_path / "merged.safetensors", tmp_path / "ours.safetensors"
    result = llm("import", family.directory, "--adapter", tmp_path / "peft", "-o", merged)
    assert result.exit_code == 0, result.stderr
    with torch.inference_mode():
        expected = theirs(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(NumpyRuntime(loading.load(merged)).logits(IDS), expected, atol=2e-4)
    assert np.abs(expected - family.logits(IDS)).max() > 0.01
    assert llm("import", family.directory, "-o", ours).exit_code == 0
    result = llm("import", ours, "--adapter", tmp_path / "peft", "-o", merged, "--force")
    assert result.exit_code == 1 and "'granite' model, which was converted to llama; name its direct" in result.stderr
