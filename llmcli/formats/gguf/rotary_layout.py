"""The row order of query and key projections, in which programs differ.

Rotary embeddings rotate pairs of a head's D dimensions. Hugging Face pairs the two halves, (i, i + D/2); Meta's Llama,
and llama.cpp for its architecture "llama", pair neighbors, (2i, 2i + 1). With the rows permuted accordingly, the result
is the same. This module permutes the rows of weights [heads * D, inputs] and biases [heads * D].
"""

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig


def interleave(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """From pairs of halves to pairs of neighbors.

    >>> interleave(np.arange(8, dtype=np.float32), heads=2).tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    half = rows.shape[0] // heads // 2
    pairs = rows.reshape(heads, 2, half, *rows.shape[1:])
    return np.reshape(pairs.swapaxes(1, 2), rows.shape)


def deinterleave(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """From pairs of neighbors to pairs of halves.

    >>> deinterleave(interleave(np.arange(8, dtype=np.float32), heads=2), heads=2).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    half = rows.shape[0] // heads // 2
    pairs = rows.reshape(heads, half, 2, *rows.shape[1:])
    return np.reshape(pairs.swapaxes(1, 2), rows.shape)


def heads(config: ModelConfig) -> dict[str, int]:
    """The projections with rotary positions -> their number of heads."""
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
