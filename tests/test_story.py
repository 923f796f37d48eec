"""What a new user does first, with the installed command and the example corpora."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.platforms import in_full
from tests.sample_models import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def llm(*words: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a directory."""
    command = shutil.which("llm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert command, "the project is not installed: pip install -e '.[test]'"
    return subprocess.run([command, *words], cwd=directory, capture_output=True, text=True, timeout=900)


def true_frequencies(corpus: str, start: str, end: str) -> dict[str, float]:
    """Relative frequencies of the words between `start` and `end` in the lines of a corpus."""
    lines = (EXAMPLES / corpus).read_text("utf-8").splitlines()
    counts = Counter(
        line[len(start) : -len(end)].strip() for line in lines if line.startswith(start) and line.endswith(end)
    )
    return {word: count / sum(counts.values()) for word, count in counts.items()}


def next_words(prompt: str, directory: Path) -> dict[str, float]:
    predicted = run("generate", prompt, "-m", directory / "model.safetensors", "--next", 12, "--json")
    return {word["text"]: word["probability"] for word in json.loads(predicted.stdout)["next"]}


@pytest.fixture(scope="module")
def food(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with model.safetensors, trained as in the README but without a clock, in float32."""
    directory = tmp_path_factory.mktemp("food")
    options = ("--epochs", 7, "--dtype", "float32")  # epochs instead of a time budget
    trained = run("train", EXAMPLES / "food.txt", "-o", directory / "model.safetensors", *options)
    assert trained.exit_code == 0, trained.stderr
    return directory


def test_the_corpus_has_the_documented_frequencies() -> None:
    eat = true_frequencies("food.txt", "I like to eat ", ".")
    assert eat["apple"] == 18 / 48 == 0.375 and eat["banana"] == 7 / 48
    assert "apple" not in true_frequencies("food.txt", "I like to drink ", ".")


def test_predicted_probabilities_equal_the_frequencies_in_the_corpus(food: Path) -> None:
    for prompt in ["I like to eat", "I like to drink", "They went to the", "The cat likes to"]:
        expected = true_frequencies("food.txt", prompt + " ", ".")
        predicted = next_words(prompt, food)
        for word, frequency in expected.items():
            assert predicted.get(word, 0.0) == pytest.approx(frequency, abs=0.03), word
        assert next(iter(predicted)) == max(expected, key=expected.__getitem__)


def test_the_prediction_depends_on_the_context(food: Path) -> None:
    assert next_words("I like to drink", food).get("apple", 0.0) < 0.01


def test_prompts_that_end_in_a_space_or_inside_a_word(food: Path) -> None:
    whole, spaced = next_words("I like to eat", food), next_words("I like to eat ", food)
    assert spaced["apple"] == pytest.approx(whole["apple"], abs=0.02)
    assert llm("generate", "I like to drin", "-n", "1", "-t", "0", directory=food).stdout == "k\n"


def test_generated_lines_consist_of_words_of_the_corpus(food: Path) -> None:
    words = llm("generate", "I like to", "-n", "60", "--seed", "5", directory=food)
    assert words.returncode == 0 and words.stderr == ""
    known = set((EXAMPLES / "food.txt").read_text("utf-8").split())
    lines = words.stdout.split("\n")[1:-2]  # whole lines only
    assert lines and all(word in known for line in lines for word in line.split())


@in_full
def test_the_japanese_example(tmp_path: Path) -> None:
    trained = llm("train", str(EXAMPLES / "asagohan.txt"), "--epochs", "8", directory=tmp_path)
    assert trained.returncode == 0, trained.stderr
    expected = true_frequencies("asagohan.txt", "私は毎朝", "を食べます。")
    predicted = next_words("私は毎朝", tmp_path)
    assert predicted["リンゴ"] == pytest.approx(expected["リンゴ"], abs=0.06)
    assert predicted["バナナ"] == pytest.approx(expected["バナナ"], abs=0.06)
    assert re.match(
        r"(リンゴ|バナナ|納豆|パン|卵|魚)を食べます。\n", llm("generate", "私は毎朝", directory=tmp_path).stdout
    )
