"""Which conversations are held out: a pure function of their number, spread evenly."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmcli.data.conversations.messages import Conversation, Message
from llmcli.data.conversations.split import divide, held_out_indices, split


def conversation(question: str, answer: str = "Yes.") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), question)


@given(st.integers(0, 500), st.floats(0, 0.999))
def test_about_the_share_is_held_out_one_in_each_stretch(count: int, share: float) -> None:
    chosen = held_out_indices(count, share)
    assert chosen == sorted(set(chosen)) and all(0 <= i < count for i in chosen)
    assert abs(len(chosen) - count * share) <= 0.5 + 1e-9
    if chosen and share <= 0.5:
        stretch = count / len(chosen)
        assert all(k * stretch - 1 < i < (k + 1) * stretch for k, i in enumerate(chosen))


def test_no_part_of_a_repeating_pattern_is_left_out() -> None:
    """Such as both directions of a translation in turn."""
    for period in [2, 5, 10]:
        chosen = held_out_indices(1000, 0.1)
        counts = [sum(i % period == part for i in chosen) for part in range(period)]
        assert min(counts) > 0.5 * len(chosen) / period, period


def test_the_two_parts_are_all_conversations() -> None:
    every = [conversation(f"Is {i} even?") for i in range(30)]
    parts = split(every, 0.1)
    assert [every.index(one) for one in parts.held_out] == held_out_indices(30, 0.1)
    assert sorted(parts.training + parts.held_out, key=every.index) == every
    assert parts.repeated == []
    assert split(every, 0.0).held_out == []
    twice = split([*every, *every], 0.1)  # a repeated conversation stays in the training data
    assert (twice.training, twice.held_out, twice.repeated) == ([*every, *every], [], held_out_indices(60, 0.1))


def test_what_is_trained_on_is_not_held_out() -> None:
    """Whatever the spaces, the case, the punctuation, the system prompt and the other turns: the answers are measured,
    each after its question."""
    training, new, known = (
        [conversation(*pair) for pair in pairs]
        for pairs in (
            [("Why?",), ("Who is it?",), ("2 + 3", "5"), ("だれですか。", "私です。"), ("?", "!")],
            [("What?",), ("Who is it?", "I."), ("Who isn't it?",), ("2 * 3", "6"), ("23", "5"), ("2 - 3", "5"),
             ("??", "!")],
            [("Who is it?",), (" Who  is it?\n", "Yes. "), ("who is it", "yes"), ("WHO, is it?!", "“Yes”"),
             ("だれですか？", "私です")],
        )
    )  # fmt: skip
    parts = divide([*training, *new, *known], range(5, 17))
    assert (parts.training, parts.held_out, parts.repeated) == (training, new, [*range(12, 17)])


def test_a_conversation_is_known_if_most_of_its_answers_are() -> None:
    """Pairs of a table beside conversations of several turns; a common greeting alone makes none known."""
    greeting, asked = conversation("Hi", "Hello!"), conversation("Where is the harbor?", "South of the old bridge.")
    other = conversation("And the station?", "It stands behind the town hall.")
    system = (Message("system", "Be kind."),)
    long = Conversation(system + greeting.messages + asked.messages)
    new = Conversation(system + greeting.messages + other.messages)
    context = [replace(message, is_learned=False) for message in other.messages]  # not trained on
    assert divide([greeting, asked, Conversation(tuple(context)), long, new], [3, 4]).held_out == [new]
    assert divide([long, greeting, other, asked], [1, 2, 3]).held_out == [other]
    assert divide([Conversation(system), Conversation(system)], [1]).repeated == []  # it has no answers
