"""An explanation as JSON: what `llm explain --json` prints and `llm serve` answers."""

import math

from llmcli.analysis.explain import Explanation
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.next_words import NextWords


def explanation_json(
    explanation: Explanation,
    words: NextWords,
    tokenizer: Tokenizer,
    prompt: str,
    count: int,
    layer: int | None = None,
    head: int | None = None,
) -> dict[str, object]:
    """The explanation of a prompt with `count` next tokens and words. `layer` and `head`, from 1, are those whose
    attention is given; None: all."""
    effects = explanation.ablation_effects.tolist()
    return {
        "prompt": prompt,
        "tokens": [
            {**_token_json(tokenizer, token), "effect_bits": None if math.isnan(bits) else round(bits, 6)}
            for token, bits in zip(explanation.ids, effects, strict=True)
        ],
        "tail": explanation.tail,
        "cut": explanation.truncated,
        "earlier": explanation.preceding,
        "attention": _attention_json(explanation, layer, head),
        "lens": _logit_lens_json(explanation, tokenizer),
        "next_tokens": [
            {
                **_token_json(tokenizer, token),
                "probability": round(math.exp(explanation.logprobs[token]), 6),
                "logprob": round(float(explanation.logprobs[token]), 6),
            }
            for token in explanation.most_likely(count)
        ],
        **_copies_json(explanation, tokenizer),
        "entropy_bits": round(explanation.entropy, 6),
        "next": [{"text": word.text, "probability": round(word.probability, 6)} for word in words.words[:count]],
        "unexplored": round(words.unexplored, 6),
    }


def _copies_json(explanation: Explanation, tokenizer: Tokenizer) -> dict[str, object]:
    """What the n-gram cache adds; nothing for a model that has none. Positions are those of "tokens", from 0."""
    if explanation.copies is None:
        return {}
    return {
        "copies": [
            {
                **_token_json(tokenizer, copy.token),
                "network": round(copy.network, 6),
                "probability": round(copy.probability, 6),
                "matched": copy.matched,
                "positions": [position - explanation.preceding for position in copy.positions],
            }
            for copy in explanation.copies
        ]
    }


def _attention_json(explanation: Explanation, layer: int | None, head: int | None) -> dict[str, object]:
    L, H, _, _ = explanation.attention.shape
    layers = list(range(L)) if layer is None else [layer - 1]
    heads = list(range(H)) if head is None else [head - 1]
    return {
        "layers": [layer + 1 for layer in layers],
        "heads": [head + 1 for head in heads],
        "weights": explanation.attention[layers][:, heads].astype(float).round(6).tolist(),
    }


def _token_json(tokenizer: Tokenizer, token: int) -> dict[str, object]:
    return {"id": token, "text": tokenizer.label(token)}


def _logit_lens_json(explanation: Explanation, tokenizer: Tokenizer) -> list[dict[str, object]]:
    lens = explanation.logit_lens
    return [
        {
            "layer": depth,
            "next_tokens": [
                {**_token_json(tokenizer, token), "probability": round(probability, 6)}
                for token, probability in zip(ids[-1].tolist(), probabilities[-1].tolist(), strict=True)
            ],
        }
        for depth, (ids, probabilities) in enumerate(zip(lens.ids, lens.probabilities, strict=True))
    ]
