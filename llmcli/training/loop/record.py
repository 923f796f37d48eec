"""The training record of a run in the model file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
import torch

from llmcli.config import as_record
from llmcli.evaluation.evaluator import Score
from llmcli.formats.training_record import CacheWeights, PlainTextScores, TrainingRecord
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.planning.plan import Expected
from llmcli.version import __version__

CURVE_POINTS = 300  # maximum in the record's loss curve
MAX_PARAMETERS_WITH_SAMPLES = 20_000_000  # a larger model's record has no samples


def versions() -> dict[str, str]:
    """Return the versions of the packages on which a trained model's bytes depend."""
    return {
        "llmcli": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }


def loss_curve(position: Position, losses: Sequence[float]) -> dict[str, list[Any]]:
    """Return at most CURVE_POINTS means of the losses of all steps, each placed at the last of its steps, and
    all evaluations."""
    width = math.ceil(len(losses) / CURVE_POINTS)
    ends = range(width, len(losses) + width, width) if width else ()
    return {
        "step": [min(end, len(losses)) for end in ends],
        "loss": [round(float(np.mean(losses[end - width : end])), 4) for end in ends],
        "eval_step": [step for step, _ in position.evaluations],
        "eval_bits_per_byte": [bits for _, bits in position.evaluations],
    }


@dataclass(frozen=True)
class FinalEvaluation:
    """The measurements of a run's final weights."""

    score: Score | None = None  # score on the held-out data
    base_score: Score | None = None  # the initial model's score on the same tokens
    context: int = 0  # length of the windows, in tokens
    cached_tokens: int = 0  # capacity of the n-gram cache, if smaller than when a model runs
    # shares of the tokens by layer and expert, if there are experts
    expert_shares: list[list[float]] | None = None
    cache: CacheWeights | None = None  # weights of the n-gram cache, if there is one
    plain_text: PlainTextScores | None = None  # only after training on conversations
    problem: str = ""  # the reason for a missing score, other than lack of time


def training_record(
    data: RunData,
    position: Position,
    losses: Sequence[float],
    final: FinalEvaluation,
    *,
    interrupted: bool,
    problem: str,
) -> TrainingRecord:
    """Create the record of a run, except for its duration. The order of keys is fixed, so that equal runs
    write equal files. `losses` are those of the steps, in nats per token."""
    plan = data.plan
    chats = data.conversations
    tokens = position.step * plan.train.tokens_per_step
    score, base = final.score, final.base_score
    samples = {"samples": {"prompt": data.sample_prompt, "texts": position.samples}}
    plain_text = final.plain_text._asdict().items() if final.plain_text else ()
    return data.record | {
        **_entry("conversations", chats and data.record.document["conversations"] | chats.record(position)),
        "versions": versions(),
        "plan": [as_record(row) for row in plan.rows],
        "train": as_record(plan.train),
        **_entry("epoch_search", plan.search and as_record(plan.search)),
        "steps": position.step,
        "best_step": position.best_step,
        "tokens": tokens,
        "epochs": round(tokens / data.tokens_per_epoch, 4),
        "interrupted": interrupted,
        **_entry("problem", problem),
        **_entry("regularization", position.regularizations),
        **_entry("distillation", _distillation(position)),
        **(score.figures.as_record() if score else {"bits_per_byte": None}),
        **(base.figures.as_record("_before") if base else {}),
        "sharpness": position.best_factor,  # the factor on the logits (best_weights.py); files keep the name
        **_entry("ngram_cache", final.cache and final.cache._asdict()),
        **_entry("expert_shares", final.expert_shares),
        **_entry("not_evaluated", final.problem),
        "held_out_measured": score and _measured(score, final, plan.model.max_position_embeddings),
        **_entry("plain_text", {name.removesuffix("_"): value for name, value in plain_text}),
        **_entry("validation", data.validation_size()),
        "curve": loss_curve(position, losses),
        **(samples if plan.model.parameters <= MAX_PARAMETERS_WITH_SAMPLES else {}),
        **_entry(
            "probe", position.predictions and {"prompt": data.probe, "predictions": position.predictions}
        ),
    }


def clock_record(expected: Expected | None, seconds: float, tokens_per_second: float) -> dict[str, float]:
    """Record the duration and speed of a run with a time limit, and the plan's assumptions."""
    record = {"seconds": round(seconds, 2), "tokens_per_second": round(tokens_per_second)}
    if expected:
        record["planned_tokens_per_second"] = round(expected.tokens_per_second)
        record["planned_epochs"] = round(expected.epochs, 4)
    return record


def _distillation(position: Position) -> dict[str, float]:
    """Record the student's first step and the teacher's score; {} without a teacher."""
    if (step := position.student_from) is None:
        return {}
    teacher = min(bits for evaluated, bits in position.evaluations if evaluated <= step)
    return {"from_step": step, "teacher_bits_per_byte": teacher}


def _entry(key: str, value: object) -> Mapping[str, object]:
    """Return the entry, unless its value is empty."""
    return {key: value} if value else {}


def _measured(score: Score, final: FinalEvaluation, model_context: int) -> dict[str, int]:
    """Record the amount of evaluated held-out text, and the context and cache if smaller than the model's."""
    shorter = {"context": final.context} if final.context < model_context else {}
    fewer = {"cached_tokens": final.cached_tokens} if final.cached_tokens else {}
    return {"tokens": score.tokens, "bytes": score.bytes, **shorter, **fewer}
