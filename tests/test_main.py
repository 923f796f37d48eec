"""Ctrl-C at any moment of the start ends the program: it is neither lost nor a traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from llmcli import __main__ as main_module

AT_CALL = """
import os, runpy, signal, sys
name, count, seen = sys.argv[1], int(sys.argv[2]), 0
def interrupt(frame, event, _):
    global seen
    place = frame.f_code.co_name == name and (name != "cb" or "importlib" in frame.f_code.co_filename)
    if event == "call" and place and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        seen += 1
        if seen == count:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["llm", *sys.argv[3:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
sys.setprofile(interrupt)
runpy.run_module("llmcli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "place", [("cb", "50"), ("cb", "250"), ("__set_name__", "1"), ("exec_module", "5"), ("get_command", "1")]
)
@pytest.mark.slow
def test_an_interrupt_while_the_program_starts_ends_it(tiny_model: Path, place: tuple[str, str]) -> None:
    """Importlib's callbacks drop a KeyboardInterrupt, and `__set_name__` wraps it in another exception. `get_command`
    is typer's, which handles none yet."""
    words = ["generate", "The cat", "--samples", "1000000", "-m", str(tiny_model), "-q"]  # minutes, if not interrupted
    run = subprocess.run(
        [sys.executable, "-c", AT_CALL, *place, *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 130 and "Traceback" not in run.stderr, run.stderr


def test_an_interrupt_inside_an_import_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []
    monkeypatch.setattr(main_module, "_send_interrupt", lambda: sent.append(time.monotonic()))
    monkeypatch.setattr(main_module, "_is_importing", lambda frame: True)
    main_module._interrupt(signal.SIGINT, None)
    deadline = time.monotonic() + 60
    while not sent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(sent) == 1


def test_elsewhere_an_interrupt_is_raised_at_once() -> None:
    def here() -> FrameType:
        return sys._getframe()

    with pytest.raises(KeyboardInterrupt):
        main_module._interrupt(signal.SIGINT, here())
