"""`llm inspect`: its output and its JSON."""

from pathlib import Path

from tests.conftest import Llm
from tests.sample_models import write_unhashed


def test_a_malformed_record_is_reported(llm: Llm, tiny_model: Path) -> None:
    whole = tiny_model.read_bytes()
    for record in ['{"corpus": 7}', '{"curve": {"step": [1], "loss": 3}}', '{"train": 3, "corpus": []}', "{"]:
        tiny_model.write_bytes(whole)
        write_unhashed(tiny_model, {"training.json": record})
        answer = llm("inspect")
        assert answer.exit_code == 1 and "its training.json is not " in answer.stderr
        assert llm("generate", "The cat", "-n", 1).stderr == answer.stderr
        assert llm("inspect", "--tensors").exit_code == 0
