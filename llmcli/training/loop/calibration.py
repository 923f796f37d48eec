"""Temperature calibration (arXiv:1706.04599, section 4.2): a trained model is overconfident about new text.

After several epochs a model predicts with more certainty than new text of the same kind justifies. On the validation
slice, which it is not trained on, one factor for all logits is fitted, the inverse of a temperature, and multiplied
into the gain of the final norm, so that every program that opens the file benefits.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmcli.models.torch.scoring import fit_inverse_temperature
from llmcli.models.torch.transformer import LanguageModel


class Calibration:
    """Fits the factor for the logits of the current weights of `model`, on windows `ids` [B, T + 1]."""

    def __init__(self, model: LanguageModel, ids: NDArray[np.int64]) -> None:
        self._model, self._ids = model, ids
        self.tokens = ids.size

    @contextlib.contextmanager
    def applied(self) -> Iterator[float]:
        """Inside, the model is calibrated. Yields the factor on the logits: 1.0 without windows."""
        if not len(self._ids):
            yield 1.0
            return
        self._model.eval()
        factor = round(fit_inverse_temperature(self._model, self._ids), 4)
        self._model.logit_factor = factor
        try:
            yield factor
        finally:
            self._model.logit_factor = 1.0
