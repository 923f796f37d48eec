"""Whether two source trees train the same models: the same commands in both, with the files compared.

    python -m tests.benchmarks.same_bytes BEFORE AFTER [--only WORD ...]

With a number of steps (or epochs), a seed and a number of threads, a model file is a function of the command, so that a
change that should not change training must leave its tensors equal to the bit. BEFORE and AFTER are source trees (the
directories that hold `llmcli`), such as `git worktree add` makes. Prints a table, and ends with exit code 1 if tensors
differ. Takes about five seconds a command and tree.
"""

import argparse
import hashlib
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import trees
from tests.golden.models import read_safetensors

RUN = ["train", "--seed", "1", "--threads", "1", "--json"]
STEPS = ["--steps", "30"]
STEPS_TO_STOP = 400  # of the run that is interrupted: enough that it has not ended by then
STOP_AFTER = 5  # its steps before the interrupt
SMALL = ["--layers", "1", "--width", "32", "--context", "32", "--batch-tokens", "128"]
TINY = ["--layers", "1", "--width", "16", "--context", "16", "--batch-tokens", "4096"]
LARGE = ("calibration", "induction heads")  # what needs a larger text
TEXTS = {"text.txt": 800, "other.txt": 100, "large.txt": 3_000}  # sentences
CASES = {
    "defaults": STEPS,
    "characters": ["--tokenizer", "char", *STEPS],
    "experts": ["--experts", "4", *STEPS],
    "dropout": ["--dropout", "0.1", *STEPS],
    "adamw": ["--optimizer", "adamw", *STEPS],
    "context": ["--context", "48", *STEPS],
    "float32": ["--dtype", "float32", *STEPS],
    "validation file": ["--val", "other.txt", *STEPS],
    "epochs": ["--epochs", "2"],
    "BPE-dropout": ["--epochs", "15", *SMALL],  # which many epochs turn on
    "from": ["--from", "base.safetensors", *STEPS],
    "from, lora": ["--from", "base.safetensors", "--lora", "4", *STEPS],
    "adapter only": ["--from", "base.safetensors", "--lora", "4", "--adapter-only", *STEPS],
    "like": ["--like", "base.safetensors", *STEPS],
    "calibration": ["--epochs", "6.5", "--tokenizer", "char", *TINY],
    "induction heads": ["--tokenizer", "char", "--layers", "2", "--width", "64", "--steps", "8"],
    "resumed": ["--steps", str(STEPS_TO_STOP), *SMALL],
    "resumed by the other": ["--steps", str(STEPS_TO_STOP), *SMALL],  # AFTER continues where BEFORE was stopped
}


def train(tree: Path, directory: Path, case: str, before: Path) -> Path:
    """Run a case in a directory; the file that it wrote. `before` is the tree that runs the first steps of a run which
    another resumes."""
    output = f"{case.replace(', ', '-').replace(' ', '-')}.safetensors"
    corpus = "large.txt" if case in LARGE else "text.txt"
    command = [*RUN, corpus, *CASES[case], "-o", output]
    if case.startswith("resumed"):
        stop(tree if case == "resumed" else before, directory, command)
    trees.run(tree, directory, *command)
    return directory / output


def stop(tree: Path, directory: Path, command: list[str]) -> None:
    """Interrupt a run after its first steps, as Ctrl-C does; the same command then resumes it."""
    process = trees.start(tree, directory, *command)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "step" and event["step"] >= STOP_AFTER:
            process.send_signal(signal.SIGINT)
            break
    _, stderr = process.communicate()
    if not list(directory.glob("resumed*.resume.safetensors")):
        sys.exit(f"{tree}: the run that was interrupted left nothing to go on from: {stderr}")


def content(path: Path) -> tuple[str, dict[str, Any]]:
    """(hash of the tensors with their names, types and shapes; metadata with its JSON documents parsed)"""
    metadata, tensors = read_safetensors(path)
    digest = hashlib.sha256()
    for name, (dtype, shape, data) in tensors.items():
        digest.update(f"{name} {dtype} {shape} ".encode())
        digest.update(data)
    return digest.hexdigest(), {
        key: json.loads(value) if key.endswith(".json") else value for key, value in metadata.items() if key != "sha256"
    }


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    """The keys under which two JSON values differ; lists are compared as a whole.

    >>> differing({"a": {"b": 1, "c": [1]}, "d": 0}, {"a": {"b": 2, "c": [1]}})
    ['a.b', 'd']
    """
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(dict.fromkeys([*one, *other]))
        below = [
            line for key in keys for line in differing(one.get(key), other.get(key), f"{name}.{key}".removeprefix("."))
        ]
        return below or ([] if list(one) == list(other) else [f"{name} (order of keys)"])
    return [] if one == other else [name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--details", action="store_true", help="print the values of metadata that differ")
    options = parser.parse_args()
    sources = options.before, options.after
    trees.check(sources)
    print("| case | same tensors | same file | metadata that differs |\n|---|---|---|---|")
    unequal, details = 0, []
    with tempfile.TemporaryDirectory() as name:
        directories = [Path(name, which) for which in ("before", "after")]
        base = Path(name, "base.safetensors")
        for directory in directories:
            directory.mkdir()
            for file, sentences in TEXTS.items():
                (directory / file).write_text(trees.text(sentences, sentences), "utf-8")
        trees.run(options.before, directories[0], *RUN, "text.txt", *STEPS, "-o", str(base))
        for directory in directories:
            (directory / base.name).write_bytes(base.read_bytes())
        for case in options.only:
            files = [
                train(tree, directory, case, options.before)
                for tree, directory in zip(sources, directories, strict=True)
            ]
            (hash_before, before), (hash_after, after) = map(content, files)
            same = hash_before == hash_after
            whole = files[0].read_bytes() == files[1].read_bytes()
            unequal += not same
            keys = differing(before, after)
            details += [f"{case}: {key}\n  {value(before, key)}\n  {value(after, key)}" for key in keys]
            differing_keys = ", ".join(key.replace("training.json.", "") for key in keys) or "none"
            print(f"| {case} | {'yes' if same else 'NO'} | {'yes' if whole else 'no'} | {differing_keys} |", flush=True)
    if options.details:
        print("\n".join(["", *details]))
    sys.exit(1 if unequal else 0)


def value(metadata: dict[str, Any], key: str) -> str:
    """What metadata hold under a key of `differing`, shortened."""
    document, _, rest = key.partition(".json.")
    entry: Any = metadata.get(f"{document}.json" if rest else key)
    for part in rest.split(".") if rest else ():
        entry = entry.get(part) if isinstance(entry, dict) else entry
    return json.dumps(entry, ensure_ascii=False)[:2_000]


if __name__ == "__main__":
    main()
