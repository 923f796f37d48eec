"""Explanations and comparisons as JSON, for `llm explain --json` and `llm serve`."""

import math
from typing import Any

from llmcli.analysis.attribution import Attribution
from llmcli.analysis.comparison import Comparison, TextChange
from llmcli.analysis.explain import Explanation
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.metadata import Json
from llmcli.models.runtime import Array


def explanation_json(
    explanation: Explanation,
    prompt: str,
    count: int,
    layer: int | None = None,
    head: int | None = None,
    *,
    position: int | None = None,
    attention: bool = True,
) -> Json:
    """Convert an explanation to JSON, with `count` next tokens and words. `attention` selects a layer and a
    head, numbered from 1 (None: all); with `position`, only the attention of that token is included.
    Positions of copies, which only a model with an n-gram cache has, are indices in "tokens"."""

    def token_json(token: int, **values: object) -> Json:
        return {"id": token, "text": explanation.tokenizer.label(token), **values}

    lens, words = explanation.logit_lens, explanation.words
    bits = [None if math.isnan(bits) else round(bits, 6) for bits in explanation.ablation_effects.tolist()]
    effects = zip(explanation.ids, bits, strict=True)
    next_tokens = [(token, float(explanation.logprobs[token])) for token in explanation.most_likely(count)]
    result: Json = {
        "prompt": prompt,
        "tokens": [token_json(token, effect_bits=bits) for token, bits in effects],
        "tail": explanation.tail,
        "cut": explanation.truncated,
        "earlier": explanation.preceding,
        **({"attention": _attention_json(explanation.attention, layer, head, position)} if attention else {}),
        "lens": [
            {
                "layer": depth,
                "next_tokens": [
                    token_json(token, probability=round(p, 6)) for token, p in zip(*row, strict=True)
                ],
            }
            for depth, row in enumerate(zip(lens.ids.tolist(), lens.probabilities.tolist(), strict=True))
        ],
        "attribution": _attribution_json(explanation.attribution, explanation.tokenizer),
        "next_tokens": [
            token_json(token, probability=round(math.exp(logprob), 6), logprob=round(logprob, 6))
            for token, logprob in next_tokens
        ],
        "entropy_bits": round(explanation.entropy, 6),
        "next": [word.as_json(token_id=word.token) for word in words.words[:count]],
        "unexplored": round(words.unexplored, 6),
    }
    if explanation.copies is not None:
        result["copies"] = [
            token_json(
                copy.token,
                network=round(copy.network_probability, 6),
                probability=round(copy.probability, 6),
                matched=copy.matched,
                positions=[position - explanation.preceding for position in copy.positions],
            )
            for copy in explanation.copies
        ]
    return result


def _attention_json(weights: Array, layer: int | None, head: int | None, position: int | None) -> Json:
    layers = range(len(weights)) if layer is None else [layer - 1]
    heads = range(weights.shape[1]) if head is None else [head - 1]
    shown = weights[layers][:, heads]
    return {
        "layers": [layer + 1 for layer in layers],
        "heads": [head + 1 for head in heads],
        "weights": (shown if position is None else shown[:, :, position]).astype(float).round(6).tolist(),
    }


def _attribution_json(attribution: Attribution, tokenizer: Tokenizer) -> Json:
    return {
        "id": attribution.token,
        "text": tokenizer.label(attribution.token),
        "logit": round(attribution.logit, 6),
        "embedding": round(attribution.embedding, 6),
        "layers": [
            {"layer": layer, "heads": heads.round(6).tolist(), "mlp": round(float(mlp), 6)}
            for layer, (heads, mlp) in enumerate(zip(attribution.heads, attribution.mlp, strict=True), 1)
        ],
    }


def comparison_json(comparison: Comparison, prompts: tuple[str, str], count: int, **shown: Any) -> Json:
    """Convert a comparison of two predictions to JSON. The two prompts may be equal; `shown` are the other
    arguments of `explanation_json`."""
    return {
        "without": list(comparison.without),
        "kl_divergence_bits": round(comparison.kl_divergence, 6),
        "next_tokens": [
            {"id": change.token}
            | _change_json(change)
            | {"bits": None if change.bits is None else round(change.bits, 6)}
            for change in comparison.next_tokens(count)
        ],
        "next": [
            _change_json(change) | {"token_id": change.token} for change in comparison.next_words(count)
        ],
        "first": explanation_json(comparison.first, prompts[0], count, **shown),
        "second": explanation_json(comparison.second, prompts[1], count, **shown),
    }


def _change_json(change: TextChange) -> Json:
    return {"text": change.text, "first": round(change.first, 6), "second": round(change.second, 6)}
