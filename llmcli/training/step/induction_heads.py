"""Training the induction heads that were written into the initial weights (models/induction.py).

The training text rewards copying less than new text does, because the model knows its names from other
windows, too; and random changes of the weights disturb the heads, which depend on exact matches. So their
weights have a lower learning rate than other matrices. And a token's output embedding follows its input
embedding, which changes fast, where it recognizes a copy of that token.

V, T, S = vocabulary size, sizes of the spaces of tokens and of copied tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from llmcli.models.induction import Subspaces, written_parts
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.planning import recipe
from llmcli.training.step.muon import own_part


class InductionHeads:
    """The induction heads of a model in training."""

    def __init__(self, model: LanguageModel) -> None:
        parameters = dict(model.named_parameters())
        self._space = Subspaces.of(model.config, np.random.default_rng(0))
        self._embedding = parameters["model.embed_tokens.weight"]
        self._output = parameters["lm_head.weight"]
        self._values = parameters["model.layers.1.self_attn.v_proj.weight"]
        # factors of the learning rate, for each row [m, 1] of a matrix [m, n] or for each column [1, n]
        self.rates: dict[nn.Parameter, Tensor] = {}
        for name, parts in written_parts(model.config).items():
            matrix = parameters[name]
            axis = 1 if name.endswith("o_proj.weight") else 0
            rates = torch.ones(matrix.shape[axis], device=matrix.device)
            for part in parts:
                rates[part] = recipe.INDUCTION_RATE
            self.rates[matrix] = rates.unsqueeze(1 - axis)

    @contextmanager
    def following(self) -> Iterator[None]:
        """A context that updates the embeddings. Afterwards, each output embedding changes as the copy of its
        token has changed, times the scale at which it contains that copy."""
        with torch.no_grad():
            values = getattr(self._values, "full_tensor", lambda: self._values)()
            copy = values[self._space.values, self._space.token]  # [S, T]
            embedding = own_part(self._embedding)[:, self._space.token]
            before = embedding @ copy.T  # [V, S], of this process's tokens
            yield
            output = own_part(self._output)[:, self._space.copied]
            square = before.square().sum(1, keepdim=True).clamp_min(torch.finfo(before.dtype).tiny)
            scale = (output * before).sum(1, keepdim=True) / square
            output += scale * (embedding @ copy.T - before)
