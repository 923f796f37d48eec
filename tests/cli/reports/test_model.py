"""The overview that `llm inspect` prints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llmcli.pages.model_facts import record_rows

Llm = Callable[..., Result]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
         ["rope_theta 500000.0", "rope_scaling rope_type linear, factor 2.0", "max_position_embeddings 32"]),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
         ["max_position_embeddings 16 of 32 (limited by the sliding window)"]),
        ({"model_type": "gpt2", "rope_theta": 7.0}, ["rope_theta 7.0", "max_position_embeddings 32"]),
    ],
)  # fmt: skip
def test_the_config_is_shown_as_the_model_runs_it(tiny_model: Path, llm: Llm, changes: dict, lines: list[str]) -> None:
    assert llm("export", tiny_model, "there", "--to", "hf").exit_code == 0
    config = json.loads(Path("there/config.json").read_text())
    if "rope_parameters" in changes:  # as transformers 5 writes it
        del config["rope_theta"], config["rope_scaling"]
    Path("there/config.json").write_text(json.dumps(config | changes))
    shown = [" ".join(line.split()) for line in llm("inspect", "there").stdout.splitlines()]
    assert set(lines) <= set(shown)


def test_layers_count_from_1() -> None:
    rows = record_rows({"expert_shares": [[0.25, 0.75], [0.5, 0.5]]})
    names = [name for name, _ in rows if name.startswith("tokens per expert")]
    assert names == ["tokens per expert, layer 1", "tokens per expert, layer 2"]
