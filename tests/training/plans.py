"""Plans for tests, and strategies of what they are made from."""

from hypothesis import strategies as st

from llmcli.config import ModelConfig
from llmcli.training.planning.cost_model import Machine
from llmcli.training.planning.plan import Plan, PlanRow, Request
from llmcli.training.planning.planner import make_plan

BASE = ModelConfig(300, 64, 160, 2, 2, 2, 32, 64)

tokens = st.integers(9, 10**9) | st.integers(9, 2000)
times = st.floats(1, 200_000)
machines = st.fixed_dictionaries(
    {
        "device": st.sampled_from(["cpu", "cuda"]),
        "threads": st.integers(1, 128),
        "experts": st.sampled_from([None, None, 2, 8]),
    }
)
budgets = (
    st.just({})
    | st.fixed_dictionaries({"seconds": times})
    | st.fixed_dictionaries({"steps": st.integers(1, 10**7)})
    | st.fixed_dictionaries({"epochs": st.floats(0.01, 1000)})
)


def plan(
    request: Request | None = None,
    *,
    train_tokens: int = 200_000,
    vocab_size: int = 512,
    base: ModelConfig | None = None,
    machine: Machine | None = None,
    seconds_spent: float = 0.0,
) -> Plan:
    return make_plan(
        request or Request(), train_tokens=train_tokens, vocab_size=vocab_size, eos_id=0, base=base, machine=machine,
        seconds_spent=seconds_spent,
    )  # fmt: skip


def row(plan: Plan, name: str) -> PlanRow:
    """The row of a plan with a name."""
    (found,) = [row for row in plan.rows if row.name == name]
    return found
