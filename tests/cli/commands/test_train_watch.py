"""`llm train --watch`: the same file with and without, what the page is told, and how both end."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminals import Typist
from tests.conftest import Llm

TEXT = "The cat sat on the mat. The dog ate the hat. She likes to eat.\n" * 1500
SMALL = ("--layers", "1", "--width", "32", "--context", "16", "--batch-tokens", "512", "--threads", "1")


def test_without_the_extra_one_line_says_what_to_install(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    result = llm("train", "c.txt", "--watch")
    assert result.exit_code == 1 and "llm train --watch needs uvicorn" in result.stderr and "serve" in result.stderr


@pytest.mark.slow
def test_a_watched_run_writes_the_same_file(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.cli.reports.watch import Watch

    states: list[dict[str, Any]] = []
    pages: list[str] = []
    add, finish = Watch.add, Watch.finish

    def read(watch: Watch) -> dict[str, Any]:
        with urllib.request.urlopen(f"{watch.server.urls[0]}/state", timeout=10) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def add_and_read(watch: Watch, event: object) -> None:
        add(watch, event)
        states.append(read(watch))

    def finish_and_read(watch: Watch, *arguments: Any, **options: Any) -> None:
        finish(watch, *arguments, **options)
        states.append(read(watch))
        with urllib.request.urlopen(f"{watch.server.urls[0]}/model", timeout=60) as answer:
            pages.append(answer.read().decode())
        watch.stay_open()  # as at a terminal

    monkeypatch.setattr(Watch, "add", add_and_read)
    monkeypatch.setattr(Watch, "finish", finish_and_read)
    Path("c.txt").write_text(TEXT, "utf-8")
    run = ("train", "c.txt", "--steps", 8, *SMALL, "-o")
    watched = llm(*run, "watched.safetensors", "--watch")
    assert llm(*run, "plain.safetensors").exit_code == watched.exit_code == 0
    assert Path("watched.safetensors").read_bytes() == Path("plain.safetensors").read_bytes()
    [address] = re.findall(r"watch the run at (http://127\.0\.0\.1:\d+)\n", watched.stderr)
    assert f"the page of the model: {address}/model\nthe page stays open" in watched.stderr

    record = json.loads(llm("inspect", "plain.safetensors", "--json").stdout)["training"]
    last = states[-1]
    assert states[0]["phase"] == "running" and last["phase"] == "saved" and last["verdict"] == record["verdict"]
    assert last["probe"]["prompt"] == record["probe"]["prompt"]
    shown = [[step, likeliest] for step, _, likeliest in last["probe"]["points"]]
    assert shown == record["probe"]["predictions"] and last["samples"] == record["samples"]["texts"]
    assert last["curve"]["validation_steps"] == record["curve"]["eval_step"]
    assert last["curve"]["validation"] == record["curve"]["eval_bits_per_byte"]
    assert last["plan"] == [[row[key] for key in ("name", "value", "reason")] for row in record["plan"]]
    assert '<script type="application/octet-stream;base64" id="weights">' in pages[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["_add", "_finish"])
def test_an_error_of_the_page_does_not_end_the_run(llm: Llm, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from llmcli.cli.reports.watch import Watch

    calls: list[object] = []

    def fail(watch: Watch, *arguments: object) -> None:
        calls.append(arguments)
        raise TypeError("no JSON")

    monkeypatch.setattr(Watch, method, fail)
    Path("c.txt").write_text(TEXT, "utf-8")
    result = llm("train", "c.txt", "--steps", 3, *SMALL, "--watch")
    assert result.exit_code == 0 and len(calls) == 1 and "Try it: llm generate" in result.stdout + result.stderr
    assert result.stderr.count("the page is no longer updated (TypeError: no JSON); the run continues") == 1
    assert json.loads(llm("inspect", "--json").stdout)["training"]["steps"] == 3


@pytest.mark.slow
def test_ctrl_c_ends_the_run_and_its_page_and_saves(own_directory: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    command = [sys.executable, "-m", "llmcli", "train", "c.txt", "--steps", "1000000", *SMALL, "--watch"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        address = next(match[1] for line in lines if (match := re.search(r"watch the run at (\S+)", line)))
        threading.Thread(target=lambda: list(lines), daemon=True).start()
        while True:
            with urllib.request.urlopen(f"{address}/state", timeout=10) as answer:
                if json.load(answer)["phase"] == "running":
                    break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert Path("model.safetensors").exists() and Path("model.resume.safetensors").exists()
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)


@pytest.mark.slow
def test_other_computers_see_the_run_with_the_class_code_until_enter(own_directory: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    terminal = Typist(
        "train", "c.txt", "--steps", "3", *SMALL, "--watch", "--host", "0.0.0.0", DISPLAY="", WAYLAND_DISPLAY=""
    )
    before = terminal.wait_for("the page stays open until Enter or Ctrl-C")
    address, code = re.findall(r"class code (\w{6}), or open (http://\S+)/#\1", before)[0][::-1]
    assert f"the page of the model: http://127.0.0.1:{address.rpartition(':')[2]}/model?code={code}" in before
    assert "\x1b[38;5;16;48;5;231m" in terminal.screen  # the QR code
    for path in ("/state", "/model"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address + path, timeout=60)
        with urllib.request.urlopen(f"{address}{path}?code={code}", timeout=60) as answer:
            assert answer.status == 200
    terminal.type("\r")
    assert terminal.end() == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)
