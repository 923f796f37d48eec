"""A few tries of each row of the scorecard; all of them: python -m tests.reliability."""

import sys
from pathlib import Path

import pytest

from tests import platforms

if sys.platform == "linux":
    from tests.reliability.rows import ROWS
else:
    ROWS = {}

pytestmark = [platforms.linux, pytest.mark.slow]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.fast])
def test_row(name: str, tmp_path: Path) -> None:
    where = tmp_path / "row"
    where.mkdir()
    assert ROWS[name].run(where, ROWS[name].fast) == []
