"""Fits a plan into the memory that is free: smaller batches first, then smaller models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.training.planning.cost_model import Memory, memory_needed
from llmcli.training.planning.plan import Plan

MEMORY_SHARE = 0.8  # of the free memory, that a plan may use
MAX_BATCH_DIVISOR = 64  # how many times smaller a batch may become; if no model fits then, that is an error


def exceeds(needed: Memory, free: Memory) -> bool:
    """Whether a plan may not use so much."""
    return bool(_shortage(needed, _usable(free), free))


@dataclass(frozen=True)
class Fit:
    """The models that fit into memory, and by how much the batch was made smaller for them."""

    models: list[ModelConfig]
    batch_divisor: int


def fit(
    models: Sequence[ModelConfig],
    memory: Memory,
    needed: Callable[[ModelConfig, int], Memory],
    *,
    fixed_batch: bool,
    options: str,
) -> Fit:
    """Those of `models`, sorted by size, that can be trained in the `memory` that is free, with the largest batch in
    which any of them can.

    `needed` gives the memory for a model and a divisor of its batch size; with `fixed_batch` the divisor is 1.
    Raises LLMError where none fits; `options` names the options to lower.
    """
    usable = _usable(memory)
    divisor = 1
    while True:
        fitting = [model for model in models if not _shortage(needed(model, divisor), usable, memory)]
        if fitting:
            return Fit(fitting, divisor)
        if fixed_batch or divisor >= MAX_BATCH_DIVISOR:
            shortage = _shortage(needed(models[0], divisor), usable, memory)
            raise LLMError(f"training {models[0].parameters:,} parameters {shortage}; give a smaller {options}")
        divisor *= 2


def check_fits(plan: Plan, memory: Memory, processes: int = 1) -> None:
    """Raises LLMError where a plan made earlier does not fit into the `memory` that is free for each process."""
    needed = memory_needed(plan.model, plan.train, processes, sharded=plan.sharded and processes > 1)
    if shortage := _shortage(needed, memory, memory):
        smaller = "--context" if plan.train.is_fine_tuning else "--width"
        raise LLMError(
            f"resuming {shortage}; free some, or start over with --force and a smaller {smaller} or --batch-tokens"
        )


def _usable(free: Memory) -> Memory:
    return Memory(MEMORY_SHARE * free.device, MEMORY_SHARE * free.host)


def _shortage(needed: Memory, usable: Memory, free: Memory) -> str:
    """Of which memory more is needed than is usable, in words; "" if there is enough."""
    if needed.device > usable.device:
        kind = "GPU memory" if needed.host else "memory"
        return f"needs about {_gigabytes(needed.device)} of {kind}, but only {_gigabytes(free.device)} is free"
    if needed.host > usable.host:
        return f"needs about {_gigabytes(needed.host)} of main memory, but only {_gigabytes(free.host)} is free"
    return ""


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
