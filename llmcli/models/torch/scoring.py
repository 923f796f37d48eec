"""Token losses of a torch model, and the temperature that calibrates it.

B, T, N, V = batch, tokens, B * T, vocabulary size.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llmcli.models.runtime import Scores
from llmcli.models.torch.transformer import LanguageModel

LOGITS_AT_ONCE = 1 << 25  # logits of the windows that pass through the model together
CPU_BLOCK_LOGITS = 1 << 23  # logits in memory at once on a CPU: 32 MB, up to four times while temperatures are tried
INVERSE_TEMPERATURES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # evenly spaced


@torch.inference_mode()
def score(model: LanguageModel, ids: NDArray[np.int64]) -> Scores:
    """Token losses as in `Scorer.score`. Dropout is off only if the model is in eval mode."""
    losses, correct = [], []
    for logits, targets in _logits_and_targets(model, ids):
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        correct.append(logits.argmax(dim=-1) == targets)
    shape = (ids.shape[0], ids.shape[1] - 1)
    return torch.cat(losses).view(shape).cpu().numpy(), torch.cat(correct).view(shape).cpu().numpy()


@torch.inference_mode()
def fit_inverse_temperature(model: LanguageModel, ids: NDArray[np.int64]) -> float:
    """The factor on all logits that minimizes the loss of windows ids [B, T + 1]: temperature scaling
    (arXiv:1706.04599, section 4.2). The loss is convex in it; a parabola through the best factor tried and its
    neighbors is minimized."""
    losses = torch.zeros(len(INVERSE_TEMPERATURES), dtype=torch.float64)
    for logits, targets in _logits_and_targets(model, ids):
        losses += torch.stack(
            [F.cross_entropy(logits * factor, targets, reduction="sum") for factor in INVERSE_TEMPERATURES]
        ).cpu()
    best = min(max(int(losses.argmin()), 1), len(INVERSE_TEMPERATURES) - 2)
    below, at, above = losses[best - 1 : best + 2].tolist()
    offset = 0.5 * (below - above) / max(below - 2 * at + above, 1e-9)  # of the minimum from `best`, in steps
    step = INVERSE_TEMPERATURES[1] - INVERSE_TEMPERATURES[0]
    return min(max(INVERSE_TEMPERATURES[best] + step * offset, INVERSE_TEMPERATURES[0]), INVERSE_TEMPERATURES[-1])


def _logits_and_targets(model: LanguageModel, ids: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [n, V] in float32, targets [n]) of windows ids [B, T + 1] in order, a block of them at a time."""
    windows = torch.from_numpy(ids).to(model.cos.device)
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    block = max(1, CPU_BLOCK_LOGITS // model.config.vocab_size) if windows.device.type == "cpu" else rows
    for batch in torch.split(windows, max(1, rows // (ids.shape[1] - 1))):
        hidden, targets = model.hidden_states(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        head = model.head()
        for hidden_block, targets_block in zip(torch.split(hidden, block), torch.split(targets, block), strict=True):
            yield F.linear(hidden_block, head).float(), targets_block
