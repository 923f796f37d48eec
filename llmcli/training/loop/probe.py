"""The probe: the likeliest next words after one prompt, predicted by the network alone after each evaluation
of a run.

There are at most about 20 evaluations (recipe.EVALUATION_INTERVAL), so the predictions take few bytes in the
record.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.next_words import next_words
from llmcli.generation.token_healing import Prompt
from llmcli.models.open_runtime import open_trained
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Prediction
from llmcli.training.loop.job import Job
from llmcli.training.loop.sample_generator import COPYING_SECONDS_PER_MILLION, MAX_SAMPLING_PARAMETERS

LIKELIEST = 10  # words kept
EVALUATIONS = 20  # of the network, to find the words
DIGITS = 4  # decimal places of a probability
TIME_SHARE = 0.01  # maximum share of the time limit


class Probe:
    """Predicts what follows the job's probe prompt, or the answer to a question after training on
    conversations."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self._job, self._clock, conversations = job, clock, job.data.conversations
        self.prompt = job.probe or (conversations.question if conversations else "")
        question = conversations.prompt(job.probe) if self.prompt and conversations else None
        self._tokens = Prompt(list(question)) if question else Prompt.of(self.prompt, job.data.tokenizer)
        millions, seconds = job.plan.model.parameters / 1e6, job.plan.train.seconds or math.inf
        is_cheap = 1e6 * millions <= MAX_SAMPLING_PARAMETERS and (
            COPYING_SECONDS_PER_MILLION * millions <= TIME_SHARE * seconds
        )
        # earliest time of the next prediction
        self._next = -math.inf if self.prompt and is_cheap else math.inf

    @property
    def is_wanted(self) -> bool:
        """Return whether to predict now."""
        return self._clock.now() >= self._next

    def predict(self, step: int, weights: Mapping[str, NDArray[np.float32]]) -> Prediction | None:
        """Predict with the weights after a step; None if they have diverged."""
        job, began = self._job, self._clock.now()
        device = "cpu" if job.is_sharded else job.plan.train.device  # which does not hold the whole model
        runtime = open_trained(Checkpoint(job.plan.model, "", weights), device)
        try:
            words = next_words(runtime, job.data.tokenizer, self._tokens, evaluations=EVALUATIONS).words[
                :LIKELIEST
            ]
        except LLMError:  # NaN or infinite logits
            return None
        finally:
            if job.plan.train.seconds is not None:
                now = self._clock.now()
                self._next = now + (now - began) / TIME_SHARE
        likeliest = (("…" * word.continues + word.text, round(word.probability, DIGITS)) for word in words)
        return Prediction(step, self.prompt, tuple(likeliest))
