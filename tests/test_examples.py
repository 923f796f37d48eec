"""The examples of conversations: each answer has several questions, and those for testing are new."""

from collections import defaultdict
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def questions(name: str) -> list[tuple[str, str]]:
    """The pairs of a file, read by the simplest rule: two lines, then an empty one."""
    text = (EXAMPLES / name).read_text("utf-8")
    pairs = [tuple(block.split("\n")) for block in text.strip().split("\n\n")]
    speakers = {(question[:2], answer[:2]) for question, answer in pairs}
    assert len(speakers) == 1 and speakers <= {("Q:", "A:"), ("問：", "答：")}
    return [(question[2:].strip(), answer[2:].strip()) for question, answer in pairs]


def test_each_answer_has_several_wordings_of_its_question() -> None:
    for name, answers, wordings in [("planets", 58, 8), ("wakusei", 40, 6)]:
        by_answer: dict[str, set[str]] = defaultdict(set)
        for question, answer in questions(f"{name}.txt"):
            by_answer[answer].add(question)
        assert len(by_answer) == answers and {len(asked) for asked in by_answer.values()} == {wordings}
        assert 30 <= answers <= 60 and 6 <= wordings <= 10


def test_the_held_out_wordings_are_new_ones_of_the_same_questions() -> None:
    for name in ["planets", "wakusei"]:
        training, test = questions(f"{name}.txt"), questions(f"{name}-test.txt")
        assert not {question for question, _ in training} & {question for question, _ in test}
        assert {answer for _, answer in test} == {answer for _, answer in training}
        every = [question for question, _ in training + test]
        assert len(set(every)) == len(every), "a question has two answers"
