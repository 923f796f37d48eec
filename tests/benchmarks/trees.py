"""Runs `llm` of several source trees, each in a process of its own; and a text to run it on."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def environment(tree: Path) -> dict[str, str]:
    """Environment variables with which `python -m llmcli` runs the package of a source tree."""
    kept = {name: value for name, value in os.environ.items() if name != "LLMCLI_MODEL"}
    return kept | {"PYTHONPATH": str(tree.resolve()), "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}


def start(tree: Path, directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `llm` of a source tree; its standard output and error are pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmcli", *arguments], cwd=directory, env=environment(tree), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip


def run(tree: Path, directory: Path, *arguments: str) -> str:
    """The standard output of `llm` of a source tree. Ends this program if the command fails."""
    process = start(tree, directory, *arguments)
    stdout, stderr = process.communicate()
    if process.returncode:
        sys.exit(f"{tree}: llm {' '.join(arguments)} ended with {process.returncode}: {stderr}")
    return stdout


def check(trees: Sequence[Path]) -> None:
    """End this program unless `import llmcli` imports the package of each tree."""
    for tree in trees:
        command = [sys.executable, "-c", "import llmcli; print(llmcli.__file__)"]
        file = subprocess.run(command, cwd="/", env=environment(tree), capture_output=True, text=True).stdout.strip()
        if not file or Path(file).parents[1] != tree.resolve():
            sys.exit(
                f"{tree} is not a source tree of llmcli: importing llmcli there gives {file or 'an error'}; "
                "give the directory that holds llmcli/"
            )


def text(sentences: int, seed: int = 0) -> str:
    """Made-up English, a function of the seed."""
    choose = random.Random(seed).choice
    subjects = ("The old man", "A small dog", "Anna", "My neighbour", "The king of the hill", "りんごさん")
    verbs = ("likes", "finds", "paints", "sells", "forgets about", "dreams of")
    objects = (
        "a red apple",
        "the long river",
        "three wooden boats",
        "her sister's coat",
        "the moon 🌙",
        "rice and tea",
    )
    places = ("at home", "in the village", "near the sea", "every morning", "when it rains", "after the war")
    return "".join(
        f"{choose(subjects)} {choose(verbs)} {choose(objects)} {choose(places)}.{choose(' ' * 4 + chr(10))}"
        for _ in range(sentences)
    )
