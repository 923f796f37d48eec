"""The picture of a run: its kinds, the same bytes again, and what can be wrong."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llmcli.cli.plot import draw, kind
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import load, save
from llmcli.training.summary import Curve
from tests import platforms
from tests.conftest import random_checkpoint

CURVE = Curve([1, 2, 3, 4], [8.0, 3.0, 2.0, 1.5], [2, 4], [3.1, 1.7])
STARTS = {"svg": b"<?xml", "png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF"}
Llm = Callable[..., Result]


@pytest.fixture
def trained(tiny_model: Path) -> Path:
    """model.safetensors here with the record of a run."""
    record = {
        "train_bytes": 200, "train_tokens": 100, "steps": 3,
        "curve": {"step": [1, 2, 3], "loss": [5.0, 4.0, 3.0], "eval_step": [3], "eval_bits_per_byte": [2.2]},
    }  # fmt: skip
    model = load(tiny_model)
    checkpoint = random_checkpoint(model.config, tokenizer_json=model.tokenizer_json)
    checkpoint.record.update(record)
    save(tiny_model, checkpoint)
    return tiny_model


@pytest.mark.parametrize("which", STARTS)
def test_every_kind_is_drawn_and_repeats_itself(which: str) -> None:
    pytest.importorskip("matplotlib")
    first = draw(CURVE, "りんご $x_1$.safetensors", which)
    assert first.startswith(STARTS[which]) and len(first) > 2000
    assert draw(CURVE, "りんご $x_1$.safetensors", which) == first
    assert not re.search(rb"20\d\d-\d\d-\d\d", first)


@pytest.mark.parametrize(
    "curve", [Curve([1], [2.0], [], []), Curve([5, 6], [1.0, 1.0], [6], [1.0]), Curve([1, 2], [1e9, 1e-9], [], [])]
)
def test_a_curve_may_be_a_point_or_level(curve: Curve) -> None:
    pytest.importorskip("matplotlib")
    assert draw(curve, "title", "svg").startswith(b"<?xml")


def test_the_name_says_the_kind() -> None:
    assert [kind(Path(name)) for name in ("a.svg", "b.PNG", "c.d.pdf")] == ["svg", "png", "pdf"]
    for name in ("a", "a.jpg", ".svg"):
        with pytest.raises(LLMError, match=r"let it end in \.svg, \.png or \.pdf"):
            kind(Path(name))


def test_inspect_draws_it(llm: Llm, trained: Path) -> None:
    pytest.importorskip("matplotlib")
    answer = llm("inspect", "--plot", "loss.svg")
    assert answer.exit_code == 0 and answer.stdout == "" and answer.stderr == "drew loss.svg\n"
    before = Path("loss.svg").read_bytes()
    again = llm("inspect", "--plot", "loss.svg")
    assert again.exit_code == 1 and "exists already; add --force" in again.stderr
    told = json.loads(llm("inspect", "--plot", "loss.svg", "--force", "--json").stdout)
    assert told == {"file": "model.safetensors", "plot": "loss.svg"} and Path("loss.svg").read_bytes() == before


@platforms.symbolic_links
def test_one_line_for_what_can_be_wrong(llm: Llm, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bare.safetensors").write_bytes(trained.read_bytes())
    model = load(trained)
    save(Path("bare.safetensors"), random_checkpoint(model.config, tokenizer_json=model.tokenizer_json))
    Path("link.svg").symlink_to(trained)
    for words, said in (
        (["--plot", "loss.jpg"], "let it end in .svg"),
        (["--plot", "nowhere/loss.svg"], "mkdir -p"),
        (["bare.safetensors", "--plot", "loss.svg"], "bare.safetensors: there is no readable curve"),
        (["--plot", "link.svg", "--force"], "is the model itself"),
    ):
        answer = llm("inspect", *words)
        assert answer.exit_code == 1 and answer.stderr.count("\n") == 1 and said in answer.stderr, words
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # not installed
    answer = llm("inspect", "--plot", "loss.svg")
    assert answer.exit_code == 1 and "pip install 'llmcli[plot]'" in answer.stderr and not Path("loss.svg").exists()
