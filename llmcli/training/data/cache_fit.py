"""The validation slice of a text, and fitting the weights of the n-gram cache (models/ngram_cache.py), on
that slice at the end of a run or on a text that the user names.

The slice is an evenly spread part of the training text that is not trained on. It selects the weights to
keep, so that the held-out text is used only for the final evaluation.

The cache's weights minimize the loss of the mixture on the slice. Each window counts twice: once with the
preceding text in the cache, once with an empty cache, as at the start of a prompt. A few thousand tokens are
enough for twenty weights thanks to a prior: the weights fitted on other texts, scaled down by a common factor
if that fits better.

N, K = tokens, orders.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmcli.config import EVALUATION_CONTEXT
from llmcli.data.text.corpus import Corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.batches import AnyIds, TokensWithoutSpans
from llmcli.data.tokens.tokens import tokenize
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import FEATURES, CacheWeights
from llmcli.models.ngram_cache import MAX_GATE, ORDERS, Matches, find_matches, gate_features, token_shares
from llmcli.models.runtime import Ints
from llmcli.models.torch.runtime import score
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.planning import recipe

MIN_TOKENS = 1000  # minimum for fitting the weights; with fewer, a model gets no cache
FIT_TOKENS = 16_384  # maximum number of scored tokens in a text that the user names
FIT_SHARE = 0.5  # maximum share of that text: the rest precedes the scored tokens and can be copied
MAX_BYTES = 20_000_000  # maximum read from that text
MIN_GAIN = 0.002  # minimum relative gain in loss from the cache ...
MARGIN = 3.0  # ... and minimum gain in standard errors: a smaller gain may be chance
HISTORIES = (8192, 0)  # tokens before a window
# The mean weights for four texts that are not in any published table: tests/benchmarks/LOG.md, "The prior of
# the n-gram cache"
PRIOR = (
    (-1.25, -0.25, -0.6, -0.1),
    (-0.1, -0.7, -1.55, -0.15),
    (-0.45, -0.9, -1.7, -0.15),
    (-1.45, -0.6, -1.2, -0.05),
    (-0.6, -0.8, -1.65, 0.0),
)
PRIOR_STRENGTH = 10.0  # nats per squared distance from the prior
# offset of all gates (logits), not penalized: next to a strong network, the cache is nearly off
OFFSETS = range(0, -9, -1)
# Adam's settings
STEPS = 40
LEARNING_RATE = 0.05  # falls linearly to 0
BETAS = (0.9, 0.98)


def slice_window(count: int, context: int) -> int:
    """Return the number of inputs per window in a slice of `count` tokens.

    >>> slice_window(5300, 1024), slice_window(20_000, 1024), slice_window(66, 32)
    (512, 1024, 32)
    """
    length = context
    while (
        length // 2 >= recipe.SHORTEST_VALIDATION_WINDOW
        and count // (length + 1) < recipe.MIN_VALIDATION_WINDOWS
    ):
        length //= 2
    return length


def window_starts(tokens: int, windows: int, length: int, *, at_end: bool = False) -> Ints:
    """Return the start positions of the windows that `reserve_tokens` takes from a text of `tokens` tokens.

    >>> window_starts(100, 3, 9).tolist(), window_starts(100, 3, 9, at_end=True).tolist()
    ([15, 45, 75], [70, 80, 90])
    """
    if at_end:
        return tokens - np.arange(windows, 0, -1, dtype=np.int64) * (length + 1)
    return ((np.arange(windows) + 0.5) / windows * (tokens - length - 1)).astype(np.int64)


@dataclass(frozen=True)
class ValidationText:
    """The windows that `reserve_tokens` takes from a text."""

    tokens: AnyIds  # the tokens of the whole text
    starts: Ints  # [B]
    windows: Ints  # [B, T + 1]
    separator: int

    @property
    def is_sufficient(self) -> bool:
        """Return whether there are enough tokens for a fit."""
        return self.windows.size >= MIN_TOKENS

    def fit_cache(self, model: LanguageModel) -> CacheWeights | None:
        """Fit weights for a model; None if the cache does not help."""
        model.eval()
        network, _ = score(model, self.windows)
        T = self.windows.shape[1] - 1
        parts = []
        for history, start in itertools.product(HISTORIES, self.starts.tolist()):
            first = max(0, start - history)
            text = self.tokens[np.arange(first, start + T + 1)]
            # the predicted tokens
            parts.append(find_matches(text, ORDERS, self.separator)[:, start + 1 - first :])
        return fit_weights(np.tile(network.reshape(-1), len(HISTORIES)), np.concatenate(parts, axis=1))


def reserve_tokens(
    tokens: AnyIds, count: int, context: int, separator: int, *, at_end: bool = False
) -> tuple[TokensWithoutSpans, ValidationText]:
    """Return (training tokens, about `count` validation tokens in windows of at most `context`). The windows
    are spread over the whole text, because its end may be untypical (for example, with names that only occur
    in the last chapter). With `at_end` they are the end of the text, which measures the loss on new text.
    `separator` is the token between documents."""
    length = slice_window(count, context)
    starts = window_starts(len(tokens), count // (length + 1), length, at_end=at_end)
    windows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    return TokensWithoutSpans(tokens, starts, length + 1), ValidationText(tokens, starts, windows, separator)


def fit_cache(model: Checkpoint, tokenizer: Tokenizer, text: Corpus) -> CacheWeights | None:
    """Fit weights for an existing model on a text; None if a cache does not help. Raises LLMError for a short
    text."""
    tokens = tokenize(text.sample(MAX_BYTES).texts(), tokenizer)
    count = min(FIT_TOKENS, int(FIT_SHARE * len(tokens)))
    if count < MIN_TOKENS:
        raise LLMError(
            f"`fit_cache`: {len(tokens):,} tokens of text are too few; "
            f"give at least {round(MIN_TOKENS / FIT_SHARE):,}"
        )
    context = min(EVALUATION_CONTEXT, model.config.max_position_embeddings)
    _, validation = reserve_tokens(tokens, count, context, tokenizer.eos_id)
    network = LanguageModel(model.config)
    network.load_arrays(model.tensors)
    return validation.fit_cache(network)


def fit_weights(network: NDArray[np.floating], matches: Matches) -> CacheWeights | None:
    """Minimize the loss of the mixture, given the network's losses in nats [N]; None if the gain may be
    chance."""
    features = torch.from_numpy(gate_features(matches))  # [N, K, FEATURES]
    known = torch.from_numpy(matches[0] > 0)
    shares = torch.from_numpy(token_shares(matches))
    probabilities = torch.exp(-torch.from_numpy(network.astype(np.float64)))
    first = torch.tensor([1.0] + [0.0] * (FEATURES - 1), dtype=torch.float64)
    priors = [torch.tensor(PRIOR, dtype=torch.float64) + offset * first for offset in OFFSETS]

    def losses(weights: Tensor) -> Tensor:
        """Compute the losses of the mixture in nats [N]."""
        gates = (torch.sigmoid((features * weights).sum(-1)) * known).clamp(max=MAX_GATE)
        mixed = probabilities
        for gate, share in zip(gates.T, shares.T, strict=True):
            mixed = (1 - gate) * mixed + gate * share
        return -torch.log(mixed)

    prior = min(priors, key=lambda weights: float(losses(weights).sum()))
    weights = prior.clone()
    moments = torch.zeros(2, *prior.shape, dtype=torch.float64)
    # Adam (arXiv:1412.6980); torch.optim would take a second to import its compiler
    for step in range(STEPS):
        weights.requires_grad_()
        total = losses(weights).sum()
        total = total + PRIOR_STRENGTH * ((weights - prior) ** 2).sum()
        (gradient,) = torch.autograd.grad(total, weights)
        moments[0].lerp_(gradient, 1 - BETAS[0])
        moments[1].lerp_(gradient**2, 1 - BETAS[1])
        mean, square = (
            moment / (1 - beta ** (step + 1)) for moment, beta in zip(moments, BETAS, strict=True)
        )
        weights = (weights - LEARNING_RATE * (1 - step / STEPS) * mean / (square.sqrt() + 1e-8)).detach()
    gains = network - losses(weights).numpy()
    error = float(gains.std()) * math.sqrt(len(gains))
    if not gains.sum() > max(MIN_GAIN * network.sum(dtype=np.float64), MARGIN * error):
        return None
    return CacheWeights(tuple(tuple(round(value, 4) for value in row) for row in weights.tolist()))
