"""Previews of the model during training: after an evaluation, the likeliest next words after one prompt (the
probe), and a sample generated from another.

There are at most about 20 evaluations (recipe.EVALUATION_INTERVAL), so the predictions take few bytes in the
record.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import takewhile

from llmcli.config import SamplingConfig
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.generation.next_words import next_words
from llmcli.models.open_runtime import open_trained
from llmcli.models.runtime import Array, Runtime
from llmcli.training.data.run_data import RunData
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Prediction, Sample

LIKELIEST = 10  # words kept
EVALUATIONS = 20  # maximum evaluations of the network to find the words
DIGITS = 4  # decimal places of a probability
SAMPLE_TOKENS = 48
TIME_SHARE = 0.01  # maximum share of the time limit, and of the time between two previews
MIN_SECONDS = 0.3
# no previews for larger models, and none while copying the weights would take more than the time limit of
# previews
MAX_PARAMETERS = 200_000_000
COPYING_SECONDS_PER_MILLION = 0.01  # on a slow machine


class Previews:
    """Predicts the next words of the probe (in training on conversations, the first words of its answer), and
    continues a prompt or answers a held-out question greedily, within the time limit if there is one."""

    def __init__(self, data: RunData, clock: Clock) -> None:
        self._data = data
        self._clock = clock
        seconds, parameters = data.plan.train.seconds, data.plan.model.parameters
        self._longest = math.inf if seconds is None else max(MIN_SECONDS, TIME_SHARE * seconds)
        self._copying_seconds = COPYING_SECONDS_PER_MILLION * parameters / 1e6
        has_prompt = bool(data.sample_prompt or data.probe)
        # earliest time of the next previews on the clock
        self._next = -math.inf if has_prompt and parameters <= MAX_PARAMETERS else math.inf

    @property
    def are_wanted(self) -> bool:
        """Return whether to make previews now."""
        clock = self._clock
        return self._copying_seconds * clock.slowdown <= self._longest and clock.now() >= self._next

    def make(self, step: int, weights: Mapping[str, Array]) -> Iterator[Prediction | Sample]:
        """Predict and generate with the weights after a step; nothing is predicted if they have diverged."""
        data, now = self._data, self._clock.now
        plan = data.plan
        began = now()
        # a GPU has only a part of a sharded model
        device = "cpu" if plan.sharded else plan.train.device
        runtime = open_trained(Checkpoint(plan.model, "", weights), device)
        if data.probe and (prediction := self._predict(runtime, step)):
            yield prediction
        if prompt := data.sample_prompt:
            runtime.rewind()
            yield Sample(step, prompt, self._sample(runtime, prompt, began + self._longest))
        if plan.train.seconds is not None:
            self._next = now() + (now() - began) / TIME_SHARE

    def _predict(self, runtime: Runtime, step: int) -> Prediction | None:
        data = self._data
        prompt = data.probe_prompt()
        try:
            words = next_words(runtime, data.tokenizer, prompt, evaluations=EVALUATIONS).words[:LIKELIEST]
        except LLMError:  # NaN or infinite logits
            return None
        likeliest = tuple(
            (f"…{word.text}" if word.continues else word.text, round(word.probability, DIGITS))
            for word in words
        )
        return Prediction(step, data.probe, likeliest)

    def _sample(self, runtime: Runtime, prompt: str, end: float) -> str:
        def is_over() -> bool:
            return self._clock.now() > end

        if self._data.conversations:
            return self._data.conversations.answer(runtime, SAMPLE_TOKENS, is_over)
        sampling = SamplingConfig(max_tokens=SAMPLE_TOKENS)
        tokens = generate(runtime, self._data.tokenizer, prompt, sampling)
        return "".join(token.text for token in takewhile(lambda _: not is_over(), tokens))
