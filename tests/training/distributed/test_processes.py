"""Training with several processes, compared with one: the same function of (seed, step), but for the order of sums."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.errors import LLMError
from llmcli.formats.loading import load
from llmcli.models.torch.kernels import Dropout
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.distributed.processes import VARIABLES, Processes
from llmcli.training.session import device_of_process
from llmcli.training.step.training_step import Batch, accumulate, accumulate_gradients, local_micro_batches
from tests import sample_models
from tests.conftest import TEXT
from tests.platforms import in_full, linux

CONFIG = ModelConfig(50, 32, 48, 2, 4, 2, 8, 16)
SETTINGS = TrainConfig(steps=10, context=16, batch_size=6, dropout=0.2, seed=3)
OPTIONS = (
    "--layers", "2", "--width", "16", "--heads", "2", "--context", "16", "--vocab-size", "270", "--batch-tokens", "96",
    "--dropout", "0.1", "--seed", "1", "--dtype", "float32",
)  # fmt: skip
SECONDS = 120  # after which a run counts as hanging


def test_the_environment_says_which_process_this_is():
    values = dict(zip(VARIABLES, ("3", "4", "1", "2", "localhost", "29500"), strict=True))
    assert Processes.of({}) == Processes.of({"WORLD_SIZE": "1", "RANK": "0"}) == Processes()
    found = Processes.of(values | {"TORCHELASTIC_RESTART_COUNT": "2"})
    assert found == Processes(rank=3, count=4, local_rank=1, local_count=2, restarts=2)
    assert (found.threads(8), found.threads(1)) == (4, 1)
    assert Processes.of(values | {"LLMCLI_RESTARTS": "1"}).restarts == 1


@pytest.mark.parametrize("damage", [{"RANK": "one"}, {"MASTER_PORT": None}])
def test_an_incomplete_environment_is_refused(damage):
    values = dict(zip(VARIABLES, ("0", "2", "0", "2", "localhost", "29500"), strict=True)) | damage
    with pytest.raises(LLMError, match="torchrun"):
        Processes.of({name: value for name, value in values.items() if value is not None})


def test_several_processes_need_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of_process("auto", Processes(count=2, local_count=2)) == "cuda"
    assert device_of_process("auto", Processes(count=8, local_count=2)) == "cuda"  # on four machines
    with pytest.raises(LLMError, match=r"^3 processes need a GPU each, but torch finds 2 here; use `processes` 2, or"):
        device_of_process("auto", Processes(count=3, local_count=3))
    assert device_of_process("cpu", Processes(count=3, local_count=3)) == "cpu"


@pytest.mark.parametrize("device", ["mps", "auto"])
def test_several_processes_on_mps_are_refused_before_they_start(device, monkeypatch, llm):
    """A machine has one such device, and processes on different machines cannot send each other its tensors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of_process(device, Processes()) == "mps"
    monkeypatch.setattr("llmcli.training.distributed.launcher.launch", lambda *_: pytest.fail("started"))
    result = llm("train", "c.txt", "--processes", 2, "--device", device)
    assert result.exit_code == 1
    assert result.stderr == "error: a run on mps has only one process; leave out --processes, or add --device cpu\n"


def test_the_masks_of_some_rows_are_those_of_the_whole_batch():
    x, y = torch.zeros(6, 5, 8), torch.ones(6, 5, 8)
    dropout = Dropout(0.3)
    dropout.seed(1, 2)
    whole = [dropout.add(x, y) for _ in range(2)]
    dropout.seed(1, 2)
    dropout.set_rows(range(2, 5), 6)
    for expected in whole:
        assert torch.equal(dropout.add(x[2:5], y[2:5]), expected[2:5])


@pytest.mark.parametrize("count", [2, 4, 7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_shares_add_up_to_the_gradients_of_the_batch(count, masked, sharded):
    """With sharded weights, all processes have equally many micro-batches."""
    ids = torch.randint(50, (6, 17), generator=torch.Generator().manual_seed(0))
    learned = torch.zeros(6, 17, dtype=torch.bool)
    learned[1:, 3:9] = True
    learned[::2, :2] = True  # the first of them is no target
    learned[3] = False
    mask, sizes = learned if masked else None, set()

    def gradients(run) -> tuple[float, dict[str, torch.Tensor]]:
        model = LanguageModel(CONFIG, SETTINGS.dropout)
        model.initialize(torch.Generator().manual_seed(1))
        model.train()
        model.dropout.seed(SETTINGS.seed, 4)
        loss = run(model)
        zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        return float(loss), zeros | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    def share(rank, model):
        group = SimpleNamespace(processes=Processes(rank, count), is_sharded=sharded)
        parts = local_micro_batches(Batch(4, 0.0, 0.0, ids, mask), group, model, SETTINGS)
        sizes.add(len(parts))
        return accumulate(model, parts)

    whole_loss, whole = gradients(lambda model: accumulate_gradients(model, ids, 1, mask))
    parts = [gradients(partial(share, rank)) for rank in range(count)]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole_loss, rel=1e-5)
    for name, expected in whole.items():
        torch.testing.assert_close(sum(part[name] for _, part in parts), expected, atol=1e-5, rtol=1e-4)
    assert sizes == {1} or not sharded


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "corpus.txt"
    path.write_text(TEXT * 3, "utf-8")
    return path


def command(corpus: Path, output: str, *options: str) -> list[str]:
    return ["train", str(corpus), "-o", str(corpus.parent / output), *OPTIONS, "--threads", "2", *options]


def run(arguments: list[str], start: tuple[str, ...] = ("-m", "llmcli")) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *start, *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)


def run_here(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A run with one process: this one, which has imported torch already."""
    found = sample_models.run(*arguments)
    return subprocess.CompletedProcess(arguments, found.exit_code, found.stdout, found.stderr)


def losses(result: subprocess.CompletedProcess[str]) -> list[float]:
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.fixture(scope="module")
def losses_of_one(corpus) -> list[float]:
    return losses(run_here(command(corpus, "one.safetensors", "--steps", "5", "--json")))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=in_full)])
def test_the_losses_are_those_of_one_process(corpus, losses_of_one, count):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "llmcli")
    several = losses(run(command(corpus, f"{count}.safetensors", "--steps", "5", "--json"), torchrun))
    np.testing.assert_allclose(several, losses_of_one, rtol=1e-3)


@in_full
@linux
@pytest.mark.slow
def test_a_killed_process_is_started_again_to_the_same_bytes(corpus):
    expected = run(command(corpus, "whole.safetensors", "--steps", "200", "--processes", "2", "-q"))
    assert expected.returncode == 0, expected.stderr
    (corpus.parent / "killed.safetensors").write_bytes((corpus.parent / "whole.safetensors").read_bytes()[:-1])
    words = command(corpus, "killed.safetensors", "--steps", "200", "--processes", "2", "--force")
    process = subprocess.Popen([sys.executable, "-m", "llmcli", *words], stderr=subprocess.PIPE, text=True)
    wait_for(corpus.parent / "killed.resume.safetensors")
    os.kill(child_with_rank(process.pid, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and "another process of this run has ended" in errors, errors
    assert "resuming from step" in errors
    whole, killed = (load(corpus.parent / f"{name}.safetensors") for name in ("whole", "killed"))
    assert all(np.array_equal(whole.tensors[name], killed.tensors[name]) for name in whole.tensors)


@in_full
@linux
@pytest.mark.slow
def test_a_stopped_run_resumes_with_another_number_of_processes(corpus):
    words = command(corpus, "stopped.safetensors", "--steps", "200")
    several = [sys.executable, "-m", "llmcli", *words, "--processes", "2", "-q"]
    process = subprocess.Popen(several, stderr=subprocess.PIPE, text=True)
    wait_for(corpus.parent / "stopped.resume.safetensors")
    process.terminate()
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert "death signal" not in errors  # of torch's log
    words[words.index("--threads") + 1] = "1"  # one process has as many threads as each of two
    resumed = run_here(words)
    assert resumed.returncode == 0, resumed.stderr
    assert "with 1 instead of 2 processes" in resumed.stderr
    assert load(corpus.parent / "stopped.safetensors").record.steps == 200


@pytest.mark.slow
def test_an_error_of_the_user_is_one_line_and_not_tried_again(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = run(["train", str(corpus.parent / "missing.txt"), "--processes", "2"])
    assert not [*tmp_path.iterdir()], "torch leaves a directory for logs"
    errors = [line for line in result.stderr.splitlines() if not line.startswith("--processes 2 is more than")]
    assert result.returncode == 1 and len(errors) == 1 and "missing.txt" in errors[0]


@in_full
@pytest.mark.slow
def test_an_error_that_rank_0_finds_late_ends_all_at_once(corpus):
    output = str(corpus.parent / "late.safetensors")
    result = run(["train", str(corpus), "-o", output, "--steps", "5", "--processes", "2", "--context", "90000"])
    assert result.returncode == 1
    assert result.stderr.count("error:") == 1 and "shorter than the context length" in result.stderr
    assert "was killed" not in result.stderr


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


def child_with_rank(parent: int, rank: int) -> int:
    """The process of a rank, by its environment."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            is_child = f"PPid:\t{parent}\n" in (directory / "status").read_text("utf-8")
            variables = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_child and b"RANK=%d" % rank in variables:
            return int(directory.name)
    raise AssertionError(f"no process has rank {rank}")
