"""Trains tiny models with the code of a commit or tag, and records what that version says of them.

    python -m tests.golden.record_files v0.1.0 [KIND ...]

Writes tests/golden/files/v0.1.0: a model file of each kind that the version can make and the resume file of a stopped
run (or those named), and record.json. Later versions are compared with them (earlier_files.py). To be run once for
each release.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.golden.earlier_files import (
    CORPUS,
    EVALUATED,
    FILES,
    PROMPTS,
    RECORD,
    RESUME,
    STOPPED_RUN,
    export_name,
    exported_values,
)
from tests.reliability.runs import TEXT

SHAPE = "--layers 1 --heads 2 --batch-tokens 512 --threads 1 --seed 1 -q"
NEW = f"{SHAPE} --context 32 --vocab-size 280"
COMMANDS = {  # that make the files; the later ones use the earlier ones
    "char": f"train {CORPUS} -o char.safetensors --width 8 --steps 200 --lr-scale 2 --tokenizer char {SHAPE} "
    "--context 32",
    "bpe": f"train {CORPUS} -o bpe.safetensors --width 8 --steps 200 --lr-scale 2 {NEW}",
    "experts": f"train {CORPUS} -o experts.safetensors --width 8 --steps 200 --lr-scale 2 {NEW} --experts 2",
    "second": f"train {CORPUS} -o second.safetensors --width 4 --steps 20 {SHAPE} --like bpe.safetensors",
    "mixture": "mix bpe.safetensors second.safetensors -o mixture.safetensors",
}
KINDS = ("char", "bpe", "experts", "mixture", "stopped")
TOKENS = 12  # of each recorded text


class Version:
    """The command of a version."""

    def __init__(self, commit: str, directory: Path) -> None:
        """Unpacks the package of the commit into the directory, where its commands run."""
        packed = subprocess.run(["git", "archive", commit, "llmcli"], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(directory, filter="data")
        self.directory = directory
        self.commands = self.run("--help").stdout + self.run("generate --help").stdout

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.directory, env=os.environ | {"PYTHONPATH": str(self.directory)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    def run(self, line: str) -> "subprocess.CompletedProcess[str]":
        process = self.start("-m", "llmcli", *shlex.split(line))
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(line, process.returncode, stdout, stderr)

    def output(self, line: str) -> Any:
        """The JSON that a command prints."""
        result = self.run(f"{line} --json")
        if result.returncode:
            sys.exit(f"llm {line}: {result.stderr}")
        return json.loads(result.stdout)

    def can(self, word: str) -> bool:
        """Whether it has this subcommand or option of `generate`."""
        return f" {word} " in self.commands


def train(version: Version) -> list[str]:
    """Make the model files that the version can make. Returns their names."""
    (version.directory / CORPUS).write_bytes(TEXT.encode())
    (version.directory / "evaluated.txt").write_bytes(EVALUATED.encode())
    made = []
    for name, line in COMMANDS.items():
        result = version.run(line)
        print(f"{name}: {result.stderr.strip() or 'made'}")
        made += [name] * (result.returncode == 0)
    return made


def stop(version: Version) -> bool:
    """Begin a run and kill it once it has saved its state. Whether it left a resume file."""
    resume, process = version.directory / RESUME, version.start("-c", STOPPED_RUN)
    while process.poll() is None and not resume.exists():
        time.sleep(0.05)
    process.kill()
    process.communicate()
    return resume.exists()


def answers(version: Version, kind: str) -> dict[str, Any]:
    """What the version says of a model file."""
    model = f"-m {kind}.safetensors"
    texts = {}
    for prompt in PROMPTS:
        text = version.output(f"generate '{prompt}' {model} -t 0 -n {TOKENS} --literal")
        tokens = [[token["id"], token["logprob"]] for token in text["tokens"]]
        texts[prompt] = {"tokens": tokens}
    found: dict[str, Any] = {"texts": texts, "exports": {}}
    if version.can("eval"):
        found["bits_per_byte"] = version.output(f"eval evaluated.txt {model}")["results"][0]["bits_per_byte"]
    for form in ("hf", "gguf") if version.can("export") and kind != "mixture" else ():
        version.output(f"export {kind}.safetensors {export_name(form)} --to {form} --name {kind} --force")
        found["exports"][form] = exported_values(version.directory / export_name(form))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="tag or commit, which also names the directory")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (default: all)")
    arguments = parser.parse_args()
    commit, wanted = arguments.commit, arguments.kinds or KINDS
    date = subprocess.run(["git", "log", "-1", "--format=%cs", commit], check=True, capture_output=True, text=True)
    target = FILES / commit
    with tempfile.TemporaryDirectory() as name:
        version = Version(commit, Path(name))
        kinds = [kind for kind in train(version) if kind in wanted]
        stopped = "stopped" in wanted and stop(version)
        record = {"date": date.stdout.strip(), "models": {kind: answers(version, kind) for kind in kinds}}
        target.mkdir(parents=True)
        for file in [f"{kind}.safetensors" for kind in kinds] + [RESUME] * stopped:
            shutil.copy(version.directory / file, target)
    (target / RECORD).write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
