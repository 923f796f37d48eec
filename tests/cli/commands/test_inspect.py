"""`llm inspect`: its output and its JSON."""

import json
from pathlib import Path

from tests.conftest import Llm
from tests.sample_models import write_unhashed


def test_overview_tensors_statistics_and_hash(llm: Llm, tiny_model: Path) -> None:
    overview = llm("inspect").stdout
    assert "layers x 2" in overview and "q_proj.weight" in overview and "hidden_size" in overview
    assert len(llm("inspect", "--tensors").stdout.splitlines()) == 1 + 25
    one = json.loads(llm("inspect", "--tensor", "model.norm.weight", "--json").stdout)
    assert one["shape"] == [32] and 0.5 <= one["min"] <= one["mean"] <= one["max"] <= 1.5
    assert llm("inspect", "--verify").exit_code == 0
    data = bytearray(tiny_model.read_bytes())
    data[-9] ^= 4
    tiny_model.write_bytes(data)
    assert "damaged" in llm("inspect", "--verify").stderr


def test_a_malformed_record_is_reported(llm: Llm, tiny_model: Path) -> None:
    whole = tiny_model.read_bytes()
    for record in ['{"corpus": 7}', '{"curve": {"step": [1], "loss": 3}}', '{"train": 3, "corpus": []}', "{"]:
        tiny_model.write_bytes(whole)
        write_unhashed(tiny_model, {"training.json": record})
        answer = llm("inspect")
        assert answer.exit_code == 1 and "its training.json is not " in answer.stderr
        assert llm("generate", "The cat", "-n", 1).stderr == answer.stderr
        assert llm("inspect", "--tensors").exit_code == 0
