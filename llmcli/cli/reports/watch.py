"""The page of `llm train --watch`: its contents, and when it opens and closes.

About once a second, the run writes the page's state as JSON; the server, in a separate thread, only sends
that text. Open pages therefore do not change the run, and an error in a page does not end it.
"""

import json
import math
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.cli.terminal import console
from llmcli.cli.terminal.invitation import invite
from llmcli.cli.terminal.progress import time_left

if TYPE_CHECKING:
    from llmcli.cli.terminal.losses import TrainingLosses
    from llmcli.training.planning.plan import Plan
    from llmcli.training.session import Result

STATE_SECONDS = 1.0  # between two updates of the state while the run takes steps
DIGITS = 4


class Watch:
    """The page of a run. `losses` must be up to date when an event is added."""

    def __init__(
        self, output: Path, plan: "Plan", losses: "TrainingLosses", address: tuple[str, int]
    ) -> None:
        from llmcli.pages.watch_page import watch_page
        from llmcli.server.http.watch import WatchServer

        self._losses = losses
        self._stated = -math.inf
        self.server = WatchServer(watch_page(output.name), *address)
        self._state: dict[str, Any] = {"phase": "preparing", "file": output.name, "step": None, "verdict": []}
        if classroom := self.server.classroom:
            self._state["class"] = classroom.invitation
        self._has_failed = False
        self._begin_model(plan)

    def _begin_model(self, plan: "Plan") -> None:
        rows = [(row.name, row.value, row.reason) for row in plan.rows]
        self._state |= {"plan": rows, "samples": [], "prompt": "", "probe": None, "curve": None}
        self._publish()

    def add(self, event: object) -> None:
        """Show the next event of the run."""
        self._update(self._add, event)

    def _update(self, update: Callable[..., None], *arguments: object) -> None:
        """Call a function that changes the page. After the first failure, the page is no longer changed."""
        if self._has_failed:
            return
        try:
            update(*arguments)
        except Exception as error:  # an error in the page must not end the run
            self._has_failed = True
            console.warn(
                f"the page is no longer updated ({type(error).__name__}: {error}); the run continues"
            )

    def _add(self, event: object) -> None:
        from llmcli.training.loop import events

        match event:
            case events.Step():
                self._state["phase"] = "finishing" if event.progress >= 1 else "running"
                self._state["step"] = {
                    "progress": event.progress,
                    "percent": f"{event.progress:.0%}",
                    "step": f"{event.step:,}",
                    "epoch": f"{event.epoch:.1f}",
                    "speed": f"{event.tokens_per_second:,.0f}",
                    "left": time_left(event),
                }
                if event.seconds < self._stated + STATE_SECONDS and event.progress < 1:
                    return
                self._stated = event.seconds
            case events.Prediction():
                bits = dict(self._losses.evaluations).get(event.step)
                probe = self._state["probe"] or {"prompt": event.prompt, "points": []}
                point = event.step, bits, event.next
                self._state["probe"] = probe | {"points": [*probe["points"], point]}
            case events.Sample():
                self._state["samples"].append((event.step, event.text))
                self._state["prompt"] = event.prompt
            case events.Restarted():
                self._begin_model(event.plan)
        self._publish()

    def _publish(self) -> None:
        curve = self._losses.curve()
        if curve.steps:
            training = [round(bits, DIGITS) for bits in curve.training]
            self._state["curve"] = curve._replace(training=training)._asdict()
        self.server.state = json.dumps(self._state, ensure_ascii=False).encode("utf-8", "replace")

    def finish(self, result: "Result", *, has_model: bool) -> None:
        """Show the end of the run, and offer the page of the model, unless only adapters were saved."""
        self._update(self._finish, result, has_model)

    def _finish(self, result: "Result", has_model: bool) -> None:
        file = result.file
        verdict = list(result.done.checkpoint.record.verdict)
        self._state |= {"phase": "saved", "file": str(file), "verdict": verdict, "model": has_model}
        if has_model:
            self.server.offer(f"{file.stem}.html", lambda: _model_page(file))
        self._publish()

    def stay_open(self) -> None:
        """Keep the page open until Enter or Ctrl-C, unless it has failed."""
        if self._has_failed:
            return
        if self._state["model"]:
            code = f"?code={self.server.classroom.code}" if self.server.classroom else ""
            console.warn(f"the page of the model: {self.server.urls[0]}/model{code}")
        console.warn("the page stays open until Enter or Ctrl-C")
        try:
            sys.stdin.readline()
        except KeyboardInterrupt:
            console.status("")

    def invite(self) -> None:
        """Print the addresses of the page, and open it in a browser if there is a display."""
        server = self.server
        invite("watch the run at", "", server.urls, server.classroom)
        if sys.stderr.isatty() and _has_display():
            import webbrowser

            # in a thread, since opening a browser may take seconds
            link = server.classroom.link if server.classroom else server.urls[0]
            threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()

    def close(self) -> None:
        self.server.stop()


def _model_page(file: Path) -> bytes:
    from llmcli.formats.loading import load
    from llmcli.pages.live_page import live_page

    return live_page(load(file), None, lambda note: None)


def _has_display() -> bool:
    if os.name == "nt" or sys.platform == "darwin":
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
