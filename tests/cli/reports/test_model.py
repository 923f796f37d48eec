"""The overview that `llm inspect` prints."""

import json
from pathlib import Path

from llmcli.formats.training_record import TrainingRecord
from llmcli.pages.model_facts import record_rows
from tests.conftest import Llm


def test_the_config_is_shown(tiny_model: Path, llm: Llm) -> None:
    assert llm("export", tiny_model, "there", "--to", "hf").exit_code == 0
    config = json.loads(Path("there/config.json").read_text())
    scaling = {"rope_type": "linear", "factor": 2.0}
    Path("there/config.json").write_text(json.dumps(config | {"rope_theta": 7.5, "rope_scaling": scaling}))
    shown = [" ".join(line.split()) for line in llm("inspect", "there").stdout.splitlines()]
    assert {"rope_theta 7.5", f"rope_scaling {scaling}", "max_position_embeddings 32"} <= set(shown)


def test_layers_count_from_1() -> None:
    rows = record_rows(TrainingRecord.from_json({"expert_shares": [[0.25, 0.75], [0.5, 0.5]]}))
    names = [name for name, _ in rows if name.startswith("tokens per expert")]
    assert names == ["tokens per expert, layer 1", "tokens per expert, layer 2"]
