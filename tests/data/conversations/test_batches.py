"""Rows of whole conversations: a pure function of conversations, seed and step that visits each once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.conversations.batches import ConversationBatches, ConversationTokens, pack
from llmcli.data.conversations.messages import Conversation

PADDING = 9999


def numbered(lengths: list[int]) -> ConversationTokens:
    """Conversations of these lengths, with ids that occur nowhere else; the second half of each is learned."""
    first = 0
    pairs = []
    for length in lengths:
        pairs.append((list(range(first, first + length)), [i >= length // 2 for i in range(length)]))
        first += length
    return ConversationTokens.of(pairs)


lengths_of = st.lists(st.integers(1, 30), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(lengths_of, st.integers(0, 9), st.randoms())
def test_packing_places_each_once_and_wastes_little(lengths: list[int], more: int, random) -> None:  # type: ignore[no-untyped-def]
    capacity = max(lengths) + more
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = pack(lengths, capacity, order)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert max(used) <= capacity
    # no conversation of a row would have fitted the rows before it: any two together exceed the capacity
    assert all(used[a] + lengths[rows[b][0]] > capacity for a in range(len(rows)) for b in range(a + 1, len(rows)))


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.integers(1, 5), st.integers(0, 99), st.integers(0, 6))
def test_rows_are_whole_padded_conversations(lengths: list[int], batch_size: int, seed: int, step: int) -> None:
    conversations = numbered(lengths)
    context = max(lengths) + 6
    batch_ids, loss_mask = ConversationBatches(conversations, context, batch_size, seed, PADDING).batch(step)
    assert batch_ids.shape == loss_mask.shape == (batch_size, context + 1)
    starts = {int(start): i for i, start in enumerate(conversations.starts[:-1])}
    for ids, learned in zip(batch_ids.tolist(), loss_mask.tolist(), strict=True):
        position = 0
        while position < len(ids) and ids[position] != PADDING:
            span = conversations.span(starts[ids[position]])  # a conversation begins here
            end = position + span.stop - span.start
            assert ids[position:end] == conversations.ids[span].tolist()
            assert learned[position:end] == conversations.loss_mask[span].tolist()
            position = end
        assert position and set(ids[position:]) <= {PADDING} and not any(learned[position:])


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.integers(1, 7), st.integers(0, 99))
def test_an_epoch_visits_each_once_in_an_order_of_its_own(lengths: list[int], batch_size: int, seed: int) -> None:
    conversations = numbered(lengths)
    batches = ConversationBatches(conversations, max(lengths) + 5, batch_size, seed, PADDING)
    steps = 3 * batches.rows // batch_size + 3
    rows = [row for step in range(steps) for row in batches.batch(step)[0].tolist()]
    seen = [token for row in rows for token in row if token in set(conversations.starts[:-1].tolist())]
    for epoch in range(2):
        visited = seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(visited) == conversations.starts[:-1].tolist()
    if len(lengths) > 12:
        assert seen[: len(lengths)] != seen[len(lengths) : 2 * len(lengths)]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    lengths = np.random.default_rng(0).integers(2, 20, 30).tolist()
    walked = ConversationBatches(numbered(lengths), 24, 4, 7, PADDING)
    batches = [walked.batch(step) for step in range(20)]
    for step in (0, 5, 19):
        fresh = ConversationBatches(numbered(lengths), 24, 4, 7, PADDING).batch(step)
        assert all(map(np.array_equal, fresh, batches[step]))
        assert np.array_equal(walked.batch(step)[0], batches[step][0])
    other = ConversationBatches(numbered(lengths), 24, 4, 8, PADDING).batch(0)
    assert not np.array_equal(other[0], batches[0][0])


def test_the_first_token_is_not_learned() -> None:
    tokens = ConversationTokens.of([([1, 2], [True, True]), ([3, 4, 5], [True, False, True])])
    assert tokens.loss_mask.tolist() == [False, True, False, False, True]
    assert (len(tokens), tokens.targets, tokens.lengths.tolist()) == (2, 2, [2, 3])
    assert tokens.answer_bytes(np.array([0, 1, 10, 100, 1000, 10000])) == 10010
    assert len(ConversationTokens.of([])) == 0


def marked(text: str) -> tuple[list[int], list[bool]]:
    return [ord(letter) for letter in text], [letter in "ae" for letter in text]


def test_conversations_are_truncated_after_an_answer() -> None:
    for text, most, expected in [
        ("qqaaeqaae", 9, "qqaaeqaae"),
        ("qqaaeqaae", 8, "qqaae"),  # the second answer does not fit
        ("qqaaeqaae", 5, "qqaae"),
        ("qqaaeqaae", 4, "qqaa"),  # the first answer does not fit: a part of it is better than nothing
        ("qqaaeqaae", 2, ""),  # nothing to learn from
        ("qqqqae", 6, "qqqqae"),
        ("qaeq", 3, "qae"),
    ]:
        texts = Conversation((), text), Conversation((), "qa")
        tokens, truncated = ConversationTokens.of([marked(text), marked("qa")], texts).truncated(most)
        found = ["".join(map(chr, tokens.ids[tokens.span(i)])) for i in range(len(tokens))]
        assert found == [one for one in (expected, "qa") if one], text
        assert tokens.texts == (texts if expected else texts[1:]), text
        assert truncated == (0 < len(expected) < len(text)), text


def test_a_conversation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="with more than 4 tokens"):
        ConversationBatches(numbered([5]), 3, 1, 0, PADDING)
