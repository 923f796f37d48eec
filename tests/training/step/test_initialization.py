"""The weights that a run starts from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.induction import supports_induction
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.planning import recipe
from llmcli.training.step.initialization import eager_without_compiler, fresh_weights
from tests.training.small_runs import losses, prepared, run


@pytest.mark.slow
def test_a_run_can_start_with_induction_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(tmp_path / "c.txt", layers=2, width=64, steps=1)
    config, settings = ready.plan.model, replace(ready.plan.train, induction=True, dropout=0.0)
    ready = replace(ready, plan=replace(ready.plan, train=settings))
    data = RunData(ready)
    ids, _ = data.next_batch(Position(token_split=settings.token_split))
    assert supports_induction(config)
    for limit, spelling in [(data.tokens_per_epoch, ready.tokenizer.token_bytes), (data.tokens_per_epoch + 1, ())]:
        monkeypatch.setattr(recipe, "SPELLING_MIN_TOKENS", limit)
        first = losses(run(ready))[0]
        model = LanguageModel(config)
        model.load_arrays(fresh_weights(config, settings.seed, induction=True, tokens=spelling))
        assert first == pytest.approx(model.loss(torch.from_numpy(ids)).item(), rel=1e-5)


def test_tied_embeddings_do_not_depend_on_spelling() -> None:
    for tied in (True, False):
        config = ModelConfig(50, 32, 64, 2, 2, 2, 16, 64, tie_word_embeddings=tied)
        spelled, random = (fresh_weights(config, 0, tokens=tokens) for tokens in ([b"a"] * 50, []))
        changed = {name for name in random if not np.array_equal(spelled[name], random[name])}
        assert changed == (set() if tied else {"model.embed_tokens.weight"})


@pytest.mark.slow
def test_a_missing_compiler_is_tolerated_in_compiled_layers() -> None:
    import torch._dynamo

    cases = [("cuda", None, True), ("cuda", 120.0, True), ("cuda", 119.0, False), ("cpu", None, False)]
    for device, seconds, compiled in cases:
        before = torch._dynamo.config.suppress_errors
        with eager_without_compiler(TrainConfig(steps=1, device=device, seconds=seconds)):
            assert torch._dynamo.config.suppress_errors == (compiled or before)
        assert torch._dynamo.config.suppress_errors == before
