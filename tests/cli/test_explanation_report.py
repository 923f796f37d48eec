from types import SimpleNamespace

import pytest

from llmcli.cli.explanation_report import ExplanationReport


@pytest.mark.parametrize(
    ("tokens", "labels"),
    [
        (["·apple", "·a long beginning"], ["·apple", "·a long beg…"]),
        (["私たちは公園で走ります", "私たちは公園で歩きます"], ["…で走ります", "…で歩きます"]),
    ],
)
def test_tokens_that_begin_alike_are_told_by_their_ends(tokens: list[str], labels: list[str]) -> None:
    report = SimpleNamespace(_label=tokens.__getitem__)
    assert ExplanationReport._lens_labels(report, [0, 1]) == labels  # type: ignore[arg-type]
