"""Connecting the processes of a run: what they agree on, and what the errors advise."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from llmcli.errors import LLMError
from llmcli.training import session
from llmcli.training.distributed.process_group import ProcessGroup, lost_process, meet
from llmcli.training.distributed.processes import MAX_RESTARTS, OWN_RESTARTS, Processes


def names_of(store, count: int) -> list[str]:
    """What each process gets when all meet; rank 0 comes last, as it plans before."""
    names: dict[int, str] = {}
    others = [
        threading.Thread(target=lambda rank=rank: names.update({rank: meet(store, Processes(rank, count))}))
        for rank in range(1, count)
    ]
    for thread in others:
        thread.start()
    time.sleep(0.1)  # all others have joined
    names[0] = meet(store, Processes(0, count))
    for thread in others:
        thread.join()
    return list(names.values())


def test_all_agree_on_a_name_that_no_earlier_group_had() -> None:
    for count in [2, 5]:
        store = dist.HashStore()
        store.set("llmcli/joined/1", "the key of a process that was killed before rank 0 came")
        first, second = names_of(store, count), names_of(store, count)
        assert len(first) == len(second) == count
        assert len(set(first)) == len(set(second)) == 1 and first[0] != second[0]


def test_a_lost_process_is_reported_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWN_RESTARTS, raising=False)  # left by a test of the launcher
    assert "start the same command again" in str(lost_process()) and lost_process().exit_code == 75
    for restarts in range(MAX_RESTARTS + 1):  # llm train --processes restarts them itself, but for the last time
        monkeypatch.setenv(OWN_RESTARTS, str(restarts))
        assert ("start the same command again" in str(lost_process())) == (restarts == MAX_RESTARTS)


@pytest.mark.parametrize("received", [(), (2,)])
def test_a_worker_that_received_a_signal_reports_no_lost_process(received, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal sends Ctrl-C to all processes, and rank 0 ends at once before its first step."""

    def lose(group: object) -> None:
        raise dist.DistNetworkError("rank 0 has ended")

    group = object.__new__(ProcessGroup)
    group.stop_signal, group._store = None, SimpleNamespace(set=lambda *_: lose(group))
    monkeypatch.setattr(session, "ProcessGroup", lambda *_: group)
    monkeypatch.setattr(session.data_parallel, "execute_commands", lose)
    with pytest.raises(SystemExit if received else LLMError, match="130" if received else "another process"):
        session.run_worker(Processes(1, 2, 1, 2), "cpu", lambda stop: [stop(number, None) for number in received])
