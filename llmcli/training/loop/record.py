"""The training record: what the file of a model says about the run that made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
import torch

from llmcli.config import as_record
from llmcli.evaluation.evaluator import Score
from llmcli.formats.cache_weights import CacheWeights
from llmcli.training.data.plain_text import PlainTextScores
from llmcli.training.data.position import Position
from llmcli.training.loop.history import History
from llmcli.training.planning.plan import Expected, Plan
from llmcli.version import __version__

MAX_PARAMETERS_WITH_SAMPLES = 20_000_000  # the record of a larger model keeps no samples


def versions() -> dict[str, str]:
    """The versions of the packages that the bytes of a trained model depend on."""
    return {
        "llmcli": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }


@dataclass(frozen=True)
class FinalEvaluation:
    """What was measured at the end of a run, of the weights that it ends with."""

    score: Score | None = None  # on the held-out data
    base_score: Score | None = None  # of the model that the run started from, on the same tokens
    context: int = 0  # length of the windows, in tokens
    cached_tokens: int = 0  # that the n-gram cache held at most, where that is fewer than when a model runs
    expert_shares: list[list[float]] | None = None  # of the tokens, by layer and expert, if there are experts
    cache: CacheWeights | None = None  # of the n-gram cache, if there is one
    plain_text: PlainTextScores | None = None  # only after training on conversations
    problem: str = ""  # why there is no score, if not for lack of time


def training_record(
    plan: Plan,
    position: Position,
    history: History,
    final: FinalEvaluation,
    *,
    train_tokens: int,
    validation: Mapping[str, int],
    sample_prompt: str | None,
    interrupted: bool,
    problem: str,
) -> dict[str, Any]:
    """The record of a run, without its corpus and its clock. `validation` is the size of the validation slice, empty if
    there is none. Keys are always in the same order: a file is a function of the corpus, the options and the seed."""
    tokens = position.step * plan.train.tokens_per_step
    score, base = final.score, final.base_score
    return {
        "versions": versions(),
        "plan": [as_record(row) for row in plan.rows],
        "train": as_record(plan.train),
        "steps": position.step,
        "best_step": position.best_step,
        "tokens": tokens,
        "epochs": round(tokens / train_tokens, 4),
        "interrupted": interrupted,
        **_given("problem", problem),
        **_given("regularization", position.regularizations),
        **_given("distillation", _distillation(position, history)),
        **(score.figures.as_record() if score else {"bits_per_byte": None}),
        **(base.figures.as_record("_before") if base else {}),
        "sharpness": position.best_factor,  # the factor on the logits (calibration.py); files keep the name
        **_given("ngram_cache", final.cache and final.cache.as_record()),
        **_given("expert_shares", final.expert_shares),
        **_given("not_evaluated", final.problem),
        "held_out_measured": score and _measured(score, final, plan.model.max_position_embeddings),
        **_given("plain_text", final.plain_text and final.plain_text.as_record()),
        **_given("validation", validation),
        "curve": history.curve(),
        **_samples(plan.model.parameters, history, sample_prompt),
    }


def clock_record(expected: Expected | None, seconds: float, tokens_per_second: float) -> dict[str, float]:
    """How long a run with a time limit took, and how fast it was, beside what the plan assumed."""
    record = {"seconds": round(seconds, 2), "tokens_per_second": round(tokens_per_second)}
    if expected:
        record["planned_tokens_per_second"] = round(expected.tokens_per_second)
        record["planned_epochs"] = round(expected.epochs, 4)
    return record


def _distillation(position: Position, history: History) -> dict[str, float]:
    """When the student began, and how good its teacher was; empty without one."""
    if (step := position.student_from) is None:
        return {}
    return {"from_step": step, "teacher_bits_per_byte": history.best_evaluation(step)}


def _given(key: str, value: object) -> Mapping[str, object]:
    """The entry, unless the value is empty."""
    return {key: value} if value else {}


def _measured(score: Score, final: FinalEvaluation, model_context: int) -> dict[str, int]:
    """How much held-out text was evaluated; with the context length, if that is shorter than the model's, and how much
    the n-gram cache held, if that was less than when it runs."""
    shorter = {"context": final.context} if final.context < model_context else {}
    fewer = {"cached_tokens": final.cached_tokens} if final.cached_tokens else {}
    return {"tokens": score.tokens, "bytes": score.bytes, **shorter, **fewer}


def _samples(parameters: int, history: History, prompt: str | None) -> Mapping[str, object]:
    if parameters > MAX_PARAMETERS_WITH_SAMPLES:
        return {}
    return {"samples": {"prompt": prompt, "texts": history.samples()}}
