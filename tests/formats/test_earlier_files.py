"""Files of earlier versions still open, answer and are exported as they were (tests/golden/earlier_files.py)."""

import pytest

from llmcli.training.files import resume
from tests.golden.earlier_files import FILES, RESUME, VERSIONS, differences, record_of

MODELS = [(version, kind) for version in VERSIONS for kind in record_of(version)["models"]]
STOPPED = [version for version in VERSIONS if (FILES / version / RESUME).exists()]


@pytest.mark.parametrize(("version", "kind"), MODELS)
def test_an_earlier_model_gives_what_it_gave(version: str, kind: str) -> None:
    assert differences(version, kind) == []


@pytest.mark.parametrize("version", STOPPED)
def test_an_earlier_resume_file_is_read(version: str) -> None:
    stopped = resume.load(FILES / version / RESUME)
    assert stopped.plan.train.steps == 4000 > stopped.state.step > 0
