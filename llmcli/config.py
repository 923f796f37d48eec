"""Small frozen values with every default. The command line points at these fields; nobody else has defaults.

Knows nothing of files, tokens or tensors: standard library only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from llmcli.errors import brief, usage

KINDS = ("int8", "int4")  # of weights in few bits
DEVICES = ("cpu", "cuda", "mps")
DEFAULT_MODEL = "model.safetensors"  # what `train` writes and every other verb reads
# the kinds of decoder that the one graph runs, and what transformers calls them
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",  # RMSNorm on queries and keys: what is trained here
    "qwen2": "Qwen2ForCausalLM",  # biases on queries, keys and values
    "llama": "LlamaForCausalLM",  # neither; Llama 1 to 3, SmolLM2
    "mistral": "MistralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",  # Qwen3 with experts
    "mixtral": "MixtralForCausalLM",  # Llama with experts
}
EXPERT_NAMES = {  # of the kinds with experts: a layer's (router; an expert's gate, up, down)
    "qwen3_moe": ("mlp.gate", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    "mixtral": (
        "block_sparse_moe.gate",
        "block_sparse_moe.experts.{}.w1",
        "block_sparse_moe.experts.{}.w3",
        "block_sparse_moe.experts.{}.w2",
    ),
}
ROPE_TYPES = ("linear", "llama3")
RECIPES = ("muon", "adamw", "fine-tune", "lora")  # optimizer.py says what each does
LORA_SCALE = 2.0  # of what an adapter adds: alpha over rank, as PEFT calls them
EVALUATION_CONTEXT = 2048  # tokens that a model sees at most when it is evaluated, unless asked otherwise
# the longest context at which training on a CPU keeps the attention scores for the backward pass, which is faster
MAX_CONTEXT_KEEPING_SCORES = 1024
LARGEST_COUNT = (1 << 31) - 1  # in a config: what every program that reads one can hold


def _is_usable(value: Any) -> bool:
    """Whether a value is a number that float32 can hold and divide by."""
    return type(value) in (int, float) and 1e-30 <= value <= 1e30


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched beyond the length that a model first learned, in Hugging Face's key names.

    "linear": every frequency over `factor` (arXiv:2306.15595). "llama3": the slow ones over `factor`, the fast ones as
    they are, those between partly (Llama 3.1; the bounds are wavelengths in parts of the original length).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise usage(f"rope_scaling is of type {brief(self.rope_type)}; this program runs {', '.join(ROPE_TYPES)}")
        numbers = (self.factor, self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings)
        if not all(map(_is_usable, numbers)):
            raise usage(f"rope_scaling must hold positive numbers from 1e-30 to 1e30, found {brief(numbers)}")
        if self.low_freq_factor >= self.high_freq_factor:
            raise usage("rope_scaling: low_freq_factor must be below high_freq_factor")

    def scaled(self, frequency: float) -> float:
        """Of an angle for each position, in radians."""
        if self.rope_type == "linear":
            return frequency / self.factor
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)  # in the original length
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share = min(max(share, 0.0), 1.0)
        return frequency * (share + (1 - share) / self.factor)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the graph, in the key names of Hugging Face's config.json for the kinds of ARCHITECTURES."""

    vocab_size: int
    hidden_size: int  # width of the residual stream
    intermediate_size: int  # width inside the SwiGLU; where there are experts, of each
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int  # grouped-query attention: a divisor of num_attention_heads
    head_dim: int
    max_position_embeddings: int  # the context: tokens the model sees at once
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    eos_token_id: int = 0
    model_type: str = "qwen3"
    rope_scaling: RopeScaling | None = None
    bos_token_id: int | None = None  # what a text begins with, to programs that put something there; else eos_token_id
    other_end_ids: tuple[int, ...] = ()  # tokens that end a text too: config.json lists them with the first
    num_experts: int = 0  # SwiGLUs in a layer, of which a router picks some for each token; 0: one for all
    num_experts_per_tok: int = 0  # that are active
    norm_topk_prob: bool = True  # whether the weights of the active ones sum to 1

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise usage(f"model_type {self.model_type!r} is none of {', '.join(ARCHITECTURES)}")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("eos_token_id", "num_experts", "num_experts_per_tok") else 1
            if field.type is int and (type(value) is not int or value < least):
                raise usage(f"{field.name} must be a whole number of at least {least}, found {brief(value)}")
            if field.type is int and value > LARGEST_COUNT:
                raise usage(f"{field.name} must be at most {LARGEST_COUNT:,}, found {brief(value)}")
            if field.type is float and not _is_usable(value):
                raise usage(f"{field.name} must be a positive number from 1e-30 to 1e30, found {brief(value)}")
            if field.type is bool and type(value) is not bool:
                raise usage(f"{field.name} must be true or false, found {brief(value)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise usage(f"{self.num_key_value_heads} key-value heads do not divide {self.num_attention_heads} heads")
        if self.head_dim % 2:
            raise usage(f"head_dim must be even for rotary positions, found {self.head_dim}")
        if (self.model_type in EXPERT_NAMES) != (self.num_experts > 0):
            raise usage(f"a model of type {self.model_type} cannot have {self.num_experts} experts")
        if self.num_experts_per_tok > self.num_experts or (self.num_experts and not self.num_experts_per_tok):
            raise usage(f"of {self.num_experts} experts {self.num_experts_per_tok} cannot be active")
        begin = () if self.bos_token_id is None else (self.bos_token_id,)
        for token in (self.eos_token_id, *self.other_end_ids, *begin):
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise usage(f"eos_token_id {brief(token)} is not below vocab_size {self.vocab_size}")

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised, with a gain for each of a head's numbers."""
        return self.model_type in ("qwen3", "qwen3_moe")

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.model_type == "qwen2"

    def rope_frequencies(self) -> list[float]:
        """Radians that each pair (i, i + D/2) of a head turns from one position to the next (arXiv:2104.09864),
        [D/2]."""
        plain = [self.rope_theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        return [self.rope_scaling.scaled(frequency) for frequency in plain] if self.rope_scaling else plain

    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor of the file, in the order of the graph: Hugging Face's name -> shape.

        The truth that the torch graph, the numpy graph and the reader of files are all held against. Made once, however
        often it is asked for.
        """
        return self._tensor_shapes

    @cached_property
    def _tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        d, ff = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, d)}
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}."
            shapes |= {
                layer + "input_layernorm.weight": (d,),
                layer + "self_attn.q_proj.weight": (q, d),
                layer + "self_attn.k_proj.weight": (kv, d),
                layer + "self_attn.v_proj.weight": (kv, d),
            }
            if self.qkv_bias:
                sizes = {"q": q, "k": kv, "v": kv}
                shapes |= {f"{layer}self_attn.{which}_proj.bias": (size,) for which, size in sizes.items()}
            if self.qk_norm:
                shapes |= {f"{layer}self_attn.{which}_norm.weight": (self.head_dim,) for which in "qk"}
            shapes |= {layer + "self_attn.o_proj.weight": (d, q), layer + "post_attention_layernorm.weight": (d,)}
            if self.num_experts:
                shapes[self.router_name(i)] = (self.num_experts, d)
            for names in self.swiglu_names(i):
                shapes |= dict(zip(names, ((ff, d), (ff, d), (d, ff)), strict=True))
        shapes["model.norm.weight"] = (d,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, d)
        return shapes

    def router_name(self, layer: int) -> str:
        """The tensor that picks the experts of a layer, [experts, width]."""
        return f"model.layers.{layer}.{EXPERT_NAMES[self.model_type][0]}.weight"

    def swiglu_names(self, layer: int) -> list[tuple[str, str, str]]:
        """The tensors (gate, up, down) of each of a layer's SwiGLUs: one, or as many as there are experts."""
        start = f"model.layers.{layer}."
        if not self.num_experts:
            return [(f"{start}mlp.gate_proj.weight", f"{start}mlp.up_proj.weight", f"{start}mlp.down_proj.weight")]
        _, gate, up, down = (f"{start}{name}.weight" for name in EXPERT_NAMES[self.model_type])
        return [(gate.format(e), up.format(e), down.format(e)) for e in range(self.num_experts)]

    @property
    def swiglus(self) -> int:
        """SwiGLUs in all layers together, each of three tensors."""
        return self.num_hidden_layers * max(1, self.num_experts)

    @property
    def parameters(self) -> int:
        """Parameters in the file."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    @property
    def active_parameters(self) -> int:
        """Parameters that a token meets: all, but for the experts that are not picked for it."""
        asleep = self.num_experts - self.num_experts_per_tok
        return self.parameters - asleep * self.num_hidden_layers * 3 * self.hidden_size * self.intermediate_size


# Peak learning rates by recipe and by what they move: measured, tests/benchmarks/LOG.md
MUON_LR = 0.03  # matrices inside the layers
EMBEDDING_LR = 0.05
HEAD_LR = 0.003  # and an embedding that is the head, too
GAIN_LR = 0.003
ADAMW_LR = 0.003
FINE_TUNING_LR = 0.1  # over the width: 1.7e-4 for 576, 5e-5 for 2,048
LORA_LR = 0.6  # over the width


def learning_rates(recipe: str, width: int, tied: bool) -> dict[str, float]:
    """The peak learning rates of a recipe: of all parameters ("all", by AdamW), or of "matrices" (by Muon) and of
    "embedding", "head" and "gains" (by AdamW). `width` is the hidden size, `tied` whether head and embedding are one.

    >>> learning_rates("fine-tune", 1000, tied=True)
    {'all': 0.0001}
    """
    alone = {"adamw": ADAMW_LR, "fine-tune": FINE_TUNING_LR / width, "lora": LORA_LR / width}.get(recipe)
    if alone is not None:
        return {"all": alone}
    return {"matrices": MUON_LR, "embedding": HEAD_LR if tied else EMBEDDING_LR, "head": HEAD_LR, "gains": GAIN_LR}


@dataclass(frozen=True)
class TrainConfig:
    """How to train: everything that, with the corpus, decides the weights."""

    steps: int  # the run ends here at the latest
    seconds: float | None = None  # ... or when this much time is used, if set
    context: int = 256  # tokens in a window of text
    batch_size: int = 8  # windows in a step
    lr: float = 1.0  # a multiplier of the recipe's learning rates
    dropout: float = 0.0
    token_split: float = 0.0  # share of the tokens that are taken apart, until SPLIT_UNTIL
    calibration_tokens: int = 0  # taken evenly from the text: not learned from, they tell how sure to be
    weight_decay: float = 0.1
    induction: bool = False  # fresh weights can copy: induction.py
    recipe: str = "muon"  # how weights move: one of RECIPES
    lora_rank: int = 0  # of the adapters that learn instead of the weights, with the recipe "lora"
    eval_tokens: int = 4096  # held-out tokens looked at now and then
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"  # of the matrix products; the weights are float32 always
    threads: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise usage(f"--steps must be at least 1, found {self.steps}")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise usage(f"--time must be more than nothing, found {self.seconds} s")
        if not 0 <= self.dropout < 1:
            raise usage(f"--dropout must be at least 0 and below 1, found {self.dropout}")
        if not 0 < self.lr <= 1e12:
            raise usage(f"--lr-scale must be a positive number of at most 1e12, found {self.lr}")
        if self.batch_size < 1 or self.context < 1 or not 1 <= self.threads <= 1024 or self.seed < 0:
            raise usage("batch, context and threads must be at least 1 (1,024 threads at most), the seed at least 0")
        counts = (self.steps, self.context, self.batch_size, self.calibration_tokens, self.eval_tokens, self.seed)
        if any(type(count) is not int for count in (*counts, self.threads)):
            raise usage(f"steps, context, batch, seed and threads must be whole numbers, found {counts}")
        if type(self.induction) is not bool:
            raise usage(f"induction must be true or false, found {self.induction!r}")
        if self.recipe not in RECIPES or type(self.lora_rank) is not int:
            raise usage(f"there is no recipe {self.recipe!r} with rank {self.lora_rank!r}")
        if (self.recipe == "lora") != (self.lora_rank > 0) or self.lora_rank < 0:
            raise usage(f"--lora must be at least 1, found {self.lora_rank}")
        if self.dtype not in ("float32", "bfloat16") or self.device not in DEVICES:
            raise usage(f"there is no training in {self.dtype} on {self.device}")
        shares = self.token_split, self.weight_decay
        if not all(0 <= share < math.inf for share in shares) or min(self.calibration_tokens, self.eval_tokens) < 0:
            raise usage("what keeps a model from learning by heart is told in numbers of at least 0")


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose the next token from the model's probabilities."""

    max_tokens: int = 200
    temperature: float = 0.8  # 0: always the likeliest
    top_k: int = 0  # keep the k likeliest; 0: all
    top_p: float = 1.0  # keep the likeliest that together reach this probability
    min_p: float = 0.05  # keep those at least this fraction as likely as the likeliest
    repetition_penalty: float = 1.0  # divide the logits of tokens already there (CTRL, section 4.1)
    seed: int = 0
    stop: tuple[str, ...] = ()  # end before any of these texts

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise usage(f"--max-tokens must be at least 0, found {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise usage(f"--temperature must be a number of at least 0, found {self.temperature}")
        if self.top_k < 0:
            raise usage(f"--top-k must be at least 0 (0: no limit), found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise usage(f"--top-p must be above 0 and at most 1, found {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise usage(f"--min-p must be between 0 and 1, found {self.min_p}")
        if not 1e-6 <= self.repetition_penalty <= 1e6:
            raise usage(f"--repetition-penalty must be between 1e-6 and 1e6 (1: none), found {self.repetition_penalty}")
        if self.seed < 0:
            raise usage(f"--seed must be at least 0, found {self.seed}")
        if "" in self.stop:
            raise usage("--stop needs some text, found an empty one")


def as_record(config: Any) -> dict[str, Any]:
    """A config as a plain dict in field order, for the training record."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
