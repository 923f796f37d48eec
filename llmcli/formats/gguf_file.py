"""The file of llama.cpp, Ollama and LM Studio: read as a header in this program's terms, and written.

A GGUF names its tensors and its config in a way of its own; here they become Hugging Face's, so that no other room
knows of it (of its tokenizer `gguf_tokenizer` does). Its header is read here, step by step and bounded, since
strangers write such files; the `gguf` package, an extra, knows the block-quantized types and writes.

Knows numpy, not torch. Format: GGUF version 2 and 3, ggml's docs/gguf.md.
"""

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig, RopeScaling, as_record
from llmcli.errors import LLMError, usage
from llmcli.formats import atomic_io, gguf_tokenizer
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.hf_config import dump_config
from llmcli.formats.metadata import document
from llmcli.formats.safetensors_file import Header, TensorInfo, reading

MAGIC = b"GGUF"
MOST_THINGS = 1 << 17  # tensors, and keys, in a file
HEADER_LIMIT = 100_000_000  # bytes: several times the longest that is known
LONGEST = 1 << 24  # bytes of a text in the header
MOST_ENTRIES = 1 << 24  # of all lists in the header together
MOST_FREQUENCIES = 1 << 16  # of rotary positions in a head
DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")  # that are written
# GGML's number of a type -> (name, numbers in a block, bytes of a block)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
_NOT_READ = {  # its other types, to name them
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
_SHOWN = {  # ... and the numbers in a block and bytes of a block of those, to show what is in a file
    "Q8_1": (32, 40), "Q8_K": (256, 292), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ3_XXS": (256, 98),
    "IQ1_S": (256, 50), "IQ4_NL": (32, 18), "IQ3_S": (256, 110), "IQ2_S": (256, 82), "IQ4_XS": (256, 136),
    "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8), "F64": (1, 8), "IQ1_M": (256, 56), "TQ1_0": (256, 54),
    "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36), "Q1_0": (128, 18),
}  # fmt: skip
_NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
# GGUF's name of an architecture -> (transformers' model_type, whether rows of q and k are in its own order)
ARCHITECTURES = {
    "llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False), "qwen3moe": ("qwen3_moe", False),
}  # fmt: skip
_WITH_EXPERTS = {"llama": "mixtral", "qwen3moe": "qwen3_moe"}
_WRITTEN_AS = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}  # fmt: skip
_ROUTER = "blk.{}.ffn_gate_inp.weight"
_STACKS = ("blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight", "blk.{}.ffn_down_exps.weight")
_APART = ("blk.{}.ffn_gate.{}.weight", "blk.{}.ffn_up.{}.weight", "blk.{}.ffn_down.{}.weight")  # as older files have it
_NAMES = {  # of tensors; the number of the layer goes where the brackets are
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    **{
        f"blk.{{}}.{theirs}": f"model.layers.{{}}.{ours}"
        for theirs, ours in (
            ("attn_norm.weight", "input_layernorm.weight"),
            ("attn_q.weight", "self_attn.q_proj.weight"),
            ("attn_k.weight", "self_attn.k_proj.weight"),
            ("attn_v.weight", "self_attn.v_proj.weight"),
            ("attn_q.bias", "self_attn.q_proj.bias"),
            ("attn_k.bias", "self_attn.k_proj.bias"),
            ("attn_v.bias", "self_attn.v_proj.bias"),
            ("attn_q_norm.weight", "self_attn.q_norm.weight"),
            ("attn_k_norm.weight", "self_attn.k_norm.weight"),
            ("attn_output.weight", "self_attn.o_proj.weight"),
            ("ffn_norm.weight", "post_attention_layernorm.weight"),
            ("ffn_gate.weight", "mlp.gate_proj.weight"),
            ("ffn_up.weight", "mlp.up_proj.weight"),
            ("ffn_down.weight", "mlp.down_proj.weight"),
        )
    },
}
_ROPE_FACTORS = "rope_freqs.weight"
_OWN_ROPE = "llmcli.rope_scaling"  # a key of our own: by llama.cpp's keys it would scale a second time
# ---- reading


def is_gguf(path: Path) -> bool:
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """What a GGUF says of itself, in the terms of our own file; of a model that is not run here in its own terms, with
    the `problem`. Raises LLMError when it is damaged."""
    with reading(path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise LLMError(f"cannot read {path}: {error}") from error
        with mapped:
            try:
                scanner = _Scanner(mapped)
                facts, infos, data_start = scanner.header()
                _check(infos, data_start, len(mapped))
            except LLMError as error:
                raise LLMError(f"{path}: {error}") from error
            except (ValueError, struct.error) as error:
                raise LLMError(f"{path} is not a whole GGUF file: {error}") from error
            problem = scanner.problem if facts.get("general.architecture") in list(ARCHITECTURES) else ""
            try:
                if not problem:
                    return _translated(path, len(mapped), facts, dict(infos), data_start, mapped)
            except LLMError as error:
                problem = str(error)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
                raise LLMError(f"{path} has a header that is not usable: {error}") from error
            return _as_it_stands(path, len(mapped), facts, infos, data_start, problem)


class _Scanner:
    """Reads a header from its beginning; nothing in it is believed before the bytes are there. Raises ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4
        self._end = min(len(data), HEADER_LIMIT)
        self._entries = 0
        self.problem = ""  # a type that is not read

    def header(self) -> tuple[dict[str, Any], dict[str, TensorInfo], int]:
        """(keys, tensors under GGUF's own names, where the tensors begin)"""
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"it is of version {version}; 2 and 3 are supported")
        tensors, keys = self._count(), self._count()
        facts: dict[str, Any] = {}
        for _ in range(keys):
            name = self._text()
            facts[name] = self._value(self._number("<I"))
        places = []
        for _ in range(tensors):
            name, dimensions = self._text(), self._number("<I")
            if dimensions > 4:
                raise ValueError(f"tensor {name[:100]!r} has {dimensions} dimensions")
            shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
            places.append((name, shape, self._number("<I"), self._number("<Q")))
        alignment = facts.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise ValueError(f"its alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        infos: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in places:
            if name in infos:
                raise ValueError(f"tensor {name[:100]!r} occurs twice")
            if kind not in TYPES:
                known = ", ".join(type_name for type_name, _, _ in TYPES.values())
                its = _NOT_READ.get(kind, f"number {kind}")
                said = f"tensor {name[:100]} is of type {its}, which is not supported; {known} are"
                if its not in _SHOWN:
                    raise LLMError(said)
                self.problem = self.problem or said
            type_name, block, size = TYPES[kind] if kind in TYPES else (_NOT_READ[kind], *_SHOWN[_NOT_READ[kind]])
            if math.prod(shape) % block or (shape and shape[-1] % block):
                raise ValueError(f"tensor {name[:100]!r} is no whole number of {type_name} blocks")
            begin = start + offset
            infos[name] = TensorInfo(name, type_name, shape, begin, begin + math.prod(shape) // block * size)
        return facts, infos, start

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._need(size)
        (found,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return found

    def _need(self, size: int) -> None:
        """Raises ValueError unless so many bytes of the header follow."""
        if size > len(self._data) - self._at:
            raise ValueError("it is cut off inside its header")
        if size > self._end - self._at:
            raise ValueError(f"its header has more than {HEADER_LIMIT:,} bytes")

    def _count(self) -> int:
        found = self._number("<Q")
        if found > MOST_THINGS:
            raise ValueError(f"it claims {found:,} things of one kind")
        return int(found)

    def _text(self) -> str:
        length = self._number("<Q")
        self._need(length)
        if length > LONGEST:
            raise ValueError(f"a text in its header has {length:,} bytes")
        found = self._data[self._at : self._at + length]
        self._at += length
        return found.decode("utf-8", "replace")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _TEXT:
            return self._text()
        if kind != _LIST or depth > 2:
            raise ValueError(f"a value in its header is of kind {kind}")
        inner, count = self._number("<I"), self._number("<Q")
        size = struct.calcsize(_SCALARS.get(inner, "<Q"))  # a text or a list begins with its length
        self._need(count * size)
        self._entries += count
        if self._entries > MOST_ENTRIES:
            raise ValueError(f"the lists in its header have more than {MOST_ENTRIES:,} entries")
        if inner in _SCALARS:
            found = np.frombuffer(self._data, _SCALARS[inner], count, self._at).tolist()
            self._at += count * size
            return found
        return [self._value(inner, depth + 1) for _ in range(count)]


def _check(infos: Mapping[str, TensorInfo], data_start: int, file_bytes: int) -> None:
    position = data_start
    for tensor in sorted(infos.values(), key=lambda tensor: tensor.start):
        if tensor.start < position:
            raise ValueError(f"tensor {tensor.name[:100]!r} overlaps another")
        position = tensor.end
    if position > file_bytes:
        raise ValueError(f"it is cut off: the tensors end at byte {position:,}, the file at {file_bytes:,}")


def _translated(
    path: Path, file_bytes: int, facts: dict[str, Any], infos: dict[str, TensorInfo], data_start: int, mapped: Any
) -> Header:
    """The header in Hugging Face's names."""
    _check_model(facts)
    kind = facts.get("general.architecture")
    if kind not in list(ARCHITECTURES):
        raise LLMError(f"it is of architecture {kind!r}; this program runs {', '.join(ARCHITECTURES)}")
    if facts.get(f"{kind}.expert_count") and kind not in _WITH_EXPERTS:
        raise LLMError(f"it is of architecture {kind!r} with experts; with them {', '.join(_WITH_EXPERTS)} are run")
    factors = None
    if _ROPE_FACTORS in infos:
        found = infos.pop(_ROPE_FACTORS)
        if found.dtype != "F32":
            raise LLMError(f"its {_ROPE_FACTORS} is {found.dtype}; F32 is wanted")
        if found.size > MOST_FREQUENCIES:
            raise LLMError(f"its {_ROPE_FACTORS} has {found.size:,} numbers; half as many as a head has are wanted")
        factors = np.frombuffer(mapped, "<f4", found.size, found.start).tolist()
    config = _config(facts, infos, factors)
    _check_counts(config, infos)
    names = {_our_name(name): info for name, info in infos.items()}
    for ours, theirs, part in _experts(config):
        if theirs in infos:
            names.pop(theirs, None)
            names[ours] = infos[theirs] if part is None else _part(infos[theirs], part, config.num_experts)
    tokenizer, start = gguf_tokenizer.read(facts)
    metadata = {
        "config.json": dump_config(config),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": json.dumps(
            gguf_tokenizer.config_of(facts, config, start), ensure_ascii=False, indent=2
        ),
        "training.json": json.dumps({"imported": _provenance(path, facts)}, ensure_ascii=False),
    }
    tensors = {name: TensorInfo(name, info.dtype, info.shape, info.start, info.end) for name, info in names.items()}
    decode = _decoder(path, config, permuted=ARCHITECTURES[kind][1])
    return Header(path, file_bytes, data_start, tensors, metadata, "GGUF file", decode)


def _check_model(facts: Mapping[str, Any]) -> None:
    """Raises LLMError for a file that holds no whole model."""
    kind, parts = facts.get("general.type", "model"), facts.get("split.count", 1)
    if kind != "model":
        hint = "; merge an adapter from its PEFT files: llm import MODEL --adapter DIR" if kind == "adapter" else ""
        raise LLMError(f"it holds no model: its general.type is {str(kind)[:60]!r}{hint}")
    if parts not in (0, 1):
        raise LLMError(
            f"it is one of the {str(parts)[:20]} files of a model; join them first: llama-gguf-split --merge "
            "FIRST.gguf JOINED.gguf"
        )


def _check_counts(config: ModelConfig, infos: Mapping[str, TensorInfo]) -> None:
    """Raises LLMError for more layers or experts than the file has tensors for: before their names are listed."""
    if config.num_hidden_layers > len(infos):
        raise LLMError(f"it claims {config.num_hidden_layers:,} layers, the file has {len(infos):,} tensors")
    stacks = (infos[stack] for pattern in _STACKS if (stack := pattern.format(0)) in infos)
    most = max([len(infos), *(stack.shape[0] for stack in stacks if stack.shape)])
    if config.num_experts > most or config.swiglus > MOST_THINGS:
        raise LLMError(
            f"it claims {config.num_hidden_layers:,} layers of {config.num_experts:,} experts, "
            "the file has fewer tensors"
        )


# GGUF's keys of a config -> Hugging Face's
_CONFIG_KEYS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "context_length": "max_position_embeddings", "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok", "rope.freq_base": "rope_theta",
}  # fmt: skip


def _as_it_stands(
    path: Path, file_bytes: int, facts: dict[str, Any], infos: dict[str, TensorInfo], data_start: int, problem: str
) -> Header:
    """The header of a model that is not run here, with GGUF's own names of tensors and keys."""
    kind = str(facts.get("general.architecture", "not named"))
    known = {f"{kind}.{theirs}": ours for theirs, ours in _CONFIG_KEYS.items()}
    config = {"model_type": kind} | {ours: facts[key] for key, ours in known.items() if key in facts}
    tokens = facts.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        config["vocab_size"] = len(tokens)
    others = {
        key: f"{len(found):,} entries" if isinstance(found, list) else str(found)
        for key, found in facts.items()
        if key not in known and not key.startswith("general.") and "." in key and not key.endswith(".json")
    }  # no key that our own files have
    metadata = others | {
        "config.json": json.dumps(config),
        "training.json": json.dumps({"imported": _provenance(path, facts)}, ensure_ascii=False),
    }
    decode = _decoder(path, None, permuted=False)
    return Header(path, file_bytes, data_start, infos, metadata, "GGUF file", decode, problem)


def _our_name(name: str) -> str:
    """
    >>> _our_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    head, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if head == "blk" and number.isdecimal() and f"blk.{{}}.{inner}" in _NAMES:
        return _NAMES[f"blk.{{}}.{inner}"].format(int(number))
    return _NAMES.get(name, name)


def _experts(config: ModelConfig) -> Iterator[tuple[str, str, int | None]]:
    """(our name, GGUF's, which part of its stack) of every router and every expert's matrix."""
    for i in range(config.num_hidden_layers if config.num_experts else 0):
        yield config.router_name(i), _ROUTER.format(i), None
        for expert, names in enumerate(config.swiglu_names(i)):
            for ours, stack, apart in zip(names, _STACKS, _APART, strict=True):
                yield ours, apart.format(i, expert), None
                yield ours, stack.format(i), expert


def _part(stack: TensorInfo, index: int, count: int) -> TensorInfo:
    """One of the matrices that lie one behind the other. Raises LLMError when there are not so many."""
    if len(stack.shape) != 3 or stack.shape[0] != count:
        raise LLMError(f"its {stack.name} has shape {list(stack.shape)}, {count} experts are wanted")
    size = (stack.end - stack.start) // count
    start = stack.start + index * size
    return TensorInfo(stack.name, stack.dtype, stack.shape[1:], start, start + size)


def _config(facts: dict[str, Any], infos: dict[str, TensorInfo], factors: list[float] | None) -> ModelConfig:
    kind = facts["general.architecture"]

    def fact(name: str, otherwise: Any = None) -> Any:
        found = facts.get(f"{kind}.{name}", otherwise)
        if found is None:
            raise LLMError(f"it has no {kind}.{name}")
        if type(found) not in (int, float):
            raise LLMError(f"its {kind}.{name} is {str(found)[:60]}; one number for all layers is wanted")
        return found

    if "token_embd.weight" not in infos or len(infos["token_embd.weight"].shape) != 2:
        raise LLMError("it has no token_embd.weight")
    heads, width = fact("attention.head_count"), fact("embedding_length")
    window = fact("attention.sliding_window", 0)
    context = fact("context_length")
    _, end = gguf_tokenizer.ends(facts)
    others = [facts[key] for key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id") if key in facts]
    experts = fact("expert_count", 0)
    inner = "expert_feed_forward_length" if kind == "qwen3moe" else "feed_forward_length"
    head_dim = fact("attention.key_length", width // max(1, heads))
    _check_neutral(facts, head_dim)
    return ModelConfig(
        vocab_size=infos["token_embd.weight"].shape[0],
        hidden_size=width,
        intermediate_size=fact(inner),
        num_hidden_layers=fact("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=fact("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=min(window, context) if window else context,
        tie_word_embeddings="output.weight" not in infos,
        rms_norm_eps=_short(fact("attention.layer_norm_rms_epsilon")),
        rope_theta=_short(fact("rope.freq_base", 10000.0)),
        eos_token_id=end,
        bos_token_id=_other(facts.get("tokenizer.ggml.bos_token_id"), end),
        model_type=_WITH_EXPERTS[kind] if experts else ARCHITECTURES[kind][0],
        num_experts=experts,
        num_experts_per_tok=fact("expert_used_count") if experts else 0,
        rope_scaling=_rope_scaling(facts, factors, head_dim),
        extra_eos_ids=tuple(other for other in others if other != end),
    )


# Keys that change what a model computes, and the values at which they do not. llama.cpp reads some of them for other
# architectures only; here their documented meaning counts, so that no file is run other than it says.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "activation_sparsity_scale": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.indexer.top_k": (0,),
    "attention.key_length_mla": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0, 1),
    "attention.value_length_mla": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "full_attention_interval": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "residual_scale": (0, 1),
    "rope.dimension_sections": (0,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "router_logit_softcapping": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "use_parallel_residual": (False,),
}
_NEUTRAL_EXPERTS: dict[str, tuple[Any, ...]] = {
    "expert_gating_func": (0, 1),  # not told, or softmax
    "expert_group_count": (0, 1),
    "expert_group_scale": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),
    "experts_per_group": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "moe_every_n_layers": (0, 1),
    "moe_latent_size": (0,),
}


def _check_neutral(facts: Mapping[str, Any], head_dim: float) -> None:
    """Raises LLMError for a key that asks for something else than what is run here."""
    kind = facts["general.architecture"]
    allowed = _NEUTRAL | (_NEUTRAL_EXPERTS if facts.get(f"{kind}.expert_count") else {})
    allowed = allowed | {"attention.value_length": (head_dim,), "rope.dimension_count": (head_dim,)}
    for name, values in allowed.items():
        found = facts.get(f"{kind}.{name}", values[0])
        if any(one not in values for one in (found if isinstance(found, list) else [found])):
            raise LLMError(f"it sets {kind}.{name} to {str(found)[:60]}, which is not run here; {values[-1]} is")
    scale = facts.get(f"{kind}.attention.scale")
    if scale and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        raise LLMError(f"it sets {kind}.attention.scale to {str(scale)[:60]}; 1 / sqrt({head_dim}) is run here")


def _rope_scaling(facts: Mapping[str, Any], factors: list[float] | None, head_dim: int) -> RopeScaling | None:
    """How rotary positions are scaled: by a factor, under the new name or the old one, of type linear where no type is
    told, as in llama.cpp; or by a tensor of `factors`. Raises LLMError for other types."""
    kind = facts["general.architecture"]
    rope = facts.get(f"{kind}.rope.scaling.type", "linear")
    if rope not in ("none", "linear"):
        raise LLMError(f"its rotary positions are scaled by {str(rope)[:60]!r}; linear and Llama 3's are supported")
    factor = facts.get(f"{kind}.rope.scaling.factor", facts.get(f"{kind}.rope.scale_linear", 0)) or 1
    if type(factor) not in (int, float):
        raise LLMError(f"its rotary positions are scaled by a factor of {str(factor)[:60]}; a number is wanted")
    scales = rope == "linear" and factor != 1
    if scales and factors:
        raise LLMError(f"its rotary positions are scaled twice, by {factor} and by {_ROPE_FACTORS}; one is supported")
    if factors:
        if len(factors) != head_dim // 2:
            raise LLMError(f"its {_ROPE_FACTORS} has {len(factors):,} numbers, {head_dim // 2:,} are wanted")
        return _llama3(factors, facts.get(f"{kind}.rope.freq_base", 10000.0), facts.get(_OWN_ROPE))
    return RopeScaling("linear", _short(factor)) if scales else None


def _other(token: Any, end: int) -> int | None:
    return None if token == end else token


def _short(number: float) -> float:
    """The shortest number that is the same in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _llama3(factors: list[float], theta: float, told: Any) -> RopeScaling:
    """The rule of Llama 3.1 that gives these factors on wavelengths. A GGUF keeps only what comes of it, so that it is
    guessed, but where we wrote the file and it is `told`."""
    rules = []
    with suppress(ValueError, TypeError, RecursionError, LLMError):
        rules.append(RopeScaling(**json.loads(told)))
    with suppress(LLMError):  # not even numbers
        rules += [RopeScaling("llama3", round(max(factors), 4), 1.0, 4.0, n) for n in (8192, 4096, 16384, 32768, 2048)]
    plain = [theta ** (-2 * i / (2 * len(factors))) for i in range(len(factors))]
    for rule in rules:
        if all(
            math.isclose(f / rule.scaled(f), factor, rel_tol=1e-5) for f, factor in zip(plain, factors, strict=True)
        ):
            return rule
    raise LLMError("its rotary positions are scaled in a way that is not Llama 3's")


def _provenance(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "author", "organization", "license", "license.link", "description", "url", "source.url",
            "basename", "finetune", "size_label")  # fmt: skip
    told = {key: facts[f"general.{key}"] for key in keys if isinstance(facts.get(f"general.{key}"), str)}
    return {"file": atomic_io.name_of(path), "form": "GGUF", **told}


def _decoder(path: Path, config: ModelConfig | None, permuted: bool) -> Callable[[TensorInfo], Iterator[NDArray[Any]]]:
    """How the values of a tensor are read: flat, as float32."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if config else {}

    def decode(tensor: TensorInfo) -> Iterator[NDArray[Any]]:
        with reading(path) as file:
            file.seek(tensor.start)
            data = file.read(tensor.end - tensor.start)
        if len(data) != tensor.end - tensor.start:
            raise LLMError(f"{path} ends inside {tensor.name}; it was cut off while being read")
        values = _dequantized(data, tensor).reshape(tensor.shape)
        part = tensor.name.rpartition(".")[0].rpartition(".")[2]
        if permuted and part in heads and tensor.name.startswith("model.layers."):
            if not tensor.shape or tensor.shape[0] % (2 * heads[part]):
                raise LLMError(f"{path}: {tensor.name} of shape {list(tensor.shape)} does not fit {heads[part]} heads")
            rows, inner = tensor.shape[0], tensor.shape[1:]
            values = values.reshape(heads[part], rows // heads[part] // 2, 2, *inner).swapaxes(1, 2)
        yield values.reshape(-1)

    return decode


def _dequantized(data: bytes, tensor: TensorInfo) -> NDArray[np.float32]:
    if tensor.dtype in _NUMPY:
        return np.frombuffer(data, _NUMPY[tensor.dtype]).astype(np.float32, copy=False)
    if tensor.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    gguf = _package(f"to read {tensor.dtype}")
    kind = gguf.GGMLQuantizationType[tensor.dtype]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.frombuffer(data, np.uint8).reshape(-1, tensor.shape[-1] // block * size)
    try:
        with np.errstate(all="ignore"):  # a damaged scale gives what it gives
            return gguf.quants.dequantize(rows, kind)
    except NotImplementedError as error:
        raise LLMError(f"{tensor.name[:100]} is of type {tensor.dtype}, whose values are not read") from error


def _package(why: str) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise LLMError(f"{why} the gguf package is needed: pip install 'llmcli[gguf]'") from error
    return gguf


# ---- writing


def write(path: Path, checkpoint: Checkpoint, dtype: str, told: Mapping[str, str]) -> None:
    """Write a model for llama.cpp. Matrices become `dtype`, norms and biases stay float32; what the blocks of a type
    do not fit stays float16. `told` goes along as general.*: name, license, ... Raises LLMError for a tokenizer that
    llama.cpp has no name for."""
    if dtype not in DTYPES:
        raise usage(f"--dtype must be {', '.join(DTYPES)}, found {dtype}")
    gguf = _package("to write a GGUF")
    config = checkpoint.config
    kind = _WRITTEN_AS[config.model_type]
    if not config.norm_topk_prob:
        raise LLMError("what the experts of a token count does not sum to 1 in this model, as llama.cpp has it")
    if config.rope_scaling and config.rope_scaling.rope_type == "llama3" and kind != "llama":
        raise LLMError(
            f"llama.cpp runs Llama 3's scaling of rotary positions in models of type llama only, not "
            f"{config.model_type}; use --to hf instead"
        )
    tokenizer = gguf_tokenizer.facts_of(json.loads(checkpoint.tokenizer_json), config)

    def fill(place: Path) -> None:
        writer = gguf.GGUFWriter(place, kind)
        for key, value in told.items():
            writer.add_string(f"general.{key}", value)
        writer.add_file_type(int(getattr(gguf.LlamaFileType, _FILE_TYPES[dtype])))
        if dtype.startswith("q"):
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_config(writer, config, gguf)
        for add, value in tokenizer:
            getattr(writer, add)(value)
        template = _chat_template(checkpoint)
        if template:
            writer.add_chat_template(template)
        for theirs, values, type_name in _tensors(checkpoint, kind, dtype):
            qtype = gguf.GGMLQuantizationType[type_name]
            writer.add_tensor(theirs, gguf.quants.quantize(values, qtype), raw_dtype=qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    atomic_io.write_by(path, fill)


_FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0",
}  # fmt: skip


def _write_config(writer: Any, config: ModelConfig, gguf: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_theta))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.rope_scaling and config.rope_scaling.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    elif config.rope_scaling:
        writer.add_string(_OWN_ROPE, json.dumps(as_record(config.rope_scaling)))


def _tensors(checkpoint: Checkpoint, kind: str, dtype: str) -> Iterator[tuple[str, NDArray[np.float32], str]]:
    """(GGUF's name, values, type) of each tensor."""
    config = checkpoint.config
    theirs = {ours: name for name, ours in _NAMES.items()}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    stacks: dict[str, list[str]] = {}
    for ours, written, part in _experts(config):
        if part is not None or written.endswith("ffn_gate_inp.weight"):
            stacks.setdefault(written, []).append(ours)
    for written, members in stacks.items():
        arrays = [np.ascontiguousarray(checkpoint.tensors[name], np.float32) for name in members]
        router = len(arrays) == 1 and written.endswith("ffn_gate_inp.weight")
        values = arrays[0] if router else np.stack(arrays)
        yield written, values, "F32" if router else _written_type(dtype, values, written)
    stacked = {name for members in stacks.values() for name in members}
    for name in config.tensor_shapes():
        if name in stacked:
            continue
        values = np.ascontiguousarray(checkpoint.tensors[name], np.float32)
        steps = name.split(".")
        number = steps[2] if name.startswith("model.layers.") else ""
        pattern = ".".join([*steps[:2], "{}", *steps[3:]]) if number else name
        if ARCHITECTURES[kind][1] and steps[-2] in heads:
            rows, inner = values.shape[0], values.shape[1:]
            values = values.reshape(heads[steps[-2]], 2, rows // heads[steps[-2]] // 2, *inner).swapaxes(1, 2)
            values = np.ascontiguousarray(values).reshape(rows, *inner)
        yield theirs[pattern].format(number), values, _written_type(dtype, values, name)
    if config.rope_scaling and config.rope_scaling.rope_type == "llama3":
        plain = [config.rope_theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
        factors = [f / scaled for f, scaled in zip(plain, config.rope_frequencies(), strict=True)]
        yield _ROPE_FACTORS, np.array(factors, np.float32), "F32"


def _written_type(dtype: str, values: NDArray[np.float32], name: str) -> str:
    """Of a tensor in a file whose matrices are of `dtype`."""
    found = "F32" if values.ndim == 1 else dtype.upper()
    if found == "Q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight"):
        found = "Q8_0"  # as llama.cpp itself keeps more of what reads and writes tokens
    return "F16" if found.startswith("Q") and values.shape[-1] % 32 else found


def _chat_template(checkpoint: Checkpoint) -> str:
    found = document(checkpoint.tokenizer_config_json, "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else ""
