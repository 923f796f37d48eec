"""Tasks with conversations, and their plans: context, batches, epochs, and when conversations follow text."""

import math

import pytest

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.training.planning import recipe, rules
from llmcli.training.planning.cost_model import CorpusSize, Machine
from llmcli.training.planning.plan import Decision, Plan, PlanRequest
from llmcli.training.planning.task import ConversationSize, Task
from tests.training import plans
from tests.training.plans import BASE, row

LONG_BASE = ModelConfig(300, 64, 160, 2, 2, 2, 32, 8192)


def size(count: int = 30, length: int = 30) -> ConversationSize:
    return ConversationSize((length,) * count, 3 * count * length)


def plan(
    conversations: ConversationSize,
    request: PlanRequest | None = None,
    *,
    text: int = 0,
    base: ModelConfig | None = None,
) -> Plan:
    return plans.plan(request, train_tokens=text, base=base, conversations=conversations)


def test_the_context_holds_the_longest_conversation() -> None:
    for longest, base, expected in [
        (30, None, 128),
        (129, None, 128),  # a row has the token after its last input too
        (130, None, 256),
        (600, None, 1024),
        (5000, None, 1024),
        (30, LONG_BASE, 64),
        (300, LONG_BASE, 512),
        (5000, LONG_BASE, 1024),
        (5000, BASE, 64),
    ]:
        result = plan(ConversationSize((20, longest, 20), 100), base=base)
        assert result.train.context == expected
        if base is None:
            assert result.model.max_position_embeddings == expected


def test_an_epoch_is_the_packed_rows() -> None:
    """Four conversations of 30 tokens fill a row of 129."""
    assert size(30).packed(128) == CorpusSize(8 * 128, 2700)
    assert ConversationSize((400, 20), 9).packed(128) == CorpusSize(2 * 128, 9)


def test_few_conversations_are_several_batches_and_many_epochs() -> None:
    result = plan(size(30))
    assert result.train.batch_size == 2  # of 8 rows: four batches
    assert result.train.steps == recipe.CONVERSATION_STEPS
    assert row(result, "steps").reason == "250 epochs, the default limit for the conversations"
    many = plan(size(30_000))
    assert many.train.steps * many.train.batch_size * 128 == pytest.approx(
        recipe.CONVERSATION_EPOCHS * size(30_000).packed(128).tokens, rel=0.01
    )


def test_conversations_alone_have_neither_bpe_dropout_nor_calibration_nor_induction_heads() -> None:
    train = plan(size(20_000), PlanRequest(epochs=30.0, layers=2, width=64)).train
    assert (train.token_split, train.calibration_tokens, train.induction) == (0.0, 0, False)
    assert train.dropout == 0.2
    assert plan(size(20_000)).conversations is not None
    assert plan(size(20_000)).conversations.share == 1.0  # type: ignore[union-attr]


def test_the_share_of_conversations_after_text() -> None:
    for text, conversations, tokens, expected in [
        (1_000_000, 100_000, 0.0, 0.3),
        (1_000_000, 100_000, 1e6, 0.3),
        (1_000_000, 10_000, 2e7, 0.05),  # 60 epochs of the conversations would be 0.03
        (1_000_000, 50_000, 1.5e7, 0.2),  # 60 epochs of them
        (1_000_000, 300_000, 3e7, 0.333),  # 20 epochs of the text, and the rest of the run
        (1_000_000, 300_000, 38e6, 0.474),  # 20 epochs of the text, and 60 of the conversations
        (1_000_000, 1_000_000, 1e6, 0.5),
        (1_000, 1_000_000, 1e6, 0.98),  # 20 epochs of the text
    ]:
        size = ConversationSize((101,) * (conversations // 100), 3)  # each fills a row of 100 inputs
        task = Task(PlanRequest(context=100, batch_tokens=10), CorpusSize(text, 3 * text), 512, 0, None, size)
        assert task.conversation_share(tokens).value == expected


def test_text_and_conversations_have_their_own_limits_of_epochs() -> None:
    """20 of 100,000 tokens and 60 of 300,000: 20,000,000 tokens, which are 50 epochs of the 400,000."""
    conversations = ConversationSize((129,) * 2344, 99)  # each fills a row of 128 inputs
    task = Task(PlanRequest(context=128), CorpusSize(100_011, 9), 512, 0, None, conversations)
    assert task.data.tokens == 100_011 + 300_032
    assert task.max_epochs == (20 * 100_011 + 60 * 300_032) / (100_011 + 300_032)
    assert task.conversation_share(20e6).value == 0.9


def test_conversations_after_text_are_planned_with_a_reason() -> None:
    result = plan(size(3000), PlanRequest(steps=100), text=400_000)
    assert result.conversations is not None and result.conversations.share == 0.3
    phase = row(result, "conversation phase")
    assert phase.value == "last 30% of the run" and phase.reason.startswith("text first, to learn the language")
    assert result.train.induction and result.train.context == 1024  # as for the text alone
    assert result.train.calibration_tokens == 0
    assert plan(ConversationSize((200,) * 50, 99), PlanRequest(steps=9), text=5_000).train.context == 256
    assert not [one for one in plan(size()).rows if one.name == "conversation phase"]


def test_the_validation_slice_of_conversations() -> None:
    """One in 32, if these are 32; at most 4,096 tokens (20 to each), or a 400th of what is trained on."""
    for conversations, tokens, expected in [
        (1023, 1e5, 0),
        (1024, 1e5, 32),
        (100_000, 1e5, 204),
        (100_000, 1e8, 3125),
    ]:
        chosen = rules.conversation_validation((20,) * conversations, tokens)
        assert chosen.value == expected


def test_fine_tuning_takes_few_epochs_of_many_conversations_and_more_of_few() -> None:
    few, many = plan(size(30), base=LONG_BASE).train, plan(size(30_000), base=LONG_BASE).train
    assert (few.batch_size, few.context) == (3, 64)  # of 15 rows: a quarter of them is 3.75
    assert few.steps == 25 * 15 / 3  # the epochs in which a quarter of the data makes 100 steps
    assert many.steps * many.batch_size * 64 == pytest.approx(
        recipe.CONVERSATION_FINE_TUNING_EPOCHS * size(30_000).packed(64).tokens, rel=0.01
    )


def test_the_weight_of_the_divergence_can_be_chosen() -> None:
    chosen = plan(size(), PlanRequest(kl_weight=2.0), base=LONG_BASE)
    assert chosen.conversations is not None and chosen.conversations.base_divergence == 2.0
    assert (row(chosen, "KL divergence").value, row(chosen, "KL divergence").reason) == ("weight 2", "as requested")
    off = plan(size(), PlanRequest(kl_weight=0.0), base=LONG_BASE)
    assert off.conversations is not None and off.conversations.base_divergence == 0.0
    assert "KL divergence" not in {one.name for one in off.rows}


def test_a_weight_of_the_divergence_that_would_have_no_effect_is_refused() -> None:
    for options in ({}, {"base": LONG_BASE, "text": 5_000}):
        with pytest.raises(LLMError, match="`kl_weight` is for fine-tuning on conversations alone"):
            plan(size(), PlanRequest(kl_weight=2.0), **options)  # type: ignore[arg-type]
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(LLMError, match="`kl_weight` must be between 0 and 1,000,000"):
            plan(size(), PlanRequest(kl_weight=weight))


@pytest.mark.slow
def test_the_divergence_takes_its_part_of_the_time() -> None:
    """1,000 tokens of batches a second, a tenth of the time for generating text, and 0.4 times as long as the batches
    for the divergence: 0.9 x 0.9 x 60 / 1.4 s of batches."""
    machine = Machine(lambda model, settings, seconds: 1000.0)
    fine_tuned = {"train_tokens": 0, "vocab_size": 300, "base": LONG_BASE, "conversations": size(30_000)}
    result = plans.plan(PlanRequest(seconds=60.0), machine=machine, **fine_tuned)  # type: ignore[arg-type]
    assert row(result, "training tokens").value == "about 34,714"
    assert "at 714 tokens/s" in row(result, "training tokens").reason
    assert result.expected is not None and result.expected.tokens_per_second == pytest.approx(1000 / 1.4)
    without = plans.plan(PlanRequest(seconds=60.0, kl_weight=0.0), machine=machine, **fine_tuned)  # type: ignore[arg-type]
    assert row(without, "training tokens").value == "about 54,000"


def test_with_sharded_weights_there_is_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model would have to generate text. The plan does not show it either."""
    monkeypatch.setattr(rules, "sharding", lambda *_: Decision(True, "memory is short"))
    sharded = plan(size(), PlanRequest(steps=9, processes=2), base=LONG_BASE)
    assert sharded.sharded and sharded.conversations is not None and sharded.conversations.base_divergence == 0.0
    assert "KL divergence" not in {one.name for one in sharded.rows}
