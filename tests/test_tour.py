"""The guided tours run as printed, in English and in Japanese, with the results that they describe."""

import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import Result

from tests.platforms import in_full

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TOURS = {name: (ROOT / "examples" / name).read_text("utf-8") for name in ("tour.md", "tour.ja.md")}


def commands(text: str) -> list[str]:
    return [line.removeprefix("    $ ") for line in text.splitlines() if line.startswith("    $ ")]


def run_tour(tour: str, place: Path, llm: Callable[..., Result]) -> dict[str, str]:
    """What each command of a tour prints, typed one after the other as in a fresh clone; all in this process, which
    imports torch once. Section 8 is left out: its answers need minutes of training. The benchmarks measure them, and
    test_documents.py runs the commands."""
    (place / "examples").symlink_to(ROOT / "examples")
    found = {}
    for command in commands(TOURS[tour].split("\n## 8")[0]):
        *before, line = command.split(" | ")
        stdin = shlex.split(before[0])[1] + "\n" if before else ""  # of an echo
        name, *words = shlex.split(line)
        assert name == "llm" and (not before or before[0].startswith("echo ")), command
        run = llm(*words, stdin=stdin.encode())
        assert run.exit_code == 0, f"{command}\n{run.stderr}"
        assert run.stdout or "train" in command or "--html" in command or "mix" in command, command
        found[command] = run.stdout
    return found


def output_of(outputs: dict[str, str], start: str) -> str:
    return next(text for command, text in outputs.items() if command.startswith(start))


def bits_per_byte(table: str) -> dict[str, float]:
    header, *rows = (line.split("\t") for line in table.splitlines())
    assert header[:3] == ["model", "network", "adapting"]
    return {row[0]: float(row[1] or row[2]) for row in rows}


@in_full
def test_the_english_tour_gives_the_results_that_it_describes(tmp_path: Path, llm: Callable[..., Result]) -> None:
    outputs = run_tour("tour.md", tmp_path, llm)
    assert output_of(outputs, 'llm generate "I like to eat" --next').startswith("next word\tprobability\napple\t0.")
    assert "apple" not in output_of(outputs, 'llm generate "I like to drink"')
    lens = output_of(outputs, 'llm explain "The cat').split("logit lens")[1]
    assert re.search(r"none\t·(eat|drink)", lens) and re.search(r"\n1\t·sleep", lens)
    kite = output_of(outputs, 'llm explain "Anna')
    assert re.search(r"\d\t\d\t4 ·kite\t0\.\d+", kite) and re.search(r"next token.*\n·kite\t0\.[5-9]", kite)
    surprise = output_of(outputs, "echo")
    eat, stones = (float(re.search(rf"([\d.]+)\t·{token}\n", surprise)[1]) for token in ("eat", "s"))  # type: ignore[index]
    assert eat < 3 < stones
    figures = bits_per_byte(output_of(outputs, "llm eval examples"))
    assert figures["model.safetensors"] < figures["PPM, adaptive"] < figures["small.safetensors"]
    assert "⟦" in output_of(outputs, 'llm generate "I like to" -n 40')
    assert "2 of 4 experts" in output_of(outputs, "llm inspect sparse")
    mixed = bits_per_byte(output_of(outputs, "llm eval examples/food.txt examples/stories.txt"))  # last rows: all
    assert 2 * mixed["both.safetensors"] < min(mixed["model.safetensors"], mixed["other.safetensors"])


@in_full
def test_the_japanese_tour_gives_the_results_that_it_describes(tmp_path: Path, llm: Callable[..., Result]) -> None:
    outputs = run_tour("tour.ja.md", tmp_path, llm)
    assert output_of(outputs, 'llm generate "私は毎朝" --next').startswith("next word\tprobability\nリンゴ\t0.")
    assert "リンゴ" not in output_of(outputs, 'llm generate "私は毎晩"')
    cat, park = (output_of(outputs, f'llm explain "{start}').split("logit lens")[1] for start in ("猫", "私たち"))
    assert re.search(r"\n2\t眠 0\.[5-9]", cat) and re.search(r"\n2\t[サ散野] ", park)
    figures = bits_per_byte(output_of(outputs, "llm eval examples"))
    assert figures["model.safetensors"] < figures["xz"] < figures["small.safetensors"]
    assert "⟦" in output_of(outputs, 'llm generate "私は毎朝" -n 60')


def test_both_tours_have_the_same_sections() -> None:
    """And a similar number of commands."""
    english, japanese = ([line.split(".")[0] for line in text.splitlines() if line.startswith("## ")]
                         for text in TOURS.values())  # fmt: skip
    assert english == japanese == [f"## {number}" for number in range(1, 9)]
    assert all(15 <= len(commands(text)) <= 36 for text in TOURS.values())


# ---- the Japanese


PROSE = [line for line in TOURS["tour.ja.md"].splitlines() if line and not line.startswith(("    ", "#"))]
POLITE = re.compile(r"(です|ます|でした|ました|ません|ましょう|でしょう|ください)か?$")


def test_a_japanese_paragraph_is_one_line() -> None:
    """A line's end inside a paragraph is shown as a space, which Japanese does not have."""
    lines = TOURS["tour.ja.md"].splitlines()
    prose = [bool(line) and not line.startswith("    ") for line in lines]
    assert not any(a and b for a, b in pairwise(prose)), "two lines of prose follow each other"


def test_japanese_sentences_are_all_polite() -> None:
    """です and ます throughout."""
    for line in PROSE:
        plain = re.sub("（[^（）]*）|「[^「」]*」", "", line)
        for sentence in filter(None, re.split("。|！|？", plain)):
            assert POLITE.search(sentence), sentence


def test_japanese_terms_are_those_of_the_field() -> None:
    text = TOURS["tour.ja.md"]
    terms = ("1バイトあたりのビット数", "アテンション（注意機構）", "評価用データ", "語彙", "埋め込み", "確率分布")
    for term in (*terms, "過学習", "層", "学習", "推論"):
        assert term in text, term
    for wrong in ("毎バイト", "注意(", "数字", "専門家", "(", ")"):
        prose = re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)", "", "\n".join(PROSE))
        assert wrong not in prose, wrong


def test_the_columns_of_every_table_are_explained_in_japanese() -> None:
    explained = set(re.findall("`([^`]+)`", "\n".join(PROSE)))
    heads = [line for line in TOURS["tour.ja.md"].splitlines()
             if re.match(r"     +(next word|token|layer|after layer|model|expert)  .*[a-z]$", line)]  # fmt: skip
    names = {name for head in heads for name in re.split("  +", head.strip())} - {"..."}
    assert {"next word", "sampling", "attends to", "most likely", "network", "adapting", "mean weight", "text"} <= names
    assert names <= explained, names - explained
