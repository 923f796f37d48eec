"""Samples: text generated from the same prompt after each evaluation of a run."""

import math
from collections.abc import Mapping
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.models.open_runtime import open_trained
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Sample
from llmcli.training.loop.job import Job

SAMPLE_TOKENS = 48
# maximum share of the time limit for a sample, and of the time since the previous sample
TIME_SHARE, MIN_SECONDS = 0.02, 0.3
# larger models generate no samples during training, and neither do runs in which copying the weights takes
# more than that share at the present speed
MAX_SAMPLING_PARAMETERS = 200_000_000
COPYING_SECONDS_PER_MILLION = 0.01  # on a slow machine


class SampleGenerator:
    """Continues a prompt, or answers a held-out question greedily, within the time limit if there is one."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self._job = job
        self._clock = clock
        self._conversations = job.data.conversations
        seconds, parameters = job.plan.train.seconds, job.plan.model.parameters
        self._longest = math.inf if seconds is None else max(MIN_SECONDS, TIME_SHARE * seconds)
        self._next = -math.inf  # earliest time of the next sample on the clock
        self.prompt = self._conversations.question if self._conversations else job.sample_prompt
        self._copying_seconds = COPYING_SECONDS_PER_MILLION * parameters / 1e6
        self._are_wanted = self.prompt and parameters <= MAX_SAMPLING_PARAMETERS

    @property
    def is_wanted(self) -> bool:
        """Return whether to generate a sample now."""
        is_quick = self._copying_seconds * self._clock.slowdown <= self._longest
        return bool(self._are_wanted) and is_quick and self._clock.now() >= self._next

    def generate(self, step: int, weights: Mapping[str, NDArray[np.float32]]) -> Sample:
        """Generate a sample with the weights after a step."""
        assert self.prompt is not None, "a sample is wanted"
        now, plan, began = self._clock.now, self._job.plan, self._clock.now()
        device = "cpu" if self._job.is_sharded else plan.train.device  # which does not hold the whole model
        runtime = open_trained(Checkpoint(plan.model, "", weights), device)

        def is_over() -> bool:
            return now() > began + self._longest

        if self._conversations:
            text = self._conversations.answer(runtime, SAMPLE_TOKENS, is_over)
        else:
            tokens = generate(
                runtime, self._job.data.tokenizer, self.prompt, SamplingConfig(max_tokens=SAMPLE_TOKENS)
            )
            text = "".join(token.text for token in takewhile(lambda _: not is_over(), tokens))
        if plan.train.seconds is not None:
            self._next = now() + (now() - began) / TIME_SHARE
        return Sample(step, self.prompt, text)
