"""Configurations for models, training and sampling: frozen dataclasses with all defaults and checks.

Command-line options take their defaults from these fields.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from llmcli.errors import brief, usage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

QUANTIZATIONS = ("int8", "int4")  # weight formats
DEVICES = ("cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16")  # types of matrix products in training
DEFAULT_MODEL = "model.safetensors"  # `llm train` writes it and the other commands read it by default
ARCHITECTURES = {  # model_type -> class in transformers; one graph runs all of them
    "qwen3": "Qwen3ForCausalLM",  # RMSNorm on queries and keys; the architecture of models trained here
    "qwen2": "Qwen2ForCausalLM",  # biases on queries, keys and values
    "llama": "LlamaForCausalLM",  # neither; Llama 1 to 3 and SmolLM2
    "mistral": "MistralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",  # Qwen3 with experts
    "mixtral": "MixtralForCausalLM",  # Llama with experts
    "smollm3": "SmolLM3ForCausalLM",  # Llama with layers that have no rotary positions
    "gemma3_text": "Gemma3ForCausalLM",  # four norms in a layer, GELU, and layers that attend to a window
    "olmo2": "Olmo2ForCausalLM",  # norms after attention and SwiGLU; RMSNorm on all queries, and on all keys
    "gpt2": "GPT2LMHeadModel",  # LayerNorm, learned positions, an MLP without a gate, biases everywhere
    "gpt_neox": "GPTNeoXForCausalLM",  # GPT-2 with rotary positions, and attention and MLP in parallel; Pythia
}
EXPERT_NAMES = {  # model_type -> tensor names in a layer with experts: (router; an expert's gate, up and down)
    "qwen3_moe": (
        "mlp.gate",
        "mlp.experts.{}.gate_proj",
        "mlp.experts.{}.up_proj",
        "mlp.experts.{}.down_proj",
    ),
    "mixtral": (
        "block_sparse_moe.gate",
        "block_sparse_moe.experts.{}.w1",
        "block_sparse_moe.experts.{}.w3",
        "block_sparse_moe.experts.{}.w2",
    ),
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # tensors with one row per token
POSITIONS = "model.embed_positions.weight"  # learned, one row per position
FINAL_NORM = "model.norm.weight"
ROPE_TYPES = ("linear", "llama3")
LAYER_TYPES = ("full_attention", "sliding_attention")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu")  # of an MLP; the second is an approximation of the third
ANSWER_TOKENS = 1000  # maximum length of a chat answer; most models stop long before
RECIPES = ("muon", "adamw", "fine-tune", "lora")  # see training/step/optimizer.py
FINE_TUNING_RECIPES = ("fine-tune", "lora")  # their learning rates are for a pretrained model
LORA_SCALE = 2.0  # alpha / rank, in PEFT's terms
EVALUATION_CONTEXT = 2048  # tokens; default maximum for an evaluation
# longest context for which CPU training keeps the attention weights for the backward pass, which is faster
# than recomputing them
MAX_CONTEXT_KEEPING_SCORES = 1024
# queries per head in a block of that attention: smaller blocks read keys and values more often, larger ones
# compute more masked scores
QUERY_BLOCK = 128
# a training step computes logits in blocks: LOSS_ROWS tokens on a CPU, so that they stay in its cache; about
# LOSS_LOGITS logits on a GPU
LOSS_ROWS, LOSS_LOGITS = 512, 1 << 28
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}  # names in messages
LARGEST_COUNT = (1 << 31) - 1  # largest integer in a config: other programs read it as int32
MIN_VOCAB_SIZE = 261  # the 256 bytes and the 5 control tokens of data/tokenizers/tokenizer.py
MAX_VOCAB_SIZE = 1_000_000  # four times the largest published vocabulary
MIN_DEFAULT_VOCAB_SIZE, MAX_DEFAULT_VOCAB_SIZE = 512, 8192  # chosen without --vocab-size


def require(valid: bool, name: str, wanted: str, found: object) -> None:
    """Raise LLMError unless a value is valid."""
    if not valid:
        raise usage(f"{name} must be {wanted}, found {brief(found)}")


def _is_usable(value: object) -> bool:
    """Return whether a value is a positive number that float32 can represent and divide by."""
    return isinstance(value, int | float) and type(value) in (int, float) and 1e-30 <= value <= 1e30


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
        numbers = (
            self.factor,
            self.low_freq_factor,
            self.high_freq_factor,
            self.original_max_position_embeddings,
        )
        if not all(map(_is_usable, numbers)):
            raise usage(f"rope_scaling must hold positive numbers from 1e-30 to 1e30, found {brief(numbers)}")
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
    extra_eos_ids: tuple[
        int, ...
    ] = ()  # other tokens that end a text; config.json lists them in eos_token_id
    num_experts: int = 0  # per layer; a router chooses some of them for each token; 0: a dense model
    num_experts_per_tok: int = 0  # active experts
    norm_topk_prob: bool = True  # normalize the weights of the active experts to sum to 1
    hidden_act: str = "silu"  # one of ACTIVATIONS
    no_rope_layers: tuple[
        int, ...
    ] = ()  # SmolLM3: 0 for a layer without rotary positions, otherwise 1; (): all 1
    layer_types: tuple[str, ...] = ()  # Gemma: one of LAYER_TYPES for each layer; (): full_attention
    # tokens that a layer of type sliding_attention attends to, including the current one
    sliding_window: int = 0
    rope_local_base_freq: float = 10000.0  # rope_theta of those layers, without rope_scaling
    # attention scores are divided by its square root; None: by head_dim's
    query_pre_attn_scalar: float | None = None
    partial_rotary_factor: float = 1.0  # GPT-NeoX: share of a head that is rotated
    use_parallel_residual: bool = False  # GPT-NeoX: attention and MLP of a layer have the same input

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            supported = ", ".join(ARCHITECTURES)
            raise usage(f"model_type {brief(self.model_type)} is not supported; supported are {supported}")
        for declared in fields(self):
            name, value = declared.name, getattr(self, declared.name)
            least = (
                0 if name in ("eos_token_id", "num_experts", "num_experts_per_tok", "sliding_window") else 1
            )
            if declared.type is int:
                require(type(value) is int and value >= least, name, f"an integer of at least {least}", value)
                require(value <= LARGEST_COUNT, name, f"at most {LARGEST_COUNT:,}", value)
            elif declared.type is float:
                require(_is_usable(value), name, "a positive number from 1e-30 to 1e30", value)
            elif declared.type is bool:
                require(type(value) is bool, name, "true or false", value)
        require(
            self.hidden_act in ACTIVATIONS, "hidden_act", f"one of {', '.join(ACTIVATIONS)}", self.hidden_act
        )
        if self.num_attention_heads % self.num_key_value_heads:
            raise usage(
                f"{self.num_key_value_heads} key-value heads do not divide {self.num_attention_heads} heads"
            )
        require(self.head_dim % 2 == 0, "head_dim", "even for rotary embeddings", self.head_dim)
        share = self.partial_rotary_factor
        valid = share <= 1 and self.rotary_dim % 2 == 0 and self.rotary_dim > 0
        require(valid, "partial_rotary_factor", f"an even part of the head size {self.head_dim}", share)
        experts, active = self.num_experts, self.num_experts_per_tok
        if (self.model_type in EXPERT_NAMES) != (experts > 0):
            raise usage(f"a model of type {self.model_type} cannot have {experts} experts")
        valid = active <= experts and (active > 0 or not experts)
        require(valid, "num_experts_per_tok", f"between 1 and num_experts ({experts})", active)
        rotary = self.no_rope_layers
        wanted = f"0 or 1 for each of {self.num_hidden_layers} layers"
        valid = not rotary or (len(rotary) == self.num_hidden_layers and all(n in (0, 1) for n in rotary))
        require(valid, "no_rope_layers", wanted, rotary)
        kinds = self.layer_types
        valid = not kinds or (
            len(kinds) == self.num_hidden_layers and all(kind in LAYER_TYPES for kind in kinds)
        )
        require(valid, "layer_types", f"{self.num_hidden_layers} of {', '.join(LAYER_TYPES)}", kinds)
        valid = "sliding_attention" not in kinds or self.sliding_window > 0
        require(
            valid, "sliding_window", "at least 1 for layers of type sliding_attention", self.sliding_window
        )
        scalar = self.query_pre_attn_scalar
        require(scalar is None or _is_usable(scalar), "query_pre_attn_scalar", "a positive number", scalar)
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
    def norm_names(self) -> NormNames:
        if self.model_type == "olmo2":
            return NormNames("", "post_attention_layernorm", "", "post_feedforward_layernorm")
        if self.is_gemma:
            return NormNames(
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            )
        return NormNames()

    @property
    def qk_norm(self) -> bool:  # RMSNorm on queries and keys, per head
        return self.model_type in ("qwen3", "qwen3_moe", "gemma3_text") or self.joint_qk_norm

    @property
    def joint_qk_norm(self) -> bool:  # instead on the queries of all heads together, and on the keys likewise
        return self.model_type == "olmo2"

    @property
    def layer_norm(self) -> bool:  # LayerNorm with biases instead of RMSNorm
        return self.model_type in ("gpt2", "gpt_neox")

    @property
    def gated_mlp(self) -> bool:  # SwiGLU or the like instead of two matrices
        return self.model_type not in ("gpt2", "gpt_neox")

    @property
    def linear_bias(self) -> bool:  # on all matrices in the layers
        return self.model_type in ("gpt2", "gpt_neox")

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2" or self.linear_bias

    @property
    def learned_positions(self) -> bool:  # added to the embeddings of tokens, instead of rotary positions
        return self.model_type == "gpt2"

    def is_rotary(self, layer: int) -> bool:
        """Return whether a layer rotates queries and keys by their positions."""
        return not self.learned_positions and (not self.no_rope_layers or self.no_rope_layers[layer] == 1)

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
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all tensors in graph order, by Hugging Face name."""
        d, ff = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, d)}
        shapes |= {POSITIONS: (self.max_position_embeddings, d)} if self.learned_positions else {}
        for i in range(self.num_hidden_layers):
            layer, sizes, norms = f"model.layers.{i}.", {"q": q, "k": kv, "v": kv}, self.norm_names
            norm_shapes = {name: self._norm_shapes(layer + name) if name else {} for name in norms}
            shapes |= norm_shapes[norms.before_attention]
            shapes |= {f"{layer}self_attn.{which}_proj.weight": (size, d) for which, size in sizes.items()}
            if self.qkv_bias:
                shapes |= {f"{layer}self_attn.{which}_proj.bias": (size,) for which, size in sizes.items()}
            if self.qk_norm:
                joint = self.joint_qk_norm
                shapes |= {
                    f"{layer}self_attn.{which}_norm.weight": (sizes[which] if joint else self.head_dim,)
                    for which in "qk"
                }
            shapes |= self._linear_shapes(f"{layer}self_attn.o_proj.weight", d, q)
            shapes |= norm_shapes[norms.after_attention] | norm_shapes[norms.before_mlp]
            if self.num_experts:
                shapes[self.router_name(i)] = (self.num_experts, d)
            for *inputs, down in self.mlp_names(i):
                for name in inputs:
                    shapes |= self._linear_shapes(name, ff, d)
                shapes |= self._linear_shapes(down, d, ff)
            shapes |= norm_shapes[norms.after_mlp]
        shapes |= self._norm_shapes(FINAL_NORM.removesuffix(".weight"))
        if not self.tie_word_embeddings:
            shapes[HEAD] = (self.vocab_size, d)
        return shapes

    def _norm_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (self.hidden_size,)}
        return weight | ({f"{name}.bias": (self.hidden_size,)} if self.layer_norm else {})

    def _linear_shapes(self, name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {name: (outputs, inputs)} | ({bias_of(name): (outputs,)} if self.linear_bias else {})

    def router_name(self, layer: int) -> str:
        """Name of the router of a layer's experts, [experts, hidden_size]."""
        return f"model.layers.{layer}.{EXPERT_NAMES[self.model_type][0]}.weight"

    def mlp_names(self, layer: int) -> list[tuple[str, ...]]:
        """Names of the matrices (gate, up, down) of a layer's MLP, or of each of its experts; (up, down)
        without a gate."""
        start = f"model.layers.{layer}."
        if not self.num_experts:
            return [
                tuple(
                    f"{start}mlp.{which}_proj.weight"
                    for which in ("gate", "up", "down")[not self.gated_mlp :]
                )
            ]
        _, *names = (f"{start}{name}.weight" for name in EXPERT_NAMES[self.model_type])
        return [tuple(name.format(e) for name in names) for e in range(self.num_experts)]

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
    # fraction of the run that trains the teacher (training/loop/stepper.py); 0: none
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
        convert_fields(self)
        require(self.steps >= 1, "`steps`", "at least 1", self.steps)
        require(
            self.seconds is None or 0 < self.seconds < math.inf, "`seconds`", "above 0 seconds", self.seconds
        )
        require(0 <= self.dropout < 1, "`dropout`", "at least 0 and below 1", self.dropout)
        require(0 < self.lr <= 1e12, "`lr`", "above 0 and at most 1e12", self.lr)
        require(0 <= self.teacher_share < 1, "teacher_share", "at least 0 and below 1", self.teacher_share)
        for name in ("batch_size", "context", "threads"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.threads <= 1024, "threads", "at most 1,024", self.threads)
        for name in ("seed", "token_split", "weight_decay", "calibration_tokens", "eval_tokens"):
            require(0 <= getattr(self, name) < math.inf, name, "at least 0", getattr(self, name))
        require(self.recipe in RECIPES, "recipe", f"one of {', '.join(RECIPES)}", self.recipe)
        lora = self.lora_rank >= 1 if self.recipe == "lora" else self.lora_rank == 0
        require(lora, "`lora`", "at least 1", self.lora_rank)
        if self.dtype not in DTYPES or self.device not in DEVICES:
            raise usage(f"training in {brief(self.dtype)} on {brief(self.device)} is not supported")


@dataclass(frozen=True)
class Grammar:
    """The form that a text must have; generation/grammar.py reads it."""

    kind: str  # "schema" (a JSON schema), "regex" (of the whole text), or "grammar" (Lark or GBNF)
    text: str
    lenient: bool = False  # ignore keywords of a JSON schema that are not supported, instead of refusing them

    @classmethod
    def of_schema(cls, schema: object, *, lenient: bool = False) -> "Grammar":
        """Raise LLMError for anything but an object."""
        if not isinstance(schema, Mapping):
            raise usage(f"a JSON schema must be an object, found {brief(schema)}")
        return cls("schema", json.dumps(schema, ensure_ascii=False), lenient)

    @staticmethod
    def check_single(names: Sequence[str]) -> None:
        """Raise LLMError if a text is to have several forms: those that the settings of these names ask
        for."""
        if len(names) > 1:
            raise usage(f"a text has one form, found {' and '.join(names)}; give one of them")


class Setting(NamedTuple):
    """A number in SamplingConfig: its help text, the smallest and the largest value, and the value that
    switches it off, if any. The command line, HTTP and Python take all of them from here."""

    help: str
    low: float = 0
    high: float = math.inf
    off: float | None = None

    @property
    def wanted(self) -> str:
        note = "" if self.off is None else f" ({self.off:g}: off)"
        if self.high == math.inf:
            return f"at least {self.low:g}{note}"
        return f"between {self.low:g} and {self.high:g}{note}"


def _setting(
    default: float, help: str, low: float = 0, high: float = math.inf, off: float | None = None
) -> Any:
    return field(default=default, metadata={"setting": Setting(help, low, high, off)})


@dataclass(frozen=True)
class SamplingConfig:
    """Settings for choosing the next token from the model's logits."""

    max_tokens: int = _setting(200, "Maximum number of tokens to generate.")
    temperature: float = _setting(0.8, "Sampling temperature; 0 always chooses the most likely token.")
    top_k: int = _setting(0, "Sample from the N most likely tokens; 0 is off.", off=0)
    top_p: float = _setting(
        1.0,
        "Sample only from the most likely tokens that together reach a probability of X; 1 is off.",
        1e-9,  # keeps the most likely token alone
        1,
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
    # as OpenAI defines them: the second is multiplied by the number of occurrences
    presence_penalty: float = _setting(
        0.0, "Subtract X from the logits of tokens that were generated; 0 is off.", -2, 2, off=0
    )
    frequency_penalty: float = _setting(
        0.0, "Subtract X from the logit of a token for each time it was generated; 0 is off.", -2, 2, off=0
    )
    seed: int = _setting(0, "Random seed.")
    stop: tuple[str, ...] = ()  # end before any of these strings
    # unless a grammar allows nothing else
    min_tokens: int = _setting(0, "Minimum number of tokens to generate.")
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, added to its logit)
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        convert_fields(self)
        strings = isinstance(self.stop, tuple) and all(isinstance(text, str) for text in self.stop)
        require(strings, "stop", "a tuple of strings", self.stop)
        for name, setting in SAMPLING.items():
            value = getattr(self, name)
            require(setting.low <= value <= setting.high, f"`{name}`", setting.wanted, value)
        require(self.temperature < math.inf, "`temperature`", "finite", self.temperature)
        for token, bias in self.logit_bias:
            require(-100 <= bias <= 100, f"`logit_bias` of token {token}", "between -100 and 100", bias)
        if "" in self.stop:
            raise usage("`stop` must not be empty")
        if self.grammar and self.stop:
            raise usage(
                "`stop` could end a text before it has the form that was asked for; leave one of them out"
            )


# the settings that are numbers, by name
SAMPLING: dict[str, Setting] = {
    one.name: one.metadata["setting"] for one in fields(SamplingConfig) if one.metadata
}


def convert_fields(config: "DataclassInstance") -> None:
    """Check fields of type int, float, bool or str (or None), and convert numpy's numbers to Python's."""
    from numbers import Integral, Real

    for declared in fields(config):
        kinds = get_args(declared.type) if isinstance(declared.type, UnionType) else (declared.type,)
        value = getattr(config, declared.name)
        expected = next((name for kind, name in _KINDS.items() if kind in kinds), None)
        is_huge = isinstance(value, int) and value.bit_length() > 1000  # more than a float can hold
        if (
            type(value) in kinds
            or expected is None
            or (type(value) is int and float in kinds and not is_huge)
        ):
            continue
        is_bool = type(value).__name__ in ("bool", "bool_")  # "bool_" in numpy before version 2
        if int in kinds and isinstance(value, Integral) and not is_bool:
            object.__setattr__(config, declared.name, int(value))
        elif float in kinds and isinstance(value, Real) and not is_bool and not is_huge:
            object.__setattr__(config, declared.name, float(value))
        else:
            raise usage(f"{declared.name} must be {expected}, found {brief(value)}")


def as_record(config: "DataclassInstance") -> dict[str, Any]:
    """Return the fields of a dataclass by name, in order, for JSON. Values are not copied."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def cpu_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
