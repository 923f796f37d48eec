"""What a short command does before its result, counted: no test measures time. The benchmark is
tests/benchmarks/cold_start.py."""

import json
import subprocess
import sys

import pytest

import llmcli

PROGRAM = """
import collections, gc, json, sys
from json.decoder import JSONDecoder
counts = collections.Counter()
decode, raw_decode = JSONDecoder.decode, JSONDecoder.raw_decode
def counting(self, text, *rest, **more):
    counts["tokenizer.json"] += '"merges"' in text and text.startswith("{")
    return decode(self, text, *rest, **more)
JSONDecoder.decode = counting
def profile(frame, event, _):
    if event == "call" and frame.f_code.co_name == "parse_header" and "safetensors/header" in frame.f_code.co_filename:
        counts["header"] += 1
    if event == "call" and frame.f_code.co_name == "digest":
        counts["hash"] += 1
sys.setprofile(profile)
usual = gc.get_threshold()
from llmcli.cli import main
gc.collect()
counts["collections"] = -sum(generation["collections"] for generation in gc.get_stats())
sys.argv = ["llm", *sys.argv[1:]]
try: main.main()
except SystemExit as end: assert not end.code, end.code
sys.setprofile(None)
counts["collections"] += sum(generation["collections"] for generation in gc.get_stats())
gc.collect()
counts["restored"] = gc.get_threshold() == usual
print(json.dumps({**counts, "modules": sorted(sys.modules)}), file=sys.stderr)
"""
# imported by no short command
NEVER = {
    "rich.console", "rich.table", "pydantic", "typer.rich_utils", "torch", "jinja2", "ml_dtypes", "pyppmd", "asyncio",
    "logging", "concurrent.futures",
    "llmcli.cli.suggestions", "llmcli.formats.huggingface.directory", "llmcli.formats.gguf.header",
    "llmcli.formats.gguf.reader", "llmcli.models.onnx.runtime", "llmcli.models.onnx.graph",
    "llmcli.models.torch.transformer", "llmcli.data.conversations.messages", "llmcli.data.conversations.chat_template",
    "llmcli.data.conversations.template_renderer", "llmcli.generation.chat", "llmcli.data.tokens.batches",
    "llmcli.data.text.corpus", "llmcli.data.text.decoding", "llmcli.data.conversations.example_prompt",
    "llmcli.evaluation.compressors", "llmcli.formats.huggingface.download", "llmcli.formats.huggingface.hub",
    "llmcli.training.files.summary",
}  # fmt: skip
ONLY_FOR_RUNNING = {"numpy", "safetensors", "secrets", "llmcli.generation", "llmcli.models"}


def run(*words: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stderr.splitlines()[-1])
    return report


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize(
    ("words", "own_modules", "also_never"),
    [
        (
            ("generate", "The cat", "-n", "1"),
            61,
            {"llmcli.cli.terminal.charts", "llmcli.cli.terminal.tables", "llmcli.cli.reports.memory"},
        ),
        (("generate", "The cat", "--next", "2"), 63, {"numpy.random"}),
        (("inspect", "model.safetensors"), 50, {*ONLY_FOR_RUNNING, "hashlib", "tokenizers", "rich"}),
        (("inspect", "--json"), 48, {*ONLY_FOR_RUNNING, "hashlib", "tokenizers"}),
        (("tokenize", "The cat", "-m", "model.safetensors"), 48, ONLY_FOR_RUNNING),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_short_command_reads_once_and_imports_what_it_uses(
    words: tuple[str, ...], own_modules: int, also_never: set[str]
) -> None:
    report = run(*words)
    assert report["tokenizer.json"] == 1
    assert report["header"] == 1
    assert report.get("hash", 0) <= (words[0] != "inspect")
    # no garbage is collected while modules are imported; the search for next words goes on for longer
    assert ("--next" in words or report["collections"] == 0) and report["restored"]
    modules = report["modules"]
    assert isinstance(modules, list)
    unneeded = {name for name in modules if name in NEVER | also_never}
    assert not unneeded, f"imported without need: {sorted(unneeded)}"
    own = [name for name in modules if name.startswith("llmcli")]
    assert len(own) <= own_modules, f"{len(own)} modules: {own}"


def test_the_version_is_printed_before_the_command_line_is_imported() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "llmcli", "--version"]
    report = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stderr
    imported = {line.rpartition("|")[2].strip() for line in report.splitlines()}
    own = {name.removeprefix("llmcli.") for name in imported if name.startswith("llmcli.")}
    assert own == {"cli", "cli.main", "cli.process_start", "cli.terminal", "cli.terminal.streams", "signals", "version"}
    assert not imported & {"typer", "rich", "json", "shutil", "typing", "re"}


@pytest.mark.slow
def test_a_command_ends_at_once_after_its_threads() -> None:
    """The threads of an executor wait for work, and are told to end."""
    program = """
import atexit, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
class Left:
    def __del__(self, write=os.write): write(2, b"taken down")
left = Left()
atexit.register(lambda: sys.stderr.write("registered "))
ThreadPoolExecutor(2).submit(print).result()
threading.Thread(target=lambda: time.sleep(0.5) or sys.stderr.write("thread ")).start()
sys.argv = ["llm", "--version"]
from llmcli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, f"\nllmcli {llmcli.__version__}\n")
    assert done.stderr.strip() == "thread registered"
