"""Verbatim passages: spans compared with a character-by-character search, and finding the training text."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import Result

from llmcli.data import documents
from llmcli.data.corpus import Corpus, read_corpus
from llmcli.errors import LLMError
from llmcli.evaluation.memorization import LENGTH, find_spans, find_verbatim
from llmcli.evaluation.training_text import TrainingText, find_corpus
from llmcli.formats.checkpoint import load, save
from tests.cli.terminals import in_a_terminal
from tests.conftest import random_checkpoint

Llm = Callable[..., Result]
TRAINING_TEXT = (
    "".join(chr(0x3042 + i % 80) for i in range(200)) + "👨‍👩‍👧" + "The cat sat on the mat and looked at the moon. "
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 240), st.integers(1, 60), st.text("ab ", max_size=5)), max_size=5))
def test_spans_equal_those_of_a_character_by_character_search(parts: list[tuple[int, int, str]]) -> None:
    text = "".join(TRAINING_TEXT[start : start + length] + own for start, length, own in parts)
    covered = {
        i + k for i in range(len(text) - LENGTH + 1) if text[i : i + LENGTH] in TRAINING_TEXT for k in range(LENGTH)
    }  # fmt: skip
    [found, none] = find_spans([text, ""], [[TRAINING_TEXT[:77], TRAINING_TEXT[77:]]])
    assert none == ()
    assert {i for first, last in found for i in range(first, last)} == covered
    assert all(first < last and last - first >= LENGTH for first, last in found)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


def record(name: str, text: str, train_bytes: int | None = None) -> dict:
    data = text.encode()
    return {
        "corpus": [{"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}],
        "train_bytes": len(data) if train_bytes is None else train_bytes,
    }


def test_only_the_text_that_the_model_was_trained_on_is_searched() -> None:
    Path("c.txt").write_text("a" * 50 + "b" * 50)
    corpus = read_corpus(["c.txt"])
    text = "a" * 40 + "|" + "b" * 40
    [found] = find_verbatim([text], [TrainingText.of(corpus, [record("c.txt", "a" * 50 + "b" * 50, 50)])])
    assert (found.spans, found.searched_bytes) == (((0, 40),), 50) and found.share == pytest.approx(40 / 81)
    assert find_verbatim([text], [TrainingText.of(corpus, [{}])])[0].spans == ((0, 40), (41, 81))


def test_of_an_ensemble_the_longest_training_text_is_searched() -> None:
    text = "a" * 50 + "b" * 50
    Path("c.txt").write_text(text)
    records = [record("c.txt", text, 50), record("c.txt", text, 90)]
    assert TrainingText.of(read_corpus(["c.txt"]), records).end == 90


@pytest.mark.parametrize("place", ["c.txt", "texts/c.txt", "there/c.txt", "there/texts/c.txt"])
def test_the_text_is_found_in_the_working_directory_or_beside_the_model(place: str) -> None:
    Path("texts").mkdir()
    Path("there/texts").mkdir(parents=True)
    Path(place).write_text(TRAINING_TEXT, "utf-8")
    corpus = find_corpus(record("texts/c.txt", TRAINING_TEXT), Path("there/m.safetensors"))
    assert [document.path for document in corpus.documents] == [Path(place)]


@pytest.mark.parametrize("text", [None, "another text", "\0"])
def test_a_missing_or_changed_text_is_an_error(text: str | None) -> None:
    if text is not None:
        Path("c.txt").write_text(text)
    with pytest.raises(
        LLMError, match=r"training text of m\.safetensors, c\.txt, is missing or has changed .*; name it: --corpus FILE"
    ):
        find_corpus(record("c.txt", TRAINING_TEXT), Path("m.safetensors"))


@pytest.mark.parametrize("malformed", [{}, {"corpus": []}, {"corpus": 7}, {"corpus": ["a"]}])
def test_a_record_without_a_text_is_an_error(malformed: dict) -> None:
    with pytest.raises(LLMError, match="does not record its training text"):
        find_corpus(malformed, Path("m.safetensors"))


def test_the_files_of_conversations_are_searched_where_a_model_has_no_other_text() -> None:
    Path("c.txt").write_text(TRAINING_TEXT, "utf-8")
    conversations = record("c.txt", TRAINING_TEXT)
    conversations["corpus"][0]["shape"] = "Q:/A: turns"
    with pytest.raises(LLMError, match="does not record its training text"):
        find_corpus(conversations, Path("m.safetensors"))
    corpus = find_corpus(conversations, Path("m.safetensors"), or_conversations=True)
    assert [document.name for document in corpus.documents] == ["c.txt"]


def test_several_texts_are_searched_in_one_pass_with_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.txt").write_text(TRAINING_TEXT * 3, "utf-8")
    training_texts = [TrainingText.of(read_corpus(["c.txt"]), [])]
    texts = [TRAINING_TEXT[5:50] + "?" + TRAINING_TEXT[60:99], "", TRAINING_TEXT[20:], "short", TRAINING_TEXT[5:50]]
    alone = [find_verbatim([text], training_texts)[0] for text in texts]
    reads = []
    real = Corpus.texts
    monkeypatch.setattr(Corpus, "texts", lambda self, *words: reads.append(words) or real(self, *words))
    assert find_verbatim(texts, training_texts) == alone
    assert len(reads) == 1


# ---- the command


@pytest.fixture
def memorizing_model(tiny_model: Path, llm: Llm) -> str:
    """A model whose record names c.txt, which contains its continuation of "The cat"; returns the continuation."""
    generated = json.loads(llm("generate", "The cat", "-n", 60, "--seed", 1, "--json").stdout)["text"].replace("\0", "")
    text = "\n" + generated[:45]
    Path("c.txt").write_text(text, "utf-8")
    model = load(tiny_model)
    checkpoint = random_checkpoint(model.config, tokenizer_json=model.tokenizer_json)
    checkpoint.record.update(record("c.txt", text))
    save(tiny_model, checkpoint)
    return generated


def test_json_has_the_spans(llm: Llm, memorizing_model: str) -> None:
    found = json.loads(llm("generate", "The cat", "-n", 60, "--seed", 1, "--memory", "--json").stdout)
    memory = found["memory"]
    assert memory["spans"]
    assert memory["corpus"] == ["c.txt"] and memory["searched_bytes"] == Path("c.txt").stat().st_size
    for span in memory["spans"]:
        assert span["text"] == found["text"][span["start"] : span["end"]]
        assert len(span["text"]) >= LENGTH and span["text"].encode() in Path("c.txt").read_bytes()
    assert memory["share"] == pytest.approx(
        sum(span["end"] - span["start"] for span in memory["spans"]) / len(found["text"]), abs=1e-6
    )


def test_samples_read_the_text_as_often_as_one(
    llm: Llm, memorizing_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to verify its hash and once to search it; the results equal those of single samples."""
    words = ("generate", "The cat", "-n", 60, "--memory", "--json", "--seed")
    alone = [json.loads(llm(*words, seed).stdout) for seed in (1, 2, 3)]
    sizes = []
    real = documents._read
    monkeypatch.setattr(documents, "_read", lambda *given: sizes.append(len(data := real(*given))) or data)
    found = [json.loads(line) for line in llm(*words, 1, "--samples", 3).stdout.splitlines()]
    assert sum(sizes) == 2 * Path("c.txt").stat().st_size
    for one, other in zip(found, alone, strict=True):
        same = {key for key in one if not key.startswith(("seconds", "tokens_per"))}
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert found[0]["memory"]["spans"]
    plain = llm("generate", "The cat", "-n", 60, "--memory", "--seed", 1, "--samples", 3)
    marked = "".join(f["text"] for f in found)
    assert plain.stdout.replace("⟦", "").replace("⟧", "").replace("\n", "") == marked.replace("\n", "")
    assert [line for line in plain.stderr.splitlines() if line.startswith("---")] == ["--- 1", "--- 2", "--- 3"]


@pytest.mark.slow
def test_memorized_passages_are_marked(llm: Llm) -> None:
    Path("c.txt").write_text("The cat sat on the mat. The dog ate the hat and the mat.\n" * 40)
    assert llm("train", "c.txt", "--steps", 60, "-q", "--seed", 1).exit_code == 0
    words = ("generate", "The cat", "-n", 40, "-t", 0, "--memory")
    answer = llm(*words)
    plain = llm(*words[:-1]).stdout
    assert answer.exit_code == 0 and answer.stdout.replace("⟦", "").replace("⟧", "") == plain
    assert "⟦" in answer.stdout and "characters occur verbatim in c.txt" in answer.stderr
    marked = in_a_terminal(*map(str, words))
    assert "\x1b[48;5;24" in marked and "⟦" not in marked
    Path("other.txt").write_text("nothing of that")
    answer = llm(*words, "--corpus", "other.txt")
    assert answer.stdout == plain and "is not the training text that model.safetensors records" in answer.stderr
    assert "0% of the" in answer.stderr
    short = llm("generate", "The cat", "-n", 2, "--memory")
    assert "too few" in short.stderr
