"""Plans for tests, and strategies of what they are made from."""

from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from llmcli.config import ModelConfig
from llmcli.data.text.corpus import Corpus
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.data.inputs import NOTHING, Inputs
from llmcli.training.data.prepare import Prepared
from llmcli.training.data.prepare import prepare as prepare_inputs
from llmcli.training.planning.cost_model import CorpusSize, Machine
from llmcli.training.planning.plan import Plan, PlanRequest, PlanRow
from llmcli.training.planning.planner import make_plan
from llmcli.training.planning.task import ConversationSize, Task

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
    request: PlanRequest | None = None,
    *,
    train_tokens: int = 200_000,
    vocab_size: int = 512,
    base: ModelConfig | None = None,
    machine: Machine | None = None,
    seconds_spent: float = 0.0,
    conversations: ConversationSize | None = None,
) -> Plan:
    text = CorpusSize(train_tokens, 3 * train_tokens)
    return make_plan(Task(request or PlanRequest(), text, vocab_size, 0, base, conversations, seconds_spent), machine)


def prepare(
    request: PlanRequest,
    corpus: Corpus,
    *,
    base: ModelConfig | None = None,
    base_record: TrainingRecord | None = None,
    base_path: Path | None = None,
    characters: bool = False,
    held_out: Corpus | float = 0.1,
    conversations: Inputs | None = None,
    **options: object,
) -> Prepared:
    """`training.data.prepare.prepare` with what a test needs of a base model."""
    model = Checkpoint(base or BASE, "", {}, base_record or TrainingRecord()) if base or base_record else None
    given = conversations or Inputs(NOTHING, held_out=held_out if isinstance(held_out, float) else 0.1)
    val = replace(given.validation, text=held_out) if isinstance(held_out, Corpus) else given.validation
    inputs = replace(
        given, sources=replace(given.sources, text=corpus), validation=val, base=model, base_path=base_path,
        tokenizer="char" if characters else "bpe",
    )  # fmt: skip
    return prepare_inputs(request, inputs, **options)  # type: ignore[arg-type]


def row(plan: Plan, name: str) -> PlanRow:
    """The row of a plan with a name."""
    (found,) = [row for row in plan.rows if row.name == name]
    return found
