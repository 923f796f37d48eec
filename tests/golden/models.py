"""Models with fixed random weights in every supported format, written without the package under test.

Weights come from numpy's frozen legacy generator, configs and training records are spelled out here, and the tokenizers
are files beside this module. So a model is the same whatever version of llmcli reads it.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
BPE, CHARACTERS = HERE / "bpe.json", HERE / "characters.json"  # tokenizers trained on TEXT
TRAIN_BYTES = 6_500  # of TEXT: the rest is held out
SHARPNESS = 10.0  # factor of the logits: a search among next words soon ends

NAMES, FOODS = ("Anna", "Ben", "Carla", "りんごさん"), ("tea", "rice", "soup", "bread", "a red apple 🍎")
TEXT = "".join(
    f"{NAMES[i % 4]} ate {FOODS[i * i % 5]} at {i * 37 % 24} o'clock.\nThe cat number {i * 919 % 997} sat on the mat.\n"
    for i in range(100)
)
OTHER_TEXT = "".join(f"{i * 7919 % 997} dogs ran to the river and {i * 31 % 17} swam.\n" for i in range(60))

Tensors = dict[str, NDArray[np.float32]]


def make_models(directory: Path) -> None:
    """Fill a directory with the texts, tokenizers and models that the recorded commands read."""
    bpe, characters = BPE.read_text("utf-8"), CHARACTERS.read_text("utf-8")
    for name, text in {"text.txt": TEXT, "other.txt": OTHER_TEXT, "tokenizer.json": bpe}.items():
        (directory / name).write_bytes(text.encode("utf-8"))
    dense = config("qwen3", bpe)
    sparse = config("qwen3_moe", characters, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    write_model(directory / "dense.safetensors", dense, bpe, record("text.txt", TEXT, dense), seed=1)
    write_model(directory / "second.safetensors", dense, bpe, record("other.txt", OTHER_TEXT, dense), seed=2)
    write_model(directory / "experts.safetensors", sparse, characters, record("text.txt", TEXT, sparse), seed=3)
    write_hf_directory(directory / "llama", bpe)
    write_adapter(directory / "adapter.safetensors", dense, layers=(0, 1))
    write_adapter(directory / "llama_adapter.safetensors", config("llama", bpe), layers=(0, 0))
    plain = {"encoder.0.weight": random((3, 4), 1), "encoder.1.weight": random((3, 4), 2), "bias": random((4,), 3)}
    plain["bias"][:2] = 0.0, np.nan
    write_safetensors(directory / "plain.safetensors", plain, {"made_by": "another program"})


def config(model_type: str, tokenizer: str, **values: Any) -> dict[str, Any]:
    """A config.json of a small model in the keys of Hugging Face."""
    name = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "llama": "Llama"}[model_type]
    return {
        "architectures": [f"{name}ForCausalLM"], "attention_bias": False, "bos_token_id": 0, "eos_token_id": 0,
        "head_dim": 8, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32,
        "model_type": model_type, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float32",
        "vocab_size": len(json.loads(tokenizer)["model"]["vocab"]),
    } | values  # fmt: skip


def record(name: str, text: str, config: dict[str, Any]) -> dict[str, Any]:
    """A training.json with every key that a run may write, with figures made up."""
    data = text.encode("utf-8")
    train_bytes = min(TRAIN_BYTES, len(data) * 9 // 10)
    experts = {"expert_shares": [[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]} if "num_experts" in config else {}
    return {
        "corpus": [{"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}],
        "train_bytes": train_bytes,
        "read_bytes": train_bytes,
        "train_tokens": train_bytes // 3,
        "held_out": {"bytes": len(data) - train_bytes, "tokens": 600, "from": "the last 0.1 of the corpus"},
        "seen_bytes": bytes(sorted(set(data))).hex(),
        "base": {"file": "base.safetensors", "sha256": "5" * 64, "source_sha256": "6" * 64},
        "versions": {"llmcli": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "tokenizers": "0.23.3"},
        "plan": [
            {"name": "text", "value": "8,000 bytes", "reason": "6,000 to learn from, 2,000 held out"},
            {"name": "dropout", "value": "0.1", "reason": "the text is seen 8 times"},
        ],
        "train": {
            "steps": 400, "seconds": 60.0, "context": 32, "batch_size": 4, "lr": 1.0, "dropout": 0.1,
            "token_split": 0.15, "calibration_tokens": 96, "weight_decay": 0.1, "induction": False, "recipe": "muon",
            "lora_rank": 0, "eval_tokens": 600, "seed": 5, "device": "cpu", "dtype": "float32", "threads": 2,
        },
        "steps": 320,
        "best_step": 240,
        "tokens": 40960,
        "epochs": 20.48,
        "interrupted": True,
        "regularization": [[100, 5.5, 0.2, 0.15], [200, 11.25, 0.3, 0.3]],
        "bits_per_byte": 2.345678,
        "bits_per_byte_before": 3.456789,
        "sharpness": 0.9375,
        **experts,
        "held_out_measured": {"tokens": 512, "bytes": 1536, "context": 24},
        "curve": {
            "step": [80, 160, 240, 320],
            "loss": [5.5125, 4.25, 3.875, 3.625],
            "eval_step": [160, 240, 320],
            "eval_bits_per_byte": [2.75, 2.345678, 2.5],
        },
        "samples": {"prompt": "The cat", "texts": [[160, " sat on\nthe"], [320, " number 7 sat"]]},
        "memorised": {"share": 0.125, "strings": 640, "held_out_share": 0.0625, "searched_bytes": train_bytes},
        "verdict": ["A sentence about the run.", "Another one."],
        "clock": {"seconds": 61.5, "tokens_per_second": 666},
    }  # fmt: skip


def random(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Normal values with the variance 1 / inputs; gains (vectors) are uniform between 0.5 and 1.5."""
    numbers = np.random.RandomState(seed)  # its stream is frozen, unlike that of default_rng
    values = numbers.uniform(0.5, 1.5, shape) if len(shape) == 1 else numbers.normal(0, shape[1] ** -0.5, shape)
    return values.astype(np.float32)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names with their shapes."""
    width, inside, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        attention = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
        if config["model_type"] != "llama":
            attention |= {"q_norm": (head,), "k_norm": (head,)}
        attention["o_proj"] = (width, queries)
        layer = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        layer |= {f"self_attn.{name}": shape for name, shape in attention.items()}
        prefixes = ["mlp."]
        if experts := config.get("num_experts"):
            layer["mlp.gate"] = (experts, width)
            prefixes = [f"mlp.experts.{expert}." for expert in range(experts)]
            inside = config["moe_intermediate_size"]
        for prefix in prefixes:
            sizes = {"gate_proj": (inside, width), "up_proj": (inside, width), "down_proj": (width, inside)}
            layer |= {prefix + name: shape for name, shape in sizes.items()}
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], width)
    return found


def weights(config: dict[str, Any], seed: int) -> Tensors:
    """Random weights; the gain of the last norm times SHARPNESS, so that a few tokens are likely."""
    tensors = {name: random(shape, 1000 * seed + i) for i, (name, shape) in enumerate(shapes(config).items())}
    tensors["model.norm.weight"] *= SHARPNESS
    return tensors


def write_model(path: Path, config: dict[str, Any], tokenizer: str, record: dict[str, Any], seed: int) -> None:
    """A model file of llmcli, in version 1 of the format."""
    metadata = {
        "format": "pt",
        "llmcli": "1",
        "config.json": json.dumps(config, indent=2),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": json.dumps({"eos_token": "<|endoftext|>", "model_max_length": 32}, indent=2),
        "training.json": json.dumps(record, ensure_ascii=False),
        "sha256": "0" * 64,  # of the file with these zeros in it
    }
    write_safetensors(path, weights(config, seed), metadata)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    path.write_bytes(data.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest.encode(), 1))


def write_hf_directory(directory: Path, tokenizer: str) -> None:
    """A llama with tied embeddings, bfloat16 weights, scaled rotary positions, a chat template and two end tokens."""
    directory.mkdir()
    scaling = {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    values = config(
        "llama", tokenizer, num_hidden_layers=1, tie_word_embeddings=True, torch_dtype="bfloat16", rope_scaling=scaling
    )
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    for name, text in {
        "config.json": json.dumps(values, indent=2),
        "generation_config.json": json.dumps({"eos_token_id": [0, 2]}),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": json.dumps({"chat_template": template}),
        "README.md": "---\nlicense: mit\n---\n# Tiny llama\n",
    }.items():
        (directory / name).write_bytes(text.encode("utf-8"))
    write_safetensors(directory / "model.safetensors", weights(values, 4), {"format": "pt"}, bfloat16=True)


def write_adapter(path: Path, config: dict[str, Any], layers: tuple[int, int]) -> None:
    """Low-rank adapters of two matrices, one in each of the layers, with PEFT's config in the metadata."""
    tensors: Tensors = {}
    for i, matrix in enumerate(("self_attn.q_proj", "mlp.down_proj")):
        name = f"model.layers.{layers[i]}.{matrix}"
        outputs, inputs = shapes(config)[f"{name}.weight"]
        tensors[f"base_model.model.{name}.lora_A.weight"] = random((2, inputs), 50 + i)
        tensors[f"base_model.model.{name}.lora_B.weight"] = random((outputs, 2), 60 + i)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    write_safetensors(path, tensors, {"format": "pt", "adapter_config.json": json.dumps(settings)})


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """(metadata, {name: (type, shape, data)}) of a safetensors file, in the order of the file."""
    data = path.read_bytes()
    start = 8 + int(struct.unpack("<Q", data[:8])[0])
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, info in header.items():
        first, end = (start + offset for offset in info["data_offsets"])
        tensors[name] = info["dtype"], tuple(info["shape"]), data[first:end]
    return metadata, tensors


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str], *, bfloat16: bool = False) -> None:
    """A safetensors file: 8 bytes with the length of the header, the header as JSON, the values."""
    header: dict[str, Any] = {"__metadata__": metadata}
    parts: list[bytes] = []
    end = 0
    for name, array in tensors.items():
        data = (array.view("<u4") >> 16).astype("<u2").tobytes() if bfloat16 else array.astype("<f4").tobytes()
        kind = "BF16" if bfloat16 else "F32"
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
        parts.append(data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
