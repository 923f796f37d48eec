"""Plans fit into memory, or are an error that says what to make smaller."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcli.errors import LLMError
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import MEMORY_SHARE, Machine, Memory, estimated_speed, memory_needed
from llmcli.training.planning.plan import PlanRequest
from tests.training.plans import budgets, machines, plan, row, tokens


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(tokens, budgets, machines, st.floats(3.2e8, 1e13))
@example(2_896_310, {}, {"device": "cuda", "threads": 1, "experts": None}, 417_052_160.0)  # two models of 20 epochs
def test_every_plan_fits_into_memory_or_is_an_error(train_tokens, budget, machine, memory):
    machine_here = Machine(estimated_speed, Memory(memory, memory))
    try:
        result = plan(PlanRequest(**budget, **machine), train_tokens=train_tokens, machine=machine_here)
    except LLMError as error:
        assert "GB is free" in str(error)
        smallest = plan(PlanRequest(**budget, **machine, layers=1, width=2), train_tokens=train_tokens)
        needed = memory_needed(smallest.model, smallest.train)
        assert memory < 3 * max(needed.device, needed.host)
    else:
        needed = memory_needed(result.model, result.train)
        assert max(needed.device, needed.host) <= MEMORY_SHARE * memory


def test_short_of_memory_the_batch_shrinks_before_a_model_is_refused():
    requested = {"seconds": 600.0, "layers": 4, "width": 256, "context": 256}
    unlimited = plan(PlanRequest(**requested))
    # a faster machine than estimated would train two models
    least = replace(unlimited.train, batch_size=1, teacher_share=recipe.TEACHER_SHARE)
    smallest = memory_needed(unlimited.model, least).device

    def machine(memory):
        return Machine(estimated_speed, Memory(memory, math.inf))

    limited = plan(PlanRequest(**requested), machine=machine(1.3 * smallest))
    assert limited.model == unlimited.model
    assert limited.train.batch_size < unlimited.train.batch_size
    assert row(limited, "batch size").reason == "largest that fits in memory"
    assert memory_needed(limited.model, limited.train).device <= 1.3 * smallest
    with pytest.raises(LLMError, match=r"needs about .* GB of memory"):
        plan(PlanRequest(**requested, batch_tokens=16384), machine=machine(1.3 * smallest))
    with pytest.raises(LLMError, match="give a smaller `width`"):
        plan(PlanRequest(**requested), machine=machine(0.5 * smallest))


def test_the_memory_of_a_gpu_and_of_its_machine_are_told_from_each_other():
    requested = PlanRequest(steps=10, layers=4, width=1024, device="cuda", dtype="bfloat16")
    for memory, what in ((Memory(1e8, 1e12), "GPU memory"), (Memory(1e12, 1e8), "main memory")):
        with pytest.raises(LLMError, match=rf"needs about .* GB of {what}, but only 0\.1 GB is free; give a smaller"):
            plan(requested, machine=Machine(estimated_speed, memory))
    assert plan(requested, machine=Machine(estimated_speed, Memory(1e12, 1e12))).train.device == "cuda"
