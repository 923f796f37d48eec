"""The probe: the likeliest next tokens after one prompt, predicted by the network alone after each evaluation of a run.

There are at most about 20 evaluations (recipe.EVALUATION_INTERVAL), so the predictions take few bytes in the record.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.token_healing import Prompt
from llmcli.models.logits import softmax
from llmcli.models.open_runtime import open_trained
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Prediction
from llmcli.training.loop.job import Job
from llmcli.training.loop.sample_generator import COPYING_SECONDS_PER_MILLION, MAX_SAMPLING_PARAMETERS

LIKELIEST = 10  # tokens kept
DIGITS = 4  # decimal places of a probability
TIME_SHARE = 0.004  # maximum share of the time limit


class Probe:
    """Predicts what follows the job's probe prompt, or the answer to a question after training on conversations."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self._job, self._clock, conversations = job, clock, job.data.conversations
        self.prompt = job.probe or (conversations.question if conversations else "")
        self._ids: list[int] = []
        if self.prompt:
            question = conversations and conversations.prompt(job.probe)
            self._ids = list(question or Prompt.of(self.prompt, job.data.tokenizer).ids)
        millions, seconds = job.plan.model.parameters / 1e6, job.plan.train.seconds or math.inf
        is_cheap = 1e6 * millions <= MAX_SAMPLING_PARAMETERS and (
            COPYING_SECONDS_PER_MILLION * millions <= TIME_SHARE * seconds
        )
        self._next = -math.inf if self.prompt and is_cheap else math.inf  # earliest time of the next prediction

    @property
    def is_wanted(self) -> bool:
        """Return whether to predict now."""
        return self._clock.now() >= self._next

    def predict(self, step: int, weights: Mapping[str, NDArray[np.float32]]) -> Prediction | None:
        """Predict with the weights after a step; None if they have diverged."""
        job, began = self._job, self._clock.now()
        device = "cpu" if job.is_sharded else job.plan.train.device  # which does not hold the whole model
        runtime = open_trained(Checkpoint(job.plan.model, "", weights), device)
        probabilities = softmax(runtime.prefill(self._ids[-runtime.context :]).astype(np.float64))
        likeliest = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
        label = job.data.tokenizer.label
        if job.plan.train.seconds is not None:
            now = self._clock.now()
            self._next = now + (now - began) / TIME_SHARE
        if not np.isfinite(probabilities).all():
            return None
        return Prediction(
            step, self.prompt, tuple((label(int(i)), round(float(probabilities[i]), DIGITS)) for i in likeliest)
        )
