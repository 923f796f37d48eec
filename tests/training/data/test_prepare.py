"""From a corpus to tokens, tokenizer, plan and record; the split is exact to the byte."""

import gzip
import json

import pytest

from llmcli.config import ModelConfig
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.documents.reader import DocumentReader
from llmcli.data.sources import read_sources
from llmcli.data.text.corpus import SAMPLE_SPANS
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens import corpus_tokens
from llmcli.errors import LLMError
from llmcli.evaluation.training_text import trained_lengths
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.data import prepare as prepare_module
from llmcli.training.data.run_data import RunData
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import PlanRequest
from tests.data.corpora import corpus_of, read_corpus
from tests.data.text.test_split import letters
from tests.data.tokenizers.test_training import words
from tests.training.plans import prepare, row

CACHED_BYTES = corpus_tokens.CACHED_BYTES


def test_the_end_of_the_corpus_is_held_out_to_the_byte() -> None:
    for share, held_bytes in [(0.1, 1000), (0.25, 2500), (0.0, 0)]:
        text = words(3000)[:10_000]
        assert len(text) == 10_000
        ready = prepare(PlanRequest(steps=5), corpus_of(text), held_out=share)
        cut = len(text) - held_bytes
        assert ready.tokenizer.decode(ready.tokens.tolist()) == text[:cut]
        assert ready.tokenizer.decode(ready.held_out.tolist()) == text[cut:]
        held_out = f"{held_bytes:,} held out: the last" if held_bytes else "nothing held out"
        assert row(ready.plan, "corpus").reason.startswith(f"{cut:,} for training, {held_out}")
    with pytest.raises(LLMError, match=r"^`val` 0.99 leaves [0-9]+ bytes of the text for training; .*: `val` 0.1$"):
        prepare(PlanRequest(steps=5), corpus_of(text), held_out=0.99)
    with pytest.raises(LLMError, match=r"^`val` 1e-09 holds out nothing of 10,000 bytes of text; .*: `val` 0.1$"):
        prepare(PlanRequest(steps=5), corpus_of(text), held_out=1e-9)


@pytest.mark.parametrize("budget", [{"seconds": 1.0}, {"steps": 5}])
@pytest.mark.parametrize("kind", ["gzip", "UTF-16"])
def test_a_compressed_text_is_prepared_like_a_plain_one_and_read_once(tmp_path, monkeypatch, kind, budget) -> None:
    monkeypatch.setattr(recipe, "MIN_BYTES", 5000)
    monkeypatch.setattr(recipe, "CPU_BYTES_FACTOR", 5000.0)
    text = words(20_000) + words(3000, 1, "りんごé🍎")
    (tmp_path / "compressed").mkdir(exist_ok=True)
    path = tmp_path / "compressed" / "0.txt"  # the name as in the record
    path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode("utf-16"))
    unpacked = []  # in a child process
    submit = DocumentReader.submit
    monkeypatch.setattr(
        DocumentReader,
        "submit",
        lambda self, *file, **options: unpacked.append(file[0]) or submit(self, *file, **options),
    )
    plain = prepare(PlanRequest(**budget), corpus_of(text))
    compressed = prepare(PlanRequest(**budget), read_corpus([str(path)]))
    assert unpacked == ([str(path)] if kind == "gzip" else [])
    assert compressed.record == plain.record and compressed.plan == plain.plan
    assert (plain.record.read_bytes < plain.record.train_bytes) == ("seconds" in budget)
    assert compressed.tokenizer.to_json() == plain.tokenizer.to_json()
    assert compressed.tokens.tolist() == plain.tokens.tolist()
    assert compressed.held_out.tolist() == plain.held_out.tolist()


def test_a_validation_file_is_held_out_whole_and_what_the_training_text_has_of_it_is_noted(tmp_path) -> None:
    """Nothing is left out: the user chose the file."""
    text = letters(9000, 0)
    for other, share in (("quite another text", 0), (letters(2000, 1) + text[:3000], 0.6)):
        (tmp_path / "other.txt").write_text(other, "utf-8")
        val = read_corpus([str(tmp_path / "other.txt")])
        ready = prepare(PlanRequest(steps=5), corpus_of(text), held_out=val)
        assert ready.tokenizer.decode(ready.tokens.tolist()) == text
        assert ready.tokenizer.decode(ready.held_out.tolist()) == other
        held_out = ready.record.held_out
        assert (ready.record.train_bytes, held_out.bytes) == (9000, len(other))
        assert held_out.from_.endswith("other.txt") and held_out.known_share == pytest.approx(share, abs=0.02)
        known = f"; {held_out.known_share:.0%} of it also occurs in the training text" if share else ""
        reason = f"all for training; held out: the {len(other):,} bytes of other.txt{known}"
        assert row(ready.plan, "corpus").reason == reason


def test_a_text_in_which_each_word_is_one_token_gets_no_bpe_dropout() -> None:
    few = "".join(f"{name} has a {thing}.\n" for thing in ("kite", "boat") for name in ("Anna", "Ben", "Clara"))
    few *= 40_000 // len(few)
    request = PlanRequest(epochs=20.0, layers=1, width=32)

    def rates(text: str, **options: object) -> tuple[float, float]:
        ready = prepare(request, corpus_of(text), **options)  # type: ignore[arg-type]
        train = ready.plan.train
        assert RunData(ready).regularization(20.0) == (train.dropout, train.token_split)  # as updated during the run
        return train.dropout, train.token_split

    usual = rates(words(40_000))
    assert usual == (0.2, 0.15)
    assert rates(few) == (0.5, 0.0)
    assert rates(few, tokenizer=prepare(request, corpus_of(few)).tokenizer) == (0.5, 0.0)  # resumed
    assert rates(few[:20_000]) == usual  # in so short a text, pairs that occur once are not merged
    assert rates(few, characters=True) == usual


def test_the_record_describes_the_corpus():
    first, second = "one text of many words. " * 50, "another one! " * 50
    corpus = corpus_of(first, second)
    ready = prepare(PlanRequest(steps=5), corpus)
    assert ready.record.to_json() == {
        "corpus": [
            {"name": "0.txt", "bytes": 1200, "sha256": corpus.documents[0].sha256, "held_out": 120},
            {"name": "1.txt", "bytes": 650, "sha256": corpus.documents[1].sha256, "held_out": 65},
        ],
        "train_bytes": 1665,
        "read_bytes": 1665,
        "train_tokens": len(ready.tokens),
        "held_out": {"bytes": 185, "tokens": len(ready.held_out), "from": "the last tenth of each of 2 documents"},
        "seen_bytes": bytes(sorted(set((first + second).encode()))).hex(),
    }
    assert [row.name for row in ready.plan.rows][:3] == ["corpus", "vocabulary", "budget"]
    assert row(ready.plan, "corpus").value == "1,850 bytes"


def test_the_ends_of_near_duplicates_are_recorded_as_left_out():
    """Three versions of one text, each the beginning of the next: `llm eval` knows what was trained on."""
    text = words(1000)
    corpus = corpus_of(text[:1000], text[: len(text) - 100], text)
    ready = prepare(PlanRequest(steps=5), corpus)
    size = round(0.1 * len(text))
    assert [(one.get("held_out"), one.get("left_out")) for one in ready.record.document["corpus"]] == [
        (None, None), (None, size - 100), (size, None)
    ]  # fmt: skip
    assert ready.record.held_out.bytes == size
    trained = trained_lengths(ready.record.stages)
    kept = [1000, len(text) - size, len(text) - size]
    assert [trained[document.sha256] for document in corpus.documents] == kept
    TrainingRecord.parse(json.dumps(ready.record.to_json()))
    rule = f"the last tenth of 2.txt; {size - 100:,} bytes elsewhere, which repeat it, are left out"
    assert rule == ready.record.held_out.from_ and rule in row(ready.plan, "corpus").reason


def test_training_text_that_repeats_held_out_text_is_not_read(monkeypatch) -> None:
    """A book beside its chapters, whole or as far as there is time to read it. No tokenizer is trained on it either."""
    train_char, learned = Tokenizer.train_char, list[str]()
    monkeypatch.setattr(Tokenizer, "train_char", lambda text, size: learned.extend(text) or train_char(learned, size))
    for sampled in [False, True]:
        learned.clear()
        monkeypatch.setattr(recipe, "CPU_BYTES_FACTOR", 1)
        monkeypatch.setattr(recipe, "MIN_BYTES", 320_000)
        chapters = [letters(60_000, seed) for seed in range(6)]
        corpus = corpus_of("\n".join(chapters), *chapters)
        request = PlanRequest(seconds=2.0) if sampled else PlanRequest(steps=5)
        ready = prepare(request, corpus, characters=True)
        held_out = ready.tokenizer.decode(ready.held_out.tolist())
        trained = ready.tokenizer.decode(ready.tokens.tolist())
        assert trained == "".join("".join(text) for text in ready.training_text.texts()) == "".join(learned)
        assert (200_000 if sampled else 540_000) < len(trained) < (310_000 if sampled else 620_000)
        pieces = [held_out[i : i + 200] for i in range(0, len(held_out) - 199, 200)]
        assert not any(piece in trained for piece in pieces) and "known_share" not in ready.record.document["held_out"]
        assert ready.record.held_out.from_.endswith(" bytes elsewhere, which repeat it, are left out")
        assert ready.record.held_out.from_ in row(ready.plan, "corpus").reason
        if not sampled:
            assert ready.record.train_bytes == ready.record.read_bytes == len(trained)
            lengths = trained_lengths(ready.record.stages)
            ends = dict.fromkeys(corpus.documents, 0)
            ends |= {part.document: part.end for part in ready.training_text.contents}
            assert lengths == {document.sha256: end for document, end in ends.items()}


def test_short_rows_of_a_table_that_repeat_are_noted(tmp_path) -> None:
    """Half of the rows are drawn from a few: each held-out one of these is also a training row."""
    common = [letters(40, seed) for seed in range(20)]
    rows = [common[i % 19] if i % 2 else letters(40, 100 + i) for i in range(1000)]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{row}"}}\n' for row in rows), "utf-8")
    ready = prepare(PlanRequest(steps=5), read_sources([str(tmp_path / "rows.jsonl")]).text)
    assert ready.record.held_out.known_share == pytest.approx(0.5, abs=0.05)
    assert row(ready.plan, "corpus").reason.endswith("% of it also occurs in the training text")


@pytest.mark.parametrize("template", ["", "Text: {text}\nLabel: {label}", "Text: {text}\n\nLabel: {label}"])
def test_lines_that_many_rows_of_a_table_have_are_not_repeated_rows(tmp_path, template) -> None:
    greeting = "" if template else "Dear Sir or Madam,\n"
    records = [{"text": greeting + letters(40, i), "label": "yes" if i % 2 else "no"} for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    columns = ("text", "label") if template else ("text",)
    reading = ReadOptions(columns=columns, template=template)
    ready = prepare(PlanRequest(steps=5), read_sources([str(tmp_path / "rows.jsonl")], reading).text)
    assert not ready.record.held_out.known_share


def test_no_held_out_text_is_what_the_base_model_was_trained_on() -> None:
    """The base model was trained on nine tenths of a text of which now the last fifth is held out, or all as --val."""
    for as_file in [False, True]:
        text = words(1000)
        corpus = corpus_of(text)
        first = prepare(PlanRequest(steps=5), corpus)
        held_out = corpus if as_file else 0.2
        ready = prepare(PlanRequest(steps=5), corpus, held_out=held_out, base_record=first.record)
        assert ready.tokenizer.decode(ready.held_out.tolist()) == text[len(text) - round(0.1 * len(text)) :]
        seen = round(0.9 * len(text)) if as_file else round(0.2 * len(text)) - round(0.1 * len(text))
        assert f"without {seen:,} bytes that the base model was trained on" in row(ready.plan, "corpus").reason
        assert "seen_by_base" not in ready.record.document["held_out"]
        if not as_file:
            assert trained_lengths(ready.record.stages) == {
                corpus.documents[0].sha256: len(text) - round(0.2 * len(text))
            }
        again = prepare(PlanRequest(steps=5), corpus, base_record=first.record)  # the same tenth
        assert again.record.to_json() == {
            key: value for key, value in first.record.document.items() if key != "seen_bytes"
        }


def test_another_version_of_the_text_of_the_base_model_is_noted(tmp_path) -> None:
    """Its hash is another; the text of the base model is beside it, or was edited."""
    book = letters(9000, 0)
    corpus = corpus_of(book)
    first = prepare(PlanRequest(steps=5), corpus)
    (tmp_path / "chapter.txt").write_text(book[2000:6000].upper(), "utf-8")
    chapter = read_corpus([str(tmp_path / "chapter.txt")])
    base = {"base_record": first.record, "base_path": tmp_path / "model.safetensors"}
    notes: list[str] = []
    ready = prepare(PlanRequest(steps=5), chapter, on_note=notes.append, **base)
    assert ready.record.held_out.known_share == 1 and not notes
    assert row(ready.plan, "corpus").reason.endswith("100% of it also occurs in the training text")
    (tmp_path / "new.txt").write_text(letters(9000, 1), "utf-8")
    new = prepare(PlanRequest(steps=5), read_corpus([str(tmp_path / "new.txt")]), **base)
    assert new.record.held_out.known_share == 0
    edited = corpus_of(book[2000:])
    ready = prepare(PlanRequest(steps=5), edited, on_note=notes.append, **base)
    assert [note.partition("; ")[0] for note in notes] == [
        f"{edited.documents[0].name}: a model was trained on a file of this name with other content"
    ]


def test_without_other_held_out_text_it_is_said_that_the_base_model_knows_it():
    corpus = corpus_of(words(1000))
    first = prepare(PlanRequest(steps=5), corpus, held_out=0.0)
    notes: list[str] = []
    ready = prepare(PlanRequest(steps=5), corpus, base_record=first.record, on_note=notes.append)
    assert ready.record.held_out.seen_by_base is True and ready.record.held_out.bytes > 0
    assert notes == [
        "the base model was trained on the held-out text, so the figures will not measure new text; hold out other "
        "text: `val` FILE"
    ]
    TrainingRecord.parse(json.dumps(ready.record.to_json()))


def test_a_repetitive_text_is_not_too_short() -> None:
    """With tokens of any length these were 9 and 6 tokens, "too short"."""
    for text in ["a" * 300_000, "👨\u200d👩\u200d👧\u200d👦" * 5000]:
        ready = prepare(PlanRequest(steps=5), corpus_of(text))
        assert len(ready.tokens) > 1000 and ready.plan.train.context >= 64


def test_seen_bytes_include_those_of_the_base_model() -> None:
    for before, fine_tunes, expected in [
        (None, False, b" ab"),
        (b"xy", False, b" ab"),
        (b"xy", True, b" abxy"),
        (None, True, None),
    ]:
        tokenizer = Tokenizer.train_bpe(["ab xy"], 261).for_model(before)
        base = ModelConfig(261, 32, 64, 2, 4, 2, 8, 32) if fine_tunes else None
        ready = prepare(PlanRequest(steps=5), corpus_of("ab ba " * 300), tokenizer=tokenizer, base=base)
        assert ready.tokenizer.seen_bytes == expected
        assert ready.record.document.get("seen_bytes") == (expected.hex() if expected else None)


def test_little_time_limits_the_vocabulary(monkeypatch) -> None:
    wanted, small = [], Tokenizer.train_char(["ab"])
    monkeypatch.setattr(Tokenizer, "train_bpe", lambda texts, size: wanted.append(size) or small)
    corpus = corpus_of("ab" * 50)
    monkeypatch.setattr(type(corpus), "text_bytes", 10**9)
    for budget in ({"seconds": 20.0}, {"seconds": 300.0}, {"seconds": 3600.0}, {"steps": 10}):
        prepare(PlanRequest(**budget, threads=2), corpus)
    prepare(PlanRequest(seconds=20.0, device="cuda"), corpus)
    assert wanted == [1024, 4096, 8192, 8192, 8192]


def test_of_a_text_too_long_for_the_time_budget_parts_are_read(monkeypatch):
    monkeypatch.setattr(recipe, "CPU_BYTES_FACTOR", 6400)
    monkeypatch.setattr(recipe, "BYTES_EXPONENT", 0.5)
    monkeypatch.setattr(recipe, "MIN_BYTES", 1)
    text = words(20_000)
    corpus = corpus_of(text)
    ready = prepare(PlanRequest(seconds=2.0, threads=2), corpus)
    train_bytes = len(text) - round(len(text) / 10)
    assert ready.record.train_bytes == train_bytes  # the last tenth is held out, whatever was read of the rest
    assert ready.record.read_bytes == 12_800 < train_bytes
    ids = ready.tokens.tolist()
    assert len(ready.tokenizer.decode_bytes(ids)) == 12_800
    assert ids.count(ready.tokenizer.eos_id) == SAMPLE_SPANS - 1
    read = ["".join(part) for part in ready.training_text.texts()]
    assert ready.tokenizer.decode(ids) == "".join(read)
    assert all(part in text[:train_bytes] for part in read)
    assert len(ready.tokenizer.decode_bytes(ready.held_out.tolist())) == 1280
    assert "12,800 bytes of training text, sampled evenly" in row(ready.plan, "corpus").reason


def test_no_more_of_the_held_out_text_is_read_than_an_evaluation_covers(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "MAX_HELD_OUT_BYTES", 640)
    text, other = words(20_000), words(3000, 1)
    (tmp_path / "other.txt").write_text(other, "utf-8")
    for held_out, whole in ((0.1, text[len(text) - round(len(text) / 10) :]), (None, other)):
        given_ = held_out or read_corpus([str(tmp_path / "other.txt")])
        ready = prepare(PlanRequest(steps=5), corpus_of(text), held_out=given_)
        assert ready.record.held_out.bytes == len(whole)
        ids = ready.held_out.tolist()
        assert len(ready.tokenizer.decode_bytes(ids)) == 640 and ids.count(ready.tokenizer.eos_id) == SAMPLE_SPANS - 1
