"""The requests and programs in docs/serve.md run as printed, against the two models that it names.

The other `llm` and lm_eval run in an environment of their own, as in tests/ecosystem/test_clients.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.processes import serving

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
REQUESTS = PAGE.partition("## The page")[0]
PACKAGES = {"openai": "openai", "langchain_openai": "langchain-openai"}  # what a program imports -> what to install
CLIENTS = os.environ.get("LLMCLI_TEST_CLIENTS")
needs_clients = pytest.mark.skipif(CLIENTS is None, reason="needs LLMCLI_TEST_CLIENTS, an environment with lm-eval")


def commands(program: str) -> list[str]:
    """The commands of the page that begin with these words; a backslash continues a line."""
    return re.findall(rf"^    ({program} (?:.*\\\n)*.*)$", PAGE, re.M)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def run(command, url, directory):
    """The output of a command of the page, which must succeed."""
    result = subprocess.run(
        ["sh", "-c", command.replace("http://127.0.0.1:8000", url)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def running(served, tmp_path_factory):
    """A server whose models have the names of the page."""
    directory = tmp_path_factory.mktemp("page")
    files = [directory / name for name in ("food.safetensors", "planets.safetensors")]
    for file, source in zip(files, served, strict=True):
        shutil.copy(source, file)
    with serving(*files) as process:
        yield process


def shown(command):
    """The output that the page shows of a command; "" if it shows none."""
    found = re.search(rf"{re.escape(command)}\n\n(?:\S.*\n+)?((?: {{4}}(?!curl).*\n)+)", REQUESTS)
    return found[1] if found else ""


def fields(text):
    """The names of JSON fields, in order."""
    return re.findall(r'"(\w+)":', text)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("sh")), reason="needs curl and sh")
def test_each_curl_command_is_answered_with_the_fields_that_are_shown(running, tmp_path):
    for command in commands("curl"):
        answer = run(command.replace("curl ", "curl --fail -s ", 1), running.url, tmp_path)
        if '"stream": true' in command:
            assert answer.endswith("data: [DONE]\n\n"), command
        else:
            json.loads(answer)
        assert shown(command) or command not in REQUESTS, command
        answered = iter(fields(answer))
        assert all(field in answered for field in fields(shown(command))), command  # in the same order


@pytest.mark.parametrize("program", blocks("python"), ids=lambda program: program.split()[1])
def test_the_programs_print_the_answer(running, program):
    package = program.split()[1]
    pytest.importorskip(package, reason=f"needs pip install {PACKAGES[package]}")
    result = subprocess.run(
        [sys.executable, "-c", program.replace("http://127.0.0.1:8000", running.url)],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stdout.strip()


@needs_clients
def test_the_other_llm_answers(running, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    [command] = commands("other-llm/bin/llm")
    assert run(command.replace("other-llm", CLIENTS), running.url, tmp_path).strip()


@needs_clients
def test_lm_eval_scores_a_text_and_a_table(running, tmp_path, monkeypatch):
    for variable, value in {"OPENAI_API_KEY": "any", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(variable, value)
    for task in blocks("yaml"):
        if name := re.match(r"# (\S+)\n", task):
            (tmp_path / name[1]).write_text(task, "utf-8")
    for command in commands("printf"):
        run(command, running.url, tmp_path)
    for command, metric in zip(commands("lm_eval"), ("bits_per_byte", "exact_match"), strict=True):
        output = run(f"{CLIENTS}/bin/{command}".replace("max_length=128", "max_length=64"), running.url, tmp_path)
        assert metric in output


def test_the_numbers_are_those_of_the_code():
    from llmcli.generation.engine.requests import EngineLimits
    from llmcli.server import limits

    numbers = [getattr(limits, name) for name in dir(limits) if name.isupper() and name != "KEEP_ALIVE_SECONDS"]
    numbers += [EngineLimits.concurrent, EngineLimits.queue]
    numbers += [EngineLimits.live_bytes >> 30, EngineLimits.prefix_bytes >> 30]
    table = PAGE.partition("## Limits")[2]
    for number in numbers:
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", table), number
