"""Verbatim passages: spans compared with a character-by-character search, and finding the training text."""

import hashlib
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.sources import Sources, read_sources
from llmcli.data.text import decoding
from llmcli.data.text.corpus import Corpus
from llmcli.errors import LLMError
from llmcli.evaluation import training_text
from llmcli.evaluation.memorization import LENGTH, find_verbatim
from llmcli.evaluation.training_text import (
    TrainingText,
    changed_files_note,
    find_corpus,
    find_small_training_texts,
    find_sources,
    find_texts,
    find_training_texts,
    is_held_out,
    names_sources,
    recorded_path,
    trained_in,
    trained_part,
    untrained_part,
)
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from llmcli.formats.training_record import TrainingRecord
from llmcli.formats.training_stages import BASE, as_earlier, cache_stage
from llmcli.formats.training_stages import joined as joined_stages
from tests.conftest import Llm, random_checkpoint
from tests.data.corpora import corpus_of, read_corpus

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
    searched = SimpleNamespace(documents=lambda: [[TRAINING_TEXT[:77], TRAINING_TEXT[77:]]], bytes=len(TRAINING_TEXT))
    [found, none] = (one.spans for one in find_verbatim([text, ""], [searched]))  # type: ignore[list-item]
    assert none == ()
    assert {i for first, last in found for i in range(first, last)} == covered
    assert all(first < last and last - first >= LENGTH for first, last in found)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


def record(name: str, text: str, train_bytes: int | None = None) -> TrainingRecord:
    data = text.encode()
    return TrainingRecord.from_json({
        "corpus": [{"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}],
        "train_bytes": len(data) if train_bytes is None else train_bytes,
    })  # fmt: skip


# ---- what was trained on, and what was not


def record_of(corpus: Corpus, train_bytes: int, left_out: int = 0, **held_out: int) -> TrainingRecord:
    """Of a run on a corpus; `held_out` are bytes at the end of documents, by name: `n0` for 0.txt. Of the last one,
    bytes before them are left out."""
    files = [{"name": d.name, "bytes": d.text_bytes, "sha256": d.sha256} for d in corpus.documents]
    for name, size in held_out.items():
        files[int(name[1:])]["held_out"] = size
    files[-1]["left_out"] = left_out
    return TrainingRecord.from_json({"corpus": files, "train_bytes": train_bytes})


def joined(corpus: Corpus) -> list[str]:
    return ["".join(text) for text in corpus.texts()]


def test_what_models_were_trained_on_and_the_rest() -> None:
    for records, trained, rest in [
        ([(6, {})], ["one", "two"], ["three"]),  # of an earlier version: the first 6 bytes
        ([(5, {})], ["one", "tw"], ["o", "three"]),
        ([(5, {}), (8, {})], ["one", "two", "th"], ["ree"]),
        ([(8, {"n1": 3})], ["one", "three"], ["two"]),  # a whole document
        ([(9, {"n0": 1, "n2": 1})], ["on", "two", "thre"], ["e", "e"]),
        ([(8, {"n1": 3}), (8, {"n0": 3})], ["one", "two", "three"], []),
        ([(11, {})], ["one", "two", "three"], []),
        ([(7, {"n2": 1, "left_out": 2})], ["one", "two", "th"], ["e"]),  # before the held-out end
        ([(9, {"n2": 0, "left_out": 2})], ["one", "two", "thr"], ["ee"]),  # the end of a near-duplicate
        ([], [], ["one", "two", "three"]),
    ]:
        corpus = corpus_of("one", "two", "three")
        found = [record_of(corpus, train_bytes, **held_out) for train_bytes, held_out in records]
        assert (joined(trained_part(corpus, found)), joined(untrained_part(corpus, found))) == (trained, rest), records
        assert all(trained_in(corpus, one) for one in found), (records, trained, rest)
        assert not any(trained_in(untrained_part(corpus, found), one) for one in found), (records, trained, rest)
        assert all(is_held_out(untrained_part(corpus, found), one) for one in found) == bool(rest), records


def test_a_text_is_known_in_any_order_and_beside_others() -> None:
    """By its hash, so also under another name; of other texts nothing is known."""
    record = record_of(corpus_of("one", "two", "three"), 8, n1=3)
    Path("new.txt").write_text("new")
    Path("renamed.txt").write_text("two")
    corpus = read_corpus(["2.txt", "new.txt", "renamed.txt"])
    assert joined(untrained_part(corpus, [record])) == ["new", "two"]
    new, two = read_corpus(["new.txt"]), read_corpus(["renamed.txt"])
    assert names_sources(record, Sources(two, ())) and not names_sources(record, Sources(new, ()))
    assert is_held_out(two, record) and not is_held_out(new, record) and not trained_in(new, record)


def test_what_earlier_stages_were_trained_on_is_known() -> None:
    """Of a model fine-tuned on the first text, whose base was trained on the first two; and of its cache."""
    corpus = corpus_of("one", "two", "three")
    base = record_of(corpus_of("one", "two"), 4, n0=1, n1=1)
    cache = cache_stage("2.txt", 5, corpus.documents[2].sha256)
    tuned = record_of(corpus_of("one"), 1, n0=2) | joined_stages(as_earlier(base, BASE, "base.safetensors"))
    assert joined(trained_part(corpus, [tuned])) == ["on", "tw"]
    rest = untrained_part(corpus, [tuned])
    assert joined(rest) == ["e", "o", "three"] and is_held_out(rest.cut(0, 2), tuned)
    assert trained_in(corpus, tuned) == ["", "in its base model, base.safetensors"]
    assert trained_in(read_corpus(["1.txt"]), tuned) == ["in its base model, base.safetensors"]
    assert names_sources(tuned, Sources(read_corpus(["1.txt"]), ())) and not trained_in(read_corpus(["2.txt"]), tuned)
    tuned |= joined_stages(tuned.document["earlier_stages"], [cache])
    assert trained_in(read_corpus(["2.txt"]), tuned) == ["to fit its n-gram cache"]


def test_the_text_of_the_base_model_is_searched_too() -> None:
    """Not that of a cache, of which the model can say nothing; what is not found is named."""
    corpus = corpus_of("one " * 20, "two " * 20, "three " * 20)
    [tuned, base, cache] = [record(f"{i}.txt", text) for i, text in enumerate(map("".join, corpus.texts()))]
    stages = [*as_earlier(base, BASE, "base.safetensors"), cache_stage("2.txt", 120, cache.corpus[0].sha256)]
    tuned |= joined_stages(stages)
    texts, missing = find_training_texts([tuned], Path("m.safetensors"))
    assert [name for text in texts for name in text.names] == ["0.txt", "1.txt"] and missing == []
    Path("1.txt").unlink()
    texts, missing = find_training_texts([tuned], Path("m.safetensors"))
    assert [name for text in texts for name in text.names] == ["0.txt"] and missing == ["1.txt"]
    Path("0.txt").unlink()
    wanted = r"training text of m\.safetensors, 0\.txt, is missing or has changed .*; name it: `corpus` FILE"
    with pytest.raises(LLMError, match=wanted):
        find_training_texts([tuned], Path("m.safetensors"))


def test_files_that_were_held_out_are_known() -> None:
    record = record_of(corpus_of("one", "two"), 6)
    Path("val.txt").write_text("other")
    val = read_corpus(["val.txt"])
    record |= {"held_out": {"files": [{"name": "val.txt", "bytes": 5, "sha256": val.documents[0].sha256}]}}
    assert is_held_out(val, record) and not trained_in(val, record)
    assert not is_held_out(read_corpus(["0.txt"]), record) and not is_held_out(val, TrainingRecord())


def test_a_record_that_does_not_say_it_names_no_training_text() -> None:
    for changes in [
        {"corpus": []},
        {"corpus": [{}]},
        {"corpus": [{"sha256": "0", "held_out": 1}]},
        {"train_bytes": 10**9},
    ]:
        corpus = corpus_of("one")
        assert joined(untrained_part(corpus, [record_of(corpus, 2) | changes])) == ["one"], changes
        without = record_of(corpus, 2).without("train_bytes")
        assert joined(untrained_part(corpus, [without])) == ["one"] and not is_held_out(corpus, without), changes
    # an exported model's record has names without hashes, so nothing is known about the content
    file = {"name": corpus.documents[0].name}
    for entry, note in ((file | {"sha256": "0"}, "a model was trained on a file of this name with other"), (file, "")):
        found = changed_files_note(Sources(corpus, ()), [record_of(corpus, 2) | {"corpus": [entry]}])
        assert note in found and bool(note) == bool(found), entry


def test_only_the_text_that_the_model_was_trained_on_is_searched() -> None:
    Path("c.txt").write_text("a" * 50 + "b" * 50)
    sources = read_sources(["c.txt"])
    text = "a" * 40 + "|" + "b" * 40
    [found] = find_verbatim([text], [TrainingText.of(sources, [record("c.txt", "a" * 50 + "b" * 50, 50)])])
    assert (found.spans, found.searched_bytes) == (((0, 40),), 50) and found.share == pytest.approx(40 / 81)
    assert find_verbatim([text], [TrainingText.of(sources, [TrainingRecord()])])[0].spans == ((0, 40), (41, 81))
    records = [record("c.txt", "a" * 50 + "b" * 50, size) for size in (50, 90)]  # of an ensemble, the longest
    assert TrainingText.of(sources, records).corpus.text_bytes == 90


def test_the_text_is_found_in_the_working_directory_or_beside_the_model() -> None:
    Path("texts").mkdir()
    Path("there/texts").mkdir(parents=True)
    places = ["there/c.txt", "c.txt", "there/texts/c.txt", "texts/c.txt"]  # in rising order of precedence
    for place in places:
        Path(place).write_text("\0" if place == places[-1] else "Another text, which hides nothing.\n", "utf-8")
    for place in places:
        Path(place).write_text(TRAINING_TEXT, "utf-8")
        corpus = find_corpus(record("texts/c.txt", TRAINING_TEXT), Path("there/m.safetensors"))
        assert [document.path for document in corpus.documents] == [Path(place)], place


def test_the_recorded_path_begins_at_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here/examples").mkdir(parents=True)
    monkeypatch.chdir("here")
    for name in ("examples/c.txt", "c.txt", "../c.txt"):
        Path(name).write_text(TRAINING_TEXT, "utf-8")
    for file, model, path in [
        ("examples/c.txt", "m.safetensors", "examples/c.txt"),
        ("c.txt", "models/m.safetensors", "../c.txt"),
        ("examples/c.txt", "models/new/m.safetensors", "../../examples/c.txt"),
        ("../c.txt", "m.safetensors", None),
        ("c.txt", "../m.safetensors", None),
        ("-", "m.safetensors", None),
    ]:
        assert recorded_path(Path(file), Path(model)) == path, (file, model, path)


@pytest.mark.slow
def test_the_text_of_a_run_is_found_beside_the_model_wherever_both_are_moved(
    llm: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("project/examples").mkdir(parents=True)
    Path("project/models").mkdir()
    monkeypatch.chdir("project")
    Path("examples/c.txt").write_text(TRAINING_TEXT * 20, "utf-8")
    Path("examples/q.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20, "utf-8")
    command = ("examples/c.txt", "examples/q.jsonl", "--steps", 2, "--context", 32, "--batch-tokens", 64)
    Path("examples/v.txt").write_text("A held-out text, which is another one.\n" * 20, "utf-8")
    assert llm("train", *command, "--val", "examples/v.txt", "-o", "models/m.safetensors").exit_code == 0
    monkeypatch.chdir("..")
    Path("project").rename("moved")
    model = Path("moved/models/m.safetensors")
    entries = load(model).record.document["corpus"]
    assert [entry["path"] for entry in entries] == ["../examples/c.txt", "../examples/q.jsonl"]
    sources = find_sources(load(model).record, model)
    assert [document.path.resolve() for document in sources.text.documents] == [Path("moved/examples/c.txt").resolve()]
    assert [file.path.resolve() for file in sources.conversation_files] == [Path("moved/examples/q.jsonl").resolve()]
    record = load(model).record
    [held_out] = find_texts(record, record.held_out.files, model).documents
    assert held_out.path.resolve() == Path("moved/examples/v.txt").resolve()


def test_a_large_or_missing_text_is_not_read_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever size the record of an untrusted model gives it."""
    Path("c.txt").write_text(TRAINING_TEXT, "utf-8")
    records, model = [record("c.txt", TRAINING_TEXT)], Path("m.safetensors")
    size = Path("c.txt").stat().st_size
    for limit, is_found in [(size - 1, False), (size, True)]:
        monkeypatch.setattr(training_text, "MAX_SMALL_BYTES", limit)
        assert bool(find_small_training_texts(records, model)) == is_found
    Path("c.txt").unlink()
    assert find_small_training_texts(records, model) == []


def test_a_record_without_a_text_is_an_error() -> None:
    for document in [{}, {"corpus": []}, {"corpus": [{"name": "c", "shape": "messages"}]}]:
        with pytest.raises(LLMError, match="does not record its training text"):
            find_corpus(TrainingRecord.from_json(document), Path("m.safetensors"))


def test_several_texts_are_searched_in_one_pass_with_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.txt").write_text(TRAINING_TEXT * 3, "utf-8")
    training_texts = [TrainingText.of(read_sources(["c.txt"]), [])]
    texts = [TRAINING_TEXT[5:50] + "?" + TRAINING_TEXT[60:99], "", TRAINING_TEXT[20:], "short", TRAINING_TEXT[5:50]]
    alone = [find_verbatim([text], training_texts)[0] for text in texts]
    reads = []
    real = Corpus.texts
    monkeypatch.setattr(Corpus, "texts", lambda self, *words: reads.append(words) or real(self, *words))
    assert find_verbatim(texts, training_texts) == alone
    assert len(reads) == 1


# ---- conversations


ANSWER = "Jupiter is the largest planet of the Solar System."
QUESTION = "Which planet has a ring that you can see with a telescope?"
FILES = {
    "c.jsonl": json.dumps(
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}
    ),
    "c.tsv": f"question\tanswer\n{QUESTION}\t{ANSWER}",
    "c.txt": f"Q: {QUESTION}\nA: {ANSWER}",
}  # fmt: skip
SYNTAX = {  # what stands in the files but not in a message
    "c.jsonl": '"}, {"role": "assistant", "content": "',
    "c.tsv": f"{QUESTION[-20:]}\t{ANSWER[:20]}",
    "c.txt": f"{QUESTION[-20:]}\nA: {ANSWER[:20]}",
}


def conversation_record(
    name: str, content: str, conversations: int, shape: str = "", share: float | None = None
) -> TrainingRecord:
    digest = hashlib.sha256(content.encode()).hexdigest()
    file = {"name": name, "sha256": digest, "shape": shape, "conversations": conversations}
    return TrainingRecord.from_json({"corpus": [file], "conversations": {"held_out_share": share}})


def test_of_conversations_the_messages_are_searched_and_not_the_syntax_of_the_file() -> None:
    for name in FILES:
        content = FILES[name] + "\n"
        Path(name).write_text(content)
        assert SYNTAX[name] in content and len(SYNTAX[name]) >= LENGTH, name
        sources = find_sources(conversation_record(name, content, 1), Path("m.safetensors"))
        training_text = TrainingText.of(sources, [])
        texts = [f"So: {ANSWER}", f"{QUESTION[5:]}!", QUESTION[-20:] + ANSWER[:20], SYNTAX[name]]
        answer, question, both, syntax = (found.spans for found in find_verbatim(texts, [training_text]))
        assert answer == ((4, 4 + len(ANSWER)),) and question == ((0, len(QUESTION) - 5),), name
        assert both == syntax == (), name
        assert training_text.names == [name] and training_text.bytes == len(QUESTION) + len(ANSWER), name


def test_a_string_does_not_span_two_messages_or_two_conversations() -> None:
    halves = ["abcdefghijklmnopqrst", "uvwxyzabcdefghijklmn", "opqrstuvwxyzabcdefgh", "ijklmnopqrstuvwxyzab"]
    rows = [f"{halves[i % 4]}\t{halves[(i + 1) % 4]}" for i in range(0, 5000, 2)]
    Path("c.tsv").write_text("\n".join([*rows, f"x\t{'abcdefghijklmnopqrstuvwxyz' * 2}y"]) + "\n")
    text = TrainingText.of(read_sources(["c.tsv"]), [])
    joined = "".join(halves) * 3
    assert find_verbatim([joined[:80]], [TrainingText(text.corpus, text.files, text.conversations[:-1])])[0].spans == ()
    assert find_verbatim([joined[:52]], [text])[0].spans == ((0, 52),)


def test_held_out_conversations_are_not_searched() -> None:
    rows = [f"{i}?\tThis is the answer number {i:04} of a file." for i in range(30)]
    content = "question\tanswer\n" + "\n".join(rows) + "\n"
    Path("c.tsv").write_text(content)
    answers = [row.partition("\t")[2] for row in rows]
    saved = conversation_record("c.tsv", content, 30, share=0.1)
    found = find_verbatim(answers, [TrainingText.of(find_sources(saved, Path("m.safetensors")), [saved])])
    assert [i for i, one in enumerate(found) if not one.spans] == [6, 12, 28]
    found = find_verbatim(answers, [TrainingText.of(read_sources(["c.tsv"]), [TrainingRecord()])])
    assert all(one.spans for one in found)


def test_named_speakers_are_found_again_and_a_changed_file_is_an_error() -> None:
    content = f"Ann: {QUESTION}\nBob: {ANSWER}\n"
    Path("there").mkdir()
    Path("there/c.txt").write_text(content)
    saved = conversation_record("c.txt", content, 1, shape="Ann:/Bob: turns")
    sources = find_sources(saved, Path("there/m.safetensors"))
    assert [message.content for message in sources.conversations[0].messages] == [QUESTION, ANSWER]
    Path("there/c.txt").write_text(content + "Bob: No.\n")
    with pytest.raises(LLMError, match=r"m\.safetensors, c\.txt, is missing or has changed"):
        find_sources(saved, Path("there/m.safetensors"))


# ---- the command


@pytest.fixture
def memorizing_model(tiny_model: Path, llm: Llm) -> str:
    """A model whose record names c.txt, which contains its continuation of "The cat"; returns the continuation."""
    generated = json.loads(llm("generate", "The cat", "-n", 60, "--seed", 1, "--json").stdout)["text"].replace("\0", "")
    text = "\n" + generated[:45]
    Path("c.txt").write_text(text, "utf-8")
    model = load(tiny_model)
    checkpoint = random_checkpoint(model.config, tokenizer_json=model.tokenizer_json)
    checkpoint.record = record("c.txt", text)
    save(tiny_model, checkpoint)
    return generated


def test_samples_read_the_text_as_often_as_one(
    llm: Llm, memorizing_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to verify its hash and once to search it; the results equal those of single samples."""
    words = ("generate", "The cat", "-n", 60, "--memory", "--json", "--seed")
    sizes: list[int] = []
    real = decoding.OpenFile.read
    monkeypatch.setattr(decoding.OpenFile, "read", lambda *given: sizes.append(len(data := real(*given))) or data)
    alone = [json.loads(llm(*words, seed).stdout) for seed in (1, 2, 3)]
    once = sum(sizes) // len(alone)
    sizes.clear()
    found = [json.loads(line) for line in llm(*words, 1, "--samples", 3).stdout.splitlines()]
    size = Path("c.txt").stat().st_size
    beginnings = 2**16 + 2**12  # from which the format is recognized
    assert sum(sizes) == once and 2 * size <= once <= 2 * size + beginnings
    for one, other in zip(found, alone, strict=True):
        same = {key for key in one if not key.startswith(("seconds", "tokens_per"))}
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert found[0]["memory"]["spans"]
    plain = llm(*(word for word in words if word != "--json"), 1, "--samples", 3)
    assert re.sub("[⟦⟧\n]", "", plain.stdout) == "".join(one["text"] for one in found).replace("\n", "")
    assert [line for line in plain.stderr.splitlines() if line.startswith("---")] == ["--- 1", "--- 2", "--- 3"]
