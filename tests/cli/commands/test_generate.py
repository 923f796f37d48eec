"""`llm generate`: its output, its JSON, and prompts of all kinds."""

import json
from pathlib import Path

import pytest

from tests.conftest import TEXT, Llm


@pytest.mark.slow
def test_a_trained_model_generates_only_bytes_of_its_text(llm: Llm, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(TEXT, "utf-8")
    words = ["--steps", 2, "--context", 16, "--threads", 1, "-q"]
    assert llm("train", "c.txt", *words).exit_code == 0
    record = json.loads(llm("inspect", "--json").stdout)["training"]
    known = set(TEXT.encode())
    assert set(bytes.fromhex(record["seen_bytes"])) == known
    assert all(set(text.encode()) <= known for _, text in record["samples"]["texts"])
    for seed in range(5):
        for way in ((), ("--literal",)):
            answer = llm("generate", "The c", "-t", 5, "--min-p", 0, "-n", 60, "--seed", seed, *way, "--json")
            assert set(json.loads(answer.stdout)["text"].encode()) <= known
    shown = json.loads(llm("generate", "The c", "--next", 100_000, "--json").stdout)
    assert all(word["text"] == "<end>" or set(word["text"].encode()) <= known for word in shown["next"])
    assert sum(word["probability"] for word in shown["next"]) + shown["unexplored"] == pytest.approx(1, abs=1e-3)


def test_choices_continue_the_prompt(llm, tiny_model):
    """A choice that ends the word, and the same with the whole last word, are the same text."""

    def probabilities(prompt, choices):
        answer = llm("generate", prompt, "--choices", choices, "--json")
        assert answer.exit_code == 0, answer.stderr
        return {choice["text"]: choice["logprob"] for choice in json.loads(answer.stdout)["choices"]}

    inside, before = probabilities("The ca", "t,r"), probabilities("The", " cat, car")
    assert inside["t"] - inside["r"] == pytest.approx(before[" cat"] - before[" car"], abs=0.2)
    lines = llm("generate", "The", "--choices", " cat, car").stdout.splitlines()
    assert lines[0].startswith("continuation") and {line.split("\t")[0] for line in lines[1:]} == {"·cat", "·car"}
    refused = llm("generate", "The", "--choices", "a,b", "-n", 3)
    assert refused.exit_code == 2 and "--max-tokens has no effect with --choices" in refused.stderr


@pytest.mark.slow
def test_new_lines_are_not_in_the_training_text_and_samples_are_separated(llm: Llm, tmp_path: Path) -> None:
    words = [a + b for a in ("Ma", "Le", "No", "Ri", "Sa") for b in ("ra", "na", "lo", "mi")]
    (tmp_path / "names.txt").write_text("\n".join(words * 15), "utf-8")
    assert llm("train", "names.txt", "--steps", 60, "--context", 16, "--threads", 1, "-q").exit_code == 0
    listed = llm("generate", "--lines", 5, "--new", "-t", 1.5, "--min-p", 0, "-s", 1)
    lines = listed.stdout.splitlines()
    assert listed.exit_code == 0 and len(set(lines)) == 5 and not set(lines) & set(words), listed.stderr
    assert "in the training text" in listed.stderr
    as_json = json.loads(llm("generate", "--lines", 5, "--new", "-t", 1.5, "--min-p", 0, "-s", 1, "--json").stdout)
    assert as_json["lines"] == lines and as_json["known"] > 0
    few = llm("generate", "--lines", 5, "-t", 0)
    assert few.exit_code == 1 and "found 1 of 5 lines" in few.stderr and few.stdout.count("\n") == 1
    assert "a higher --temperature varies them more" in few.stderr
    assert "a higher --max-tokens allows longer ones\n" in llm("generate", "--lines", 5, "-n", 1, "--min-p", 1).stderr
    (tmp_path / "names.txt").rename(tmp_path / "other.txt")
    assert "--min-tokens has no effect with --lines" in llm("generate", "--lines", 5, "--min-tokens", 3).stderr
    missing = llm("generate", "--lines", 5, "--new")
    assert missing.exit_code == 1 and "is missing or has changed" in missing.stderr and "--corpus" in missing.stderr
    assert not set(llm("generate", "--lines", 5, "--new", "--corpus", "other.txt").stdout.splitlines()) & set(words)
    assert llm("generate", "Ma", "--new").exit_code == 2
