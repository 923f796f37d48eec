"""`llm serve`: what it refuses before it listens."""

import importlib.util
import subprocess
import sys

import pytest

from tests.platforms import posix

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')


def test_what_is_refused(llm, tiny_model):
    for options, code, message in [
        (["--host", "no.such.host.invalid"], 2, "--host no.such.host.invalid is not known"),
        (["--host", ""], 2, "--host '' is not known"),
        (["--host", "198.51.100.7"], 2, "--host 198.51.100.7 is not an address of this computer"),
        (["--api-key", ""], 2, "the API key must be printable"),
        (["--api-key", "ключ"], 2, "the API key must be printable"),
        (["--cors-origin", "example.com"], 2, "example.com is not an origin; give scheme and host"),
        (["--cors-origin", "https://example.com/page"], 2, "is not an origin"),
        (["--port", "70000"], 2, "--port"),
        (["--quantize", "int8", "--device", "cuda"], 2, "--device has no effect with --quantize"),
        (["other.safetensors"], 2, "(other.safetensors); name each model with -m"),
        (["-m", "missing.safetensors"], 1, "missing.safetensors"),
    ]:
        words = options if "--port" in options else [*options, "--port", "0"]
        result = llm("serve", "-m", tiny_model, *words)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr and result.stderr.count("\n") == 1


def test_without_its_packages_it_says_what_to_install(llm, tiny_model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = llm("serve", "-m", tiny_model)
    assert result.exit_code == 1 and 'pip install "llmcli[serve]"' in result.stderr


@pytest.mark.slow
@posix
def test_a_signal_ends_the_process_although_a_thread_computes() -> None:
    """Native code in a thread would otherwise abort it with another exit code."""
    code = (
        "import os, signal, threading, time\n"
        "from llmcli.cli.commands.serve import exits_at_once\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "with exits_at_once(lambda: None):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1)\n"
        "print('went on')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (143, "")
