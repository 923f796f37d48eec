"""The requests and the program in docs/serve.md run as printed, against the two models that it names."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.processes import serving

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")


@pytest.fixture(scope="module")
def running(served, tmp_path_factory):
    """A server whose models have the names of the page."""
    directory = tmp_path_factory.mktemp("page")
    files = [directory / name for name in ("food.safetensors", "planets.safetensors")]
    for file, source in zip(files, served, strict=True):
        shutil.copy(source, file)
    with serving(*files) as process:
        yield process


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_each_curl_command_is_answered(running):
    commands = re.findall(r"^    (curl (?:.*\\\n)*.*)$", PAGE, re.M)
    assert len(commands) == 3
    for command in commands:
        here = command.replace("http://127.0.0.1:8000", running.url).replace("curl ", "curl --fail -s ", 1)
        result = subprocess.run(["sh", "-c", here], capture_output=True, timeout=60, check=True)
        assert "model" in json.loads(result.stdout)


def test_the_program_prints_the_answer(running):
    pytest.importorskip("openai", reason="needs pip install openai")
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    program = program.replace("http://127.0.0.1:8000", running.url)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=True)
    assert result.stdout


def test_the_numbers_are_those_of_the_code():
    from llmcli.server import limits
    from llmcli.server.requests import Limits

    numbers = [getattr(limits, name) for name in dir(limits) if name.isupper() and name != "KEEP_ALIVE_SECONDS"]
    table = PAGE.partition("## Limits")[2]
    for number in (*numbers, Limits.concurrent, Limits.queue, Limits.live_bytes >> 30, Limits.prefix_bytes >> 30):
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", table), number
