"""The conversations that measure models are those that none of them was trained on, according to their records."""

from dataclasses import replace
from pathlib import Path

from llmcli.data.conversations.messages import Conversation, Message
from llmcli.data.conversations.split import held_out_indices
from llmcli.data.files import ConversationFile
from llmcli.evaluation.training_text import measured_conversations, trained_indices
from llmcli.formats.training_record import TrainingRecord
from llmcli.formats.training_stages import BASE, as_earlier


def file(name: str, count: int, first: int = 0) -> ConversationFile:
    every = tuple(Conversation((Message("user", f"{first + i}?"), Message("assistant", "Yes."))) for i in range(count))
    return ConversationFile(name, Path(name), 10 * count, f"hash of {name}", "messages", every)


def record(*files: ConversationFile, share: float | None = 0.1) -> TrainingRecord:
    """That of a model trained on a text and these files."""
    listed = [{"name": one.name, "sha256": one.sha256, "shape": one.shape, "conversations": len(one.conversations)}
              for one in files]  # fmt: skip
    text = {"name": "t.txt", "sha256": "x"}
    return TrainingRecord.from_json({"corpus": [text, *listed], "conversations": {"held_out_share": share}})


A, B, C = file("a", 34), file("b", 28, 100), file("c", 5, 200)


def test_the_held_out_part_is_that_of_the_training_run() -> None:
    measured = measured_conversations([A, B], [record(A, B)])
    every = [*A.conversations, *B.conversations]
    assert measured.conversations == [every[i] for i in held_out_indices(62, 0.1)]
    assert measured.trained == 62 - 6 and not measured.contains_training


def test_one_of_the_files_is_enough() -> None:
    wanted = [i - 34 for i in held_out_indices(62, 0.1) if i >= 34]
    assert measured_conversations([B], [record(A, B)]).conversations == [B.conversations[i] for i in wanted]
    assert trained_indices([B], record(A, B)) == set(range(28)) - set(wanted)


def test_other_files_are_measured_whole() -> None:
    measured = measured_conversations([C, A], [record(A)])
    assert measured.conversations == [*C.conversations, *(A.conversations[i] for i in held_out_indices(34, 0.1))]
    assert measured_conversations([C], [record(A), TrainingRecord()]).conversations == list(C.conversations)


def test_no_model_was_trained_on_what_is_measured() -> None:
    long = file("long", 500)
    both = sorted({*held_out_indices(500, 0.1)} & {*held_out_indices(500, 0.25)})
    assert 0 < len(both) < 50
    two = measured_conversations([long], [record(long), record(long, share=0.25)])
    assert two.conversations == [long.conversations[i] for i in both]


def test_all_are_measured_where_nothing_was_held_out_or_on_request() -> None:
    for share, whole in [(None, False), (0.0, False), (0.1, True)]:
        measured = measured_conversations([A], [record(A, share=share)], whole=whole)
        assert measured.conversations == list(A.conversations) and measured.contains_training, (share, whole)


def test_a_repeated_conversation_is_not_measured_if_it_was_trained_on() -> None:
    repeated = ConversationFile("r", Path("r"), 1, "r", "messages", A.conversations * 2)
    measured = measured_conversations([repeated], [record(repeated)])
    held_out = {i % 34 for i in held_out_indices(68, 0.1)}
    trained = {i % 34 for i in set(range(68)) - set(held_out_indices(68, 0.1))}
    assert held_out & trained and held_out - trained
    assert {A.conversations.index(one) for one in measured.conversations} == held_out - trained


def test_a_conversation_that_any_copy_of_its_file_trained_on_is_trained_on() -> None:
    """One file under two names: its copies are held out at other places, except for one conversation."""
    copy = replace(A, name="copy", path=Path("copy"))
    [both] = {i for i in held_out_indices(68, 0.1) if i < 34} & {i - 34 for i in held_out_indices(68, 0.1)}
    measured = measured_conversations([A], [record(A, copy)])
    assert (measured.conversations, measured.trained) == ([A.conversations[both]], 33)


def test_conversations_that_other_files_repeat_count_as_trained_on() -> None:
    """Those of the corpus, and those of --val, which follow."""
    held_out = held_out_indices(34, 0.1)
    listed = record(C).document["corpus"][1:]
    document = record(A).document | {"held_out": {"files": listed}}
    known = TrainingRecord.from_json(
        document | {"conversations": {"held_out_share": 0.1, "repeated": [held_out[0], 36]}}
    )
    assert trained_indices([A], known) == {*range(34)} - {*held_out[1:]}
    assert trained_indices([C, A], known) == {2} | {5 + i for i in range(34) if i not in held_out[1:]}
    [stage] = as_earlier(known, BASE, "m")
    assert trained_indices([C], TrainingRecord.from_json(stage)) == {2}


def test_a_record_with_an_absurd_count_costs_nothing() -> None:
    listed = record(A).document["corpus"]
    absurd = record(A) | {"corpus": [*listed, {"sha256": "x", "shape": "messages", "conversations": 10**15}]}
    assert trained_indices([A], absurd) <= set(range(34))


def test_a_record_without_a_count_of_conversations_names_none() -> None:
    listed = [
        {key: value for key, value in one.items() if key != "conversations"} for one in record(A).document["corpus"]
    ]
    for uncounted in (record(A) | {"corpus": listed}, record(A).without("corpus"), TrainingRecord()):
        assert trained_indices([A], uncounted) == set()
