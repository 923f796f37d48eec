"""Child processes: how they start, answer and end."""

import time

import pytest

from llmcli.data.child_process import ChildProcess

pytestmark = pytest.mark.slow  # starts processes


def test_a_module_that_does_not_start_or_answer_is_an_error(no_hang: None) -> None:
    with pytest.raises(EOFError):
        ChildProcess("llmcli.nothing")
    child = ChildProcess("llmcli.data.conversations.template_worker")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        child.ask(b"", 0.2)  # nothing was asked
    assert time.monotonic() - start < 5 and child.stop() < 0
    with pytest.raises(EOFError):
        child.ask(b"{}\n", 5.0)
