"""What a model knows by heart: spans against a search character by character, and where its text is found."""

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
LEARNED = (
    "".join(chr(0x3042 + i % 80) for i in range(200)) + "👨‍👩‍👧" + "The cat sat on the mat and looked at the moon. "
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 240), st.integers(1, 60), st.text("ab ", max_size=5)), max_size=5))
def test_spans_are_those_of_a_search_character_by_character(parts: list[tuple[int, int, str]]) -> None:
    text = "".join(LEARNED[start : start + length] + own for start, length, own in parts)
    covered = {
        i + k for i in range(len(text) - LENGTH + 1) if text[i : i + LENGTH] in LEARNED for k in range(LENGTH)
    }  # fmt: skip
    [found, none] = find_spans([text, ""], [[LEARNED[:77], LEARNED[77:]]])
    assert none == ()
    assert {i for first, last in found for i in range(first, last)} == covered
    assert all(first < last and last - first >= LENGTH for first, last in found)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


def record(name: str, text: str, learned: int | None = None) -> dict:
    data = text.encode()
    return {
        "corpus": [{"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}],
        "train_bytes": len(data) if learned is None else learned,
    }


def test_only_what_the_model_learned_from_is_searched() -> None:
    Path("c.txt").write_text("a" * 50 + "b" * 50)
    corpus = read_corpus(["c.txt"])
    text = "a" * 40 + "|" + "b" * 40
    [found] = find_verbatim([text], [TrainingText.of(corpus, [record("c.txt", "a" * 50 + "b" * 50, 50)])])
    assert (found.spans, found.searched_bytes) == (((0, 40),), 50) and found.share == pytest.approx(40 / 81)
    assert find_verbatim([text], [TrainingText.of(corpus, [{}])])[0].spans == ((0, 40), (41, 81))


@pytest.mark.parametrize("place", ["c.txt", "texts/c.txt", "there/c.txt", "there/texts/c.txt"])
def test_the_text_is_found_from_here_or_beside_the_model(place: str) -> None:
    Path("texts").mkdir()
    Path("there/texts").mkdir(parents=True)
    Path(place).write_text(LEARNED, "utf-8")
    corpus = find_corpus(record("texts/c.txt", LEARNED), Path("there/m.safetensors"))
    assert [document.path for document in corpus.documents] == [Path(place)]


@pytest.mark.parametrize("text", [None, "another text", "\0"])
def test_a_text_that_is_gone_or_another_now_is_told(text: str | None) -> None:
    if text is not None:
        Path("c.txt").write_text(text)
    with pytest.raises(
        LLMError, match=r"training text of m\.safetensors, c\.txt, is missing or has changed .*; name it: --corpus FILE"
    ):
        find_corpus(record("c.txt", LEARNED), Path("m.safetensors"))


@pytest.mark.parametrize("found", [{}, {"corpus": []}, {"corpus": 7}, {"corpus": ["a"]}])
def test_a_record_without_a_text_is_told(found: dict) -> None:
    with pytest.raises(LLMError, match="does not record its training text"):
        find_corpus(found, Path("m.safetensors"))


def test_several_texts_are_marked_as_each_alone_in_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.txt").write_text(LEARNED * 3, "utf-8")
    learned = [TrainingText.of(read_corpus(["c.txt"]), [])]
    texts = [LEARNED[5:50] + "?" + LEARNED[60:99], "", LEARNED[20:], "short", LEARNED[5:50]]
    alone = [find_verbatim([text], learned)[0] for text in texts]
    reads = []
    real = Corpus.texts
    monkeypatch.setattr(Corpus, "texts", lambda self, *words: reads.append(words) or real(self, *words))
    assert find_verbatim(texts, learned) == alone
    assert len(reads) == 1


# ---- the command


@pytest.fixture
def parrot(tiny_model: Path, llm: Llm) -> str:
    """A model whose record names c.txt, which holds what it says to "The cat"; returns that."""
    said = json.loads(llm("generate", "The cat", "-n", 60, "--seed", 1, "--json").stdout)["text"].replace("\0", "")
    text = "\n" + said[:45]
    Path("c.txt").write_text(text, "utf-8")
    model = load(tiny_model)
    checkpoint = random_checkpoint(model.config, tokenizer_json=model.tokenizer_json)
    checkpoint.record.update(record("c.txt", text))
    save(tiny_model, checkpoint)
    return said


def test_json_has_the_spans(llm: Llm, parrot: str) -> None:
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


def test_samples_read_the_text_as_often_as_one_does(llm: Llm, parrot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once to see that it is the one of the record, once to search it; each answer is the one alone."""
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
def test_what_is_known_by_heart_is_marked(llm: Llm) -> None:
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
