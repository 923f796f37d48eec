"""A run on two machines with torchrun, compared with one process. The machines are network namespaces."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from llmcli.formats.loading import load
from tests.conftest import TEXT
from tests.platforms import in_full, network_namespaces
from tests.training.distributed.test_processes import OPTIONS, SECONDS, losses, wait_for
from tests.training.hosts import ADDRESSES, Host, two_hosts

pytestmark = [pytest.mark.slow, network_namespaces, in_full]
ELASTIC = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "one:29400")
TRAIN = ("-m", "llmcli", "train", "corpus.txt", "-o", "model.safetensors", *OPTIONS, "--threads", "1")


@pytest.fixture
def hosts(tmp_path) -> Iterator[tuple[Host, Host]]:
    """Two connected hosts that know each other's names; only the first has the text."""
    with two_hosts(tmp_path) as pair:
        for host in pair:
            host.connect(ADDRESSES)
        (pair[0].directory / "corpus.txt").write_text(TEXT * 3, "utf-8")
        yield pair


def start(host: Host, *options: str, meeting: tuple[str, ...] = ELASTIC, processes: int = 1) -> subprocess.Popen[str]:
    """torchrun on one of two hosts."""
    words = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(processes), *meeting]
    command = host.command(sys.executable, *words, *TRAIN, *options)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    out, errors = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


@pytest.mark.parametrize("count", [1, 2])
def test_the_losses_are_those_of_one_process(hosts, count):
    words = hosts[0].command(sys.executable, *TRAIN, "--steps", "20", "--json")
    expected = losses(subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False))
    runs = [start(host, "--steps", "20", "--json", "--force", processes=count) for host in hosts]
    first, second = map(finish, runs)
    np.testing.assert_allclose(losses(first), expected, rtol=1e-3)
    assert (second.returncode, second.stdout) == (0, ""), second.stderr
    assert "rank 0 runs on the machine one" in first.stderr
    assert [path.name for path in hosts[0].directory.iterdir()].count("model.safetensors") == 1
    assert not list(hosts[1].directory.iterdir())


@pytest.mark.parametrize("kind", ["static", "elastic"])
def test_a_worker_killed_on_the_other_host_is_started_again_to_the_same_bytes(hosts, kind):
    def meeting(rank: int) -> tuple[str, ...]:
        static = ("--node-rank", str(rank), "--master-addr", ADDRESSES["one"], "--master-port", "29500")
        return ("--max-restarts", "3", *(static if kind == "static" else ELASTIC))

    def begin() -> list[subprocess.Popen[str]]:
        return [start(host, "--steps", "200", "-q", meeting=meeting(rank)) for rank, host in enumerate(hosts)]

    model = hosts[0].directory / "model.safetensors"
    for result in map(finish, begin()):
        assert result.returncode == 0, result.stderr
    whole = load(model.rename(model.with_stem("whole")))
    runs = begin()
    wait_for(hosts[0].directory / "model.resume.safetensors")
    os.kill(hosts[1].processes(b"RANK=1")[0], signal.SIGKILL)
    first, second = map(finish, runs)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "it resumes from the last saved state" in first.stderr
    killed = load(model)
    assert all(np.array_equal(whole.tensors[name], killed.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize(("number", "where"), [(signal.SIGINT, 1), (signal.SIGTERM, 0), (signal.SIGTERM, 1)])
def test_a_signal_to_torchrun_on_one_host_ends_both_with_the_model_saved(hosts, number, where):
    runs = [start(host, "--steps", "5000") for host in hosts]
    wait_for(hosts[0].directory / "model.resume.safetensors")
    torchrun = min(set(hosts[where].processes()) - set(hosts[where].processes(f"RANK={where}".encode())))
    os.kill(torchrun, number)
    first, second = map(finish, runs)
    assert (first, second)[where].returncode and first.returncode, first.stderr + second.stderr
    assert "Traceback" not in first.stderr.split("saved model.safetensors")[0]
    assert 0 < load(hosts[0].directory / "model.safetensors").record.steps < 5000
    assert not list(hosts[1].directory.iterdir())


def test_a_run_with_a_time_budget_ends_on_both(hosts):
    first, second = map(finish, [start(host, "--time", "8s", "--json") for host in hosts])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    steps = [json.loads(line) for line in first.stdout.splitlines()]
    assert (hosts[0].directory / "model.safetensors").exists() and len(steps) > 2


def test_an_address_that_the_other_host_cannot_reach_is_explained(tmp_path):
    """Debian and Ubuntu have the host's own name in /etc/hosts, as 127.0.1.1, and gloo listens on the address of it."""
    with two_hosts(tmp_path) as (one, two):
        one.connect({**ADDRESSES, "one": "127.0.1.1"})
        two.connect({**ADDRESSES, "two": "127.0.1.1"})
        (one.directory / "corpus.txt").write_text(TEXT * 3, "utf-8")
        runs = [start(host, "--steps", "20") for host in (one, two)]
        first, second = (finish(run, 3 * SECONDS) for run in runs)  # which wait for each other for a minute
        assert first.returncode and second.returncode
        assert "GLOO_SOCKET_IFNAME=eth0 torchrun" in first.stderr + second.stderr  # of the one that tried to connect
