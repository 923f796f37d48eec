"""The rules of the planner: one for each hyperparameter, in the order of the plan. A rule returns a Decision, its value
with the reason for it.

Constants that were measured have their source in tests/benchmarks/LOG.md, under the heading given.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from llmcli import units
from llmcli.config import ModelConfig, TrainConfig
from llmcli.data.train_tokenizer import nearest_power_of_two
from llmcli.errors import LLMError, usage
from llmcli.models.induction import supports_induction
from llmcli.training.cost_model import BASE_BYTES, CorpusSize, Estimate, Memory, layer_parameters, memory_needed
from llmcli.training.memory_fit import Fit, exceeds
from llmcli.training.plan import DEFAULT_SECONDS, FROM_BASE, REQUESTED, Decision, Regularization, Request

# Length of the run
MAX_EPOCHS = 20.0  # from scratch; beyond this models of all these sizes only memorize
FINE_TUNING_EPOCHS = 2.0  # "Fine-tuning": four are worse

# Context length, in tokens
MIN_CONTEXT = 8
SHORT_CONTEXT, CONTEXT = 128, 256  # below CONTEXT_TOKENS training tokens, and from there on
CONTEXT_TOKENS = 100_000
FINE_TUNING_CONTEXT = 512
INDUCTION_CONTEXT = 1024  # "Useful context length"

# "Induction heads at initialization"
INDUCTION_MIN_TOKENS = 100_000  # of training text
INDUCTION_MIN_CORE_SECONDS = (
    200.0  # time budget x threads, on a CPU; with less, longer windows cost more than they gain
)

# Tokens per batch, "At a fixed number of tokens": on a CPU factor * sqrt(tokens), on a GPU tokens / divisor
CPU_BATCH_FACTOR, CPU_BATCH_TOKENS = 1.6, (1024, 16_384)
GPU_BATCH_DIVISOR, GPU_BATCH_TOKENS = 2500, (16_384, 262_144)
MIN_STEPS = 10  # of a run with a time budget: batches are made smaller to reach it; below it the user is warned

# (maximum number of epochs, rate), "At a fixed time" and "Many epochs"
DROPOUT = ((4, 0.0), (8, 0.05), (12, 0.1), (math.inf, 0.2))
BPE_DROPOUT = ((4.5, 0.0), (math.inf, 0.15))
# ... of a model that can memorize its text, "Large models on small corpora": its layers have more parameters than both
# limits, and it sees the text for more epochs than the third
LARGE_PARAMETERS, LARGE_PARAMETERS_PER_TOKEN, LARGE_EPOCHS = 500_000, 4.0, 12.0
LARGE_DROPOUT = LARGE_BPE_DROPOUT = 0.3

# "What is reported has chosen nothing"
VALIDATION_SHARE = 1 / 64  # of the training tokens are in the validation slice ...
MIN_VALIDATION_TOKENS = 512  # ... or none, if that would be fewer; at most as many as `eval_tokens`
# Temperature calibration, "A 15-minute run, five times as fast"
CALIBRATION_EPOCHS = 6.0  # fewer do not make a model overconfident
MIN_CALIBRATION_TOKENS = 1024  # in the validation slice; fewer give a factor that is mostly noise

EVAL_DIVISOR, EVAL_TOKENS = 400, (4096, 65_536)  # training tokens per evaluated token; least and most tokens


def max_epochs(request: Request, base: ModelConfig | None) -> float:
    """The number of epochs after which a run ends, unless the user fixes it."""
    return FINE_TUNING_EPOCHS if base and request.optimizer != "muon" else MAX_EPOCHS


def time_budget(request: Request, most_epochs: float) -> Decision[float | None]:
    """In seconds; None where a number of steps or epochs ends the run."""
    if not request.has_time_budget:
        return Decision(None, REQUESTED)
    if request.seconds:
        return Decision(request.seconds, REQUESTED)
    return Decision(DEFAULT_SECONDS, f"default; stops after {units.epochs(most_epochs)} if that comes first")


def context_length(request: Request, text: CorpusSize, base: ModelConfig | None, induction: bool) -> Decision[int]:
    """In tokens. Raises LLMError when the text is too short for the context requested, or for any."""
    longest = text.tokens - 1  # a window needs the token after it too
    if longest < MIN_CONTEXT:
        smaller = "" if base else ", or give --vocab-size 257 or --tokenizer char if it is repetitive"
        raise LLMError(
            f"the corpus is too short: {text.tokens} training tokens ({text.bytes:,} bytes), at least "
            f"{MIN_CONTEXT + 1} are needed; add more text{smaller}"
        )
    if request.context is not None:
        _check_context(request, request.context, longest, base)
        return Decision(request.context, request.context_reason)
    decision = _default_context(text, base, induction)
    quarter = longest_context(text)
    return decision if decision.value <= quarter else Decision(quarter, "a quarter of this short corpus")


def longest_context(text: CorpusSize) -> int:
    """The longest context, in tokens, that the planner chooses for a text."""
    return max(MIN_CONTEXT, int(2 ** int(math.log2((text.tokens - 1) / 4))))


def _check_context(request: Request, context: int, longest: int, base: ModelConfig | None) -> None:
    if base and context > base.max_position_embeddings:
        raise usage(f"--context {context} is longer than the base model's {base.max_position_embeddings}")
    if context > longest:
        shorter = f" or give --context {longest} or less" if request.context_reason == REQUESTED else ""
        raise LLMError(
            f"the corpus is shorter than the context length: {longest + 1} training tokens, --context {context} needs "
            f"{context + 1}; add more text{shorter}"
        )


def _default_context(text: CorpusSize, base: ModelConfig | None, induction: bool) -> Decision[int]:
    if base and base.max_position_embeddings >= 2 * FINE_TUNING_CONTEXT:
        return Decision(FINE_TUNING_CONTEXT, "long enough for fine-tuning; longer windows are slower")
    if induction:
        decision = Decision(INDUCTION_CONTEXT, "long enough for induction heads to find earlier occurrences")
    else:
        tokens = CONTEXT if text.tokens >= CONTEXT_TOKENS else SHORT_CONTEXT
        decision = Decision(tokens, "long enough for a corpus of this size")
    if base and base.max_position_embeddings < decision.value:
        return Decision(base.max_position_embeddings, "the longest that the base model supports")
    return decision


def model_size(
    request: Request, model: ModelConfig, models: Sequence[ModelConfig], fitting: Fit, base: ModelConfig | None
) -> Decision[ModelConfig]:
    """The model chosen of `models`, with the reason for its size."""
    if base:
        reason = FROM_BASE
    elif request.layers or request.width:
        reason = REQUESTED
    elif model is not fitting.models[-1]:
        reason = f"best size for the {'time budget' if request.has_time_budget else 'number of training tokens'}"
    elif len(fitting.models) == len(models):
        reason = "largest size this much data supports"
    else:
        reason = "largest size that fits in memory"
    return Decision(model, reason)


def model_shape(request: Request, model: ModelConfig, base: ModelConfig | None) -> Decision[ModelConfig]:
    """The model chosen, with the reason for its layers, hidden size and heads."""
    if base:
        return Decision(model, FROM_BASE)
    fixed = request.layers or request.width or request.heads or request.kv_heads
    return Decision(model, REQUESTED if fixed else "shallow models take more steps per minute")


def induction_helps(request: Request, text: CorpusSize) -> bool:
    """Whether the text and the run are long enough for induction heads in the initial weights."""
    short = request.device == "cpu" and request.core_seconds < INDUCTION_MIN_CORE_SECONDS
    return not short and text.tokens >= INDUCTION_MIN_TOKENS


def initialization(model: ModelConfig, induction: bool) -> Decision[bool]:
    """Whether the initial weights get induction heads: where they help (`induction`) and the model can hold them."""
    return Decision(induction and supports_induction(model), "they emerge too slowly in short runs")


def experts(model: ModelConfig, base: ModelConfig | None) -> Decision[int]:
    """Per layer; 0 for a dense model."""
    return Decision(model.num_experts, FROM_BASE if base else REQUESTED)


def sharding(request: Request, model: ModelConfig, train: TrainConfig, memory: Memory) -> Decision[bool]:
    """Whether several processes share out weights, gradients and optimizer. That costs more communication, but not as
    much as batches so small that no process accumulates gradients."""
    if request.shard is not None:
        return Decision(request.shard, REQUESTED)
    windows = min(train.batch_size, 2 * request.processes)
    least = memory_needed(model, replace(train, batch_size=windows), request.processes)
    # no figure of the free memory: the reason is part of the file, whose bytes must not depend on other programs
    needed = f"with gradients and optimizer they need {units.size(least.device - BASE_BYTES)}"
    if request.processes > 1 and exceeds(least, memory):
        return Decision(True, f"{needed}, more than a process can have")
    return Decision(False, f"{needed}, which each process has")


def tied_embeddings(request: Request, model: ModelConfig, base: ModelConfig | None) -> Decision[bool]:
    """Whether the input and output embeddings are one matrix."""
    tied = model.tie_word_embeddings
    if base:
        return Decision(tied, FROM_BASE)
    if request.tie is not None:
        return Decision(tied, REQUESTED)
    return Decision(tied, f"the embedding has {'more' if tied else 'fewer'} parameters than the layers")


def batch_size(
    request: Request,
    text: CorpusSize,
    context: int,
    tokens: float,
    batch_divisor: int,
    batches_per_epoch: int = 1,
) -> Decision[int]:
    """In windows of `context` tokens. `tokens` is the length of the run, 0 where it is not known yet; `batch_divisor`
    makes the batch smaller to save memory. An epoch has `batches_per_epoch` batches or more."""
    if request.batch_tokens:
        per_batch, reason = request.batch_tokens, REQUESTED
    elif request.device == "cuda":
        per_batch = nearest_power_of_two(tokens / GPU_BATCH_DIVISOR, *GPU_BATCH_TOKENS)
        reason = "grows with the length of the run"
    else:
        per_batch = nearest_power_of_two(CPU_BATCH_FACTOR * math.sqrt(tokens), *CPU_BATCH_TOKENS)
        if tokens and request.has_time_budget:
            per_batch = min(per_batch, int(tokens / MIN_STEPS))
        reason = "small batches converge fastest in wall-clock time"
    if batch_divisor > 1:
        reason = "largest that fits in memory"
    return Decision(max(1, min(per_batch, text.tokens // batches_per_epoch) // context // batch_divisor), reason)


def steps(
    request: Request, text: CorpusSize, tokens_per_step: int, most_epochs: float, data: str = "the text"
) -> Decision[int]:
    """The number of steps that ends the run, at the latest. `data` is a name for what would be memorized."""
    if request.steps:
        return Decision(request.steps, REQUESTED)
    steps_per_epoch = text.tokens / tokens_per_step
    count = max(1, math.ceil((request.epochs or most_epochs) * steps_per_epoch))
    epochs = units.epochs(count / steps_per_epoch)
    return Decision(count, epochs if request.epochs else f"{epochs}; more would only memorize {data}")


def training_tokens(
    request: Request, text: CorpusSize, most_epochs: float, estimate: Estimate, tokens_of_all_steps: float
) -> Decision[float]:
    """The number of tokens seen in training; with a time budget estimated from the measured speed."""
    if not request.has_time_budget:
        return Decision(tokens_of_all_steps, "steps x batch size")
    epochs = estimate.tokens / text.tokens
    early = "; ends before the time is up" if epochs >= most_epochs else ""
    reason = f"about {units.epochs(epochs)} at {estimate.tokens_per_second:,.0f} tokens/s{early}"
    return Decision(estimate.tokens, reason)


def dropout(request: Request, model: ModelConfig, text_tokens: int, epochs: float) -> Decision[float]:
    """The rate, by the number of epochs."""
    if request.dropout is not None:
        return Decision(request.dropout, REQUESTED)
    rate = LARGE_DROPOUT if _memorizes(model, text_tokens, epochs) else _rate(DROPOUT, epochs)
    return Decision(rate, f"{'reduces overfitting over' if rate else 'not needed for'} about {units.epochs(epochs)}")


def bpe_dropout(model: ModelConfig, text_tokens: int, epochs: float) -> Decision[float]:
    """The share of merged tokens that are split again (arXiv:1910.13267), by the number of epochs."""
    rate = LARGE_BPE_DROPOUT if _memorizes(model, text_tokens, epochs) else _rate(BPE_DROPOUT, epochs)
    if rate:
        return Decision(rate, "tokenizes the text differently in each epoch")
    return Decision(rate, f"not needed for about {units.epochs(epochs)}")


def regularization(request: Request, model: ModelConfig, text_tokens: int, epochs: float) -> Regularization:
    """Both rates, as the trainer updates them while its estimate of the number of epochs changes."""
    return Regularization(
        dropout(request, model, text_tokens, epochs).value, bpe_dropout(model, text_tokens, epochs).value
    )


def _memorizes(model: ModelConfig, text_tokens: int, epochs: float) -> bool:
    """Whether a model is large enough, and sees the text often enough, to memorize it."""
    threshold = max(LARGE_PARAMETERS, LARGE_PARAMETERS_PER_TOKEN * text_tokens)
    return epochs > LARGE_EPOCHS and layer_parameters(model) > threshold


def _rate(table: Sequence[tuple[float, float]], epochs: float) -> float:
    """The rate of the first row whose limit is not exceeded."""
    return next(rate for limit, rate in table if epochs <= limit)


def validation(text: CorpusSize, tokens: float) -> Decision[int]:
    """Tokens of the training text in the validation slice; `tokens` is the number of training tokens."""
    count = min(int(text.tokens * VALIDATION_SHARE), eval_tokens(tokens))
    if count < MIN_VALIDATION_TOKENS:
        return Decision(0, "the text is too short; the weights of the end are kept")
    return Decision(count, "spread over the training text, not trained on; the weights with the lowest loss are kept")


def calibration(request: Request, validation_tokens: int, epochs: float) -> Decision[bool]:
    """Whether the temperature is calibrated on the validation slice."""
    if request.lora:
        return Decision(False, "not used with LoRA")
    if epochs <= CALIBRATION_EPOCHS:
        return Decision(False, f"not needed for about {units.epochs(epochs)}")
    if validation_tokens < MIN_CALIBRATION_TOKENS:
        return Decision(False, "the text is too short")
    return Decision(True, "the temperature is fitted on the validation slice")


def eval_tokens(tokens: float) -> int:
    """Tokens of an evaluation, a small part of the time of the run, by the number of training tokens."""
    least, most = EVAL_TOKENS
    return min(max(int(tokens / EVAL_DIVISOR), least), most)


def weight_decay() -> Decision[float]:
    """The same for all runs."""
    return Decision(TrainConfig.weight_decay, "higher values did not help at any epoch count")


def optimizer(request: Request, base: ModelConfig | None) -> Decision[str]:
    """The recipe, one of RECIPES, with the reason for its optimizer."""
    if request.lora:
        return Decision("lora", "usual for LoRA")
    if base and request.optimizer != "muon":
        return Decision("fine-tune", REQUESTED if request.optimizer else "usual for fine-tuning")
    if request.optimizer:
        return Decision(request.optimizer, REQUESTED)
    return Decision("muon", "Muon for matrices, AdamW for the rest: lowest loss in a given time")


def learning_rate(request: Request, recipe: str) -> Decision[float]:
    """The multiplier of the recipe's peak learning rates (config.learning_rates)."""
    if request.lr != 1:
        reason = f"{request.lr:g} times the peak rates of the recipe, {REQUESTED}"
    elif recipe == "fine-tune":
        reason = "low, to limit catastrophic forgetting"
    else:
        reason = "peak rates of the recipe"
    return Decision(request.lr, f"{reason}; linear decay to 0 after 40% of the run")  # optimizer.rate
