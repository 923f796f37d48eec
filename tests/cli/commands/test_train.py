"""`llm train`: what makes a run the same run. The command as a whole is tested in test_app and test_saving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llmcli.training import session
from llmcli.training.record import versions
from tests.conftest import TEXT

Llm = Callable[..., Result]
RUN = ("train", "c.txt", "--steps", 1, "--layers", 1, "--width", 16, "--context", 16, "--threads", 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--no-tie", "--dropout", 0.1), {"--tie": False, "--dropout": 0.1}),
        (("--tokenizer", "char", "--val", 0.2), {"--tokenizer": "char", "--val": 0.2}),
        (("--lr", 0.5, "--seed", 3, "-q"), {"--lr-scale": 0.5, "--seed": 3}),
        (("--optimizer", "adamw", "--dtype", "float32"), {"--optimizer": "adamw", "--dtype": "float32"}),
    ],
)
def test_the_identity_of_a_run_is_that_of_older_resume_files(
    options: tuple[object, ...], expected: dict[str, Any], llm: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys and values are in resume files: were they different, runs that an older version stopped could not be
    resumed."""
    identities: list[dict[str, Any]] = []
    real = session._run_identity

    def record(*arguments: Any) -> dict[str, Any]:
        identities.append(real(*arguments))
        return identities[-1]

    monkeypatch.setattr(session, "_run_identity", record)
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm(*RUN, *options, "--dry-run").exit_code == 0
    [identity] = identities
    text = identity.pop("the text")
    assert text.startswith(f"1 file of {len(TEXT.encode()):,} bytes (sha256 ")
    assert identity == {
        "--val": 0.1, "--from": None, "--tokenizer": "bpe", "--threads": 1, "--lr-scale": 1.0, "--steps": 1,
        "--adapter-only": False, "--layers": 1, "--width": 16, "--context": 16, "--seed": 0, "--device": "auto",
        "--dtype": "auto", **{f"the version of {name}": version for name, version in versions().items()},
    } | expected  # fmt: skip
