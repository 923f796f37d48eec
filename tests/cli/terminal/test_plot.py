"""The figure of a loss curve: its formats, equal bytes for equal curves, and errors."""

import json
import re
import sys
from pathlib import Path

import pytest

from llmcli.cli.terminal.plot import draw, format_of
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import load, save
from llmcli.training.files.summary import Curve
from tests import platforms
from tests.conftest import Llm, random_checkpoint

CURVE = Curve([1, 2, 3, 4], [8.0, 3.0, 2.0, 1.5], [2, 4], [3.1, 1.7])
FIRST_BYTES = {"svg": b"<?xml", "png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF"}


@pytest.fixture
def trained(tiny_model: Path) -> Path:
    """model.safetensors here, with a training record."""
    record = {
        "train_bytes": 200, "train_tokens": 100, "steps": 3,
        "curve": {"step": [1, 2, 3], "loss": [5.0, 4.0, 3.0], "eval_step": [3], "eval_bits_per_byte": [2.2]},
    }  # fmt: skip
    model = load(tiny_model)
    checkpoint = random_checkpoint(model.config, tokenizer_json=model.tokenizer_json)
    checkpoint.record |= record
    save(tiny_model, checkpoint)
    return tiny_model


@pytest.mark.parametrize("format_", FIRST_BYTES)
@pytest.mark.slow
def test_every_format_is_drawn_reproducibly(format_: str) -> None:
    pytest.importorskip("matplotlib")
    first = draw(CURVE, "りんご $x_1$.safetensors", format_)
    assert first.startswith(FIRST_BYTES[format_]) and len(first) > 2000
    assert draw(CURVE, "りんご $x_1$.safetensors", format_) == first
    assert not re.search(rb"20\d\d-\d\d-\d\d", first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "curve", [Curve([1], [2.0], [], []), Curve([5, 6], [1.0, 1.0], [6], [1.0]), Curve([1, 2], [1e9, 1e-9], [], [])]
)
def test_a_curve_may_be_a_point_or_constant(curve: Curve) -> None:
    pytest.importorskip("matplotlib")
    assert draw(curve, "title", "svg").startswith(b"<?xml")


def test_the_file_name_gives_the_format() -> None:
    assert [format_of(Path(name)) for name in ("a.svg", "b.PNG", "c.d.pdf")] == ["svg", "png", "pdf"]
    for name in ("a", "a.jpg", ".svg"):
        with pytest.raises(LLMError, match=r"a name that ends in \.svg, \.png or \.pdf"):
            format_of(Path(name))


def test_inspect_draws_the_curve(llm: Llm, trained: Path) -> None:
    pytest.importorskip("matplotlib")
    answer = llm("inspect", "--plot", "loss.svg")
    assert answer.exit_code == 0 and answer.stdout == "" and answer.stderr == "saved loss.svg\n"
    before = Path("loss.svg").read_bytes()
    again = llm("inspect", "--plot", "loss.svg")
    assert again.exit_code == 1 and "already exists; add --force" in again.stderr
    printed = json.loads(llm("inspect", "--plot", "loss.svg", "--force", "--json").stdout)
    assert printed == {"file": "model.safetensors", "plot": "loss.svg"} and Path("loss.svg").read_bytes() == before


@platforms.symbolic_links
def test_errors_are_one_line(llm: Llm, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bare.safetensors").write_bytes(trained.read_bytes())
    model = load(trained)
    save(Path("bare.safetensors"), random_checkpoint(model.config, tokenizer_json=model.tokenizer_json))
    Path("link.svg").symlink_to(trained)
    for options, message in (
        (["--plot", "loss.jpg"], "a name that ends in .svg"),
        (["--plot", "nowhere/loss.svg"], "mkdir -p"),
        (["bare.safetensors", "--plot", "loss.svg"], "bare.safetensors: there is no readable curve"),
        (["--plot", "link.svg", "--force"], "is the model itself"),
    ):
        answer = llm("inspect", *options)
        assert answer.exit_code == 1 and answer.stderr.count("\n") == 1 and message in answer.stderr, options
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # not installed
    answer = llm("inspect", "--plot", "loss.svg")
    assert answer.exit_code == 1 and 'pip install "llmcli[plot]"' in answer.stderr and not Path("loss.svg").exists()
