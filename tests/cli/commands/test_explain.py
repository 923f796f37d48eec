"""`llm explain`: its JSON, its charts at several terminal widths, its errors."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from llmcli.analysis.explain import explain
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load, open_tokenizer
from llmcli.generation.token_healing import Prompt
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import Llm
from tests.pages.live import element

pytestmark = pytest.mark.usefixtures("short_search")

FAMILY = "👨‍👩‍👧"  # joined by zero-width joiners


def test_another_next_token_is_explained(llm: Llm, tiny_model: Path) -> None:
    model = load(tiny_model)
    tokenizer = open_tokenizer(model)
    prompt = Prompt.of("The cat", tokenizer, literal=True)
    token = explain(NumpyRuntime(model), tokenizer, prompt).most_likely(3)[2]
    truth = explain(NumpyRuntime(model), tokenizer, prompt, token=token)
    label = tokenizer.label(token)
    found = json.loads(llm("explain", "The cat", "--literal", "--token", label, "--json").stdout)
    assert found["attribution"]["id"] == token
    assert found["attribution"]["logit"] == pytest.approx(truth.attribution.logit, abs=1e-5)
    effects = np.array([one["effect_bits"] for one in found["tokens"]], float)
    np.testing.assert_allclose(effects, truth.ablation_effects, atol=1e-6)
    assert "contributions to the logit of" in llm("explain", "The cat", "--literal", "--token", label).stdout
    wrong = llm("explain", "The cat", "--token", "xyzzy")
    message = "--token must be one token of the model, found 'xyzzy', which is 'x'"
    assert wrong.exit_code == 2 and message in wrong.stderr


def test_two_prompts_side_by_side(llm: Llm, tiny_model: Path) -> None:
    same = ("explain", "The cat", "--compare", "The cat")
    assert "next token\t1\t2\t" in llm(*same).stdout
    shown = llm(*same, "--without", "1").stdout
    assert "switched off in both: layer 1\n" in shown and "next token\t1\t2\t" in shown
    shown = llm("explain", "The cat", "--compare", "りんご").stdout
    assert "1: The cat\n2: りんご\n" in shown and "next word\t1\t2\tchange in bits" in shown


def test_the_page_opens_at_the_prompt_without_some_parts(llm: Llm, tiny_model: Path) -> None:
    options = ("explain", "The cat", "--html", "page.html", "--json")
    without, compare = ("--without", "2.3", "--without", "1"), ("--compare", "りんご")
    for more, view, other, parts in (
        ((), "inside", "", []),
        (without, "inside", "", ["2.3", "1"]),
        ((*without, *compare), "compare", "りんご", ["2.3", "1"]),
    ):
        Path("page.html").unlink(missing_ok=True)
        answer = llm(*options, *more)
        assert json.loads(answer.stdout) == {"prompt": "The cat", "page": "page.html"}, answer.stderr
        start = json.loads(element(Path("page.html").read_text("utf-8"), "data"))["start"]
        assert start == {"view": view, "text": "The cat", "compare": other, "without": parts}
    Path("page.html").unlink()
    wrong = llm(*options, "--without", "3")
    assert wrong.exit_code == 2 and "the model has layers 1 to 2" in wrong.stderr
    assert "--next has no effect with --html" in llm(*options, "--next", 3).stderr
    assert "the prompt is empty" in llm("explain", "", *options[2:]).stderr


def test_a_page_replaces_no_file(llm: Llm, tiny_model: Path) -> None:
    command = ("explain", "The cat", "--html")
    answer = llm(*command, "page.html")
    assert answer.exit_code == 0 and answer.stdout == "" and "page.html" in answer.stderr
    first, before = Path("page.html").read_bytes(), tiny_model.read_bytes()
    assert first.startswith(b"<!DOCTYPE html>") and first.endswith(b"</html>\n")
    for name, message in (
        ("page.html", "page.html already exists; remove it, or give another name with --html"),
        (tiny_model.name, "is the model itself"),
        ("nowhere/page.html", "there is no directory"),
    ):
        answer = llm(*command, name)
        assert answer.exit_code == 1 and message in answer.stderr and answer.stderr.count("\n") == 1
    assert Path("page.html").read_bytes() == first and tiny_model.read_bytes() == before


def test_heads_initialized_for_copying_are_named(llm: Llm, tiny_model: Path) -> None:
    model = load(tiny_model)
    save(tiny_model, replace(model, record=model.record | {"train": {"induction": True}}))
    assert json.loads(llm("explain", "The cat", "--json").stdout)["initialized_heads"] == {
        "1.1": "previous-token head, 1 back", "1.3": "previous-token head, 2 back", "2.1": "induction head"
    }  # fmt: skip
    assert "head 2.1 was initialized as: induction head" in llm("explain", "The cat").stdout


@pytest.mark.slow
def test_every_line_fits_the_terminal(sure_model: Path) -> None:
    family, hostile = f"りんごを食べる。{FAMILY}", "a\x1b[31mb\u202e\tc"
    commands = {
        ("The cat sat on the mat. The dog ate",): 200, (family,): 60, (hostile,): 80, (family, "--without", "1"): 40,
        (family, "--compare", hostile): 80,
    }  # fmt: skip
    for words, columns in commands.items():
        shown = STYLES.sub("", in_a_terminal("explain", *words, COLUMNS=str(columns)))
        assert len(words) > 1 or ("logit lens" in shown and "next word" in shown)
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", shown), repr(shown)
        for line in shown.splitlines():
            pictures = line.startswith((" ", "0", "1", "2")) or "█" in line
            assert not pictures or cell_len(line.rstrip()) <= columns, line


def test_the_heat_map_shows_the_last_tokens_that_fit(llm: Llm, tiny_model: Path) -> None:
    answer = llm("explain", "The cat sat on the mat. The dog ate the hat. " * 4, "--literal")
    assert "(the last 29 of 32 tokens; --html shows more, --json all)" in answer.stdout
    assert "exceeds the context length of 32" in answer.stderr
    rows = [line for line in answer.stdout.splitlines() if re.match(r" ?\d+ .*[█▓▒░·]{2}", line)]
    assert any(line.startswith(" 4 ") for line in rows) and any(line.startswith("32 ") for line in rows)
    assert not any(line.startswith(" 3 ") and "+" not in line and "-" not in line for line in rows)
