"""The cost model: FLOPs and micro-batches counted by hand, and how repeated text counts."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.formats.adapters import parameter_count
from llmcli.models.torch import kernels
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.loop.events import State
from llmcli.training.planning import cost_model
from tests.training.small_runs import prepared, run


def test_flops_by_hand():
    """One layer: q, k, v, o of 4 x 4, three SwiGLU matrices of 4 x 32, a head of 10 x 4; a context of 16."""
    model = ModelConfig(10, 4, 32, 1, 2, 2, 2, 16)
    assert cost_model.flops_per_token(model, 16) == 6 * (4 * 16 + 3 * 128 + 40 + 16 * 4)


def test_repeated_text_counts_less_and_less():
    text, twice_as_long = cost_model.CorpusSize(10**6, 3 * 10**6), cost_model.CorpusSize(2 * 10**6, 6 * 10**6)
    losses = [cost_model.expected_loss(10**6, epochs * 10**6, text) for epochs in (0.5, 1, 2, 4, 40, 400, 4000)]
    gains = [before - after for before, after in itertools.pairwise(losses)]
    assert all(gain >= 0 for gain in gains)
    assert gains[-1] < 1e-6 < gains[-3]
    twice, fresh = losses[2], cost_model.expected_loss(10**6, 2 * 10**6, twice_as_long)
    assert fresh < twice < cost_model.expected_loss(10**6, 1.7 * 10**6, twice_as_long)  # twice is nearly fresh text


def test_a_large_batch_is_split_into_micro_batches_which_take_no_more_memory_than_their_gradients():
    model = ModelConfig(1024, 256, 704, 6, 4, 4, 64, 1024)
    batches = [TrainConfig(steps=1, context=1024, batch_size=n) for n in (1, 2, 4, 5, 16)]
    assert [cost_model.micro_batches(model, batch) for batch in batches] == [1, 1, 2, 3, 8]
    for batch in batches:
        assert (
            6 * 256 * 1024 * -(-batch.batch_size // cost_model.micro_batches(model, batch))
            <= cost_model.MICRO_BATCH_VALUES["cpu"]
        )
    whole, split = (cost_model.memory_needed(model, batch).device for batch in batches[1:3])
    assert 0 <= split - whole <= 4 * model.parameters
    wide = ModelConfig(1024, 2048, 4096, 12, 32, 32, 64, 1024)
    assert cost_model.micro_batches(wide, batches[2]) == 4  # at least a window each
    assert cost_model.micro_batches(model, TrainConfig(steps=1, context=1024, batch_size=16, device="cuda")) == 1
    assert cost_model.micro_batches(wide, TrainConfig(steps=1, context=1024, batch_size=16, device="cuda")) == 4
    assert cost_model.micro_batches(wide, TrainConfig(steps=1, context=1024, batch_size=16, device="cuda"), 4) == 1


LLAMA = ModelConfig(128_256, 2048, 8192, 16, 32, 8, 64, 131_072, model_type="llama", tie_word_embeddings=True)


def test_memory_by_hand():
    """Bytes per parameter, where activations hardly count: the batch is one token."""
    every, adapters = LLAMA.parameters, parameter_count(LLAMA, 8)

    def needed(**changes: object) -> tuple[float, float]:
        settings = TrainConfig(**{"steps": 1, "context": 1, "batch_size": 1, **changes})
        memory = cost_model.memory_needed(LLAMA, settings)
        return (memory.device - cost_model.BASE_BYTES) / every, max(0.0, memory.host - cost_model.BASE_BYTES) / every

    state = 4 * adapters / every  # a number for each parameter of the adapters
    # weights, optimizer, best weights; copies of weights and optimizer while the state is saved
    assert needed(recipe="fine-tune") == pytest.approx((4 + 8 + 4 + (4 + 8), 0), abs=0.01)
    # weights, best weights, and the matrices that the backward pass keeps
    assert needed(recipe="lora", lora_rank=8) == pytest.approx((4 + 4 + 4 + 2 * state, 0), abs=0.01)
    assert needed(recipe="lora", lora_rank=8, device="mps")[1] == 0
    # on the device weights, optimizer and gradients; on the host the best weights and the copies
    gpu = {"device": "cuda", "dtype": "bfloat16"}
    assert needed(recipe="fine-tune", **gpu) == pytest.approx((4 + 8 + 4, 4 + (4 + 8)), abs=0.01)
    # of two models, the teacher besides, and a copy of it
    both = needed(recipe="adamw", teacher_share=0.45)
    assert both == pytest.approx((4 + 8 + 4 + 4 + (4 + 8 + 4), 0), abs=0.01)
    # the evaluation takes a model in float32 on the device, and its weights on the host
    assert needed(recipe="lora", lora_rank=8, **gpu) == pytest.approx((4 + 2 * state + 4, 4 + 4), abs=0.01)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_copy_of_the_state_takes_what_the_model_says(tmp_path: Path, optimizer: str) -> None:
    """On the host of a GPU: the best weights, and a copy of the weights and of the optimizer to save them. Before the
    first evaluation there are no best weights yet."""
    ready = prepared(tmp_path / "c.txt", steps=2, optimizer=optimizer, width=64, layers=1)
    states = [event for event in run(ready, save_due=lambda: True) if isinstance(event, State)]
    kept = sum(array.nbytes for array in states[0].arrays.values())
    needed = cost_model.memory_needed(ready.plan.model, replace(ready.plan.train, device="cuda"))
    assert needed.host - cost_model.BASE_BYTES == pytest.approx(kept + 4 * ready.plan.model.parameters, rel=0.02)


LAYERS = {
    "heads alike": ModelConfig(300, 64, 160, 2, 4, 4, 16, 512),
    "grouped heads": ModelConfig(300, 96, 256, 2, 6, 2, 16, 512),
    "llama": ModelConfig(300, 96, 256, 2, 6, 2, 16, 512, model_type="llama"),
    "wide heads": ModelConfig(300, 64, 192, 2, 4, 2, 32, 512),
    "experts": ModelConfig(
        300, 64, 64, 2, 4, 2, 16, 512, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("device", "context"), [("cpu", 64), ("cpu", 256), ("cuda", 64), ("cuda", 256)])
def test_a_layer_saves_what_the_model_says(shape: str, dtype: str, device: str, context: int, monkeypatch) -> None:
    """All tensors that autograd saves, counted; on the CPU in the way of a GPU too, whose attention keeps no scores."""
    monkeypatch.setattr(kernels, "_has_amx", lambda: False)  # with AMX no scores are kept either
    if device == "cuda":
        monkeypatch.setattr(kernels, "MAX_CONTEXT_KEEPING_SCORES", 0)
        monkeypatch.setattr(kernels, "_empty_heads_first", lambda like: None)
    config, settings = LAYERS[shape], TrainConfig(steps=1, context=context, batch_size=1, device=device, dtype=dtype)

    def of_all(layers: int, rows: int) -> int:
        return _saved_bytes(replace(config, num_hidden_layers=layers), torch.zeros(rows, context).long(), dtype)

    of_a_layer = of_all(2, 4) - of_all(1, 4) - (of_all(2, 2) - of_all(1, 2))  # for two more rows: without the weights
    expected = cost_model.activation_size(settings) * cost_model.saved_values(config, settings)
    assert of_a_layer / (2 * context) == pytest.approx(expected, rel=0.15)


def _saved_bytes(config: ModelConfig, ids: torch.Tensor, dtype: str) -> int:
    """Bytes of all tensors that autograd saves in a forward pass with dropout, each storage once."""
    model = LanguageModel(config, 0.1, getattr(torch, dtype))
    model.initialize(torch.Generator().manual_seed(0))
    model.dropout.seed(1)
    storages = dict[int, torch.UntypedStorage]()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = model.hidden_states(ids)
    assert kept.requires_grad
    return sum(storage.nbytes() for storage in storages.values())
