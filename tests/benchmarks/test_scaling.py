"""docs/scaling.md and examples/cluster: the tables are those of the calculator, the formulas agree with arithmetic by
hand and with the shapes of a model, and every file can be read by the program that it is for."""

import contextlib
import math
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmcli.cli.app import subcommand
from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.planning.cost_model import FLOAT32, MICRO_BATCH_VALUES
from tests.benchmarks import scaling
from tests.benchmarks.collectives import Link
from tests.benchmarks.step_model import Step, bytes_sent, matrix_groups, muon_flops, others, same_link, step
from tests.platforms import in_full, linux
from tests.test_documents import blocks

ROOT = Path(__file__).parents[2]
PAGE, CLUSTER = ROOT / "docs" / "scaling.md", ROOT / "examples" / "cluster"
SCRIPTS = ("two_machines.sh", "slurm.sbatch")
FILES = (*SCRIPTS, "skypilot.yaml", "kubernetes.yaml")
MODEL = ModelConfig(
    vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=16,
)  # fmt: skip
IN_FLOAT32 = TrainConfig(steps=1, context=16, batch_size=4)
IN_BFLOAT16 = replace(IN_FLOAT32, device="cuda", dtype="bfloat16")
SECONDS = 300  # after which a command counts as hanging


@pytest.mark.slow
def test_the_tables_of_the_page_are_those_of_the_calculator(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main([])
    tables = [block for block in capsys.readouterr().out.strip().split("\n\n") if block.startswith("|")]
    page = PAGE.read_text("utf-8")
    assert len(tables) == 8
    for expected in tables[: scaling.TABLES_OF_PAGE]:
        assert expected in page, f"run python -m tests.benchmarks.scaling --write {PAGE}"
    assert scaling.with_tables(page, tables[: scaling.TABLES_OF_PAGE]) == page


def test_bytes_of_a_step_by_hand() -> None:
    """Four layers: 16 matrices of 16 x 16 (q, k, v, o), 8 of 32 x 16, 4 of 16 x 32."""
    model = MODEL
    assert matrix_groups(model) == {(16, 16): 16, (32, 16): 8, (16, 32): 4}
    matrices = 16 * 256 + 8 * 512 + 4 * 512
    rest = others(model)
    assert rest == model.parameters - matrices
    assert bytes_sent(model, IN_FLOAT32, 1, False) == 0
    # reduce-scatter and all-gather send half of the tensor each, the all-reduce all of it
    assert bytes_sent(model, IN_FLOAT32, 2, False) == FLOAT32 * (matrices + rest) == FLOAT32 * model.parameters
    assert bytes_sent(model, IN_BFLOAT16, 2, False) == (4 + 2) * matrices / 2 + 4 * rest
    # of six processes each gets 3, 2 and 1 matrices: as many as 18, 12 and 6 are sent
    padded = 18 * 256 + 12 * 512 + 6 * 512
    assert bytes_sent(model, IN_FLOAT32, 6, False) == pytest.approx(2 * 5 / 6 * FLOAT32 * (padded + rest))


def test_bytes_of_a_step_with_sharded_weights_by_hand() -> None:
    """Layers are gathered twice and reduced once, the rest is gathered once and reduced; for each micro-batch, of which
    a GPU has one here. The matrices go to one process and back in bfloat16."""
    matrices = MODEL.parameters - others(MODEL)
    passes, exchanged = 3 * FLOAT32 * matrices + 2 * FLOAT32 * others(MODEL), 2 * 2 * matrices / 2
    assert bytes_sent(MODEL, IN_BFLOAT16, 2, True) == pytest.approx((passes + exchanged) / 2)
    windows = MICRO_BATCH_VALUES["cuda"] // (4 * 16 * 16)  # of a micro-batch
    large = replace(IN_BFLOAT16, batch_size=2 * 3 * windows)
    assert bytes_sent(MODEL, large, 2, True) == pytest.approx((3 * passes + exchanged) / 2)


def test_muon_multiplies_as_often_as_the_formula_says() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from llmcli.training.step.muon import orthogonalize

    model = MODEL
    with FlopCounterMode(display=False) as counter:
        for shape, count in matrix_groups(model).items():
            orthogonalize(torch.randn(count, *shape))
    assert counter.get_total_flops() == muon_flops(model, 1)


def test_a_step_is_compute_and_what_is_not_overlapped() -> None:
    def time(processes: int, bandwidth: float, sharded: bool) -> Step:
        return step(MODEL, IN_BFLOAT16, processes, 1e9, same_link(Link(0.0, bandwidth)), sharded)

    alone, replicated = time(1, 1e6, False), time(2, 1e6, False)
    assert alone.communication == 0 and alone.seconds == alone.compute
    sent = bytes_sent(MODEL, IN_BFLOAT16, 2, False)
    assert replicated.exposed == replicated.communication == pytest.approx(sent / 1e6)
    slow, fast = time(2, 1e6, True), time(2, 1e12, True)
    assert slow.exposed == pytest.approx(slow.communication - (slow.compute - muon_flops(MODEL, 2) / 1e9))
    # of gathering and reducing: a layer and the embeddings; and all that Muon exchanges
    matrices = MODEL.parameters - others(MODEL)
    sent = 2 * FLOAT32 * (others(MODEL) + matrices / 4) / 2 + 2 * 2 * matrices / 2 / 2
    assert fast.exposed == pytest.approx(sent / 1e12)


def shell_text(name: str) -> str:
    """The shell commands of a file that start the run."""
    text = (CLUSTER / name).read_text("utf-8")
    if name == "skypilot.yaml":
        return str(yaml.safe_load(text)["run"])
    if name == "kubernetes.yaml":
        job = list(yaml.safe_load_all(text))[1]
        return str(job["spec"]["template"]["spec"]["containers"][0]["command"][2])
    return text


def torchrun_words(name: str) -> list[str]:
    """What follows `torchrun`, with 2 in place of each variable."""
    joined = shell_text(name).replace("\\\n", " ")
    line = next(line for line in joined.splitlines() if re.search(r"torchrun +--", line) and not line.startswith("#"))
    words = shlex.split(re.sub(r"\$\{[^}]*\}|\$\w+", "2", line))
    return words[next(i for i, word in enumerate(words) if word.endswith("torchrun")) + 1 :]


def test_the_page_names_every_file() -> None:
    assert {path.name for path in CLUSTER.iterdir()} == set(FILES)
    assert all(f"examples/cluster/{name}" in PAGE.read_text("utf-8") for name in FILES)


def test_the_shell_accepts_it() -> None:
    for name in FILES:
        texts = [shell_text(name)]
        if name == "skypilot.yaml":
            texts.append(yaml.safe_load((CLUSTER / name).read_text("utf-8"))["setup"])
        for text in texts:
            for command in (["bash", "-n"], ["shellcheck", "--shell=bash", "-"]):
                if shutil.which(command[0]):
                    run = subprocess.run(command, input=text, capture_output=True, text=True)
                    assert run.returncode == 0, run.stdout + run.stderr


def parsed(command: str, *words: str) -> dict[str, Any]:
    """The options of a subcommand, which keeps the names of its help option for later calls in this process."""
    with subcommand(command).make_context(command, [*words], help_option_names=["-h", "--help"]) as context:
        return context.params


def test_torchrun_and_llm_train_know_its_options() -> None:
    from torch.distributed.run import get_args_parser

    for name in FILES:
        options = get_args_parser().parse_args(torchrun_words(name))
        assert options.module and options.training_script == "llmcli"
        assert options.nnodes == "2" and (options.rdzv_endpoint or options.master_addr != "127.0.0.1")
        assert (options.rdzv_backend == "c10d") == (name == "slurm.sbatch")
        command, *words = options.training_script_args
        params = parsed(command, *words)
        assert params["epochs"] == 1 and params["output"] == Path("model.safetensors")
    # those of the page; tests/training runs commands like them
    lines = [line for block in blocks("docs/scaling.md") for line in block]
    [alone] = [line for line in lines if line.startswith("llm train ")]
    [by_torchrun] = [line for line in lines if line.startswith("torchrun --standalone ")]
    options = get_args_parser().parse_args(shlex.split(by_torchrun)[1:])
    assert options.training_script == "llmcli" and options.nproc_per_node == "2"
    for command, *words in (shlex.split(alone, comments=True)[1:], options.training_script_args):
        assert parsed(command, *words)["layers"] == 2


def free_port(low: int, high: int) -> int:
    """A port in a range, that nothing listens at."""
    for port in random.sample(range(low, high), 100):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def environment(**changes: str) -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(ROOT), "PATH": programs} | changes


def text_of(directory: Path) -> str:
    """The beginning of an example, as a file there."""
    directory.mkdir(exist_ok=True)
    text = (ROOT / "examples" / "food.txt").read_text("utf-8")[:20_000]
    (directory / "corpus.txt").write_text(text, "utf-8")
    return "corpus.txt"


@linux
@in_full
@pytest.mark.slow
def test_two_machines_train_one_model_and_only_the_first_has_the_text(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    text = text_of(first)
    second.mkdir()
    settings = environment(PROCESSES="1", PORT=str(free_port(20_000, 30_000)))
    started = [
        subprocess.Popen(["bash", CLUSTER / "two_machines.sh", str(rank), "127.0.0.1", text], cwd=place, env=settings,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank, place in enumerate((first, second))
    ]  # fmt: skip
    outputs = [process.communicate(timeout=SECONDS)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert (first / "model.safetensors").exists() and not list(second.iterdir())


@linux
@in_full
@pytest.mark.slow
def test_the_batch_job_starts_torchrun_on_each_machine(tmp_path: Path) -> None:
    """With stand-ins for srun, which runs a command on both machines, and for scontrol, which names them."""
    text = text_of(tmp_path)
    programs = {
        "scontrol": 'test "$*" = "show hostnames here" && echo localhost && echo other',
        "srun": 'test "$1" = --kill-on-bad-exit=1 && shift && { "$@" & "$@" & wait -n && wait -n; }',
    }
    for name, command in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{command}\n", "utf-8")
        path.chmod(0o755)
    settings = environment(
        SLURM_JOB_NODELIST="here", SLURM_NNODES="2", SLURM_GPUS_ON_NODE="1",
        SLURM_JOB_ID=str(free_port(20_000, 30_000)),
    )  # fmt: skip
    run = subprocess.run(
        ["bash", CLUSTER / "slurm.sbatch", text], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS,
        env=settings | {"PATH": f"{tmp_path}{os.pathsep}{settings['PATH']}"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "model.safetensors").exists()


def test_the_manifest_of_kubernetes_fits_together() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text("utf-8"))
    assert (service["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    name, pod = service["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {
        "job-name": job["metadata"]["name"]
    }
    assert pod["subdomain"] == name and f"--master-addr {job['metadata']['name']}-0.{name} " in shell_text(
        "kubernetes.yaml"
    )
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    container = pod["containers"][0]
    assert f"--nproc-per-node {container['resources']['limits']['nvidia.com/gpu']} " in shell_text("kubernetes.yaml")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_fit_of_a_line_finds_it() -> None:
    from tests.benchmarks.collectives import fit

    line = Link(3e-4, 2e9)
    found = fit([1e3, 1e6, 1e8], [line.seconds(sent) for sent in (1e3, 1e6, 1e8)])
    assert math.isclose(found.latency, line.latency, rel_tol=1e-3) and math.isclose(found.bandwidth, 2e9, rel_tol=1e-3)
