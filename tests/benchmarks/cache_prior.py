"""The prior of the weights of the n-gram cache (llmcli/training/data/cache_fit.py, PRIOR); its texts are in no table.

    python -m tests.benchmarks.cache_prior TEXT... [--steps 400] [--models DIR]

Trains a model on each text, unless it is in DIR. The weights of each text are fitted on the first half of what was held
out of it, hardly drawn to any prior; their mean over the texts is the new prior. The effect is measured on the second
halves, each with the mean over the other texts: with weights fitted on 2,000 tokens as at the end of a short run, drawn
to it or to the present prior, and with the two priors themselves.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmcli.data.sources import read_corpus
from llmcli.data.tokens.tokens import tokenize
from llmcli.evaluation.training_text import trained_part, untrained_part
from llmcli.formats import loading
from llmcli.formats.cache_weights import CacheWeights
from llmcli.models.ngram_cache import ORDERS, Matches, find_matches, gates_of, shares_of_mixture, token_shares
from llmcli.models.torch.runtime import score
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.cache_fit import HISTORIES, PRIOR, fit_weights
from tests.benchmarks.llm_command import llm

WINDOW = 512  # tokens
HISTORY = max(HISTORIES)  # before them
NEUTRAL = ((-1.5, 0.0, 0.0, 0.0),) * ORDERS  # from where the weights of a text are fitted, with ...
STRENGTH, STEPS = 1.0, 400  # ... a weak pull to it
SHORT_FIT = 2000  # tokens
DIGITS = 0.05  # to which a prior is rounded


@dataclass(frozen=True)
class Measured:
    """Consecutive tokens: their losses under the network in nats, and their matches in the text before them."""

    network: NDArray[np.float64]
    matches: Matches
    bytes: int

    def part(self, start: int, end: int) -> "Measured":
        size = round(self.bytes * (end - start) / len(self.network))
        return Measured(self.network[start:end], self.matches[:, start:end], size)

    def bits_per_byte(self, weights: CacheWeights | None) -> float:
        nats = self.network
        if weights:
            network_share, rest = shares_of_mixture(gates_of(self.matches, weights), token_shares(self.matches))
            nats = -np.log(network_share * np.exp(-nats) + rest)
        return float(nats.sum() / np.log(2) / self.bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--models", type=Path, default=Path())
    options = parser.parse_args()
    measured = {
        text.stem: measure(text, options.models / f"{text.stem}.safetensors", options.steps) for text in options.texts
    }
    fits = {name: fit(one.part(0, len(one.network) // 2)) for name, one in measured.items()}
    print("text | network | present prior, fitted | others' mean, fitted | own weights")
    for name, one in measured.items():
        half = len(one.network) // 2
        short, test = one.part(half - SHORT_FIT, half), one.part(half, len(one.network))
        others = mean([weights for other, weights in fits.items() if other != name])
        figures = [test.bits_per_byte(None)]
        for prior in (CacheWeights(PRIOR), others):
            fitted = fit_weights(short.network, short.matches, prior.orders)
            figures += [test.bits_per_byte(prior), test.bits_per_byte(fitted)]
        figures.append(test.bits_per_byte(fits[name]))
        print(name, *(f"{bits:.4f}" for bits in figures), sep=" | ", flush=True)
    for name, weights in {**fits, "mean": mean(list(fits.values()))}.items():
        print(name, *weights.orders, sep="\n    ")


def measure(text: Path, path: Path, steps: int) -> Measured:
    """What was held out of a text, under the model that is trained on the rest."""
    if not path.exists():
        llm("train", str(text), "--steps", str(steps), "-o", str(path), "-q")
    model = loading.load(path)
    tokenizer = loading.open_tokenizer(model)
    corpus = read_corpus([str(text)])
    before = tokenize(trained_part(corpus, [model.record]).texts(), tokenizer)
    held_out = tokenize(untrained_part(corpus, [model.record]).texts(), tokenizer)
    ids = np.concatenate([before[-HISTORY:], held_out])
    windows = np.lib.stride_tricks.sliding_window_view(ids[HISTORY - 1 :], WINDOW + 1)[::WINDOW].astype(np.int64)
    network = LanguageModel(model.config)
    network.load_arrays(model.tensors)
    network.eval()
    losses, _ = score(network, windows)
    count = losses.size
    size = sum(len(tokenizer.token_bytes[i]) for i in ids[HISTORY : HISTORY + count].tolist())
    return Measured(
        losses.reshape(-1).astype(np.float64), find_matches(ids, ORDERS)[:, HISTORY : HISTORY + count], size
    )


def fit(part: Measured) -> CacheWeights:
    weights = fit_weights(part.network, part.matches, NEUTRAL, STRENGTH, STEPS)
    assert weights is not None
    return weights


def mean(weights: list[CacheWeights]) -> CacheWeights:
    """Rounded to DIGITS."""
    values = np.mean([one.orders for one in weights], axis=0)
    rounded = (np.round(values / DIGITS) * DIGITS).round(2)
    return CacheWeights(tuple(map(tuple, rounded.tolist())))


if __name__ == "__main__":
    main()
