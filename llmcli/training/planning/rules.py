"""The rules of the planner: one for each hyperparameter, in the order of the plan. A rule returns a Decision, its value
with the reason for it.

The numbers, and where they come from, are in recipe.py.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from llmcli import units
from llmcli.config import ModelConfig, TrainConfig
from llmcli.data.tokenizers.training import nearest_power_of_two
from llmcli.errors import LLMError, usage
from llmcli.models.induction import supports_induction
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import (
    BASE_BYTES,
    CorpusSize,
    Estimate,
    Memory,
    layer_parameters,
    memory_needed,
)
from llmcli.training.planning.memory_fit import Fit, exceeds
from llmcli.training.planning.plan import DEFAULT_SECONDS, FROM_BASE, REQUESTED, Decision, Regularization, Request


def max_epochs(request: Request, base: ModelConfig | None) -> float:
    """The number of epochs after which a run ends, unless the user fixes it."""
    return recipe.FINE_TUNING_EPOCHS if base and request.optimizer != "muon" else recipe.MAX_EPOCHS


def time_budget(request: Request, most_epochs: float) -> Decision[float | None]:
    """In seconds; None where a number of steps or epochs ends the run."""
    if not request.has_time_budget:
        return Decision(None, REQUESTED)
    if request.seconds:
        return Decision(request.seconds, REQUESTED)
    return Decision(DEFAULT_SECONDS, f"default; stops after {units.epochs(most_epochs)} if that comes first")


def training_seconds(budget: float, spent: float) -> float:
    """The part of a time budget that the steps will take, if `spent` seconds are over before the run is planned.

    >>> [round(training_seconds(budget, spent=2.0), 1) for budget in (2, 10, 20, 142)]
    [0.2, 6.6, 16.1, 127.8]
    """
    rest = recipe.SHARE_OF_REST * (budget - spent) - recipe.AROUND_TRAINING_SECONDS
    return max(recipe.LEAST_TRAINING_SHARE * budget, min(recipe.TRAINING_SHARE * budget, rest))


def context_length(request: Request, text: CorpusSize, base: ModelConfig | None, induction: bool) -> Decision[int]:
    """In tokens. Raises LLMError when the text is too short for the context requested, or for any."""
    longest = text.tokens - 1  # a window needs the token after it too
    if longest < recipe.MIN_CONTEXT:
        smaller = "" if base else ", or give --vocab-size 257 or --tokenizer char if it is repetitive"
        raise LLMError(
            f"the corpus is too short: {text.tokens} training tokens ({text.bytes:,} bytes), at least "
            f"{recipe.MIN_CONTEXT + 1} are needed; add more text{smaller}"
        )
    if request.context is not None:
        _check_context(request, request.context, longest, base)
        return Decision(request.context, request.context_reason)
    decision = _default_context(text, base, induction)
    quarter = longest_context(text)
    return decision if decision.value <= quarter else Decision(quarter, "a quarter of this short corpus")


def longest_context(text: CorpusSize) -> int:
    """The longest context, in tokens, that the planner chooses for a text."""
    return max(recipe.MIN_CONTEXT, int(2 ** int(math.log2((text.tokens - 1) / 4))))


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
    if base and base.max_position_embeddings >= 2 * recipe.FINE_TUNING_CONTEXT:
        return Decision(recipe.FINE_TUNING_CONTEXT, "long enough for fine-tuning; longer windows are slower")
    if induction:
        decision = Decision(recipe.INDUCTION_CONTEXT, "long enough for induction heads to find earlier occurrences")
    else:
        tokens = recipe.CONTEXT if text.tokens >= recipe.CONTEXT_TOKENS else recipe.SHORT_CONTEXT
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
    short = request.device == "cpu" and request.core_seconds < recipe.INDUCTION_MIN_CORE_SECONDS
    return not short and text.tokens >= recipe.INDUCTION_MIN_TOKENS


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
        per_batch = nearest_power_of_two(tokens / recipe.GPU_BATCH_DIVISOR, *recipe.GPU_BATCH_TOKENS)
        reason = "grows with the length of the run"
    else:
        per_batch = nearest_power_of_two(recipe.CPU_BATCH_FACTOR * math.sqrt(tokens), *recipe.CPU_BATCH_TOKENS)
        if tokens and request.has_time_budget:
            per_batch = min(per_batch, int(tokens / recipe.MIN_STEPS))
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
    return Decision(count, epochs if request.epochs else f"{epochs}; more would only make the model memorize {data}")


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


def distillation(
    request: Request, text: CorpusSize, epochs: float, base: ModelConfig | None, *, conversations: bool
) -> Decision[float]:
    """The part of the run in which a teacher is trained; 0 for a run of one model, by the number of its epochs."""
    if base or conversations:
        return Decision(0.0, "not used in fine-tuning" if base else "not used with conversations")
    if not request.has_time_budget:
        return Decision(0.0, "only used with a time budget")
    if request.processes > 1:
        return Decision(0.0, "not used with several processes")
    if text.tokens < recipe.DISTILLATION_MIN_TOKENS:
        return Decision(0.0, "the text is too short")
    if epochs < recipe.DISTILLATION_EPOCHS:
        return Decision(0.0, f"not needed for about {units.epochs(epochs)}")
    better = "a student that also learns from a teacher's predictions beats a single model"
    return Decision(recipe.TEACHER_SHARE, f"over about {units.epochs(epochs)}, {better}")


def token_shares(teacher_share: float) -> tuple[float, float]:
    """How many tokens the teacher and the student are trained on, relative to what one model would be in the time of
    the run, if the teacher has `teacher_share` of it.

    >>> [round(share, 3) for share in token_shares(0.4)]
    [0.4, 0.5]
    """
    return teacher_share, (1 - teacher_share) / (1 + recipe.TEACHER_COST if teacher_share else 1)


def dropout(request: Request, model: ModelConfig, text_tokens: int, epochs: float) -> Decision[float]:
    """The rate, by the number of epochs."""
    if request.dropout is not None:
        return Decision(request.dropout, REQUESTED)
    rate = recipe.LARGE_DROPOUT if _memorizes(model, text_tokens, epochs) else _rate(recipe.DROPOUT, epochs)
    return Decision(rate, f"{'reduces overfitting over' if rate else 'not needed for'} about {units.epochs(epochs)}")


def bpe_dropout(model: ModelConfig, text_tokens: int, epochs: float) -> Decision[float]:
    """The share of merged tokens that are split again (arXiv:1910.13267), by the number of epochs."""
    rate = recipe.LARGE_BPE_DROPOUT if _memorizes(model, text_tokens, epochs) else _rate(recipe.BPE_DROPOUT, epochs)
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
    threshold = max(recipe.LARGE_PARAMETERS, recipe.LARGE_PARAMETERS_PER_TOKEN * text_tokens)
    return epochs > recipe.LARGE_EPOCHS and layer_parameters(model) > threshold


def _rate(table: Sequence[tuple[float, float]], epochs: float) -> float:
    """The rate of the first row whose limit is not exceeded."""
    return next(rate for limit, rate in table if epochs <= limit)


def validation(text: CorpusSize, tokens: float, context: int) -> Decision[int]:
    """Tokens of the training text in the validation slice; `tokens` is the number of training tokens. What remains has
    a window of `context` tokens at least."""
    count = min(int(text.tokens * recipe.VALIDATION_SHARE), eval_tokens(tokens))
    if count < recipe.MIN_VALIDATION_TOKENS or text.tokens - count < context:
        return Decision(0, "the text is too short; the final weights are kept")
    return Decision(count, "spread over the training text, not trained on; the weights with the lowest loss are kept")


def calibration(request: Request, validation_tokens: int, epochs: float) -> Decision[bool]:
    """Whether the temperature is calibrated on the validation slice."""
    if request.lora:
        return Decision(False, "not used with LoRA")
    if epochs <= recipe.CALIBRATION_EPOCHS:
        return Decision(False, f"not needed for about {units.epochs(epochs)}")
    if validation_tokens < recipe.MIN_CALIBRATION_TOKENS:
        return Decision(False, "the text is too short")
    return Decision(True, "the temperature is fitted on the validation slice")


def eval_tokens(tokens: float) -> int:
    """Tokens of an evaluation, a small part of the time of the run, by the number of training tokens."""
    least, most = recipe.EVAL_TOKENS
    return min(max(int(tokens / recipe.EVAL_DIVISOR), least), most)


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


def learning_rate(request: Request, kind: str) -> Decision[float]:
    """The multiplier of the peak learning rates of a recipe (recipe.learning_rates): of `kind`, one of RECIPES."""
    if request.lr != 1:
        reason = f"{request.lr:g} times the peak rates of the recipe, {REQUESTED}"
    elif kind == "fine-tune":
        reason = "low, to limit catastrophic forgetting"
    else:
        reason = "peak rates of the recipe"
    decay = f"linear decay to {recipe.FINAL_RATE:g} after {1 - recipe.DECAY:.0%} of the run"
    return Decision(request.lr, f"{reason}; {decay}")
