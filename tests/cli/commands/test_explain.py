"""`llm explain`: its JSON, its charts at several terminal widths, its errors."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from llmcli.analysis.explain import explain
from llmcli.data.tokenizers.vocabulary import START
from llmcli.formats.checkpoint import load, save
from llmcli.formats.loading import open_tokenizer
from llmcli.models.logits import softmax
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import Llm

pytestmark = pytest.mark.usefixtures("short_search")

FAMILY = "👨‍👩‍👧"  # joined by zero-width joiners


def test_json_equals_the_explanation(llm: Llm, tiny_model: Path) -> None:
    found = json.loads(llm("explain", "The cat", "--literal", "--next", 3, "--json").stdout)
    assert set(found) == {
        "prompt", "tokens", "tail", "cut", "earlier", "attention", "lens", "next_tokens", "entropy_bits", "next",
        "unexplored",
    }  # fmt: skip
    model = load(tiny_model)
    truth = explain(NumpyRuntime(model), open_tokenizer(model), "The cat", literal=True, candidates=3)
    assert [token["id"] for token in found["tokens"]] == truth.ids
    assert "".join(token["text"] for token in found["tokens"]) == "The cat"
    np.testing.assert_allclose([token["effect_bits"] for token in found["tokens"]], truth.ablation_effects, atol=1e-6)
    weights = np.array(found["attention"]["weights"])
    assert (found["attention"]["layers"], found["attention"]["heads"]) == ([1, 2], [1, 2, 3, 4])
    np.testing.assert_allclose(weights, truth.attention, atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-4)
    assert [row["layer"] for row in found["lens"]] == [0, 1, 2]
    assert [t["id"] for t in found["lens"][-1]["next_tokens"]] == [t["id"] for t in found["next_tokens"]]
    one = json.loads(llm("explain", "The cat", "--literal", "--layer", 2, "--head", 3, "--json").stdout)["attention"]
    assert (one["layers"], one["heads"]) == ([2], [3])
    np.testing.assert_allclose(one["weights"], truth.attention[1:2, 2:3], atol=1e-6)


def test_probabilities_are_those_that_generate_prints(llm: Llm, tiny_model: Path) -> None:
    found = json.loads(llm("explain", "The cat", "--literal", "--next", 300, "--json").stdout)
    generated = json.loads(llm("generate", "The cat", "--literal", "-n", 1, "-t", 0, "--json").stdout)["tokens"][0]
    most_likely = found["next_tokens"][0]
    assert (most_likely["id"], most_likely["text"], most_likely["logprob"]) == (
        generated["id"],
        generated["text"],
        generated["logprob"],
    )
    generated = json.loads(llm("generate", "The cat", "--next", 300, "--json").stdout)
    assert [(w["text"], w["probability"]) for w in generated["next"]] == [
        (w["text"], w["probability"]) for w in found["next"]
    ]
    assert found["unexplored"] == generated["unexplored"]
    # all but the tokens that are never generated (invalid UTF-8), to which a random model gives much probability
    tokenizer = open_tokenizer(load(tiny_model))
    own = softmax(NumpyRuntime(load(tiny_model)).prefill(tokenizer.encode("The cat")))
    expected = own[tokenizer.vocabulary.allowed(START)].sum()
    assert sum(token["probability"] for token in found["next_tokens"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("columns", ["60", "80", "200"])
@pytest.mark.parametrize(
    "prompt", ["The cat sat on the mat. The dog ate", f"りんごを食べる。{FAMILY}", "a\x1b[31mb\u202e\tc"]
)
@pytest.mark.slow
def test_every_line_fits_the_terminal(tiny_model: Path, prompt: str, columns: str) -> None:
    sure = load(tiny_model)
    louder = {name: 20 * t if name == "model.norm.weight" else t for name, t in sure.tensors.items()}
    save(tiny_model, replace(sure, tensors=louder))
    shown = STYLES.sub("", in_a_terminal("explain", prompt, COLUMNS=columns))
    assert "logit lens" in shown and "next word" in shown
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", shown), repr(shown)
    for line in shown.splitlines():
        pictures = line.startswith((" ", "0", "1", "2")) or "█" in line
        assert not pictures or cell_len(line.rstrip()) <= int(columns), line


def test_the_heat_map_shows_the_last_tokens_that_fit(llm: Llm, tiny_model: Path) -> None:
    answer = llm("explain", "The cat sat on the mat. The dog ate the hat. " * 4, "--literal")
    assert "(the last 29 of 32 tokens; --html shows more, --json all)" in answer.stdout
    assert "exceeds the context length of 32" in answer.stderr
    rows = [line for line in answer.stdout.splitlines() if re.match(r" ?\d+ .*[█▓▒░·]{2}", line)]
    assert any(line.startswith(" 4 ") for line in rows) and any(line.startswith("32 ") for line in rows)
    assert not any(line.startswith(" 3 ") and "+" not in line and "-" not in line for line in rows)


def test_a_pipe_gets_no_colors_and_stderr_is_empty(llm: Llm, tiny_model: Path) -> None:
    answer = llm("explain", "The cat")
    assert answer.exit_code == 0 and "\x1b" not in answer.stdout.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert answer.stderr == ""


def test_an_empty_prompt_is_refused(llm: Llm, tiny_model: Path) -> None:
    answer = llm("explain", "")
    assert answer.exit_code == 1 and "the prompt is empty" in answer.stderr
