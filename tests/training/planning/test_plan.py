"""Requests: conflicts are wrong usage."""

import pytest

from llmcli.errors import LLMError
from llmcli.training.planning.plan import PlanRequest


def test_experts_out_of_range_are_wrong_usage() -> None:
    for experts, active, message in [(4, 5, "more than `experts`"), (None, 2, "give `experts` too")]:
        with pytest.raises(LLMError, match=f"`active` .*{message}"):
            PlanRequest(experts=experts, active=active)


def test_conflicting_requests_are_wrong_usage() -> None:
    for requested, message in [
        ({"seconds": 60.0, "steps": 10}, "`seconds` and `steps`"),
        ({"seconds": 60.0, "epochs": 2.0}, "`seconds` and `epochs`"),
        ({"steps": 10, "epochs": 2.0}, "`steps` and `epochs`"),
        ({"width": 64, "heads": 3}, "`heads` 3 does not divide `width` 64"),
        ({"seconds": 0.0}, "`seconds` must be a number above 0, found 0"),
        ({"steps": 0}, "`steps` must be a number above 0, found 0"),
        ({"seconds": float("nan")}, "`seconds` must be a number above 0"),
        ({"steps": 0, "seconds": 9.0}, "`seconds` and `steps`"),
        ({"epochs": 0.0}, "`epochs`"),
        ({"epochs": -1.0}, "`epochs`"),
        ({"epochs": float("nan")}, "`epochs`"),
        ({"epochs": float("inf")}, "`epochs` must be between 0 and 1,000,000, found"),
    ]:
        with pytest.raises(LLMError, match=message) as caught:
            PlanRequest(**requested)
        assert caught.value.exit_code == 2
