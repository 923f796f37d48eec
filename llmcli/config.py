"""Configurations for models, training and sampling: frozen dataclasses with all defaults and checks.

Command-line options take their defaults from these fields.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from llmcli.errors import brief, brief_json, prefixed, usage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Shape = tuple[int, ...]
QUANTIZATIONS = ("int8", "int4")  # weight formats
DEVICES = ("cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16")  # data types of matrix products in training
DEFAULT_MODEL = "model.safetensors"  # `llm train` writes it and the other commands read it by default
EMBEDDING = "model.embed_tokens.weight"  # one row per token
HEAD = "lm_head.weight"  # one row per token
POSITIONS = "model.embed_positions.weight"  # learned, one row per position
FINAL_NORM = "model.norm.weight"
ROPE_TYPES = ("linear", "llama3")
LAYER_TYPES = ("full_attention", "sliding_attention")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu")  # gelu_pytorch_tanh approximates gelu
ANSWER_TOKENS = 1000  # maximum length of a chat answer; most answers are far shorter
RECIPES = ("muon", "adamw", "fine-tune", "lora")  # see training/step/optimizer.py
FINE_TUNING_RECIPES = ("fine-tune", "lora")  # with learning rates for a pretrained model
LORA_SCALE = 2.0  # alpha / rank, in PEFT's terms
EVALUATION_CONTEXT = 2048  # tokens; default maximum for an evaluation
# longest context for which CPU training keeps the attention weights for the backward pass, which is faster
# than recomputing them
MAX_CONTEXT_KEEPING_SCORES = 1024
# queries per head in a block of CPU attention: smaller blocks read keys and values more often, larger blocks
# compute more masked scores
QUERY_BLOCK = 128
# a training step computes logits in blocks
LOSS_ROWS = 512  # tokens per block on a CPU; the logits stay in its cache
LOSS_LOGITS = 1 << 28  # logits per block on a GPU
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}  # names in messages
LARGEST_COUNT = (1 << 31) - 1  # largest integer in a config: other programs read it as int32
MIN_VOCAB_SIZE = 261  # the 256 bytes and the 5 control tokens of data/tokenizers/tokenizer.py
MAX_VOCAB_SIZE = 1_000_000  # four times the largest published vocabulary
# bounds of the size chosen without --vocab-size
MIN_DEFAULT_VOCAB_SIZE = 512
MAX_DEFAULT_VOCAB_SIZE = 8192


def require(valid: bool, name: str, wanted: str, value: object) -> None:
    """Raise LLMError unless a value is valid."""
    if not valid:
        raise usage(f"{name} must be {wanted}, found {brief(value)}")


def bias_of(weight: str) -> str:
    """Name of the bias that belongs to a weight.

    >>> bias_of("model.norm.weight")
    'model.norm.bias'
    """
    return f"{weight.removesuffix('.weight')}.bias"


class NormNames(NamedTuple):
    """Names of the norms of a layer: on the inputs and on the outputs of attention and SwiGLU; "" for
    none."""

    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str = ""


class Architecture(NamedTuple):
    """The properties that distinguish an architecture; one graph runs all of them."""

    transformers_class: str
    gguf: str = ""  # name of the architecture in GGUF; "": not written as GGUF
    # transformers' defaults for keys that config.json lacks, if they differ between architectures. They may
    # include tensor sizes, because the tensors are checked against them.
    defaults: Mapping[str, Any] = MappingProxyType({})
    norm_names: NormNames = NormNames()
    layer_norm: bool = False  # LayerNorm with biases instead of RMSNorm
    qk_norm: bool = False  # RMSNorm on queries and keys, per head
    joint_qk_norm: bool = False  # one RMSNorm over the queries of all heads, and one over their keys
    qkv_bias: bool = False  # on the matrices of queries, keys and values
    linear_bias: bool = False  # on all matrices in the layers
    gated_mlp: bool = True  # SwiGLU or the like instead of two matrices
    learned_positions: bool = False  # added to the embeddings of tokens, instead of rotary positions
    # tensor names in a layer with experts: router; gate, up and down of an expert
    expert_names: tuple[str, ...] = ()
    activation: str = "silu"  # the only one in llama.cpp; transformers' default
    own_keys: tuple[str, ...] = ()  # keys of config.json that other architectures ignore
    # keys of config.json that, if set, change the computation in an unsupported way
    unsupported_keys: tuple[str, ...] = ()


_LLAMA_TOKENS = {"eos_token_id": 2, "bos_token_id": 1}
_OLDER_GPT = Architecture("", layer_norm=True, qkv_bias=True, linear_bias=True, gated_mlp=False)
ARCHITECTURES = {  # by model_type
    "qwen3": Architecture(  # used for models trained here
        "Qwen3ForCausalLM",
        "qwen3",
        {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
        qk_norm=True,
        unsupported_keys=("attention_bias",),
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM",
        "qwen2",
        {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
        qkv_bias=True,
    ),
    "llama": Architecture(  # Llama 1 to 3 and SmolLM2
        "LlamaForCausalLM", "llama", _LLAMA_TOKENS, unsupported_keys=("attention_bias", "mlp_bias")
    ),
    "mistral": Architecture(
        "MistralForCausalLM",
        "llama",
        _LLAMA_TOKENS | {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3moe",
        {"num_key_value_heads": 4, "sliding_window": 4096},
        qk_norm=True,
        expert_names=(
            "mlp.gate",
            "mlp.experts.{}.gate_proj",
            "mlp.experts.{}.up_proj",
            "mlp.experts.{}.down_proj",
        ),
        unsupported_keys=("attention_bias",),
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        "llama",
        _LLAMA_TOKENS | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
        expert_names=(
            "block_sparse_moe.gate",
            "block_sparse_moe.experts.{}.w1",
            "block_sparse_moe.experts.{}.w3",
            "block_sparse_moe.experts.{}.w2",
        ),
    ),
    "smollm3": Architecture(  # some layers have no rotary positions
        "SmolLM3ForCausalLM",
        "smollm3",
        {"eos_token_id": 128001, "bos_token_id": 128000, "num_key_value_heads": 4, "rope_theta": 2e6},
        own_keys=("no_rope_layers",),
        unsupported_keys=("attention_bias", "mlp_bias"),
    ),
    "gemma3_text": Architecture(  # GELU, and layers that attend to a window
        "Gemma3ForCausalLM",
        "gemma3",
        {
            "eos_token_id": 1,
            "bos_token_id": 2,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "rope_theta": 1e6,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
        NormNames(
            after_attention="post_attention_layernorm",
            before_mlp="pre_feedforward_layernorm",
            after_mlp="post_feedforward_layernorm",
        ),
        qk_norm=True,
        activation="gelu_pytorch_tanh",
        own_keys=("layer_types", "query_pre_attn_scalar", "rope_local_base_freq", "sliding_window"),
        unsupported_keys=(
            "attention_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "use_bidirectional_attention",
        ),
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        "olmo2",
        {"eos_token_id": 50279, "rms_norm_eps": 1e-5},
        NormNames("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
        qk_norm=True,
        joint_qk_norm=True,
        unsupported_keys=("attention_bias",),
    ),
    "gpt2": _OLDER_GPT._replace(
        transformers_class="GPT2LMHeadModel",
        gguf="gpt2",
        learned_positions=True,
        activation="gelu_pytorch_tanh",
    ),
    "gpt_neox": _OLDER_GPT._replace(  # attention and MLP in parallel; Pythia
        transformers_class="GPTNeoXForCausalLM",
        activation="gelu",
        own_keys=("partial_rotary_factor", "use_parallel_residual"),
    ),
}
# architecture -> the architecture that it becomes by converting its weights when they are read
REWRITTEN = {"granite": "llama", "phi3": "llama"}


class Setting(NamedTuple):
    """A number in a config: its minimum and maximum, and the value that switches it off, if any. The
    settings of SamplingConfig, with their help texts, are used by the command line, HTTP and Python."""

    low: float = 0
    high: float = math.inf
    off: float | None = None
    help: str = ""

    @property
    def wanted(self) -> str:
        note = "" if self.off is None else f" ({self.off:g}: off)"
        if self.high == math.inf:
            return f"at least {self.low:,}{note}"
        high = f"{self.high:,}" if isinstance(self.high, int) else f"{self.high:g}"
        return f"between {self.low:,} and {high}{note}"


_POSITIVE = Setting(1e-30, 1e30)  # numbers that float32 can represent and divide by
_SIZE = Setting(1, LARGEST_COUNT)
_COUNT_OR_NONE = Setting(0, LARGEST_COUNT)
MODEL_BOUNDS = {
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "num_hidden_layers": _SIZE,
    "num_attention_heads": _SIZE,
    "num_key_value_heads": _SIZE,
    "head_dim": _SIZE,
    "max_position_embeddings": _SIZE,
    "num_experts": _COUNT_OR_NONE,
    "num_experts_per_tok": _COUNT_OR_NONE,
    "sliding_window": _COUNT_OR_NONE,
    "rms_norm_eps": _POSITIVE,
    "rope_theta": _POSITIVE,
    "rope_local_base_freq": _POSITIVE,
    "query_pre_attn_scalar": _POSITIVE,
    "partial_rotary_factor": Setting(1e-30, 1),
}
ROPE_BOUNDS = dict.fromkeys(
    ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), _POSITIVE
)
TRAINING_BOUNDS = {
    "steps": Setting(1),
    "seconds": Setting(1e-9, 1e9),
    "dropout": Setting(0, 0.99),
    "lr": Setting(1e-12, 1e12),
    "teacher_share": Setting(0, 0.99),
    "batch_size": Setting(1),
    "context": Setting(1),
    "threads": Setting(1, 1024),
    "seed": Setting(0),
    "token_split": Setting(0, 1),
    "weight_decay": Setting(0, 1e9),
    "calibration_tokens": Setting(0),
    "eval_tokens": Setting(0),
}


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary positions beyond the context length of pretraining, in Hugging Face's key names.

    "linear": all frequencies are divided by `factor` (arXiv:2306.15595). "llama3" (Llama 3.1): low
    frequencies are divided by `factor`, high ones stay, and between the bounds, in full rotations over the
    original context length, they are interpolated.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            supported = " and ".join(ROPE_TYPES)
            raise usage(f"rope_scaling of type {brief(self.rope_type)} is not supported, only {supported}")
        with prefixed("rope_scaling"):
            check_fields(self, ROPE_BOUNDS)
        if self.low_freq_factor >= self.high_freq_factor:
            raise usage("rope_scaling: low_freq_factor must be below high_freq_factor")

    def scaled(self, frequency: float) -> float:
        """Return a frequency (radians per position) after scaling."""
        if self.rope_type == "linear":
            return frequency / self.factor
        # in the original context
        rotations = self.original_max_position_embeddings * frequency / (2 * math.pi)
        smooth = (rotations - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = min(max(smooth, 0.0), 1.0)  # 0: divided by `factor`, 1: unchanged
        return frequency * (smooth + (1 - smooth) / self.factor)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a model, under the key names of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int  # width of the residual stream
    intermediate_size: int  # size of each MLP or expert
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int  # a divisor of num_attention_heads (grouped-query attention)
    head_dim: int
    max_position_embeddings: int  # context length
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    eos_token_id: int = 0
    model_type: str = "qwen3"
    rope_scaling: RopeScaling | None = None
    bos_token_id: int | None = None  # some programs prepend it to a text; None: eos_token_id
    # other tokens that end a text; config.json lists them in eos_token_id
    extra_eos_ids: tuple[int, ...] = ()
    num_experts: int = 0  # per layer; a router chooses some of them for each token; 0: a dense model
    num_experts_per_tok: int = 0  # active experts
    norm_topk_prob: bool = True  # normalize the weights of the active experts to sum to 1
    hidden_act: str = "silu"  # one of ACTIVATIONS
    # SmolLM3: 0 for a layer without rotary positions, otherwise 1; (): all 1
    no_rope_layers: tuple[int, ...] = ()
    layer_types: tuple[str, ...] = ()  # Gemma: one of LAYER_TYPES for each layer; (): full_attention
    # number of tokens that a layer of type sliding_attention attends to, including the current token
    sliding_window: int = 0
    rope_local_base_freq: float = 10000.0  # rope_theta of sliding_attention layers, without rope_scaling
    # attention scores are divided by the square root of this number; None: of head_dim
    query_pre_attn_scalar: float | None = None
    partial_rotary_factor: float = 1.0  # GPT-NeoX: share of a head that is rotated
    use_parallel_residual: bool = False  # GPT-NeoX: attention and MLP of a layer have the same input

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            supported = ", ".join(ARCHITECTURES)
            raise usage(f"model_type {brief(self.model_type)} is not supported; supported are {supported}")
        check_fields(self, MODEL_BOUNDS)
        require(
            self.hidden_act in ACTIVATIONS, "hidden_act", f"one of {', '.join(ACTIVATIONS)}", self.hidden_act
        )
        if self.num_attention_heads % self.num_key_value_heads:
            raise usage(
                f"{self.num_key_value_heads} key-value heads do not divide {self.num_attention_heads} heads"
            )
        require(self.head_dim % 2 == 0, "head_dim", "even for rotary embeddings", self.head_dim)
        valid = self.rotary_dim % 2 == 0 and self.rotary_dim > 0
        wanted = f"an even part of the head size {self.head_dim}"
        require(valid, "partial_rotary_factor", wanted, self.partial_rotary_factor)
        experts, active = self.num_experts, self.num_experts_per_tok
        if bool(self.architecture.expert_names) != (experts > 0):
            raise usage(f"a model of type {self.model_type} cannot have {experts} experts")
        valid = active <= experts and (active > 0 or not experts)
        require(valid, "num_experts_per_tok", f"between 1 and num_experts ({experts})", active)
        layers = self.num_hidden_layers
        for name, values, allowed, wanted in (
            ("no_rope_layers", self.no_rope_layers, (0, 1), f"0 or 1 for each of {layers} layers"),
            ("layer_types", self.layer_types, LAYER_TYPES, f"{layers} of {', '.join(LAYER_TYPES)}"),
        ):
            valid = not values or (len(values) == layers and all(value in allowed for value in values))
            require(valid, name, wanted, values)
        valid = "sliding_attention" not in self.layer_types or self.sliding_window > 0
        require(
            valid, "sliding_window", "at least 1 for layers of type sliding_attention", self.sliding_window
        )
        tokens = [("eos_token_id", token) for token in (self.eos_token_id, *self.extra_eos_ids)]
        if self.bos_token_id is not None:
            tokens.append(("bos_token_id", self.bos_token_id))
        for name, token in tokens:
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise usage(f"{name} {brief(token)} is not below vocab_size {self.vocab_size}")

    @property
    def is_gemma(self) -> bool:
        return self.model_type == "gemma3_text"

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.model_type]

    def is_rotary(self, layer: int) -> bool:
        """Return whether a layer rotates queries and keys by their positions."""
        return not self.architecture.learned_positions and (
            not self.no_rope_layers or self.no_rope_layers[layer] == 1
        )

    @property
    def rotary_dim(self) -> int:
        """Number of elements of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    def is_sliding(self, layer: int) -> bool:
        """Return whether a layer attends to a window, as in Longformer (arXiv:2004.05150, section 3.1)."""
        return bool(self.layer_types) and self.layer_types[layer] == "sliding_attention"

    def window(self, layer: int) -> int:
        """Return the number of tokens that a layer attends to, including the current one."""
        return self.sliding_window if self.is_sliding(layer) else self.max_position_embeddings

    @property
    def layer_kinds(self) -> tuple[bool, ...]:
        """The values of `is_sliding`."""
        return (False, True) if self.layer_types else (False,)

    def rope_frequencies(self, is_sliding: bool = False) -> list[float]:
        """Rotation of each pair (i, i + D/2) of a head in radians per position (arXiv:2104.09864), [D/2].
        Pairs that are not rotated come last."""
        theta, scaling = (
            (self.rope_local_base_freq, None) if is_sliding else (self.rope_theta, self.rope_scaling)
        )
        rotated = [theta ** (-2 * i / self.rotary_dim) for i in range(self.rotary_dim // 2)]
        rotated = [scaling.scaled(frequency) for frequency in rotated] if scaling else rotated
        return rotated + [0.0] * (self.head_dim // 2 - len(rotated))

    @property
    def attention_scale(self) -> float:
        """Factor on attention scores."""
        return 1 / math.sqrt(self.query_pre_attn_scalar or self.head_dim)

    @property
    def embedding_scale(self) -> float:
        """Factor on the embeddings of tokens; not on the output embedding, even if they are tied."""
        return math.sqrt(self.hidden_size) if self.is_gemma else 1.0

    @lru_cache  # noqa: B019
    def tensor_shapes(self) -> Mapping[str, Shape]:
        """Shapes of all tensors in graph order, by Hugging Face name."""
        arch = self.architecture
        d = self.hidden_size
        ff = self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        sizes = {"q": q, "k": kv, "v": kv}
        shapes: dict[str, Shape] = {EMBEDDING: (self.vocab_size, d)}

        def add(weight: str, *shape: int, bias: bool = False) -> None:
            shapes[weight] = shape
            if bias:
                shapes[bias_of(weight)] = shape[:1]

        def add_norm(name: str) -> None:
            if name:
                add(f"{layer}{name}.weight", d, bias=arch.layer_norm)

        if arch.learned_positions:
            add(POSITIONS, self.max_position_embeddings, d)
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}."
            attention = f"{layer}self_attn."
            add_norm(arch.norm_names.before_attention)
            shapes |= {f"{attention}{kind}_proj.weight": (size, d) for kind, size in sizes.items()}
            if arch.qkv_bias:
                shapes |= {f"{attention}{kind}_proj.bias": (size,) for kind, size in sizes.items()}
            for kind in "qk" if arch.qk_norm else "":
                add(f"{attention}{kind}_norm.weight", sizes[kind] if arch.joint_qk_norm else self.head_dim)
            add(f"{attention}o_proj.weight", d, q, bias=arch.linear_bias)
            add_norm(arch.norm_names.after_attention)
            add_norm(arch.norm_names.before_mlp)
            if self.num_experts:
                add(self.router_name(i), self.num_experts, d)
            for *inputs, down in self.mlp_names(i):
                for name in inputs:
                    add(name, ff, d, bias=arch.linear_bias)
                add(down, d, ff, bias=arch.linear_bias)
            add_norm(arch.norm_names.after_mlp)
        add(FINAL_NORM, d, bias=arch.layer_norm)
        if not self.tie_word_embeddings:
            add(HEAD, self.vocab_size, d)
        return shapes

    def router_name(self, layer: int) -> str:
        """Name of the router of a layer's experts, [experts, hidden_size]."""
        return f"model.layers.{layer}.{self.architecture.expert_names[0]}.weight"

    def mlp_names(self, layer: int) -> list[tuple[str, ...]]:
        """Names of the matrices (gate, up, down) of a layer's MLP, or of each of its experts; (up, down)
        without a gate."""
        kinds = ("gate", "up", "down")[not self.architecture.gated_mlp :]
        names = self.architecture.expert_names[1:] or [f"mlp.{kind}_proj" for kind in kinds]
        return [
            tuple(f"model.layers.{layer}.{name.format(e)}.weight" for name in names)
            for e in range(max(1, self.num_experts))
        ]

    @property
    def mlps(self) -> int:
        """Number of MLPs and experts in all layers."""
        return self.num_hidden_layers * max(1, self.num_experts)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    @property
    def active_parameters(self) -> int:
        """Number of parameters used per token: all except inactive experts."""
        inactive = self.num_experts - self.num_experts_per_tok
        return (
            self.parameters
            - inactive * self.num_hidden_layers * 3 * self.hidden_size * self.intermediate_size
        )

    @property
    def cache_bytes_per_token(self) -> int:
        """Size of a token's keys and values in all layers, in float32."""
        return 2 * 4 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class TrainConfig:
    """Training hyperparameters and the settings that make a run reproducible.

    The names of these fields are stored in model files and resume files.
    """

    steps: int  # maximum number of optimizer steps
    seconds: float | None = None  # time budget, if any
    context: int = 256  # tokens per window
    batch_size: int = 8  # windows per step
    lr: float = 1.0  # multiplier of the recipe's learning rates
    dropout: float = 0.0
    token_split: float = 0.0  # BPE-dropout: fraction of merged tokens that are split (this name is stored)
    calibration_tokens: int = 0  # training tokens in the validation slice (this name is stored)
    calibrates: bool = True  # whether the temperature is calibrated on that slice
    weight_decay: float = 0.1
    induction: bool = False  # initial weights contain induction heads (models/induction.py)
    recipe: str = "muon"  # one of RECIPES
    lora_rank: int = 0  # above 0 for the recipe "lora" only
    # fraction of the run that trains the teacher (training/loop/run.py); 0: none
    teacher_share: float = 0.0
    eval_tokens: int = 4096  # minimum of held-out tokens to evaluate, even after a short or interrupted run
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"  # type of matrix products; weights are always float32
    threads: int = 1

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context

    @property
    def is_fine_tuning(self) -> bool:
        return self.recipe in FINE_TUNING_RECIPES

    def __post_init__(self) -> None:
        check_fields(self, TRAINING_BOUNDS)
        require(self.recipe in RECIPES, "recipe", f"one of {', '.join(RECIPES)}", self.recipe)
        lora = self.lora_rank >= 1 if self.recipe == "lora" else self.lora_rank == 0
        require(lora, "`lora`", "at least 1", self.lora_rank)
        if self.dtype not in DTYPES or self.device not in DEVICES:
            raise usage(f"training in {brief(self.dtype)} on {brief(self.device)} is not supported")


@dataclass(frozen=True)
class Grammar:
    """A constraint on generated text: JSON schema, regular expression or grammar; see
    generation/grammar.py."""

    kind: str  # "schema" (a JSON schema), "regex" (of the whole text), or "grammar" (Lark or GBNF)
    text: str
    lenient: bool = False  # ignore keywords of a JSON schema that are not supported, instead of refusing them

    @classmethod
    def of_schema(cls, schema: object, *, lenient: bool = False) -> "Grammar":
        """Raise LLMError for anything but an object."""
        if not isinstance(schema, Mapping):
            raise usage(f"a JSON schema must be an object, found {brief_json(schema)}")
        return cls("schema", json.dumps(schema, ensure_ascii=False), lenient)

    @staticmethod
    def check_single(names: Sequence[str]) -> None:
        """Raise LLMError if the settings of these names ask for several grammars."""
        if len(names) > 1:
            raise usage(f"{' and '.join(names)} cannot be combined; give one of them")


def _setting(
    default: float, help: str, low: float = 0, high: float = math.inf, off: float | None = None
) -> Any:
    return field(default=default, metadata={"setting": Setting(low, high, off, help)})


@dataclass(frozen=True)
class SamplingConfig:
    """Settings for choosing the next token from the model's logits."""

    max_tokens: int = _setting(200, "Maximum number of tokens to generate.")
    temperature: float = _setting(0.8, "Sampling temperature; 0 always chooses the most likely token.")
    top_k: int = _setting(0, "Sample from the N most likely tokens; 0 is off.", off=0)
    top_p: float = _setting(
        1.0,
        "Sample only from the most likely tokens that together reach a probability of X; 1 is off.",
        high=1,
        off=1,
    )
    min_p: float = _setting(
        0.05,
        "Sample only from tokens that are at least X times as likely as the most likely one; 0 is off.",
        high=1,
        off=0,
    )
    repetition_penalty: float = _setting(  # CTRL, arXiv:1909.05858, section 4.1
        1.0, "Penalize tokens that occurred, by this factor; 1 is off.", 1e-6, 1e6, off=1
    )
    # as defined by OpenAI; the second is multiplied by the number of occurrences
    presence_penalty: float = _setting(
        0.0, "Subtract X from the logits of tokens that were generated; 0 is off.", -2, 2, off=0
    )
    frequency_penalty: float = _setting(
        0.0, "Subtract X from the logit of a token for each time it was generated; 0 is off.", -2, 2, off=0
    )
    seed: int = _setting(0, "Random seed.")
    stop: tuple[str, ...] = ()  # end before any of these strings
    # fewer only if a grammar allows nothing else
    min_tokens: int = _setting(0, "Minimum number of tokens to generate.")
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, added to its logit)
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        check_fields(self, SAMPLING)
        strings = isinstance(self.stop, tuple) and all(isinstance(text, str) for text in self.stop)
        require(strings, "stop", "a tuple of strings", self.stop)
        require(self.temperature < math.inf, "`temperature`", "finite", self.temperature)
        for token, bias in self.logit_bias:
            require(-100 <= bias <= 100, f"`logit_bias` of token {token}", "between -100 and 100", bias)
        if "" in self.stop:
            raise usage("`stop` must not be empty")
        if self.grammar and self.stop:
            raise usage("`stop` would cut the structured output short; leave one of them out")

    def check_length(self) -> None:
        """Raise LLMError if `min_tokens` exceeds the `max_tokens` that a user gave; the context may reduce
        `max_tokens` later."""
        wanted = f"at most `max_tokens`, {self.max_tokens:,}"
        require(self.min_tokens <= self.max_tokens, "`min_tokens`", wanted, self.min_tokens)


# the settings that are numbers, by name
SAMPLING: dict[str, Setting] = {
    config_field.name: config_field.metadata["setting"]
    for config_field in fields(SamplingConfig)
    if config_field.metadata
}


def check_fields(config: "DataclassInstance", bounds: Mapping[str, Setting]) -> None:
    """Convert the fields like `convert_fields`, and check the bounds of numbers."""
    convert_fields(config)
    for name, allowed in bounds.items():
        value = getattr(config, name)
        valid = value is None or allowed.low <= value <= allowed.high
        require(valid, f"`{name}`", allowed.wanted, value)


def convert_fields(config: "DataclassInstance") -> None:
    """Check fields of type int, float, bool or str (or None), and convert numpy's numbers to Python's."""
    for declared in fields(config):
        kinds = get_args(declared.type) if isinstance(declared.type, UnionType) else (declared.type,)
        expected = next((name for kind, name in _KINDS.items() if kind in kinds), None)
        value = getattr(config, declared.name)
        if getattr(value, "shape", None) == ():
            value = value.item()
            object.__setattr__(config, declared.name, value)
        # a larger int is more than a float can hold
        is_float = float in kinds and type(value) is int and value.bit_length() <= 1000
        if expected and type(value) not in kinds and not is_float:
            raise usage(f"{declared.name} must be {expected}, found {brief(value)}")


def as_record(config: "DataclassInstance") -> dict[str, Any]:
    """Return the fields of a dataclass by name, in order, for JSON. Values are not copied."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def cpu_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
