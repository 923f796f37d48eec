"""Child processes: how they start, answer and end."""

import pytest

from llmcli.data.child_process import ChildProcess, NotStartedError, Worker

pytestmark = pytest.mark.slow  # starts processes


def test_a_module_that_does_not_start_or_answer_is_an_error(no_hang: None) -> None:
    with pytest.raises(NotStartedError):
        ChildProcess("llmcli.nothing")
    child = ChildProcess("llmcli.data.conversations.template_worker")
    with pytest.raises(TimeoutError):
        child.ask(None, 0.2)  # nothing was asked
    assert child.stop() < 0
    with pytest.raises(EOFError):
        child.ask({}, 5.0)


def test_a_worker_is_started_again_after_it_ended(no_hang: None) -> None:
    with pytest.raises(NotStartedError):
        Worker("llmcli.nothing").ask({}, 5.0)
    worker = Worker("llmcli.data.conversations.template_worker")
    right = {"template": "{{ 1 + 1 }}", "variables": {}, "jobs": [([], False)]}
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    assert worker.ask(right, 60.0) == {"results": [["2", []]]}
    with pytest.raises(TimeoutError):
        worker.ask(right | {"template": endless}, 0.5)
    assert worker.ask(right, 60.0) == {"results": [["2", []]]}
    assert worker.running is not None
    worker.running.kill()
    assert worker.running.stop() < 0
    assert worker.ask(right, 60.0) == {"results": [["2", []]]}
    worker.stop()
    assert worker.running is None
