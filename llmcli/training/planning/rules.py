"""The rules of the planner, one per hyperparameter, in the order of the plan. Each returns a value and its
reason.

The numbers and their sources are in recipe.py; the context length and the number of epochs are in task.py.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from llmcli import units
from llmcli.config import ModelConfig, TrainConfig
from llmcli.data.tokenizers.training import nearest_power_of_two
from llmcli.errors import usage
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import (
    BASE_BYTES,
    Estimate,
    Memory,
    layer_parameters,
    memory_needed,
    shortage,
)
from llmcli.training.planning.plan import DEFAULT_SECONDS, FROM_BASE, REQUESTED, Decision, PlanRequest
from llmcli.training.planning.task import Task


def check_kl_weight(task: Task) -> None:
    """Raise LLMError for a KL weight in a run without a divergence from a base model."""
    if task.request.kl_weight and not (task.base and task.conversations_alone):
        raise usage("`kl_weight` is for fine-tuning on conversations alone, without plain text; leave it out")


def time_budget(task: Task, max_epochs: float) -> Decision[float | None]:
    """Decide the time budget in seconds; None if a number of steps or epochs ends the run."""
    request = task.request
    if request.seconds or not request.has_time_budget:
        return Decision(request.budget, REQUESTED)
    if task.search:
        return Decision(DEFAULT_SECONDS, "default; stops when the validation loss no longer falls")
    return Decision(DEFAULT_SECONDS, f"default; stops after {units.epochs(max_epochs)} if that comes first")


def training_seconds(budget: float, spent: float) -> float:
    """Return the part of a time budget for training steps, if `spent` seconds have passed before planning.

    >>> [round(training_seconds(budget, spent=2.0), 1) for budget in (2, 10, 20, 142)]
    [0.2, 6.6, 16.1, 127.8]
    """
    return max(recipe.MIN_TRAINING_SHARE * budget, seconds_left(budget, spent))


def seconds_left(budget: float, spent: float) -> float:
    """Return the part of a time budget that is left for training steps; negative if reading took too long."""
    rest = recipe.SHARE_OF_REST * (budget - spent) - recipe.AROUND_TRAINING_SECONDS
    return min(recipe.TRAINING_SHARE * budget, rest)


def budget_for(training: float, spent: float) -> float:
    """Return the time budget that leaves this many seconds for training steps.

    >>> [round(budget_for(training, spent=2.0), 1) for training in (0.2, 6.6, 127.8)]
    [3.3, 10.0, 142.0]
    """
    rest = (training + recipe.AROUND_TRAINING_SECONDS) / recipe.SHARE_OF_REST
    return max(training / recipe.TRAINING_SHARE, spent + rest)


def searches_epochs(task: Task, tokens: float) -> bool:
    """Return whether a first run finds the number of epochs: the text is short, and there is time for
    `tokens` tokens, enough for two runs."""
    request, text = task.request, task.text
    may_restart = request.has_time_budget and request.processes == 1 and task.search is None
    is_short = not (task.base or task.conversations) and text.bytes <= recipe.SEARCH_MAX_BYTES
    enough = text.tokens >= max(4 * recipe.SEARCH_VALIDATION_TOKENS, _search_slice(task) + task.context.value)
    return may_restart and is_short and enough and tokens >= recipe.SEARCH_MIN_EPOCHS * text.tokens


def _search_slice(task: Task) -> int:
    """Return the size of the validation slice of a first run in tokens."""
    return max(int(task.text.tokens * recipe.SEARCH_VALIDATION_SHARE), recipe.SEARCH_VALIDATION_TOKENS)


def model_reasons(
    task: Task, model: ModelConfig, models: Sequence[ModelConfig], fitting: Sequence[ModelConfig]
) -> dict[str, str]:
    """Explain the size, shape and embeddings of `model`, chosen from `models` and those `fitting` into
    memory."""
    request = task.request
    if task.base:
        return dict.fromkeys(("size", "shape", "tied"), FROM_BASE)
    if request.layers or request.width:
        size = REQUESTED
    elif model is not fitting[-1]:
        size = (
            f"best size for the {'time budget' if request.has_time_budget else 'number of training tokens'}"
        )
    elif len(fitting) == len(models):
        size = "largest size this much data supports"
    else:
        size = "largest size that fits in memory"
    fixed = request.layers or request.width or request.heads or request.kv_heads
    tied = f"the embedding has {'more' if model.tie_word_embeddings else 'fewer'} parameters than the layers"
    return {
        "size": size,
        "shape": REQUESTED if fixed else "short runs need few layers, long runs more",
        "tied": tied if request.tie is None else REQUESTED,
    }


def induction_helps(task: Task) -> bool:
    """Return whether the text and the run of a new model are long enough for induction heads in the initial
    weights."""
    short = task.request.is_short(recipe.INDUCTION_MIN_CORE_SECONDS)
    return not task.base and not short and task.text.tokens >= recipe.INDUCTION_MIN_TOKENS


def sharding(request: PlanRequest, model: ModelConfig, train: TrainConfig, memory: Memory) -> Decision[bool]:
    """Decide whether to shard the training state. The communication costs less than very small batches."""
    windows = min(train.batch_size, 2 * request.processes)
    needed_memory = memory_needed(model, replace(train, batch_size=windows), request.processes)
    # does not mention the free memory: the reason is saved in the file, which must not depend on other
    # programs
    needed = f"with gradients and optimizer they need {units.size(needed_memory.device - BASE_BYTES)}"
    if request.processes > 1 and shortage(needed_memory, memory):
        return Decision(True, f"{needed}, more than a process can have")
    return Decision(False, f"{needed}, which each process has")


def batch_size(task: Task, tokens: float, batch_divisor: int) -> Decision[int]:
    """Decide the batch size in windows. `tokens` is the length of the run (0: not known yet); `batch_divisor`
    reduces the batch to save memory. Small sets of conversations are split into several batches."""
    request, max_tokens = task.request, task.data.tokens
    if task.search:  # the batches of both runs must be equal, since the number of epochs depends on them
        tokens = min(tokens, recipe.MAX_EPOCHS * max_tokens)
    if request.batch_tokens:
        per_batch = request.batch_tokens
        reason = REQUESTED if per_batch <= max_tokens else "all of the training data, fewer than requested"
    elif request.device == "cuda":
        per_batch = nearest_power_of_two(tokens / recipe.GPU_BATCH_DIVISOR, *recipe.GPU_BATCH_TOKENS)
        reason = "grows with the length of the run"
    else:
        limits = recipe.CPU_LORA_BATCH_TOKENS if task.trains_text_adapters else recipe.CPU_BATCH_TOKENS
        per_batch = nearest_power_of_two(recipe.CPU_BATCH_FACTOR * math.sqrt(tokens), *limits)
        if tokens and request.has_time_budget:
            per_batch = min(
                per_batch, int((recipe.LOW_SPEED if task.base else 1.0) * tokens / min_steps(task))
            )
        reason = "small batches converge fastest in wall-clock time"
    if task.conversations_alone and not request.batch_tokens:
        max_tokens //= recipe.CONVERSATION_BATCHES_PER_EPOCH
    if batch_divisor > 1:
        reason = "largest that fits in memory"
    return Decision(max(1, min(per_batch, max_tokens) // task.context.value // batch_divisor), reason)


def min_steps(task: Task) -> int:
    """Return the number of steps below which a run with a time budget hardly trains the model."""
    return recipe.FINE_TUNING_MIN_STEPS if task.base else recipe.MIN_STEPS


def steps(task: Task, tokens_per_step: int, max_epochs: float) -> Decision[int]:
    request = task.request
    if request.steps:
        return Decision(request.steps, REQUESTED)
    steps_per_epoch = task.data.tokens / tokens_per_step
    count = max(1, math.ceil((request.epochs or max_epochs) * steps_per_epoch))
    epochs = units.epochs(count / steps_per_epoch)
    if request.epochs:
        return Decision(count, epochs)
    if search := task.search:
        reason = "at most; ends when the validation loss no longer falls, then starts over on all of the text"
        if search.found:
            tried = (
                "more did not lower"
                if search.confirmed
                else "there was no time to find whether more would lower"
            )
            reason = f"on all of the text: {tried} the validation loss of the first run"
        return Decision(count, f"{epochs} {reason}")
    data = ["the text"] * (task.text.tokens > 0) + ["the conversations"] * (task.conversations is not None)
    return Decision(count, f"{epochs}, the default limit for {' and '.join(data)}")


def training_tokens(task: Task, max_epochs: float, estimate: Estimate, train: TrainConfig) -> Decision[float]:
    """Decide the number of training tokens; with a time budget it is estimated from the measured speed."""
    if not task.request.has_time_budget:
        return Decision(float(train.steps * train.tokens_per_step), "steps x batch size")
    epochs = estimate.tokens / task.data.tokens
    early = "; ends before the time is up" if epochs >= max_epochs else ""
    if task.search and not task.search.found:
        early = "; ends earlier if the validation loss no longer falls"
    reason = f"about {units.epochs(epochs)} at {estimate.tokens_per_second:,.0f} tokens/s{early}"
    return Decision(estimate.tokens, reason)


def distillation(task: Task, tokens: float) -> Decision[float]:
    """Decide the share of the run that trains a teacher; 0 for a run with one model, which would see
    `tokens`."""
    epochs = min(tokens / task.data.tokens, task.max_epochs)
    if task.base or task.conversations:
        return Decision(0.0, "not used in fine-tuning" if task.base else "not used with conversations")
    if not task.request.has_time_budget:
        return Decision(0.0, "only used with a time budget")
    if task.request.processes > 1:
        return Decision(0.0, "not used with several processes")
    if task.text.tokens < recipe.DISTILLATION_MIN_TOKENS:
        return Decision(0.0, "the text is too short")
    if epochs < recipe.DISTILLATION_EPOCHS:
        return Decision(0.0, f"not needed for about {units.epochs(epochs)}")
    better = "a student that also learns from a teacher's predictions beats a single model"
    return Decision(recipe.TEACHER_SHARE, f"over about {units.epochs(epochs)}, {better}")


def token_shares(teacher_share: float) -> tuple[float, float]:
    """Return the training tokens of teacher and student relative to a single model in the same time, if the
    teacher has `teacher_share` of the run.

    >>> [round(share, 3) for share in token_shares(0.4)]
    [0.4, 0.5]
    """
    return teacher_share, (1 - teacher_share) / (1 + recipe.TEACHER_COST if teacher_share else 1)


def dropout(task: Task, model: ModelConfig, tokens: int, epochs: float) -> Decision[float]:
    """Decide the dropout rate for data of `tokens` tokens, by the number of epochs."""
    if task.request.dropout is not None:
        return Decision(task.request.dropout, REQUESTED)
    if task.base and task.conversations_alone:
        return Decision(0.0, "the base model was trained without dropout")
    table = recipe.FEW_WORDS_DROPOUT if task.has_few_words else recipe.DROPOUT
    rate = recipe.LARGE_DROPOUT if _memorizes(model, tokens, epochs) else _rate(table, epochs)
    return Decision(
        rate, f"{'reduces overfitting over' if rate else 'not needed for'} about {units.epochs(epochs)}"
    )


def bpe_dropout(task: Task, model: ModelConfig, tokens: int, epochs: float) -> Decision[float]:
    """Decide the share of merged tokens that are split again (arXiv:1910.13267), by the number of epochs."""
    if task.conversations_alone:  # it would move the loss mask
        return Decision(0.0, "not used with conversations")
    if task.has_few_words:  # it would split what the model has to find in the context
        return Decision(0.0, "not used where each word is one token")
    rate = (
        recipe.LARGE_BPE_DROPOUT if _memorizes(model, tokens, epochs) else _rate(recipe.BPE_DROPOUT, epochs)
    )
    if rate:
        return Decision(rate, "tokenizes the text differently in each epoch")
    return Decision(rate, f"not needed for about {units.epochs(epochs)}")


def regularization(task: Task, model: ModelConfig, tokens: int, epochs: float) -> tuple[float, float]:
    """Return (dropout, BPE-dropout), which the trainer updates when its estimate of the number of epochs
    changes."""
    return dropout(task, model, tokens, epochs).value, bpe_dropout(task, model, tokens, epochs).value


def _memorizes(model: ModelConfig, tokens: int, epochs: float) -> bool:
    """Return whether a model is large enough, and sees the data often enough, to memorize them."""
    threshold = max(recipe.LARGE_PARAMETERS, recipe.LARGE_PARAMETERS_PER_TOKEN * tokens)
    return epochs > recipe.LARGE_EPOCHS and layer_parameters(model) > threshold


def _rate(table: Sequence[tuple[float, float]], epochs: float) -> float:
    return next(rate for limit, rate in table if epochs <= limit)


def validation(task: Task, tokens: float) -> Decision[int]:
    """Decide the size of the validation slice in tokens, for a run of `tokens`; at least a window is left for
    training."""
    if task.conversations:
        return Decision(0, "of the conversations")
    text = task.text.tokens
    if task.search:
        why = (
            "the end of the training text, not trained on in the first run: its loss decides on the number "
            "of epochs"
        )
        return (
            Decision(0, "trained on in this run") if task.search.found else Decision(_search_slice(task), why)
        )
    count = min(int(text * recipe.VALIDATION_SHARE), eval_tokens(tokens))
    if count < recipe.MIN_VALIDATION_TOKENS or text - count < task.context.value:
        return Decision(0, "the text is too short; the final weights are kept")
    return Decision(
        count, "spread over the training text, not trained on; the weights with the lowest loss are kept"
    )


def conversation_validation(lengths: Sequence[int], tokens: float) -> Decision[int]:
    """Decide the number of training conversations (of these lengths in tokens) in the validation slice."""
    affordable = eval_tokens(tokens) * len(lengths) // sum(lengths)
    count = min(int(len(lengths) * recipe.CONVERSATION_VALIDATION_SHARE), affordable)
    if count < recipe.CONVERSATION_MIN_VALIDATION:
        return Decision(0, "there are too few conversations; the final weights are kept")
    return Decision(
        count, "spread evenly, not trained on; the weights with the lowest loss of their answers are kept"
    )


def base_divergence(task: Task) -> Decision[float]:
    """Decide the weight of the divergence from the base model in the loss."""
    if task.request.kl_weight is not None:
        return Decision(task.request.kl_weight, REQUESTED)
    if task.base and task.conversations_alone:
        reason = "from the base model, on text that it generates; limits catastrophic forgetting"
        return Decision(recipe.DIVERGENCE_WEIGHT, reason)
    return Decision(0.0, "would undo what the text added" if task.base else "there is no base model")


def calibration(task: Task, validation_tokens: int, epochs: float) -> Decision[bool]:
    if task.conversations:
        return Decision(False, "not used with conversations")
    if task.request.lora:
        return Decision(False, "not used with LoRA")
    if epochs <= recipe.CALIBRATION_EPOCHS:
        return Decision(False, f"not needed for about {units.epochs(epochs)}")
    if task.search or validation_tokens < recipe.MIN_CALIBRATION_TOKENS:
        return Decision(False, "the text is too short")
    return Decision(True, "the temperature is fitted on the validation slice")


def eval_tokens(tokens: float) -> int:
    """Return the tokens of an evaluation for this number of training tokens, so that it takes little of the
    run."""
    smallest, largest = recipe.EVAL_TOKENS
    return min(max(int(tokens / recipe.EVAL_DIVISOR), smallest), largest)


def optimizer(task: Task) -> Decision[str]:
    """Decide the recipe, one of RECIPES, with the reason for its optimizer."""
    requested = task.request.optimizer
    if task.request.lora:
        return Decision("lora", "usual for LoRA")
    if task.base and requested != "muon":
        return Decision("fine-tune", REQUESTED if requested else "usual for fine-tuning")
    if requested:
        return Decision(requested, REQUESTED)
    return Decision("muon", "Muon for matrices, AdamW for the rest: lowest loss in a given time")


def learning_rate(task: Task, kind: str) -> Decision[float]:
    """Decide the multiplier of the peak learning rates of recipe `kind` (recipe.learning_rates)."""
    requested = task.request.lr
    factor = recipe.LORA_TEXT_FACTOR if task.trains_text_adapters else 1.0
    if requested != 1:
        reason = f"{requested:g} times the peak rates of the recipe, {REQUESTED}"
    elif kind == "fine-tune":
        reason = "low, to limit catastrophic forgetting"
    else:
        reason = "peak rates of the recipe"
    decay = f"linear decay to {recipe.FINAL_RATE:g} after {1 - recipe.DECAY:.0%} of the run"
    return Decision(requested * factor, f"{reason}; {decay}")
