"""What else the machine does while something is measured."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NOTHING, BUSY, THREE = "nothing", "busy", "three"
# when another process, an endless loop in Python, keeps one core busy: from and until, as shares of the time budget
SCENARIOS = {NOTHING: (0.0, 0.0), BUSY: (0.0, 1.0), "first half": (0.0, 0.5), "second half": (0.5, 1.0)}
# THREE: the run itself three times at once
CHOICES = (*SCENARIOS, THREE)
EXTRA_SECONDS = 30  # after the budget, in which the other process is still busy if it is at the end


def keep_a_core_busy(finished: threading.Event, seconds: float) -> None:
    """With another process, for some seconds or until `finished` is set."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        finished.wait(seconds)
        process.kill()


@contextmanager
def beside(scenario: str, budget: float) -> Iterator[None]:
    """One of SCENARIOS during a run of `budget` seconds that begins now."""
    start, end = SCENARIOS[scenario]
    until = end * budget + (EXTRA_SECONDS if end == 1.0 else 0)
    finished = threading.Event()

    def run() -> None:
        if start == end or finished.wait(start * budget):
            return
        keep_a_core_busy(finished, until - start * budget)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
