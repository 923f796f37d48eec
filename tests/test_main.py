"""A signal at any moment of the start ends the program: it is neither lost nor a traceback."""

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest

from llmcli import signals
from tests import platforms

AT_CALL = """
import os, runpy, signal, sys
name, count, number, seen = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 0
def interrupt(frame, event, _):
    global seen
    place = frame.f_code.co_name == name and (name != "cb" or "importlib" in frame.f_code.co_filename)
    if event == "call" and place and signal.getsignal(number) not in (signal.default_int_handler, signal.SIG_DFL):
        seen += 1
        if seen == count:
            sys.setprofile(None)
            os.kill(os.getpid(), number)
sys.argv = ["llm", *sys.argv[4:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
sys.setprofile(interrupt)
runpy.run_module("llmcli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *(((name, "1"), signal.SIGINT) for name in ("__set_name__", "exec_module", "get_command")),
        (("cb", "50"), signal.SIGINT),
        *(((name, "1"), signal.SIGTERM) for name in ("cb", "__set_name__")),
    ],
)
@pytest.mark.slow
def test_a_signal_in_the_start_ends_it(tiny_model: Path, place: tuple[str, str], number: signal.Signals) -> None:
    """Importlib's callbacks drop a KeyboardInterrupt, and `__set_name__` wraps it in another exception. `get_command`
    is typer's, which handles none yet."""
    words = ["generate", "The cat", "--samples", "1000000", "-m", str(tiny_model), "-q"]  # minutes, if not interrupted
    run = subprocess.run(
        [sys.executable, "-c", AT_CALL, *place, str(int(number)), *words],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 128 + number and "Traceback" not in run.stderr, run.stderr
    assert place[0] not in ("exec_module", "get_command") or run.stderr == "interrupted\n"


@platforms.posix
@pytest.mark.slow
def test_under_nohup_a_closed_terminal_ends_nothing(tiny_model: Path) -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + AT_CALL
    words = ["get_command", "1", str(int(signal.SIGHUP)), "generate", "The cat", "-n", "1", "-m", str(tiny_model)]
    run = subprocess.run([sys.executable, "-c", ignoring, *words], capture_output=True, timeout=240, check=False)
    assert run.returncode == 0 and run.stdout


def test_elsewhere_an_interrupt_is_raised_at_once() -> None:
    def here() -> FrameType:
        return sys._getframe()

    with pytest.raises(KeyboardInterrupt):
        signals.end_process(signal.SIGINT, here())


def test_a_signal_in_an_import_ends_the_process_and_leaves_no_files(tmp_path: Path) -> None:
    """Native code that imports a module, as torch does, would abort at an exception. One cleanup fails."""
    (tmp_path / "native.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    code = (
        "import ctypes; from pathlib import Path; from llmcli import signals; from llmcli.formats import atomic_io; "
        "from llmcli.training.files.output import claim_output; signals.on_stop_requests(signals.end_process); "
        "load = lambda file: ctypes.pythonapi.PyImport_ImportModule(b'native')\n"
        "with claim_output(Path('new'), adapter_only=True), atomic_io.replace_directory('d') as d, "
        "signals.cleaning_up(lambda: 1 / 0):\n"
        "    atomic_io.write_with(d / 'f', load)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (128 + signal.SIGINT, "interrupted\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"native.py", "__pycache__"}
