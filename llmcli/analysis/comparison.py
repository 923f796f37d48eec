"""Two predictions side by side: with and without some parts of a model, or after two prompts.

V = vocabulary size.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from llmcli import units
from llmcli.analysis.explain import SHOWN_TOKENS, Explanation, explain
from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import brief, usage
from llmcli.generation.next_words import NextWord
from llmcli.generation.token_healing import Prompt
from llmcli.models.ngram_runtime import NgramRuntime
from llmcli.models.numpy_runtime import ModelPart, NumpyRuntime
from llmcli.models.runtime import Doubles, Runtime
from llmcli.notebook import table

CACHE = "cache"  # the n-gram cache in `without`
MIN_PROBABILITY = 1e-9  # assumed for a text that the search reached in only one of two predictions


class TextChange(NamedTuple):
    """The text of a next token or word, and its probability in two predictions."""

    text: str
    first: float
    second: float
    # for a word, its most likely first token; None: no single token spells the text
    token: int | None = None

    @property
    def bits(self) -> float | None:
        """Change of the log probability in bits; None if the search found the text in only one prediction."""
        return math.log2(self.second / self.first) if self.first > 0 and self.second > 0 else None


@dataclass(frozen=True)
class Comparison:
    """Two predictions: with and without the parts `without`, or after two prompts (both without these
    parts)."""

    first: Explanation
    second: Explanation
    without: tuple[str, ...]  # "2": layer 2, "2.3": its head 3, "cache": the n-gram cache
    tokenizer: Tokenizer

    @property
    def kl_divergence(self) -> float:
        """KL divergence of the second prediction from the first in bits, over the text of the next token."""
        p, q = self._probabilities / self._probabilities.sum(-1, keepdims=True)
        q = np.where(q > 0, q, MIN_PROBABILITY)
        return max(0.0, float((p[p > 0] * np.log2(p[p > 0] / q[p > 0])).sum()))

    def next_tokens(self, count: int) -> list[TextChange]:
        """Return the `count` most likely next tokens of the first prediction, then the tokens of the second
        that are not among them."""
        p, q = self._probabilities
        V = len(self.tokenizer.token_bytes)
        ranked = [np.argsort(-row, kind="stable")[:count].tolist() for row in (p, q)]
        return [
            TextChange(
                self.tokenizer.label(i) if i < V else self._others[i - V].decode("utf-8", "replace"),
                float(p[i]),
                float(q[i]),
                i if i < V else None,
            )
            for i in dict.fromkeys(ranked[0] + ranked[1])
        ]

    def next_words(self, count: int) -> list[TextChange]:
        """Like `next_tokens`, for words; "…" marks a word that continues the prompt's last one."""
        first, second = (
            {f"…{word.text}" if word.continues else word.text: word for word in words.words}
            for words in (self.first.words, self.second.words)
        )
        none = NextWord("", 0.0)
        known = second | first
        return [
            TextChange(
                text, first.get(text, none).probability, second.get(text, none).probability, known[text].token
            )
            for text in dict.fromkeys([*first][:count] + [*second][:count])
        ]

    def __repr__(self) -> str:
        return f"<Comparison of {self.first!r} and {self.second!r}>"

    def _repr_html_(self) -> str:
        changes = [
            (change.text, f"{change.first:.3f}", f"{change.second:.3f}")
            for change in self.next_tokens(SHOWN_TOKENS)
        ]
        return table(["next token", "first", "second"], changes)

    @cached_property
    def _others(self) -> list[bytes]:
        return list(dict.fromkeys(self.first.prediction.other_texts + self.second.prediction.other_texts))

    @cached_property
    def _probabilities(self) -> Doubles:
        """The probabilities [2, V + others] of the texts of all tokens, then of `_others`."""
        V = len(self.tokenizer.token_bytes)
        rows = np.zeros((2, V + len(self._others)))
        for row, prediction in zip(rows, (self.first.prediction, self.second.prediction), strict=True):
            columns = [*range(V), *(V + self._others.index(text) for text in prediction.other_texts)]
            row[columns] = np.exp(prediction.text_logprobs)
        return rows


def compare(
    network: NumpyRuntime,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    other: Prompt | None = None,
    without: Sequence[str] = (),
    token: int | None = None,
    predictor: Runtime | None = None,
    **options: Any,
) -> Comparison:
    """Compare a model with and without some parts, or `prompt` with the `other` prompt (both without these
    parts). If parts are switched off, both explanations are for the same `token`, by default the prediction
    of the whole model; the explanation of the `other` prompt is for the prediction after that prompt. See
    `explain` for the other arguments."""
    without = tuple(dict.fromkeys(without))  # no duplicates
    whole = network, predictor or network
    reduced = _without(*whole, without) if without else whole
    options = {"evaluations": None} | options
    runtime, predictor = whole if other is None else reduced
    first = explain(runtime, tokenizer, prompt, token=token, predictor=predictor, **options)
    place = first.place if other is None else None
    runtime, predictor = reduced
    second = explain(
        runtime, tokenizer, prompt if other is None else other, place=place, predictor=predictor, **options
    )
    return Comparison(first, second, without, tokenizer)


def _without(network: NumpyRuntime, predictor: Runtime, names: Sequence[str]) -> tuple[NumpyRuntime, Runtime]:
    """Return a network without some parts, and its predictor."""
    parts = parse_parts(names, network.config, has_cache=predictor is not network)
    reduced = network.without(parts)
    if predictor is network:
        return reduced, reduced
    if predictor.parameters != network.parameters:
        raise usage("`without` needs a single model, found an ensemble; name the file of one of its models")
    assert isinstance(predictor, NgramRuntime)
    if CACHE in names:
        return reduced, reduced
    return reduced, NgramRuntime(reduced, predictor.weights)


def parse_parts(names: Sequence[str], config: ModelConfig, *, has_cache: bool) -> list[ModelPart]:
    """Parse names of parts, except CACHE, which is not a part of the network. Raises LLMError for a part that
    the model does not have."""
    if CACHE in names and not has_cache:
        raise usage(f"the model has no n-gram cache to switch off; leave out `without` {CACHE}")
    return [parse_part(name, config) for name in names if name != CACHE]


def parse_part(name: str, config: ModelConfig, setting: str = "without") -> ModelPart:
    """Parse the name of a layer ("2") or a head ("2.3": head 3 of layer 2). Raises LLMError if it does not
    exist."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    match = re.fullmatch(r"0*([0-9]{1,6})(?:\.0*([0-9]{1,6}))?", name) if isinstance(name, str) else None
    layer, head = (int(match[1]), int(match[2] or 1)) if match else (0, 0)
    if not match or not (1 <= layer <= layers and 1 <= head <= heads):
        counted = units.count(heads, "head")
        size = f"layers 1 to {layers}, with {counted} each" if layers > 1 else f"one layer, with {counted}"
        raise usage(
            f"`{setting}` names a layer, as in 1, or a head of a layer, as in 1.{heads}; the model has "
            f"{size}, found {brief(name)}"
        )
    return layer - 1, head - 1 if match[2] else None
