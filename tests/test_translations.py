"""The translations of examples/: the files are those of the grammar, which is one to one."""

from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from llmcli.data.sources import require_conversations
from tests.benchmarks.translation import load_grammar
from tests.platforms import in_full

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = ("translate.tsv", "translate-test.tsv")


@cache
def grammar() -> ModuleType:
    return load_grammar()


@cache
def sentences() -> tuple[list, list]:
    """Those to train on, and those held out."""
    return grammar().split(grammar().sentences())


def rows(name: str) -> list[list[str]]:
    return [line.split("\t") for line in (EXAMPLES / name).read_text("utf-8").splitlines()]


@in_full
@pytest.mark.slow
def test_the_files_are_those_that_the_grammar_writes() -> None:
    for name, part in zip(FILES, sentences(), strict=True):
        assert (EXAMPLES / name).read_bytes() == grammar().table(part).encode(), f"run {grammar().__file__}"
    assert sum((EXAMPLES / name).stat().st_size for name in FILES) < 500_000


def test_train_reads_each_row_as_a_prompt_and_an_answer() -> None:
    for name in FILES:
        file = require_conversations(EXAMPLES / name)
        found = [[message.content for message in one.messages] for one in file.conversations]
        assert found == rows(name)[1:] and rows(name)[0] == ["source", "target"]


def test_each_sentence_has_one_translation_and_is_there_in_both_directions() -> None:
    pairs = [row for name in FILES for row in rows(name)[1:]]
    assert len(pairs) == len({source for source, _ in pairs}) == len({target for _, target in pairs}) == 4800
    for (english, japanese), back in zip(pairs[::2], pairs[1::2], strict=True):
        assert english.isascii() and not japanese.isascii() and back == [japanese, english]


@in_full
@pytest.mark.slow
def test_a_tenth_is_held_out_in_both_directions_and_all_of_its_words_are_known() -> None:
    training, test = sentences()
    assert len(test) * 10 == len(training) + len(test)
    known = {side for sentence in training for side in sentence.texts()}
    assert not known & {side for sentence in test for side in sentence.texts()}

    def words(side: str, sentences: list[object]) -> set[str]:
        return {word for each in sentences for text, _ in getattr(each, side) for word in text.split()}

    for side in ("english", "japanese"):
        assert words(side, test) <= words(side, training)
