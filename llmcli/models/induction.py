"""Initialization with induction heads, so that a new model can copy from its context.

A token that followed the last few tokens earlier in the text is likely to follow them again: names, terms,
rows of a table. Induction heads (arXiv:2209.11895) find that position. They emerge over billions of training
tokens, but not in minutes on a CPU (tests/benchmarks/LOG.md), so they are written into the initial weights.
The architecture does not change, and these weights are trained, too (training/step/induction_heads.py).

The residual stream is divided into one constant dimension, the token, codes of the K tokens before it, and
the copied token.

    layer 0, heads 0 to K - 1   head k attends to the token k + 1 positions back, by position alone, and
                                writes its code
    layer 1, head 0             attends to the position that follows an earlier occurrence of the last K
                                tokens, and copies the token there
    the output embedding        raises the logit of that token slightly

C, D = hidden size, head size.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from llmcli.config import ModelConfig
from llmcli.models.runtime import Array, Ints

MATCHED_TOKENS = 3  # K (at most the number of key-value heads)
# smaller sizes have no space for the codes
MIN_HIDDEN_SIZE = 48
MIN_HEAD_SIZE = 16
# maximum shares of the hidden size for the codes and for the copied token
CODE_SHARE = 1 / 4
COPY_SHARE = 1 / 6
CONSTANT = 4.0  # value of the constant dimension; other entries of embeddings have variance 1
POSITION_FREQUENCY = 0.1  # radians per token: rotary pairs at least this fast distinguish positions ...
CONTENT_SHARE = 0.6  # ... and this share of the pairs, the slowest ones, compare tokens
NORM_GAIN = 1.5  # gain of queries and keys; attention scores grow with its square
# scale of matrices whose products are normalized. It cancels out, but makes training steps relatively smaller
NORMALIZED_SCALE = 16.0
COPY_LOGIT = 0.05  # scale of the copied token in the output embedding


def with_stronger_copies(
    config: ModelConfig, weights: Mapping[str, Array], factor: float
) -> dict[str, Array]:
    """Return trained weights with the output of the induction head multiplied by `factor`. The model knows
    the training text from other windows too, so it learns to copy less than is best for new text."""
    name = "model.layers.1.self_attn.o_proj.weight"
    output = weights[name].copy()
    output[:, : config.head_dim] *= factor
    return {**weights, name: output}


def supports_induction(config: ModelConfig) -> bool:
    """Return whether a model is large enough for induction heads."""
    has_space = config.hidden_size >= MIN_HIDDEN_SIZE and config.head_dim >= MIN_HEAD_SIZE
    return (
        config.num_hidden_layers >= 2
        and not config.tie_word_embeddings
        and config.architecture.qk_norm
        and has_space
    )


def _matched_tokens(config: ModelConfig) -> int:
    """Return K."""
    return min(MATCHED_TOKENS, config.num_key_value_heads)


def _group_size(config: ModelConfig) -> int:
    """Return the number of query heads that share keys and values."""
    return config.num_attention_heads // config.num_key_value_heads


def initialized_heads(config: ModelConfig) -> dict[str, str]:
    """Describe the heads that `write_induction_heads` writes, by layer and head, counted from 1: "2.1"."""
    group = _group_size(config)
    K = _matched_tokens(config)
    previous = {f"1.{n * group + 1}": f"previous-token head, {n + 1} back" for n in range(K)}
    return previous | {"2.1": "induction head"}


def written_parts(config: ModelConfig) -> dict[str, list[slice]]:
    """Return the matrices of attention that `write_induction_heads` writes by name, each with its rows (of
    `o_proj`, the columns) that belong to the heads."""
    D = config.head_dim
    group = _group_size(config)
    parts = {}
    for layer, heads in enumerate((_matched_tokens(config), 1)):
        for name, step in {"q": group, "k": 1, "v": 1, "o": group}.items():
            starts = [n * step * D for n in range(heads)]
            parts[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = [slice(i, i + D) for i in starts]
    return parts


def write_induction_heads(config: ModelConfig, weights: dict[str, Array], seed: int) -> None:
    """Write induction heads into fresh weights (by name) whose embedding has variance 1."""
    rng = np.random.default_rng([seed, 1])
    space = Subspaces.of(config, rng)
    token_size = space.token.stop - space.token.start
    # random projections of the token: [code size, token size], [copy size, token size]
    encode, copy = (
        (rng.standard_normal((size, token_size)) / np.sqrt(token_size)).astype(np.float32)
        for size in (space.code_size, space.values.stop)
    )
    embedding = weights["model.embed_tokens.weight"]
    embedding[:, 0] = CONSTANT
    embedding[:, space.token.stop :] = 0
    _write_previous_token_heads(weights, config, space, encode)
    _write_induction_head(weights, config, space, encode, copy)
    weights["lm_head.weight"][:, space.copied] = COPY_LOGIT * embedding[:, space.token] @ copy.T


class Subspaces(NamedTuple):
    """Slices of the residual stream, and rows in a head."""

    token: slice  # also the columns of the embedding that make up the token
    copied: slice  # also the columns of the output embedding that recognize it
    codes: list[slice]  # K slices, for the tokens 1, 2, ... K positions back
    code_size: int
    content: Ints  # shuffled rows of a head that compare tokens

    @property
    def values(self) -> slice:
        """The rows of the induction head's values that map a token to its copy."""
        return slice(self.copied.stop - self.copied.start)

    @classmethod
    def of(cls, config: ModelConfig, rng: np.random.Generator) -> "Subspaces":
        """Return the spaces for a model; only `content` depends on `rng`."""
        C, D = config.hidden_size, config.head_dim
        half = D // 2
        slowest = np.arange(half - round(CONTENT_SHARE * half), half)  # rotary pairs: rows i and i + D/2
        content = rng.permutation(np.concatenate([slowest, slowest + half]))
        K = _matched_tokens(config)
        code_size = min(len(content), int(C * CODE_SHARE)) // K
        copy_size = min(int(C * COPY_SHARE), D)
        token = slice(1, C - copy_size - K * code_size)
        copied = slice(token.stop, token.stop + copy_size)
        codes = [slice(C - (K - k) * code_size, C - (K - k - 1) * code_size) for k in range(K)]
        return cls(token, copied, codes, code_size, content)


def _write_previous_token_heads(
    weights: dict[str, Array], config: ModelConfig, space: Subspaces, encode: Array
) -> None:
    """Write layer 0: query head k of key-value group k attends k + 1 positions back and writes that token's
    code."""
    D = config.head_dim
    half = config.head_dim // 2
    group = _group_size(config)
    frequencies = np.array(config.rope_frequencies())
    fast = np.flatnonzero(frequencies >= POSITION_FREQUENCY)
    q, k, v, o, gains = _attention(weights, 0)
    for gain in gains:
        gain[np.concatenate([fast, fast + half])] = NORM_GAIN
    for n, code in enumerate(space.codes):
        query = slice(n * group * D, (n * group + 1) * D)
        key = slice(n * D, (n + 1) * D)
        q[query] = 0
        k[key] = 0
        v[key] = 0
        angles = frequencies[fast] * (n + 1)
        q[query.start + fast, 0] = NORMALIZED_SCALE
        k[key.start + fast, 0] = NORMALIZED_SCALE * np.cos(angles)
        k[key.start + half + fast, 0] = NORMALIZED_SCALE * np.sin(angles)
        v[key.start : key.start + space.code_size, space.token] = encode
        o[code, query.start : query.start + space.code_size] = np.eye(space.code_size)


def _write_induction_head(
    weights: dict[str, Array], config: ModelConfig, space: Subspaces, encode: Array, copy: Array
) -> None:
    """Write layer 1, head 0: queries are the codes of the last K tokens, keys the codes of the K tokens
    before a position."""
    D = config.head_dim
    size = space.code_size
    q, k, v, o, gains = _attention(weights, 1)
    for gain in gains:
        gain[space.content] = NORM_GAIN
    q[:D] = 0
    k[:D] = 0
    v[:D] = 0
    identity = np.eye(size, dtype=np.float32)
    # this token and the previous ones
    recent = [
        (space.token, encode),
        *((code, identity) for code in space.codes),
    ]
    for n, ((part, read), code) in enumerate(zip(recent, space.codes, strict=False)):
        rows = space.content[n * size : (n + 1) * size]
        q[rows, part] = NORMALIZED_SCALE * read
        k[rows, code] = NORMALIZED_SCALE * identity
    v[: len(copy), space.token] = copy
    o[space.copied, : len(copy)] = np.eye(len(copy))


def _attention(
    weights: Mapping[str, Array], layer: int
) -> tuple[Array, Array, Array, Array, tuple[Array, Array]]:
    """Return a layer's projections of queries, keys, values and output, and the gains of queries and keys."""
    prefix = f"model.layers.{layer}.self_attn."
    q, k, v, o = (weights[f"{prefix}{name}_proj.weight"] for name in "qkvo")
    return q, k, v, o, (weights[f"{prefix}q_norm.weight"], weights[f"{prefix}k_norm.weight"])
