"""`llm serve` as a process of its own, on a port of loopback that the system chooses."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Served:
    """A running server."""

    process: "subprocess.Popen[bytes]"
    url: str
    log_file: Path  # its standard error; a pipe that nobody reads would stop it once it is full

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    @property
    def megabytes(self) -> float:
        """Its resident memory, on Linux."""
        status = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text("utf-8")) if status.exists() else None
        return int(found[1]) / 1000 if found else float("nan")


@contextmanager
def serving(*models: Path, options: tuple[str, ...] = (), limits: dict[str, float] | None = None) -> Iterator[Served]:
    """Serve these models until the end of the block, with other values of names in limits.py if given."""
    named = [word for model in models for word in ("-m", str(model))]
    code = "".join(f"limits.{name} = {value!r}\n" for name, value in (limits or {}).items())
    start = ["-c", f"from llmcli.server import limits\n{code}from llmcli.cli.main import main\nmain()"]
    command = [sys.executable, *start, "serve", *named, "--port", "0", *options]
    with tempfile.TemporaryDirectory() as directory:
        log_file = Path(directory) / "log.txt"
        with log_file.open("wb") as file:
            process = subprocess.Popen(command, stderr=file)
        try:
            while not (match := re.search(r"at (http://\S+) ", log_file.read_text("utf-8", "replace"))):
                assert process.poll() is None, log_file.read_text("utf-8", "replace")
                time.sleep(0.02)
            yield Served(process, match[1], log_file)
        finally:
            process.kill()
            process.wait()
