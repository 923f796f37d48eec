"""`llm serve` as a process of its own, on a port of loopback that the system chooses."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Served:
    """A running server."""

    process: "subprocess.Popen[str]"
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving(*models: Path, options: tuple[str, ...] = (), limits: dict[str, float] | None = None) -> Iterator[Served]:
    """Serve these models until the end of the block, with other values of names in limits.py if given."""
    named = [word for model in models for word in ("-m", str(model))]
    code = "".join(f"limits.{name} = {value!r}\n" for name, value in (limits or {}).items())
    start = ["-c", f"from llmcli.server import limits\n{code}from llmcli.cli.app import main\nmain()"]
    command = [sys.executable, *start, "serve", *named, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        while not (match := re.search(r"at (http://\S+)", lines[-1] if lines else "")):
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        yield Served(process, match[1])
    finally:
        process.kill()
        process.communicate()
