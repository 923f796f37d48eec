"""Direct logit attribution: what each part of a model adds to the logit of a token.

The final residual stream is the sum of the last token's embedding and the outputs of all heads and
feed-forward networks. With the scale of the final norm held fixed, the logit is linear in the residual
stream, so it is a sum of contributions too ("A Mathematical Framework for Transformer Circuits", Elhage et
al. 2021). Effects through later layers are not included; to measure all effects of a part, switch it off
(comparison.py).

L, H, C, D = layers, heads, hidden size, head size.
"""

from typing import NamedTuple

import numpy as np

from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Array, Doubles


class Attribution(NamedTuple):
    """The contributions to the logit of a token. Their sum is the logit."""

    token: int
    embedding: float  # contribution of the last token's embedding, and of the bias of the last norm, if any
    heads: Doubles  # [L, H]
    mlp: Doubles  # [L], contributions of the feed-forward networks

    @property
    def logit(self) -> float:
        return self.embedding + float(self.heads.sum() + self.mlp.sum())


def attribute_logit(runtime: NumpyRuntime, residuals: Array, head_outputs: Array, token: int) -> Attribution:
    """Attribute the logit of a token, given the last token's residual stream [L + 1, C] and head outputs [L,
    H * D]."""
    direction = runtime.logit_direction(residuals[-1], token).astype(np.float64)
    streams = residuals @ direction  # [L + 1]
    heads = np.stack([runtime.head_outputs(layer, y) @ direction for layer, y in enumerate(head_outputs)])
    embedding = float(streams[0]) + runtime.logit_bias(token)
    return Attribution(token, embedding, heads, np.diff(streams) - heads.sum(1))
