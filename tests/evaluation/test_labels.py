"""Accuracy, confusion and calibration of choices: by hand, and as the Python API chooses."""

import json
from collections import Counter
from pathlib import Path

import pytest

import llmcli
from llmcli.evaluation.labels import LabelScore, expected_calibration_error
from tests.cli.commands.test_chat import write_chat_model
from tests.conftest import Llm


def test_the_calibration_error_by_hand() -> None:
    """Three bins: (0.4, 0.5] with 2 of 2, (0.5, 0.6] with 0 of 1, (0.9, 1] with 1 of 2 correct."""
    confidences, correct = [0.5, 0.42, 0.51, 1.0, 0.96], [True, True, False, True, False]
    expected = (2 * abs(1 - 0.46) + abs(0 - 0.51) + 2 * abs(0.5 - 0.98)) / 5
    assert expected_calibration_error(confidences, correct) == pytest.approx(expected)
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0


def test_the_confusion_table_has_labels_in_rows() -> None:
    score = LabelScore(["a", "b"], ["a", "a", "b", "b", "b"], ["a", "b", "b", "b", "a"], [1.0] * 5)
    assert score.confusion == [[1, 1], [1, 2]] and score.accuracy == 0.6


def test_eval_counts_what_choose_chooses(tmp_path: Path, llm: Llm) -> None:
    model = llmcli.load(write_chat_model(tmp_path / "model.safetensors"))
    labels = ["cat", "dog", "りんご"]
    rows = [(f"The {i} mat sat {i * 7 % 11}", labels[i % 3]) for i in range(30)]
    (tmp_path / "labels.tsv").write_text("".join(f"{text}\t {label} \n" for text, label in rows), "utf-8")
    best = {text: model.choose([{"role": "user", "content": text}], labels)[0] for text, _ in rows}
    run = llm("eval", "labels.tsv", "--choices", "answers", "--json")
    assert run.exit_code == 0, run.stderr
    [result] = json.loads(run.stdout)["results"]
    pairs = Counter((label, best[text][0]) for text, label in rows)
    assert result["choices"] == labels and result["questions"] == 30
    assert result["confusion"] == [[pairs[label, chosen] for chosen in labels] for label in labels]
    correct = [label == best[text][0] for text, label in rows]
    assert result["accuracy"] == pytest.approx(sum(correct) / 30, abs=1e-5)
    error = expected_calibration_error([best[text][1] for text, _ in rows], correct)
    assert result["expected_calibration_error"] == pytest.approx(error, abs=1e-3)
    table = llm("eval", "labels.tsv", "--choices", "cat,dog,りんご").stdout.splitlines()
    assert table[0] == "model\taccuracy\tcalibration error\tquestions" and "answer\tcat\tdog\tりんご" in table


def test_choices_that_cannot_be_measured_are_one_clear_error(tmp_path: Path, llm: Llm) -> None:
    write_chat_model(tmp_path / "model.safetensors")
    (tmp_path / "labels.tsv").write_text("a mat\tcat\na hat\tdog\n" * 9, "utf-8")
    (tmp_path / "text.txt").write_text("The cat sat on the mat.\n" * 60, "utf-8")
    for words, message in (
        (("labels.tsv", "--choices", "cat,bird"), "labels.tsv line 2: the answer 'dog' is not among the choices"),
        (("text.txt", "--choices", "cat,dog"), "--choices needs conversations"),
        (("labels.tsv", "--choices", "cat"), "or a file with one per line; found 'cat', which is not a file"),
        (("labels.tsv", "--choices", "answers", "--context", 8), "--context has no effect with --choices"),
    ):
        run = llm("eval", *words)
        assert run.exit_code and message in run.stderr and run.stdout == "", run.stderr
