"""Catastrophic forgetting: plain text predicted by a model after training on conversations.

The text is held-out text if there is any, else text that the base model itself generates: on that, bits per byte rise
by the divergence of the new model from the base model.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llmcli.config import ModelConfig, TrainConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.tokens import tokenize
from llmcli.errors import LLMError
from llmcli.evaluation.training_text import find_corpus, trained_in, untrained_part
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.torch.runtime import score
from llmcli.models.torch.transformer import LanguageModel, LayerKVCache
from llmcli.training.data.inputs import Inputs
from llmcli.training.data.prepare import Prepared
from llmcli.training.interruption import CutShortError

WORK = 1.5e11  # parameters x tokens scored: a few seconds on two cores ...
TOKENS = (256, 16_384)  # ... but at least and at most this many tokens
WINDOW = 256  # tokens that are scored together
MAX_FOUND_BYTES = 64_000_000  # of a base model's training text that is searched for; a longer one would take too long
BYTES_PER_TOKEN = 8  # at most, assumed
GENERATED_LENGTH = 64  # tokens of each generated text
MIN_LENGTH = 8  # the same, if there is no time for more
GENERATION_SHARE = 0.6  # of the time for generating a text and scoring it with two models
GENERATION_COST = 5.0  # of generating a text and scoring it with two models, per token; 1 is that of scoring it once

Weights = Mapping[str, NDArray[np.float32]]
# inside this context, in which a model has a share of the time that is left, its passes may raise CutShortError
Interruptible = Callable[[LanguageModel, float], AbstractContextManager[None]]


@dataclass(frozen=True)
class PlainText:
    """A text to score."""

    windows: NDArray[np.int64]  # [W, T + 1]: the first token of each is context only
    source: str  # a phrase that says what it is

    @property
    def tokens(self) -> int:
        return self.windows[:, 1:].size


@dataclass(frozen=True)
class PlainTextScores:
    """Bits per byte of plain text under a model that was trained on conversations."""

    source: str  # of the text
    tokens: int
    before: float | None  # bits per byte under the base model, if there is one
    after: float

    def as_record(self) -> dict[str, Any]:
        before = None if self.before is None else round(self.before, 6)
        return {"from": self.source, "tokens": self.tokens, "before": before, "after": round(self.after, 6)}


def find_plain_text(inputs: Inputs, prepared: Prepared) -> PlainText | None:
    """The held-out text of a run that trains on text first; with a base model, the text that was held out when the base
    model was trained, if it is found. None if there is neither, or if there are no conversations."""
    if not prepared.conversations:
        return None
    ids, source, corpus = prepared.held_out, "the held-out text", inputs.corpus
    if inputs.base and not trained_in(corpus, inputs.base.record):
        ids = _held_out_text_of(inputs.base, inputs.base_path, prepared.tokenizer)
        source = "the text held out from the base model"
    config = prepared.plan.model
    most = affordable_tokens(config.parameters)
    windows = windows_of(ids, prepared.tokenizer.bos_id, config.max_position_embeddings, most)
    return PlainText(windows, source) if len(windows) else None


def _held_out_text_of(base: Checkpoint, path: Path | None, tokenizer: Tokenizer) -> NDArray[np.unsignedinteger]:
    """The tokens of the text that was held out when a base model was trained; none if it is not found."""
    none = tokenize(iter(()), tokenizer)
    try:
        size = sum(document["bytes"] for document in base.record["corpus"])
        if path is None or size > MAX_FOUND_BYTES:
            return none
        corpus = find_corpus(base.record, path)
    except (LLMError, KeyError):
        return none
    return tokenize(untrained_part(corpus, [base.record]).sample(BYTES_PER_TOKEN * TOKENS[1]).texts(), tokenizer)


def affordable_tokens(parameters: int) -> int:
    """Tokens of plain text that are scored for a model of this size."""
    least, most = TOKENS
    return int(min(max(WORK / parameters, least), most))


def windows_of(ids: NDArray[np.integer], bos_id: int, context: int, most: int) -> NDArray[np.int64]:
    """Windows [W, T + 1] of about `most` tokens, spread evenly over a text [N]; the first begins with `bos_id`."""
    text = np.concatenate([[bos_id], ids]).astype(np.int64)
    length = min(WINDOW, context, len(ids))
    if not length:
        return np.zeros((0, 1), np.int64)
    available = len(ids) // length
    count = min(available, max(1, most // length))
    starts = np.linspace(0, available - 1, count).round().astype(np.int64) * length
    return np.asarray(text[starts[:, None] + np.arange(length + 1)])


def generated_length(config: ModelConfig) -> int:
    """Tokens of each generated text."""
    return min(GENERATED_LENGTH, config.max_position_embeddings - 1)


@torch.no_grad()
def generate_ids(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: int,
    seed: int,
    on_token: Callable[[Tensor], None] = lambda hidden: None,
) -> Tensor | None:
    """Texts [N, T + 1] that a model generates at temperature 1, beginning with `bos_id`. `on_token` gets the hidden
    states [N, 1, C] from which each token is predicted.

    A pass that raises CutShortError ends them: then they are shorter, or None if they are too short to be of use.
    """
    generator = torch.Generator(model.cos.device).manual_seed(seed)
    ids = torch.full((texts, 1), tokenizer.bos_id, device=model.cos.device)
    caches = [LayerKVCache() for _ in range(model.config.num_hidden_layers)]
    length, head = generated_length(model.config), model.head()[: tokenizer.vocab_size]
    model.eval()
    for _ in range(length):
        try:
            hidden = model.hidden_states(ids[:, -1:], caches)
        except CutShortError:
            break
        probabilities = torch.softmax(F.linear(hidden[:, 0], head).float(), -1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
        on_token(hidden)
    return ids if ids.shape[1] > min(MIN_LENGTH, length) else None


def generate_text(model: LanguageModel, tokenizer: Tokenizer, most: int, seed: int) -> PlainText | None:
    """About `most` tokens that a model generates; fewer or None if that is cut short."""
    ids = generate_ids(model, tokenizer, max(1, most // generated_length(model.config)), seed)
    return None if ids is None else PlainText(ids.cpu().numpy(), "text that the base model generates")


def bits_per_byte(model: LanguageModel, text: PlainText, byte_lengths: NDArray[np.integer]) -> float:
    """The bits per byte of a text under a model; `byte_lengths[i]` is the length of token i in bytes."""
    model.eval()
    losses, _ = score(model, text.windows)
    size = int(byte_lengths[text.windows[:, 1:]].sum())
    return float(losses.sum(dtype=np.float64)) / math.log(2) / max(1, size)


class PlainTextComparison:
    """Scores plain text with the final model of a run and with its base model."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        text: PlainText | None,
        start: Checkpoint | None,
        settings: TrainConfig,
    ) -> None:
        """Without a text, the base model `start` generates one; without either, nothing is compared."""
        self._config, self._tokenizer, self._text, self._start = config, tokenizer, text, start
        self._seed = settings.seed

    @property
    def cost(self) -> float:
        """The cost of `scores`, as a number of tokens of an evaluation."""
        if self._start is None:
            return self._text.tokens if self._text else 0.0
        if self._text:
            return 2.0 * self._text.tokens
        return GENERATION_COST * affordable_tokens(self._config.parameters)

    def scores(
        self, best: Weights, model: LanguageModel, interruptible: Interruptible = lambda model, share: nullcontext()
    ) -> PlainTextScores | None:
        """The scores of the final weights of a run of `model`. None if there is no text, or no time for it."""
        text, before = self._text, None
        try:
            if self._start:
                text, before = self._before(self._start, model, interruptible)
            if text is None:
                return None
            after = self._score(text, model.scoring_model(best), interruptible)
        except CutShortError:
            return None
        return PlainTextScores(text.source, text.tokens, before, after)

    def _before(
        self, start: Checkpoint, run_model: LanguageModel, interruptible: Interruptible
    ) -> tuple[PlainText | None, float]:
        """The text, which the base model generates if there is none, and its score under the base model, which takes
        no memory afterwards."""
        model, text = run_model.scoring_model(start.tensors), self._text
        if text is None:
            with interruptible(model, GENERATION_SHARE):
                text = generate_text(model, self._tokenizer, affordable_tokens(self._config.parameters), self._seed)
        return text, self._score(text, model, interruptible) if text else math.nan

    def _score(self, text: PlainText, model: LanguageModel, interruptible: Interruptible) -> float:
        with interruptible(model, 1.0):
            return bits_per_byte(model, text, self._tokenizer.byte_lengths)
