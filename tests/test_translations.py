"""The translations of examples/: the files are those of the grammar, which is one to one, and its English and Japanese
are correct where that can be checked by rules."""

import re
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType

import pytest

from llmcli.data.sources import read_conversations
from tests.benchmarks.translation import load_grammar
from tests.platforms import in_full

EXAMPLES = Path(__file__).parent.parent / "examples"
ADJECTIVES = "red|blue|black|white|big|small|new|old"
HABITS = r"(every day|Sundays|in the morning)\.$"
FILES = ("translate.tsv", "translate-test.tsv")


@cache
def grammar() -> ModuleType:
    return load_grammar()


@cache
def sentences() -> tuple[list, list]:
    """Those to train on, and those held out."""
    return grammar().split(grammar().sentences())


@cache
def texts(kind: str) -> frozenset[tuple[str, str]]:
    """All that the grammar can say of a kind."""
    return frozenset(each.texts() for each in getattr(grammar(), kind)())


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
        file = read_conversations(name, EXAMPLES / name)
        assert file is not None
        found = [[message.content for message in one.messages] for one in file.conversations]
        assert found == rows(name)[1:] and rows(name)[0] == ["source", "target"]


def test_each_sentence_has_one_translation_and_is_there_in_both_directions() -> None:
    pairs = [row for name in FILES for row in rows(name)[1:]]
    assert len(pairs) == len({source for source, _ in pairs}) == len({target for _, target in pairs}) == 4800
    for (english, japanese), back in zip(pairs[::2], pairs[1::2], strict=True):
        assert english.isascii() and not japanese.isascii() and back == [japanese, english]


@in_full
@pytest.mark.slow
def test_the_whole_grammar_is_one_to_one() -> None:
    every = [each.texts() for kind in ("activities", "events", "descriptions") for each in getattr(grammar(), kind)()]
    english, japanese = zip(*every, strict=True)
    assert len(every) == len(set(english)) == len(set(japanese)) > 100_000


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


@pytest.mark.slow
def test_translations_by_hand() -> None:
    for kind, english, japanese in [
        ("activities", "Anna does not read books on the train on Sundays.", "アンナは日曜日に電車で本を読みません。"),
        ("activities", "The teacher studies history at school every day.", "先生は毎日学校で歴史を勉強します。"),
        ("activities", "Did they play the guitar yesterday?", "彼らは昨日ギターを弾きましたか。"),
        ("activities", "I will go to the sea tomorrow.", "私は明日海に行きます。"),
        ("events", "We saw two black cats in the garden yesterday.", "私たちは昨日庭で黒い猫を二匹見ました。"),
        ("events", "My mother did not buy an old umbrella on Monday.", "母は月曜日に古い傘を買いませんでした。"),
        (
            "events",
            "Will you sell three new cars in London tomorrow?",
            "あなたは明日ロンドンで新しい車を三台売りますか。",
        ),
        ("descriptions", "That umbrella was not new.", "あの傘は新しくなかったです。"),
        ("descriptions", "Is your dog big?", "あなたの犬は大きいですか。"),
    ]:
        assert (english, japanese) in texts(kind)


def test_articles_and_verbs_agree() -> None:
    """By rules that the grammar does not use: a and an, -s after he, she and names, number and plural."""
    english = [row[0] for name in FILES for row in rows(name)[1::2]]
    for sentence in english:
        for article, noun in re.findall(r"\b(an?) (\w+)", sentence):
            assert (article == "an") == (noun[0] in "aeiou"), sentence
        for noun in re.findall(
            r"\b(?:two|three|four|five) (?:(?:red|blue|black|white|big|small|new|old) )?(\w+)", sentence
        ):
            assert noun.endswith("s"), sentence
        if found := re.match(
            r"(He|She|Ken|Anna|The teacher|My \w+) (\w+) .*(every day|Sundays|in the morning)\.", sentence
        ):
            assert found[2].endswith("s"), sentence
        if found := re.match(r"(I|We|They) (\w+) .*(every day|Sundays|in the morning)\.", sentence):
            assert not found[2].endswith("s"), sentence


def test_japanese_sentences_are_polite_and_mark_questions() -> None:
    for name in FILES:
        for english, japanese in rows(name)[1::2]:
            assert re.search(r"(ます|ました|ません|ませんでした|です)(か?)。$", japanese), japanese
            assert english.endswith("?") == japanese.endswith("か。")
            assert not any(len(list(run)) > 1 for c, run in groupby(japanese) if c in "はをがに"), japanese
