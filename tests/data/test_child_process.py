"""Child processes: how they start, answer and end."""

import threading

import pytest

from llmcli.data.child_process import ChildProcess
from llmcli.errors import LLMError

pytestmark = pytest.mark.slow  # starts processes


def request(text: str) -> dict[str, object]:
    return {"template": text, "variables": {}, "messages": [], "add_generation_prompt": False}


def test_a_module_that_does_not_start_is_an_error(no_hang: None) -> None:
    with pytest.raises(LLMError, match="it did not start"):
        ChildProcess("llmcli.nothing", "it did not start").ask({}, 5.0)


def test_a_process_is_started_again_after_it_ended(no_hang: None) -> None:
    child = ChildProcess("llmcli.data.conversations.template_worker", "")
    right = request("{{ 1 + 1 }}")
    endless = request("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert child.ask(right, 60.0) == {"text": "2", "answers": []}
    with pytest.raises(TimeoutError):
        child.ask(endless, 0.5)
    assert child.ask(right, 60.0) == {"text": "2", "answers": []}
    child.kill()
    assert child.stop() < 0 and not child.is_running
    assert child.ask(right, 60.0) == {"text": "2", "answers": []}
    child.stop()


def test_an_interruption_while_it_starts_leaves_no_late_answer(no_hang: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(timer: threading.Timer) -> None:
        raise KeyboardInterrupt

    child = ChildProcess("llmcli.data.conversations.template_worker", "")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Timer, "start", interrupt)
        child.ask(request("first"), 5.0)
    assert [child.ask(request(text), 5.0)["text"] for text in ("second", "third")] == ["second", "third"]
    child.stop()
