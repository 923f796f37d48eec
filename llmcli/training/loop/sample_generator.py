"""Samples: text that the model generates from the same prompt after each evaluation of a run."""

import math
from collections.abc import Callable, Mapping
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.models.open_runtime import open_trained
from llmcli.training.data.run_data import RunData
from llmcli.training.loop.events import Sample
from llmcli.training.loop.run_timer import RunTimer
from llmcli.training.planning.plan import Plan

SAMPLE_TOKENS = 48
# of a time limit, for a sample, at most; and of the time since a sample for the next one
TIME_SHARE, MIN_SECONDS = 0.02, 0.3
# larger models generate no samples during training, and none in a run in which copying the weights takes more than its
# share: that would take too long
MAX_SAMPLING_PARAMETERS = 200_000_000
COPYING_SECONDS_PER_MILLION = 0.01  # on a slow machine


class SampleGenerator:
    """Continues a prompt; in a run on conversations, answers a held-out question greedily instead.

    In a run with a time limit, samples that take long are cut, and fewer are generated.
    """

    def __init__(self, plan: Plan, data: RunData, prompt: str | None, timer: RunTimer, *, sharded: bool) -> None:
        self._config, self._data, self._timer = plan.model, data, timer
        self._seconds = plan.train.seconds
        self._longest = math.inf if self._seconds is None else max(MIN_SECONDS, TIME_SHARE * self._seconds)
        self._next = -math.inf  # when the next sample may be generated, in time of the timer
        self._device = "cpu" if sharded else plan.train.device  # which has no memory for the whole model
        self.prompt = data.conversations.question if data.conversations else prompt
        copying = COPYING_SECONDS_PER_MILLION * plan.model.parameters / 1e6
        is_large = plan.model.parameters > MAX_SAMPLING_PARAMETERS or copying > self._longest
        self._are_wanted = bool(self.prompt) and not is_large

    @property
    def is_wanted(self) -> bool:
        """Whether a sample is to be generated now."""
        return self._are_wanted and self._timer.now() >= self._next

    def generate(self, step: int, weights: Mapping[str, NDArray[np.float32]]) -> Sample:
        """The sample of the model with the weights of a step."""
        began = self._timer.now()
        sample = self._generate(step, weights, lambda: self._timer.now() > began + self._longest)
        if self._seconds is not None:
            self._next = self._timer.now() + (self._timer.now() - began) / TIME_SHARE
        return sample

    def _generate(self, step: int, weights: Mapping[str, NDArray[np.float32]], is_over: Callable[[], bool]) -> Sample:
        assert self.prompt is not None, "a sample is wanted"
        runtime = open_trained(Checkpoint(self._config, "", weights), self._device)
        if self._data.conversations:
            return Sample(step, self.prompt, self._data.conversations.answer(runtime, SAMPLE_TOKENS, is_over))
        pieces = generate(runtime, self._data.tokenizer, self.prompt, SamplingConfig(max_tokens=SAMPLE_TOKENS))
        return Sample(step, self.prompt, "".join(piece.text for piece in takewhile(lambda _: not is_over(), pieces)))
