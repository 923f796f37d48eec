"""Fits a plan into the memory that is free: smaller batches first, then smaller models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.training.cost_model import memory_needed
from llmcli.training.plan import Plan

MEMORY_SHARE = 0.8  # of the free memory, that a plan may use
MAX_BATCH_DIVISOR = 64  # how many times smaller a batch may become; if no model fits then, that is an error


@dataclass(frozen=True)
class Fit:
    """The models that fit into memory, and by how much the batch was made smaller for them."""

    models: list[ModelConfig]
    batch_divisor: int


def fit(
    models: Sequence[ModelConfig],
    memory: float,
    needed: Callable[[ModelConfig, int], float],
    *,
    fixed_batch: bool,
    options: str,
) -> Fit:
    """Those of `models`, sorted by size, that can be trained in `memory` bytes, with the largest batch in which any
    of them can.

    `needed` gives the bytes for a model and a divisor of its batch size; with `fixed_batch` the divisor is 1.
    Raises LLMError where none fits; `options` names the options to lower.
    """
    divisor = 1
    while True:
        fitting = [model for model in models if needed(model, divisor) <= MEMORY_SHARE * memory]
        if fitting:
            return Fit(fitting, divisor)
        if fixed_batch or divisor >= MAX_BATCH_DIVISOR:
            raise LLMError(
                f"training {models[0].parameters:,} parameters needs about {_gigabytes(needed(models[0], divisor))} "
                f"of memory, but only {_gigabytes(memory)} is free; give a smaller {options}"
            )
        divisor *= 2


def check_fits(plan: Plan, memory: float) -> None:
    """Raises LLMError where a plan made earlier does not fit into `memory` bytes."""
    needed = memory_needed(plan.model, plan.train)
    if needed > memory:
        smaller = "--context" if plan.train.recipe in ("fine-tune", "lora") else "--width"
        raise LLMError(
            f"resuming needs about {_gigabytes(needed)} of memory, but only {_gigabytes(memory)} is free; free "
            f"some, or start over with --force and a smaller {smaller} or --batch-tokens"
        )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
