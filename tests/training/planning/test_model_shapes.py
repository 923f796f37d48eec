"""Model shapes: heads divide the hidden size, requested sizes are kept, and impossible ones are wrong usage."""

import math

import pytest

from llmcli.errors import LLMError
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import CorpusSize
from llmcli.training.planning.model_shapes import _heads, candidates
from llmcli.training.planning.plan import PlanRequest
from llmcli.training.planning.task import Task
from tests.training.plans import plan, row


def test_active_experts_have_as_many_parameters_as_a_dense_layer():
    dense, sparse = plan(PlanRequest(steps=100)), plan(PlanRequest(steps=100, experts=8, active=2))
    model = sparse.model
    assert (model.num_experts, model.num_experts_per_tok, model.model_type) == (8, 2, "qwen3_moe")
    routers = model.num_hidden_layers * 8 * model.hidden_size
    assert model.active_parameters == pytest.approx(dense.model.parameters + routers, rel=0.1)
    assert model.parameters > 1.5 * dense.model.parameters
    assert "2 of 8" in row(sparse, "experts").value
    assert plan(PlanRequest(steps=9, experts=2)).model.num_experts_per_tok == 2


def test_candidates_are_the_shapes_that_the_corpus_is_large_enough_for():
    """100,000 tokens allow 0.006 * 10^8 = 600,000 layer parameters: 12 * 3 * 128^2 = 589,824 of the fourth shape, but
    not 12 * 3 * 192^2 = 1,327,104 of the fifth. The smallest shape is always a candidate."""

    def shapes(tokens: int) -> list[tuple[int, int]]:
        text = CorpusSize(tokens, 4 * tokens)
        configs = candidates(Task(PlanRequest(), text, 1000, 0), text)
        return [(config.num_hidden_layers, config.hidden_size) for config in configs]

    assert shapes(100_000) == list(recipe.SHAPES[:4])
    assert shapes(100) == list(recipe.SHAPES[:1])
    assert shapes(10**9) == list(recipe.SHAPES)


def test_a_single_requested_size_leaves_the_other_to_the_planner():
    deep, wide = plan(PlanRequest(layers=7)).model, plan(PlanRequest(width=80)).model
    assert deep.num_hidden_layers == 7 and deep.hidden_size in {width for _, width in recipe.SHAPES}
    assert wide.hidden_size == 80 and wide.num_hidden_layers in {layers for layers, _ in recipe.SHAPES}


def test_requests_that_contradict_each_other_or_give_no_model_are_wrong_usage() -> None:
    for requested, message in [
        ({"seconds": 60.0, "steps": 10}, "`seconds` and `steps`"),
        ({"seconds": 60.0, "epochs": 2.0}, "`seconds` and `epochs`"),
        ({"steps": 10, "epochs": 2.0}, "`steps` and `epochs`"),
        ({"steps": 0, "seconds": 9.0}, "`seconds` and `steps`"),
        ({"seconds": 0.0}, "`seconds` must be a number above 0, found 0"),
        ({"seconds": math.nan}, "`seconds` must be a number above 0"),
        ({"epochs": 0.0}, "`epochs` must be between 1e-09 and 1,000,000, found 0"),
        ({"epochs": math.inf}, "`epochs` must be between 1e-09 and 1,000,000, found"),
        ({"lr": 1e13}, r"`lr` must be between 1e-12 and 1e\+12, found"),
        ({"probe": ""}, "`probe` must be 1 to 500 characters long, found 0"),
        ({"experts": 4, "active": 5}, "`active` .*more than `experts`"),
        ({"active": 2}, "`active` .*give `experts` too"),
        ({"width": 64, "heads": 3}, "`heads` 3 does not divide `width` 64"),
        ({"heads": 7}, "7 heads do not divide width"),
        ({"width": 64, "heads": 4, "kv_heads": 3}, "`kv_heads`"),
        ({"width": 66, "heads": 2}, "must be even for rotary embeddings: `width` / `heads`, found 66 / 2"),
    ]:
        with pytest.raises(LLMError, match=message) as caught:
            plan(PlanRequest(**requested))
        assert caught.value.exit_code == 2


def test_heads_take_half_of_a_wide_model_on_a_cpu() -> None:
    for width, on_cpu, on_gpu in [
        (2, (2, 2), (2, 2)),
        (64, (2, 32), (2, 32)),
        (101, (2, 50), (2, 50)),
        (192, (2, 64), (3, 64)),
        (768, (6, 64), (12, 64)),
    ]:
        assert _heads(width, "cpu") == on_cpu
        assert _heads(width, "cuda") == on_gpu
