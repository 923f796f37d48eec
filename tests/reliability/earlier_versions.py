"""Files of earlier versions: models answer and are exported as they were, stopped runs are resumed."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.golden.earlier_files import CORPUS, FILES, RESUME, STOPPED_RUN, VERSIONS, differences, record_of
from tests.reliability.runs import TEXT, TIMEOUT, invoke

MODELS = [(version, kind) for version in VERSIONS for kind in record_of(version)["models"]]
STOPPED = [version for version in VERSIONS if (FILES / version / RESUME).exists()]
REFUSAL = "give the same to resume it, `overwrite=True` to start over, or another `output`"


def earlier_files(where: Path, tries: int) -> list[str]:
    """R27: a file of an earlier version opens, answers as it did there, and is exported identically."""
    failures = [line for version, kind in MODELS for line in differences(version, kind)]
    for version in STOPPED:
        (where / version).mkdir()
        failures += _resumed(where / version, version)
    return failures


def _resumed(where: Path, version: str) -> list[str]:
    """Resume a stopped run. With other versions of torch or numpy than it had, it is refused."""
    shutil.copy(FILES / version / RESUME, where)
    (where / CORPUS).write_bytes(TEXT.encode())
    run = subprocess.run(
        [sys.executable, "-c", STOPPED_RUN], cwd=where, capture_output=True, text=True, timeout=TIMEOUT
    )
    if run.returncode == 1 and "the version of" in run.stderr and run.stderr.strip().endswith(REFUSAL):
        return []
    model = where / RESUME.replace(".resume", "")
    if run.returncode or not model.exists() or invoke("inspect", "--verify", str(model)).exit_code:
        return [f"{version}: a stopped run is not resumed: {run.returncode}, {run.stderr[-300:]}"]
    return []
