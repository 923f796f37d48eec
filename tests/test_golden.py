"""Commands still give the recorded results: JSON, tables, exit codes, files written.

A change of these results is a change of the interface that people's scripts depend on. Where it is intended, record
anew: python -m tests.golden.record
"""

import json
from pathlib import Path

import pytest

from tests.golden.commands import GROUPS
from tests.golden.results import differences, environment, is_runnable, record_file, run, set_up

pytestmark = [pytest.mark.slow, pytest.mark.baselines]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("golden")
    set_up(directory)
    return directory


@pytest.mark.parametrize("group", GROUPS)
def test_results_equal_the_record(group: str, models: Path) -> None:
    record = json.loads(record_file(group).read_text("utf-8"))
    assert list(record) == [command.line for command in GROUPS[group]]
    found = []
    for command in filter(is_runnable, GROUPS[group]):
        with environment(models, command.needs):
            results = run(command)
        found += [f"llm {command.line}: {line}" for line in differences(results, record[command.line], command)]
    assert not found, "\n".join(found[:20])
