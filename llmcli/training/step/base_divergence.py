"""Limiting catastrophic forgetting: before a run on conversations the base model generates text, and in each step the
Kullback-Leibler divergence from the base model on a part of it is added to the loss (self-distillation; LOG.md,
"Catastrophic forgetting when fine-tuning on few conversations").
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmcli.config import TrainConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.models.torch.kernels import divergence
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.plain_text import generate_ids, generated_length
from llmcli.training.planning import recipe

TEXTS = (4, 64)  # that the base model generates, at least and at most
WORK = 5.6e11  # parameters x tokens generated: about ten seconds on two cores
TEXTS_AT_ONCE = 4  # that pass through the model together, to limit memory
SEED = 1_000_003  # added to the run's seed, so that this text differs from the text that measures forgetting
# at most for generating the text: of the time budget, and of the time left after reading and planning
TIME_SHARE, SHARE_OF_REST = 0.1, 0.25


def seconds_to_generate(budget: float, left: float) -> float:
    """The time limit for the text in a run of `budget` seconds, `left` of which are left."""
    return max(0.0, min(TIME_SHARE * budget, SHARE_OF_REST * left))


@dataclass(frozen=True)
class GeneratedBatch:
    """Text that the base model generates, with its predictions."""

    ids: Tensor  # [N, T + 1]
    hidden: Tensor  # [N, T, C], what `head` reads
    head: Tensor  # [V, C]


class BaseDivergence:
    """Adds the gradients of the divergence to the gradients of a step."""

    def __init__(self, model: LanguageModel, text: GeneratedBatch, settings: TrainConfig, weight: float) -> None:
        self._model, self._text, self._seed, self._weight = model, text, settings.seed, weight
        texts = round(recipe.DIVERGENCE_TOKENS * settings.tokens_per_step / text.hidden.shape[1])
        self._texts_per_step = min(max(1, texts), len(text.ids))

    def add_gradients(self, step: int) -> None:
        """The texts are a pure function of (seed, step)."""
        text, model = self._text, self._model
        rng = np.random.default_rng([self._seed, step, SEED])
        chosen = rng.choice(len(text.ids), self._texts_per_step, replace=False)
        for texts in torch.split(torch.from_numpy(chosen).to(text.ids.device), TEXTS_AT_ONCE):
            hidden = model.hidden_states(text.ids[texts, :-1]).flatten(0, 1)
            loss = divergence(hidden, model.head(), text.hidden[texts].flatten(0, 1), text.head)
            torch.autograd.backward(self._weight * len(texts) / len(chosen) * loss)


def generate(
    model: LanguageModel, tokenizer: Tokenizer, seed: int, on_progress: Callable[[float], None] = lambda share: None
) -> GeneratedBatch | None:
    """Text that a base model generates: `model`, whose adapters, if any, do not change it yet. A pass that raises
    CutShortError ends it; None if it is too short then. `on_progress` gets the share that is done, 0 to 1."""
    length, hidden = generated_length(model.config), list[Tensor]()

    def keep(state: Tensor) -> None:
        hidden.append(state)
        on_progress(len(hidden) / length)

    least, most = TEXTS
    texts = int(min(max(WORK / model.config.parameters / length, least), most))
    on_progress(0.0)
    ids = generate_ids(model, tokenizer, texts, SEED + seed, keep)
    on_progress(1.0)
    return None if ids is None else GeneratedBatch(ids, torch.cat(hidden, dim=1), model.head().detach().clone())
