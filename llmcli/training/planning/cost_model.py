"""Cost model of training: FLOPs, memory, speed and expected loss of a model before it is trained.

All by formula, except that `choose_model` has the speed of a few shapes measured (`Machine.speed`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmcli.config import LOSS_LOGITS, LOSS_ROWS, MAX_CONTEXT_KEEPING_SCORES, QUERY_BLOCK, ModelConfig, TrainConfig
from llmcli.errors import LLMError
from llmcli.formats.adapters import parameter_count
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import Plan

# layers x width x tokens of a micro-batch, at most; larger ones need memory (on a GPU 10 GB) and are hardly faster
MICRO_BATCH_VALUES = {"cpu": 1 << 22, "cuda": 1 << 27, "mps": 1 << 25}

# before any measurement: the peak that is assumed (for each thread of a CPU; of MPS that of the smallest GPU), and the
# hidden size at which half of it is reached
PEAK_FLOPS = {"cpu": 5e10, "cuda": 2e14, "mps": 2e12}
HALF_PEAK_WIDTH = {"cpu": 100, "cuda": 600, "mps": 300}

FLOAT32 = 4.0  # bytes of a weight, a gradient, or a number in the state of the optimizer
BYTES_PER_LOGIT = 8.0  # of a block of the loss: in float32, and their probabilities
SLOW_STEP = 2.5  # times the limit of a measurement; it takes four steps or more
BASE_BYTES = 3e8  # of the process before it trains
MEMORY_SHARE = 0.8  # of the free memory, that a plan may use

Speed = Callable[[ModelConfig, TrainConfig, float], float]  # (model, settings, seconds to measure) -> tokens/s
Settings = Callable[[ModelConfig, float], TrainConfig]  # (model, training tokens) -> how to train it


@dataclass(frozen=True)
class Memory:
    """Bytes of memory. A run without dedicated device memory (CPU, MPS) needs all of it as `device`; `host` is 0."""

    device: float
    host: float


@dataclass(frozen=True)
class Machine:
    """The machine that a plan is made for."""

    speed: Speed
    memory: Memory = Memory(math.inf, math.inf)  # that is free


@dataclass(frozen=True)
class CorpusSize:
    """The size of the training text."""

    tokens: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """The model with the lowest expected loss for a budget, and the tokens it is expected to see."""

    model: ModelConfig
    tokens: float  # seen in training
    tokens_per_second: float = 0.0  # as measured; 0 without a time limit


def estimated_speed(model: ModelConfig, train: TrainConfig, seconds: float = 0.0) -> float:
    """Tokens per second, by formula: narrow matrices run further below the machine's peak. `seconds` is ignored, so
    that this can stand in for a measurement."""
    peak = PEAK_FLOPS[train.device] * (train.threads if train.device == "cpu" else 1)
    reached = model.hidden_size / (model.hidden_size + HALF_PEAK_WIDTH[train.device])
    return peak * reached / flops_per_token(model, train.context)


def flops_per_token(model: ModelConfig, context: int) -> float:
    """FLOPs of a forward and backward pass: 6 for each weight of a matrix product (arXiv:2001.08361, section 2.1), and
    as many for each pair of a query and a key; the causal mask hides half of these pairs."""
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size  # looked up, not multiplied
    inactive = model.parameters - model.active_parameters
    matrices = sum(math.prod(shape) for shape in model.tensor_shapes().values() if len(shape) == 2)
    attention = context * model.num_attention_heads * model.head_dim * model.num_hidden_layers
    return 6.0 * (matrices - embedding - inactive + attention)


def micro_batches(model: ModelConfig, train: TrainConfig, processes: int = 1) -> int:
    """The number of micro-batches into which each process splits its part of a batch (gradient accumulation); the same
    for all processes."""
    windows = -(-train.batch_size // processes)
    values = model.num_hidden_layers * model.hidden_size * train.context  # of a window
    return -(-windows // max(1, MICRO_BATCH_VALUES[train.device] // values))


def memory_needed(model: ModelConfig, train: TrainConfig, processes: int = 1, *, sharded: bool = False) -> Memory:
    """Approximate bytes that training takes at most, and the copies of weights that it keeps on the host; for rank 0 of
    several processes, over which weights, gradients and optimizer may be sharded."""
    weights = best = FLOAT32 * model.parameters  # the best so far are on the host
    count = parameter_count(model, train.lora_rank) if train.lora_rank else model.parameters
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    by_adamw = embeddings if train.recipe == "muon" else count
    trained, optimizer = FLOAT32 * count, FLOAT32 * (2 * by_adamw + count - by_adamw)  # two numbers, or Muon's one
    teacher = weights if train.teacher_share else 0.0
    momenta = optimizer - 2 * FLOAT32 * by_adamw  # of Muon, always divided among the processes
    held = weights + teacher + optimizer - momenta * (1 - 1 / processes)
    scored, copied = weights, 0.0  # another model at the end; during the run a copy of those that were evaluated
    if sharded:
        held = (weights + optimizer) / processes
        scored, copied = 0.0, 2 * weights  # gathered, and the copy of them
    step = _step_bytes(model, train, trained / (processes if sharded else 1), embeddings, processes, sharded)
    saving = trained + optimizer + teacher  # a copy of the state
    if train.device == "cuda":
        host = best + max(scored, copied, saving)
        return Memory(held + max(step, scored) + BASE_BYTES, host + BASE_BYTES)
    return Memory(held + best + max(step, scored, copied, saving) + BASE_BYTES, 0.0)


def check_fits(plan: Plan, memory: Memory, processes: int = 1) -> None:
    """Raises LLMError if a plan made earlier does not fit into the `memory` that is free for each process."""
    needed = memory_needed(plan.model, plan.train, processes, sharded=plan.sharded and processes > 1)
    if problem := shortage(needed, memory, 1.0):
        smaller = "`context`" if plan.train.is_fine_tuning else "`width`"
        raise LLMError(
            f"resuming {problem}; free some, or start over with `overwrite=True` and a smaller {smaller} or "
            "`batch_tokens`"
        )


def shortage(needed: Memory, free: Memory, share: float = MEMORY_SHARE) -> str:
    """The shortage of memory in words; "" if this share of the free memory is enough."""
    for kind, wanted, there in (
        ("GPU memory" if needed.host else "memory", needed.device, free.device),
        ("main memory", needed.host, free.host),
    ):
        if wanted > share * there:
            return f"needs about {wanted / 1e9:,.1f} GB of {kind}, but only {there / 1e9:,.1f} GB is free"
    return ""


def _step_bytes(
    model: ModelConfig, train: TrainConfig, gradients: float, embeddings: int, processes: int, sharded: bool
) -> float:
    """The peak of a step: in the backward pass, or when all gradients are there and Muon updates the matrices."""
    product = FLOAT32 / 2 if train.dtype == "bfloat16" else FLOAT32
    backward = _activation_bytes(model, train, processes)
    if micro_batches(model, train, processes) > 1:
        backward += gradients
    if sharded:  # what is whole at a time: the embeddings and two layers, with their gradients
        backward += 2 * FLOAT32 * (embeddings + 2 * ((model.parameters - embeddings) / model.num_hidden_layers))
    elif train.device == "cpu":  # where it keeps the matrices as they are multiplied and, if trained, before that
        backward += model.parameters * (product + (0.0 if train.lora_rank else FLOAT32))
    update = 0.0
    if train.recipe == "muon":
        # the gradients of the matrices of one shape, at most about half of all weights, once more in float32, and a
        # few times as they are multiplied
        update = model.parameters / 2 * (FLOAT32 + 3 * product)
    return max(backward, gradients + update / processes)


def _activation_bytes(model: ModelConfig, train: TrainConfig, processes: int) -> float:
    """Activations of a micro-batch: the values that layers save for the backward pass, as much as one layer saves for
    intermediate values, and a block of logits; the last two for a teacher, too."""
    models = 2 if train.teacher_share else 1
    windows = -(-train.batch_size // processes)
    tokens = train.context * -(-windows // micro_batches(model, train, processes))
    layers = activation_size(train) * (model.num_hidden_layers + models) * saved_values(model, train) * tokens
    rows = LOSS_ROWS if train.device == "cpu" else max(LOSS_ROWS, LOSS_LOGITS // model.vocab_size)
    return layers + models * BYTES_PER_LOGIT * model.vocab_size * min(rows, tokens)


def activation_size(train: TrainConfig) -> float:
    """Bytes of a number in an activation."""
    return 2.0 if train.dtype == "bfloat16" else 4.0


def saved_values(model: ModelConfig, train: TrainConfig) -> float:
    """Numbers that a layer saves for the backward pass, for each token. Approximate: within a tenth or so."""
    width, heads, active = model.hidden_size, model.num_attention_heads, model.num_experts_per_tok
    residual = 4 * width  # normalized, and a dropout mask, twice each
    attention = 4 * model.head_dim * (heads + model.num_key_value_heads)  # e.g. q, k: normalized, rotated; v; outputs
    swiglu = 4 * model.intermediate_size  # gate and up, activated, their product
    if model.num_experts:
        swiglu = active * (swiglu + 2 * width) + width  # a copy for each expert, before and after
    scores: float = 0  # of attention that are kept: elsewhere they are computed again
    if train.device == "mps":
        scores = train.context
    elif train.device == "cpu" and train.context <= MAX_CONTEXT_KEEPING_SCORES:  # without most of the masked ones
        scores = min(train.context, (train.context + QUERY_BLOCK) / 2)
    return residual + attention + swiglu + heads * scores


def layer_parameters(model: ModelConfig) -> int:
    """Approximate number of parameters in the layers: 12 width^2 each."""
    return 12 * model.num_hidden_layers * model.hidden_size**2


def expected_loss(parameters: float, seen: float, text: CorpusSize) -> float:
    """The loss after training on `seen` tokens, up to a constant: only for ranking shapes.

    A sum of a term for the model size and one for the amount of data. Repeated tokens count less in each epoch, as in
    arXiv:2305.16264, equation 5, but decay faster: REPETITION_DECAY.
    """
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
    """The one of `models`, which are sorted by size, with the lowest expected loss after `seconds` of steps, among
    those that see `min_tokens` even at LOW_SPEED.

    Repeatedly measures the shape that ranks best, at most MAX_MEASUREMENTS shapes; then remeasures all of these and
    keeps the faster result. The ratio of the last measured speed to its estimate corrects the estimates of the others.
    `measured` are tokens per second by the index of a model; new ones are added.
    """
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
        if step_seconds <= SLOW_STEP * limit(i):  # else it would take much longer than its limit
            measured[i] = max(measured[i], measure(i))
    search()
    best = min(measured, key=rank)
    return Estimate(models[best], tokens(best), measured[best])


def loss_size(model: ModelConfig) -> float:
    """Parameters as `expected_loss` counts them; with experts, between the active and all parameters."""
    return math.sqrt(model.parameters * model.active_parameters)
