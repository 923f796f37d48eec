"""Shared fixtures: an empty working directory, a tiny model, the command run in this process."""

import os

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # pin each worker to a core, before libraries start a thread for each core; not on macOS and Windows
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import gc
import itertools
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner, Result

from llmcli.cli.terminal import console
from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import Checkpoint, save
from llmcli.formats.loading import load
from llmcli.formats.training_record import TrainingRecord

Llm = Callable[..., Result]
TEXT = "The cat sat on the mat. The dog ate the hat.\nりんごを食べる。🍎\n" * 40

gc.disable()  # until all tests are collected: importing them leaves hardly any garbage

# what is ignored here is so in child processes too, which tests send signals to
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
    signal.signal(signal.SIGHUP, lambda *_: None)  # still without effect here

# how long an example of a property takes says nothing on a busy machine
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

if sys.platform != "linux":
    collect_ignore_glob = ["reliability/*"]  # see test_reliability.py; --doctest-modules would import them


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """State files and tokens are not written to the home directory of the user who runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def unflushed() -> None:
    """Files of tests need not survive a crash of the system, and flushing one takes milliseconds. Processes that tests
    start do flush theirs."""
    os.fsync = lambda descriptor: os.fstat(descriptor) and None


NUMBERS = itertools.count(1)  # of the directories of this worker
LONGEST = "config_keys|documents|regular_expressions|reliability|sharding|smollm2|story|tour|untrusted_counts"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--skipped-to", help="a file for the names of skipped tests; another run takes them as @FILE")


class SkippedTests:
    """Writes the names of skipped tests and modules, one per line, for a run in an environment with more packages."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._names = set[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self._names.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._names.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._path.write_text("".join(f"{name}\n" for name in sorted(self._names)), "utf-8")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--skipped-to")
    if path and not hasattr(config, "workerinput"):  # xdist's main process receives the reports of its workers
        config.pluginmanager.register(SkippedTests(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests run first, so that no worker waits for another at the end."""
    items.sort(key=lambda item: not re.fullmatch(f"test_({LONGEST})", item.path.stem))


def pytest_collection_finish() -> None:
    """What imports left stays, and the garbage collector need not visit it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory, as pytest's, which also keeps a symbolic link to the newest one and thereby takes longer."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    path = tmp_path_factory.getbasetemp() / f"{next(NUMBERS)}-{name}"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty directory, with no model, size or color named by the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("LLMCLI_MODEL", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    console.settings.quiet = False
    return tmp_path


@pytest.fixture(autouse=True)
def without_baselines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memorization and the compressors, which only the summary of a run shows, are left out, except in tests with
    the mark `baselines`."""
    if request.node.get_closest_marker("baselines"):
        return
    from llmcli.evaluation import compressors, memorization

    monkeypatch.setattr(memorization, "measure_memorization", lambda *_: None)
    monkeypatch.setattr(compressors, "affordable", lambda *_: False)


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for next words ends early. It takes seconds on a model with random weights, after which all words are
    about as likely."""
    from llmcli.generation import next_words

    monkeypatch.setattr(next_words, "MAX_EVALUATIONS", 50)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Llm:
    """`llm("generate", "text")` runs the command in this process; the result has exit_code, stdout and stderr."""
    from llmcli.cli.app import app

    def run(*words: object, stdin: bytes | str = b"") -> Result:
        arguments = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["llm", *arguments])  # a run of several processes gives each its arguments
        return CliRunner().invoke(app, arguments, input=stdin)

    return run


def random_checkpoint(config: ModelConfig, seed: int = 0, tokenizer_json: str = "") -> Checkpoint:
    """A model with random weights, all of them different from zero."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: (rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(0, shape[1] ** -0.5, shape)).astype("f4")
        for name, shape in config.tensor_shapes().items()
    }
    return Checkpoint(config, tokenizer_json, tensors, TrainingRecord.from_json({"steps": 0}))


def write_tiny_model(path: Path) -> Path:
    """Write a model with random weights and a context of 32. Returns the path."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, 32)
    save(path, random_checkpoint(config, tokenizer_json=tokenizer.to_json()))
    return path


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A model file with random weights and a context of 32, in model.safetensors here."""
    return write_tiny_model(tmp_path / "model.safetensors")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the models of sample_models.py, which tests copy."""
    from tests.sample_models import make_models

    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def sure_model(tiny_model: Path) -> Path:
    """The tiny model with more certain predictions: a search for next words is short, in a child process too."""
    model = load(tiny_model)
    louder = {name: 12 * t if name == "model.norm.weight" else t for name, t in model.tensors.items()}
    save(tiny_model, replace(model, tensors=louder))
    return tiny_model


@pytest.fixture
def no_hang() -> Iterator[None]:
    """A test that hangs fails after five minutes, where the system has alarms (Windows has none)."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def raise_timeout(*_: object) -> None:
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, raise_timeout)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
