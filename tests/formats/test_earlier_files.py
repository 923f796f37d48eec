"""Files of earlier versions still open, answer and are exported as they were (tests/golden/earlier_files.py)."""

from llmcli.training.files import resume
from tests.golden.earlier_files import FILES, RESUME, VERSIONS, differences, record_of

MODELS = [(version, kind) for version in VERSIONS for kind in record_of(version)["models"]]
STOPPED = [version for version in VERSIONS if (FILES / version / RESUME).exists()]


def test_an_earlier_model_gives_what_it_gave() -> None:
    for version, kind in MODELS:
        assert differences(version, kind) == [], (version, kind)


def test_an_earlier_resume_file_is_read() -> None:
    for version in STOPPED:
        stopped = resume.load(FILES / version / RESUME)
        assert stopped.plan.train.steps == 4000 > stopped.state.step > 0, version
