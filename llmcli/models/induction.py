"""Fresh weights that can copy: an induction circuit, there before the first step.

What followed the last few tokens when they stood in the text before is likely to follow them again: names, terms, the
rows of a table. Heads that find that place ("induction heads", arXiv:2209.11895) come up by themselves in a training of
billions of tokens. In one of minutes on a processor they do not come up at all: a model that had just read a hundred
tokens predicted the same hundred no better the second time (tests/benchmarks/LOG.md). So they are put in by hand, into
the weights that training starts from; the graph stays as it is, and training may do with them what it wants.

The residual stream has four parts: a one, the token, codes of the K tokens before it, and what is to be copied.

    layer 0, head k < K    looks k + 1 tokens back, by position alone, and writes that token's code
    layer 1, head 0        of the K tokens up to this one finds the place after which the same K stood, and writes the
                           token that stands there
    the head               is a little in favour of that token

Numpy only. C, V = width, vocabulary; H, G, D = heads, key-value heads, head size.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig

Array = NDArray[np.float32]
BACK = 3  # tokens that are compared, if there are as many heads
NARROWEST = 48  # width that has room for the parts
CODES, COPY = 1 / 4, 1 / 6  # shares of the width, at most
ONE = 4.0  # in an embedding whose other numbers have variance 1
FAST = 0.1  # radians a token: pairs of a head that turn as fast tell places apart ...
SLOW = 0.6  # ... and this share, the slowest, hardly turn: they tell tokens apart
SHARP = 1.5  # gain of queries and keys: the square of it makes attention so much sharper
FIRM = 16.0  # factor on matrices whose products are normalised: steps change them so much less
FAVOUR = 0.05  # for what is copied, in the head's rows


def has_room(config: ModelConfig) -> bool:
    """Whether a model can hold the circuit: two layers, a head of its own, normalised queries and keys, some width."""
    return (
        config.num_hidden_layers >= 2
        and not config.tie_word_embeddings
        and config.qk_norm
        and config.hidden_size >= NARROWEST
        and config.head_dim >= 16
    )


def with_induction(config: ModelConfig, weights: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Fresh weights by name with the circuit in them; the same where there is no room for it. The embedding is taken
    to be of variance 1."""
    found = {name: weight.copy() for name, weight in weights.items()}
    if not has_room(config):
        return found
    rng = np.random.default_rng([seed, 1])
    C, D = config.hidden_size, config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads  # query heads that share keys and values
    frequencies = np.array(config.rope_frequencies())  # of pair i, which is the numbers i and i + D / 2 of a head
    half = D // 2
    slow = np.arange(half - round(SLOW * half), half)
    slow = rng.permutation(np.concatenate([slow, slow + half]))
    back = min(BACK, config.num_key_value_heads)
    code = min(len(slow), int(C * CODES)) // back  # numbers in the code of a token
    copy = min(int(C * COPY), D)
    token = slice(1, C - copy - back * code)
    copied = slice(token.stop, token.stop + copy)
    codes = [slice(C - (back - k) * code, C - (back - k - 1) * code) for k in range(back)]
    width = token.stop - token.start

    embedding = found["model.embed_tokens.weight"]
    embedding[:, 0] = ONE
    embedding[:, token.stop :] = 0
    to_code, to_copy = (
        (rng.standard_normal((rows, width)) / np.sqrt(width)).astype(np.float32) for rows in (code, copy)
    )

    q, k, v, o, gains = _attention(found, 0)
    fast = np.flatnonzero(frequencies >= FAST)
    for gain in gains:
        gain[np.concatenate([fast, fast + half])] = SHARP
    for n in range(back):
        query, key = slice(n * group * D, (n * group + 1) * D), slice(n * D, (n + 1) * D)
        q[query], k[key], v[key] = 0, 0, 0
        turn = frequencies[fast] * (n + 1)
        q[query.start + fast, 0] = FIRM
        k[key.start + fast, 0], k[key.start + half + fast, 0] = FIRM * np.cos(turn), FIRM * np.sin(turn)
        v[key.start : key.start + code, token] = to_code
        o[codes[n], query.start : query.start + code] = np.eye(code)

    q, k, v, o, gains = _attention(found, 1)
    for gain in gains:
        gain[slow] = SHARP
    q[:D], k[:D], v[:D] = 0, 0, 0
    recent = [(token, to_code), *((place, np.eye(code)) for place in codes)]  # this token and those before it
    for n, ((part, read), place) in enumerate(zip(recent, codes, strict=False)):
        rows = slow[n * code : (n + 1) * code]
        q[rows, part] = FIRM * read
        k[rows, place] = FIRM * np.eye(code)
    v[:copy, token] = to_copy
    o[copied, :copy] = np.eye(copy)
    found["lm_head.weight"][:, copied] = FAVOUR * embedding[:, token] @ to_copy.T
    return found


def _attention(weights: Mapping[str, Array], layer: int) -> tuple[Array, Array, Array, Array, tuple[Array, Array]]:
    """The matrices of queries, keys, values and output, and the gains of queries and keys."""
    start = f"model.layers.{layer}.self_attn."
    q, k, v, o = (weights[f"{start}{name}_proj.weight"] for name in "qkvo")
    return q, k, v, o, (weights[f"{start}q_norm.weight"], weights[f"{start}k_norm.weight"])
