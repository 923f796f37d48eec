"""The cost model of training: a model's FLOPs, memory, speed and expected loss before it is trained.

Everything is computed by formulas, except the speed of a few shapes, which `choose_model` measures
(`Machine.speed`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmcli.config import (
    LOSS_LOGITS,
    LOSS_ROWS,
    MAX_CONTEXT_KEEPING_SCORES,
    QUERY_BLOCK,
    ModelConfig,
    TrainConfig,
)
from llmcli.errors import LLMError
from llmcli.formats.adapters import parameter_count
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import Plan

# maximum layers x width x tokens of a micro-batch; larger micro-batches need more memory (10 GB on a GPU) and
# are hardly faster
MICRO_BATCH_VALUES = {"cpu": 1 << 22, "cuda": 1 << 27, "mps": 1 << 25}

# assumptions before any measurement: the peak (per CPU thread; for MPS, that of the smallest GPU), and the
# hidden size that reaches half of the peak
PEAK_FLOPS = {"cpu": 5e10, "cuda": 2e14, "mps": 2e12}
HALF_PEAK_WIDTH = {"cpu": 100, "cuda": 600, "mps": 300}

FLOAT32 = 4.0  # bytes per weight, gradient, or number in the optimizer's state
BYTES_PER_LOGIT = 8.0  # float32 logits and probabilities in a block of the loss
SLOW_STEP = 2.5  # maximum time of a step / time limit of a measurement, which takes at least four steps
BASE_BYTES = 3e8  # memory of the process before training
ASSUMED_COST = 0.4  # evaluating a token / training on it, before the first evaluation (FLOPs: a third)
MEMORY_SHARE = 0.8  # share of the free memory that a plan may use

# (model, settings, seconds to measure) -> tokens/s
Speed = Callable[[ModelConfig, TrainConfig, float], float]
Settings = Callable[[ModelConfig, float], TrainConfig]  # (model, training tokens) -> training settings


@dataclass(frozen=True)
class Memory:
    """Memory in bytes. Without dedicated device memory (CPU, MPS), all of it counts as `device`, and `host`
    is 0."""

    device: float
    host: float


@dataclass(frozen=True)
class Machine:
    """The machine for which a plan is made."""

    speed: Speed
    memory: Memory = Memory(math.inf, math.inf)  # free memory


@dataclass(frozen=True)
class CorpusSize:
    """The size of the training text."""

    tokens: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """The model with the lowest expected loss for a budget, and the tokens that it is expected to see."""

    model: ModelConfig
    tokens: float  # seen in training
    tokens_per_second: float = 0.0  # measured; 0 without a time limit


def estimated_speed(model: ModelConfig, train: TrainConfig, seconds: float = 0.0) -> float:
    """Estimate tokens per second: narrow matrices reach less of the peak. `seconds` is ignored (see
    `Speed`)."""
    peak = PEAK_FLOPS[train.device] * (train.threads if train.device == "cpu" else 1)
    reached = model.hidden_size / (model.hidden_size + HALF_PEAK_WIDTH[train.device])
    return peak * reached / flops_per_token(model, train.context)


def flops_per_token(model: ModelConfig, context: int) -> float:
    """Count the FLOPs per token of a forward and backward pass: 6 per weight in a matrix product
    (arXiv:2001.08361, section 2.1), and 6 per query-key pair; the causal mask hides half of the pairs."""
    # the embeddings are looked up, not multiplied
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    inactive = model.parameters - model.active_parameters
    matrices = sum(math.prod(shape) for shape in model.tensor_shapes().values() if len(shape) == 2)
    attention = context * model.num_attention_heads * model.head_dim * model.num_hidden_layers
    return 6.0 * (matrices - embedding - inactive + attention)


def micro_batches(model: ModelConfig, train: TrainConfig, processes: int = 1) -> int:
    """Return the number of micro-batches into which each process splits its part of a batch, the same for
    all."""
    windows = -(-train.batch_size // processes)
    values = model.num_hidden_layers * model.hidden_size * train.context  # per window
    return -(-windows // max(1, MICRO_BATCH_VALUES[train.device] // values))


def memory_needed(
    model: ModelConfig, train: TrainConfig, processes: int = 1, *, sharded: bool = False
) -> Memory:
    """Estimate the peak memory of rank 0 for training, evaluating and saving, on the device and on the
    host."""
    weights = best = FLOAT32 * model.parameters  # the best weights so far are on the host
    count = parameter_count(model, train.lora_rank) if train.lora_rank else model.parameters
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    by_adamw = embeddings if train.recipe == "muon" else count
    trained = FLOAT32 * count
    optimizer = FLOAT32 * (2 * by_adamw + count - by_adamw)  # two numbers per weight, or Muon's one
    teacher = weights if train.teacher_share else 0.0
    momenta = optimizer - 2 * FLOAT32 * by_adamw  # Muon's momenta are always divided among the processes
    held = weights + teacher + optimizer - momenta * (1 - 1 / processes)
    scored = weights  # a second model at the end
    copied = 0.0  # copies of the evaluated weights during the run
    if sharded:
        held = (weights + optimizer) / processes
        scored = 0.0
        copied = 2 * weights  # the gathered weights and their copy
    step = _step_bytes(model, train, trained / (processes if sharded else 1), embeddings, processes, sharded)
    saving = trained + optimizer + teacher  # a copy of the state
    if train.device == "cuda":
        host = best + max(scored, copied, saving)
        return Memory(held + max(step, scored) + BASE_BYTES, host + BASE_BYTES)
    return Memory(held + best + max(step, scored, copied, saving) + BASE_BYTES, 0.0)


def check_fits(plan: Plan, memory: Memory, processes: int = 1) -> None:
    """Raise LLMError if an earlier plan does not fit into the free `memory` of each process."""
    needed = memory_needed(plan.model, plan.train, processes, sharded=plan.sharded)
    if problem := shortage(needed, memory, 1.0):
        smaller = "`context`" if plan.train.is_fine_tuning else "`width`"
        raise LLMError(
            f"resuming {problem}; free some memory, or start over with `overwrite=True` and a smaller "
            f"{smaller} or `batch_tokens`"
        )


def shortage(needed: Memory, free: Memory, share: float = MEMORY_SHARE) -> str:
    """Describe a shortage of memory; "" if this share of the free memory is enough."""
    for kind, required, available in (
        ("GPU memory" if needed.host else "memory", needed.device, free.device),
        ("main memory", needed.host, free.host),
    ):
        if required > share * available:
            return (
                f"needs about {required / 1e9:,.1f} GB of {kind}, but only {available / 1e9:,.1f} GB is free"
            )
    return ""


def _step_bytes(
    model: ModelConfig, train: TrainConfig, gradients: float, embeddings: int, processes: int, sharded: bool
) -> float:
    """Estimate the peak memory of a step, which is reached in the backward pass, or when all gradients exist
    and Muon updates the matrices."""
    product = activation_size(train)
    backward = _activation_bytes(model, train, processes)
    if micro_batches(model, train, processes) > 1:
        backward += gradients
    if sharded:  # gathered at the same time: the embeddings and two layers, with their gradients
        backward += (
            2 * FLOAT32 * (embeddings + 2 * ((model.parameters - embeddings) / model.num_hidden_layers))
        )
    elif train.device == "cpu":
        # the CPU keeps the matrices in the dtype of the products and, if they are trained, in float32 too
        backward += model.parameters * (product + (0.0 if train.lora_rank else FLOAT32))
    update = 0.0
    if train.recipe == "muon":
        # the gradients of the matrices of one shape (at most about half of all weights): a copy in float32,
        # and a few in the dtype of the products
        update = model.parameters / 2 * (FLOAT32 + 3 * product)
    return max(backward, gradients + update / processes)


def _activation_bytes(model: ModelConfig, train: TrainConfig, processes: int) -> float:
    """Estimate the activations of a micro-batch: the values that the layers save for the backward pass, as
    much again as one layer saves for intermediate values, and a block of logits; the last two also for a
    teacher."""
    models = 2 if train.teacher_share else 1
    windows = -(-train.batch_size // processes)
    tokens = train.context * -(-windows // micro_batches(model, train, processes))
    layers = activation_size(train) * (model.num_hidden_layers + models) * saved_values(model, train) * tokens
    rows = LOSS_ROWS if train.device == "cpu" else max(LOSS_ROWS, LOSS_LOGITS // model.vocab_size)
    return layers + models * BYTES_PER_LOGIT * model.vocab_size * min(rows, tokens)


def activation_size(train: TrainConfig) -> float:
    """Return the bytes per number in an activation."""
    return 2.0 if train.dtype == "bfloat16" else 4.0


def saved_values(model: ModelConfig, train: TrainConfig) -> float:
    """Estimate the numbers per token that a layer saves for the backward pass, within about a tenth."""
    width = model.hidden_size
    heads = model.num_attention_heads
    active = model.num_experts_per_tok
    residual = 4 * width  # normalized values and a dropout mask, twice each
    # e.g. q, k: normalized, rotated; v; outputs
    attention = 4 * model.head_dim * (heads + model.num_key_value_heads)
    swiglu = 4 * model.intermediate_size  # gate and up, activated, their product
    if model.num_experts:
        swiglu = active * (swiglu + 2 * width) + width  # a copy per expert, before and after
    scores: float = 0  # attention scores kept per query; on other devices they are recomputed
    if train.device == "mps":
        scores = train.context
    elif train.device == "cpu" and train.context <= MAX_CONTEXT_KEEPING_SCORES:
        # most of the masked scores are not computed
        scores = min(train.context, (train.context + QUERY_BLOCK) / 2)
    return residual + attention + swiglu + heads * scores


def layer_parameters(model: ModelConfig) -> int:
    """Estimate the number of parameters in the layers: 12 width^2 each."""
    return 12 * model.num_hidden_layers * model.hidden_size**2


def expected_loss(parameters: float, seen: float, text: CorpusSize) -> float:
    """Estimate the loss up to a constant, to rank shapes: a term for the model size plus a term for the
    amount of data. Repeated tokens count less, as in arXiv:2305.16264, equation 5, but with a faster decay
    (REPETITION_DECAY)."""
    epochs = seen / text.tokens
    if epochs <= 1:
        effective = seen
    else:
        decay = recipe.REPETITION_DECAY
        effective = text.tokens * (1 + decay * (1 - math.exp(-(epochs - 1) / decay)))
    effective *= text.bytes / text.tokens / recipe.REFERENCE_BYTES_PER_TOKEN
    by_size: float = recipe.PARAMETER_FACTOR / parameters**recipe.PARAMETER_EXPONENT
    by_data: float = 1 / max(effective, 1.0) ** recipe.TOKEN_EXPONENT
    return by_size + by_data


def choose_model(
    models: Sequence[ModelConfig],
    seconds: float,
    data: CorpusSize,
    settings: Settings,
    machine: Machine,
    max_epochs: float,
    measured: dict[int, float],
    min_tokens: float = 0.0,
) -> Estimate:
    """Choose from `models`, sorted by size, the one with the lowest expected loss after `seconds` of steps,
    among the shapes that see `min_tokens` even at LOW_SPEED. Repeatedly measures the shape that ranks best,
    up to MAX_MEASUREMENTS shapes, then measures all of these again and keeps the means. The ratio of the
    latest measured speed to its estimate corrects the other estimates. `measured` maps the index of a model
    to tokens per second; new measurements are added to it."""
    max_tokens = max_epochs * data.tokens
    estimated = [estimated_speed(model, settings(model, 0.0)) for model in models]
    new: list[int] = []

    def speed(i: int) -> float:
        if i in measured or not measured:
            return measured.get(i, estimated[i])
        last = next(reversed(measured))
        return measured[last] / estimated[last] * estimated[i]

    def tokens(i: int) -> float:
        return min(max_tokens, seconds * speed(i))

    def rank(i: int) -> tuple[float, float]:
        shortage = max(0.0, min_tokens - recipe.LOW_SPEED * tokens(i))
        return shortage, expected_loss(loss_size(models[i]), tokens(i), data)

    def limit(i: int) -> float:
        run_seconds = tokens(i) / speed(i)  # max_tokens may end the run before its time
        return min(recipe.MAX_MEASUREMENT_SECONDS, recipe.MEASUREMENT_SHARE * run_seconds)

    def measure(i: int) -> float:
        return machine.speed(models[i], settings(models[i], tokens(i)), limit(i))

    def search() -> None:
        while len(new) < recipe.MAX_MEASUREMENTS:
            best = min(range(len(models)), key=rank)
            if best in measured:
                break
            measured[best] = measure(best)
            new.append(best)

    search()
    for i in new if len(models) > 1 else []:
        step_seconds = settings(models[i], tokens(i)).tokens_per_step / measured[i]
        if step_seconds <= SLOW_STEP * limit(i):  # otherwise it would take much longer than its limit
            measured[i] = (measured[i] + measure(i)) / 2
    search()
    best = min(measured, key=rank)
    return Estimate(models[best], tokens(best), measured[best])


def loss_size(model: ModelConfig) -> float:
    """Return the effective parameters for `expected_loss`; with experts, between active and total
    parameters."""
    return math.sqrt(model.parameters * model.active_parameters)
