"""The temperature that calibrates a model: found on text sampled from the model itself."""

import numpy as np
import pytest
import torch

from llmcli.models.torch.runtime import INVERSE_TEMPERATURES, fit_inverse_temperature, score
from llmcli.models.torch.transformer import LanguageModel
from tests.conftest import random_checkpoint
from tests.models.decoders import SHAPES


@pytest.mark.parametrize("scale", [0.8, 40.0])
@pytest.mark.slow
def test_the_inverse_temperature_undoes_a_scale_of_the_logits(scale: float) -> None:
    """Targets sampled from a model are predicted best by its own logits. After the logits are multiplied by `scale`,
    the factor found is its inverse."""
    config = SHAPES["untied"]
    model = LanguageModel(config)
    model.load_arrays(random_checkpoint(config).tensors)
    model.eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(300, size=(400, 9))
    with torch.no_grad():
        model.model.norm.weight.mul_(2.0)  # confident enough for the temperature to matter
        for t in range(8):
            probabilities = torch.softmax(model(torch.from_numpy(ids[:, : t + 1]))[:, -1].double(), -1).numpy()
            ids[:, t + 1] = [rng.choice(300, p=p / p.sum()) for p in probabilities]
        model.model.norm.weight.mul_(scale)
    found, nats = fit_inverse_temperature(model, ids)
    least, most = INVERSE_TEMPERATURES[0], INVERSE_TEMPERATURES[-1]
    assert found == pytest.approx(min(max(1 / scale, least), most), abs=0.05)

    def loss(factor: float) -> float:
        gain = model.model.norm.weight
        before = gain.detach().clone()
        with torch.no_grad():
            gain.mul_(factor)
            mean_loss = float(score(model, ids)[0].mean())
            gain.copy_(before)
        return mean_loss

    assert nats / ids[:, 1:].size == pytest.approx(loss(found), rel=1e-3)
    assert fit_inverse_temperature(model, ids, near=0.4) == pytest.approx((found, nats), rel=1e-6)
    assert loss(found) <= min(loss(found - 0.03), loss(found + 0.03)) or found in (least, most)
