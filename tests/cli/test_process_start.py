"""When a command began, with seconds by hand."""

import time

import pytest

from llmcli.cli import process_start
from llmcli.training.distributed.processes import BEGAN, Processes


def test_a_command_began_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_start, "_began", None)
    before = time.monotonic()
    assert before <= process_start.began() <= time.monotonic()  # of a process with several commands: now
    monkeypatch.setattr(process_start, "_age", lambda: 7.0)
    process_start.remember()
    assert before - 7 <= process_start.began() <= time.monotonic() - 7


def test_a_process_gets_older() -> None:
    """0 where the system does not say; Linux counts in hundredths."""
    first, began = process_start._age(), time.monotonic()
    while time.monotonic() < began + 0.05:
        pass
    assert process_start._age() == first == 0 or process_start._age() >= first + 0.04


def test_several_processes_began_with_the_command_that_started_them() -> None:
    environment = {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }  # fmt: skip
    assert Processes.of(environment).began is None  # torchrun started them
    assert Processes.of(environment | {BEGAN: "12.5"}).began == 12.5
