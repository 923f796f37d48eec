"""Keeping what a base model knows while it is trained on conversations: its predictions on text of its own.

Before the run the base model generates text. In each step the Kullback-Leibler divergence of the model from the base
model on a part of that text is added to the loss (self-distillation; LOG.md, "What fine-tuning on few conversations
forgets").
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmcli.config import TrainConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.models.kernels import divergence
from llmcli.models.transformer import LanguageModel
from llmcli.training import recipe
from llmcli.training.plain_text import GENERATED_LENGTH, generate_text

TEXTS = (4, 64)  # that the base model generates, at least and at most
WORK = 5.6e11  # parameters x tokens generated: about ten seconds on two cores
TEXTS_AT_ONCE = 4  # that pass through the model together, to limit memory
SEED = 1_000_003  # added to that of the run: the text that measures what was forgotten is another


@dataclass(frozen=True)
class _Reference:
    """The predictions of the base model."""

    ids: Tensor  # [N, T + 1]
    hidden: Tensor  # [N, T, C], what `head` reads
    head: Tensor  # [V, C]


class BaseBehaviour:
    """Adds the gradients of the divergence to those of a step."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, settings: TrainConfig, weight: float) -> None:
        """`model` has the weights of the base model, and adapters, if any, that do not change it yet. `weight` is that
        of the divergence in the loss."""
        self._model, self._seed, self._weight = model, settings.seed, weight
        self._reference = _reference(model, tokenizer, settings.seed)
        texts = round(recipe.DIVERGENCE_TOKENS * settings.tokens_per_step / GENERATED_LENGTH)
        self._texts_per_step = min(max(1, texts), len(self._reference.ids))

    def add_gradients(self, step: int) -> None:
        """Of the texts of step 0, 1, ..., a pure function of (seed, step)."""
        reference, model = self._reference, self._model
        rng = np.random.default_rng([self._seed, step, SEED])
        chosen = rng.choice(len(reference.ids), self._texts_per_step, replace=False)
        for texts in torch.split(torch.from_numpy(chosen).to(reference.ids.device), TEXTS_AT_ONCE):
            hidden = model.hidden_states(reference.ids[texts, :-1]).flatten(0, 1)
            loss = divergence(hidden, model.head(), reference.hidden[texts].flatten(0, 1), reference.head)
            torch.autograd.backward(self._weight * len(texts) / len(chosen) * loss)


@torch.no_grad()
def _reference(model: LanguageModel, tokenizer: Tokenizer, seed: int) -> _Reference:
    """Text that the model generates, with its predictions."""
    length = min(GENERATED_LENGTH, model.config.max_position_embeddings - 1)
    least, most = TEXTS
    texts = int(min(max(WORK / model.config.parameters / length, least), most))
    text = generate_text(model, tokenizer, texts * length, SEED + seed)
    ids = torch.from_numpy(text.windows).to(model.cos.device)
    hidden = torch.cat([model.hidden_states(part[:, :-1]) for part in torch.split(ids, TEXTS_AT_ONCE)])
    return _Reference(ids, hidden, model.head().clone())
