"""The overview that `llm inspect` prints."""

from llmcli.formats.training_record import TrainingRecord
from llmcli.pages.model_facts import record_rows


def test_layers_count_from_1() -> None:
    rows = record_rows(TrainingRecord.from_json({"expert_shares": [[0.25, 0.75], [0.5, 0.5]]}))
    names = [name for name, _ in rows if name.startswith("tokens per expert")]
    assert names == ["tokens per expert, layer 1", "tokens per expert, layer 2"]
