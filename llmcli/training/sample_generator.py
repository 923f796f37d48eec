"""Samples: text that the model generates from the same prompt after each evaluation of a run."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.models.open_runtime import open_trained
from llmcli.training.events import Sample
from llmcli.training.plan import Plan
from llmcli.training.run_data import RunData

SAMPLE_TOKENS = 48
MAX_SAMPLING_PARAMETERS = 200_000_000  # larger models generate no samples during training: that would take too long


class SampleGenerator:
    """Continues a prompt; in a run on conversations, answers a held-out question greedily instead."""

    def __init__(self, plan: Plan, data: RunData, prompt: str | None, *, sharded: bool) -> None:
        self._config, self._data = plan.model, data
        self._device = "cpu" if sharded else plan.train.device  # which has no memory for the whole model
        self.prompt = data.conversations.question if data.conversations else prompt
        self.are_wanted = bool(self.prompt) and plan.model.parameters <= MAX_SAMPLING_PARAMETERS

    def generate(self, step: int, weights: Mapping[str, NDArray[np.float32]]) -> Sample:
        """The sample of the model with the weights of a step."""
        assert self.prompt is not None, "samples are wanted"
        runtime = open_trained(Checkpoint(self._config, "", weights), self._device)
        if self._data.conversations:
            return Sample(step, self.prompt, self._data.conversations.answer(runtime, SAMPLE_TOKENS))
        pieces = generate(runtime, self._data.tokenizer, self.prompt, SamplingConfig(max_tokens=SAMPLE_TOKENS))
        return Sample(step, self.prompt, "".join(piece.text for piece in pieces))
