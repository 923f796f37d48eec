"""Training with sharded weights, compared with whole ones: the same steps, but for the order of sums."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.formats.loading import load
from llmcli.training.planning import rules
from llmcli.training.planning.cost_model import BASE_BYTES, Machine, Memory, estimated_speed, memory_needed
from llmcli.training.planning.plan import PlanRequest
from tests.platforms import in_full, linux
from tests.training.distributed.test_processes import SECONDS, command, corpus, losses, run, run_here, wait_for
from tests.training.plans import plan, row

__all__ = ["corpus"]

CONFIG = ModelConfig(50, 32, 48, 2, 4, 2, 8, 16)
LARGE = ModelConfig(128_256, 4096, 14336, 32, 32, 8, 128, 8192)  # 8 billion parameters


needs_fsdp = pytest.mark.skipif(torch.__version__.startswith("2.5"), reason="needs torch 2.6 or later")


def test_weights_are_sharded_where_a_process_has_no_memory_for_them() -> None:
    requested = {"steps": 10, "layers": 16, "width": 4096, "device": "cuda", "processes": 4}
    large = plan(PlanRequest(**requested))
    needed = memory_needed(large.model, replace(large.train, batch_size=8), 4).device  # two windows each
    assert not large.sharded and row(large, "weights").value == "in each process"
    for memory, sharded in ((1.2 * needed, True), (1.3 * needed, False)):  # a plan uses 0.8 of what is free
        chosen = plan(PlanRequest(**requested), machine=Machine(estimated_speed, Memory(memory, 1e12)))
        assert chosen.sharded == sharded
    alone = plan(PlanRequest(**requested | {"processes": 1}), machine=Machine(estimated_speed, Memory(1e12, 1e12)))
    assert "weights" not in {r.name for r in alone.rows}


def test_memory_by_hand() -> None:
    """Weights, gradients and AdamW's two numbers for each parameter, over eight GPUs; two layers and the embeddings
    with their gradients are whole. The host of rank 0 has the best weights and gathers all twice."""
    settings = TrainConfig(steps=1, context=1, batch_size=1, recipe="fine-tune", device="cuda", dtype="bfloat16")
    memory, every = memory_needed(LARGE, settings, 8, sharded=True), LARGE.parameters
    layer = (every - 2 * 128_256 * 4096) / 32
    whole = 8 * (2 * 128_256 * 4096 + 2 * layer)
    assert memory.device - BASE_BYTES == pytest.approx(12 * every / 8 + whole, rel=0.01)
    assert memory.host - BASE_BYTES == pytest.approx(4 * every + max(8, 4 + 8) * every, rel=0.01)
    assert memory.device < 32e9 < memory_needed(LARGE, settings).device


@pytest.fixture
def sharded(tmp_path, monkeypatch) -> None:
    """Processes that a test starts shard the weights, as if memory were short."""
    (tmp_path / "sitecustomize.py").write_text(
        "from llmcli.training.planning import plan, rules\n"
        "rules.sharding = lambda *_: plan.Decision(True, 'memory is short')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def tensors(path) -> dict[str, np.ndarray]:
    return load(path).tensors


@needs_fsdp
@pytest.mark.slow
@pytest.mark.parametrize("options", [(), pytest.param(("--experts", "3"), marks=in_full)])
def test_losses_and_weights_are_those_of_one_process(corpus, sharded, options) -> None:
    """Three processes: no dimension of the model is a multiple of that. The load-balancing loss of experts is that of
    each local batch, not of the whole batch."""
    words = ("--steps", "4", "--json", "--force", *options)
    one = losses(run_here(command(corpus, "whole.safetensors", *words)))
    several = losses(run(command(corpus, "sharded.safetensors", *words, "--processes", "3")))
    tolerance = 5e-3 if options else 1e-4
    np.testing.assert_allclose(several, one, rtol=tolerance)
    expected, found = (tensors(corpus.parent / f"{name}.safetensors") for name in ("whole", "sharded"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert options or np.linalg.norm(found[name] - array) <= 1e-3 * np.linalg.norm(array), name


@in_full
@needs_fsdp
@pytest.mark.slow
def test_induction_heads_are_trained_as_in_one_process(corpus, sharded, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rules, "induction_helps", lambda task: True)
    with (tmp_path / "sitecustomize.py").open("a") as file:
        file.write("rules.induction_helps = lambda task: True\n")
    shape = ["--layers", "2", "--width", "64", "--heads", "2", "--context", "64", "--vocab-size", "270"]
    settings = ["--steps", "10", "--batch-tokens", "384", "--dtype", "float32", "--threads", "2"]
    words = ["train", str(corpus), *shape, *settings, "--force"]
    one = run_here([*words, "-o", str(corpus.parent / "whole.safetensors")])
    assert "induction heads" in one.stderr
    several = run([*words, "-o", str(corpus.parent / "sharded.safetensors"), "--processes", "3"])
    assert several.returncode == 0, several.stderr
    expected, found = (tensors(corpus.parent / f"{name}.safetensors") for name in ("whole", "sharded"))
    for name, array in expected.items():
        assert np.linalg.norm(found[name] - array) <= 1e-3 * np.linalg.norm(array), name


@in_full
@needs_fsdp
@linux
@pytest.mark.slow
def test_a_stopped_run_resumes_with_whole_weights(corpus, sharded) -> None:
    words = command(corpus, "resharded.safetensors", "--steps", "60")
    process = subprocess.Popen([sys.executable, "-m", "llmcli", *words, "--processes", "2", "-q"])
    wait_for(corpus.parent / "resharded.resume.safetensors")
    process.terminate()
    assert process.wait(SECONDS) == 128 + signal.SIGTERM
    resumed = run_here(words)
    assert resumed.returncode == 0, resumed.stderr
    assert "with 1 instead of 2 processes" in resumed.stderr
    whole = run_here(command(corpus, "unbroken.safetensors", "--steps", "60", "-q"))
    assert whole.returncode == 0
    found, expected = (tensors(corpus.parent / f"{name}.safetensors") for name in ("resharded", "unbroken"))
    for name, array in expected.items():
        assert np.linalg.norm(found[name] - array) <= 0.02 * np.linalg.norm(array), name
