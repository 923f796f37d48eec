"""`llm eval`: scores of models with known probabilities, which part of a text is measured, and its output."""

import hashlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation import compressors
from llmcli.formats.checkpoint import Checkpoint, save
from llmcli.formats.loading import load
from llmcli.formats.training_record import TrainingRecord
from llmcli.formats.training_stages import BASE, as_earlier, joined
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import TEXT, Llm
from tests.data.corpora import put, read_corpus

BYTES = Tokenizer.train_bpe(["a"], 261)  # one token per byte


def bigram_model(path: str, probabilities: np.ndarray, record: dict | None = None) -> None:
    """A model that predicts each token from the one before it: probabilities [V, V], a row for each preceding token.

    Attention and MLP output zeros, embeddings are unit vectors, and the output layer holds log probabilities.
    """
    V = len(probabilities)
    config = ModelConfig(V, V + 1, 8, 1, 1, 1, 4, 16)  # plus one, so that the hidden size is even
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    tensors["model.embed_tokens.weight"][:, :V] = np.eye(V)
    for name, tensor in tensors.items():
        if name.endswith("norm.weight"):
            tensor[:] = 1
    length = math.sqrt(1 / (V + 1) + config.rms_norm_eps)  # the final norm divides a unit vector by this
    tensors["lm_head.weight"][:, :V] = np.log(probabilities).T * length
    save(path, Checkpoint(config, BYTES.to_json(), tensors, TrainingRecord.from_json(record or {})))


SMALL = ("--steps", 3, "--layers", 1, "--width", 32, "--context", 16, "--threads", 1)
UNIFORM = np.full((261, 261), 1 / 261)


def successor() -> np.ndarray:
    """After each letter the next one of the alphabet has probability 0.9; the rest is uniform."""
    probabilities = np.full((261, 261), 0.1 / 260)
    after = {BYTES.encode(chr(97 + i))[0]: BYTES.encode(chr(97 + (i + 1) % 26))[0] for i in range(26)}
    for before, now in after.items():
        probabilities[before, now] = 0.9
    return probabilities


def results_of(answer: Result) -> dict:
    assert answer.exit_code == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_bigram_model_by_hand(llm: Llm, device: str) -> None:
    bigram_model("model.safetensors", successor())
    Path("t.txt").write_text("abcdefgh" * 10 + "xyzabq")
    [found] = results_of(llm("eval", "t.txt", "--json", "--device", device))["results"]
    # the first a: after the end of text all 261 are alike. Then 7 in each of the 10 runs, and y z a b of the rest, are
    # successors; what begins the 9 later runs, the x and the q are not.
    right, wrong = 10 * 7 + 4, 9 + 1 + 1
    bits = math.log2(261) - right * math.log2(0.9) - wrong * math.log2(0.1 / 260)
    assert found["tokens"] == found["bytes"] == 86
    assert found["bits_per_byte"] == pytest.approx(bits / 86, abs=1e-6)
    assert found["perplexity"] == pytest.approx(2 ** (bits / 86), abs=1e-5)
    assert found["accuracy"] == pytest.approx(right / 86, abs=1e-6)


def test_results_of_each_model_and_document_and_all_together(llm: Llm) -> None:
    bigram_model("u.safetensors", UNIFORM)
    bigram_model("s.safetensors", successor())
    Path("d").mkdir()
    Path("d/1.txt").write_text("abcdef" * 9)
    Path("d/2.txt").write_text("qqq")
    Path("d/3.bin").write_bytes(b"\xff\0")
    answer = llm("eval", "d", "-m", "u.safetensors", "-m", "s.safetensors", "--json")
    assert "skipped: d/3.bin" in answer.stderr
    unknown = "has no record of its training data, so this text may be part of it"
    assert all(f"{name}.safetensors: {unknown}" in answer.stderr for name in ("u", "s"))
    found = results_of(answer)["results"]
    assert [(r["model"][0], r["file"]) for r in found] == [
        ("s", "d/1.txt"), ("u", "d/1.txt"), ("u", "d/2.txt"), ("s", "d/2.txt"), ("s", None), ("u", None)
    ]  # fmt: skip
    total, parts = found[4], [found[0], found[3]]
    assert total["bytes"] == 57 and total["tokens"] == 57
    assert total["bits_per_byte"] == pytest.approx(sum(p["bits_per_byte"] * p["bytes"] for p in parts) / 57, abs=1e-5)
    table = [line.split("\t") for line in llm("eval", "d", "-m", "u.safetensors", "-q").stdout.splitlines()]
    assert table.pop(0) == ["model", "network", "adapting", "perplexity", "accuracy", "tokens", "bytes", "text"]
    assert [row[0] for row in table[:3]] == ["u.safetensors"] * 3
    assert [row[-1] for row in table] == ["d/1.txt", "d/2.txt", "all", "all", "all"]
    assert table[2][1:7] == ["8.028", "", "261.00", "0.000", "57", "57"]
    lines = STYLES.sub("", in_a_terminal("eval", "d", "-m", "u.safetensors", "-q")).splitlines()
    tables = [line.strip() for line in lines if line.startswith("text: ") or "perplexity  " in line]
    assert tables[::2] == ["text: d/1.txt", "text: d/2.txt", "text: all"]  # one for each text fits 80 columns
    assert all("model" in heading and "bytes" in heading for heading in tables[1::2])


@pytest.mark.slow
def test_the_held_out_end_is_measured_with_the_rest_as_past(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("train", "c.txt", *SMALL, "-q").exit_code == 0
    record = load("model.safetensors").record.to_json()
    trained_bytes = record["train_bytes"]
    answer = llm("eval", "c.txt", "--json")
    found = results_of(answer)
    [row] = found["results"]
    assert found["from_byte"] == trained_bytes and row["bytes"] == record["held_out"]["bytes"]
    assert row["tokens"] == record["held_out"]["tokens"]
    assert row["bits_per_byte"] == pytest.approx(record["bits_per_byte"], abs=1e-4)  # it was measured whole
    note = f"{trained_bytes:,} bytes of this text were trained on; {row['bytes']} others are measured: c.txt from byte"
    assert note in answer.stderr and "--whole" in answer.stderr
    assert "model.safetensors: this text was held out in training" in answer.stderr and "no record" not in answer.stderr
    assert f"compressors first read the {trained_bytes:,} bytes of the training text\n" in answer.stderr
    assert all(b["past_bytes"] == trained_bytes for b in found["baselines"]) and len(found["baselines"]) == 3
    Path("val.txt").write_text(TEXT[900::-1], "utf-8")
    assert llm("train", "c.txt", "--val", "val.txt", "-o", "v.safetensors", *SMALL).exit_code == 0
    apart = results_of(llm("eval", "val.txt", "-m", "v.safetensors", "--json"))["baselines"]
    beside_training = compressors.baselines(TEXT[900::-1].encode(), TEXT.encode())
    assert {(row["name"], row["bits_per_byte"], row["past_bytes"]) for row in apart} == {
        (row.name, round(row.bits_per_byte, 6), len(TEXT.encode())) for row in beside_training
    }
    # with --val, training leaves out nothing that repeats the held-out text
    book = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=6000))
    Path("book.txt").write_text(book)
    Path("chapter.txt").write_text(book[:1000])
    assert llm("train", "book.txt", "--val", "chapter.txt", "-o", "b.safetensors", *SMALL).exit_code == 0
    chapter = results_of(llm("eval", "chapter.txt", "-m", "b.safetensors", "--json"))["baselines"]
    assert {row["past_bytes"] for row in chapter} == {len(book)}
    whole = llm("eval", "c.txt", "--json", "--whole")
    assert results_of(whole)["results"][0]["bytes"] == len(TEXT.encode()) and results_of(whole)["from_byte"] == 0
    assert "trained on some of this text" in whole.stderr
    Path("other.txt").write_text(TEXT[1:], "utf-8")
    other = llm("eval", "other.txt", "--json")
    assert results_of(other)["from_byte"] == 0 and "were trained on" not in other.stderr
    Path("more.txt").write_text("more")
    both = llm("eval", "more.txt", "c.txt", "--json")  # neither has been trained on
    assert [row["bytes"] for row in results_of(both)["results"]] == [4, row["bytes"], 4 + row["bytes"]]
    assert "trained on some of this text" not in both.stderr


@pytest.mark.slow
def test_the_held_out_split_of_a_data_set_is_measured(llm: Llm) -> None:
    for split in ("train", "validation"):
        rows = (json.dumps({"text": f"The {split} row {i} tells of a cat."}) for i in range(40))
        put(f"set/{split}.jsonl", "\n".join(rows).encode())
    assert llm("train", "set", "-o", "m.safetensors", *SMALL).exit_code == 0
    [found] = results_of(llm("eval", "set", "-m", "m.safetensors", "--json"))["results"]
    assert found["file"] == str(Path("set/validation.jsonl"))


@pytest.mark.slow
def test_other_files_and_later_versions_that_repeat_the_training_text_are_noted(llm: Llm) -> None:
    book = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=6000))
    Path("book.txt").write_text(book)
    Path("chapter.txt").write_text(book[:2000].upper())
    assert llm("train", "book.txt", *SMALL, "-q").exit_code == 0
    trained_bytes = load("model.safetensors").record.to_json()["train_bytes"]
    notes = llm("eval", "book.txt", "chapter.txt").stderr
    assert f"{trained_bytes:,} bytes of this text were trained on" in notes
    assert "text of chapter.txt (2,000 bytes) was not trained on, but 100% of it also occurs in the" in notes
    assert "not trained on" not in llm("eval", "book.txt").stderr
    others = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz ", k=9000))
    Path("quotes.txt").write_text(f"{others[:4000]}{book[-600:]}{others[4000:]}")  # with what was held out
    train = ("train", "quotes.txt", *SMALL[:2])
    assert llm(*train, *SMALL[2:4], "--like", "model.safetensors", "-o", "b.safetensors").exit_code == 0
    assert llm(*train, "--from", "model.safetensors", "-o", "tuned.safetensors").exit_code == 0
    assert llm("mix", "model.safetensors", "b.safetensors").exit_code == 0
    for models in (["mixture"], ["model", "b"], ["tuned"]):
        named = [part for name in models for part in ("-m", f"{name}.safetensors")]
        notes = llm("eval", "book.txt", *named).stderr
        assert "text of book.txt (600 bytes) was not trained on, but 100% of it also occurs in the" in notes, models
    plan = llm("train", "book.txt", "--from", "tuned.safetensors", "--dry-run").stdout
    assert "600 held out: the last tenth of the text; 100% of it also occurs in the training text" in plan
    # a later version: its hash is another, so the part that was held out is not known
    edited = (book + "One more line.\n").replace("e ", "e\r\n")
    Path("other-name.txt").write_bytes(edited.encode())
    notes = llm("eval", "other-name.txt").stderr
    assert f"text of other-name.txt ({len(edited):,} bytes) was not trained on, but 89% of it also occurs in" in notes
    Path("book.txt").write_bytes(edited.encode())
    for name in ("book.txt", "other-name.txt"):  # the text of the training is no longer to be found
        notes = llm("eval", name).stderr
        is_noted = "book.txt: a model was trained on a file of this name with other content; if that was" in notes
        assert is_noted == (name == "book.txt") and "not trained on" not in notes


def test_text_of_the_base_model_is_not_unseen(llm: Llm) -> None:
    Path("base.txt").write_text("abcdefgh" * 20)
    Path("own.txt").write_text("hgfedcba" * 20)
    documents = read_corpus(["base.txt", "own.txt"]).documents
    files = [{"name": d.name, "bytes": 160, "sha256": d.sha256, "held_out": 40} for d in documents]
    base = TrainingRecord.from_json({"corpus": files[:1], "train_bytes": 120})
    own = {"corpus": files[1:], "train_bytes": 120, "bits_per_byte": 1.0, "held_out": {"known_share": 0.25}}
    bigram_model("model.safetensors", UNIFORM, own | joined(as_earlier(base, BASE, "b.safetensors")))
    answer = llm("eval", "base.txt", "--json")
    assert results_of(answer)["from_byte"] == 120
    assert "120 bytes of this text were trained on; 40 others are measured" in answer.stderr
    assert "model.safetensors: trained on some of the 120 bytes in its base model, b.safetensors" in answer.stderr
    assert "model.safetensors: this text was held out in training" in answer.stderr
    answer = llm("eval", "base.txt", "own.txt", "--whole")
    known = "model.safetensors: trained on some of this text (in its base model, b.safetensors), so its scores do not"
    assert known in answer.stderr
    assert "base model" not in llm("eval", "own.txt").stderr
    known = "25% of it also occurs in the training text"
    assert f"this text was held out in training, but {known}" in llm("eval", "own.txt").stderr
    assert f"network 1.000 bits per byte; {known}" in llm("inspect").stdout


def test_a_shorter_context_is_used_and_a_longer_one_is_refused(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    bigram_model("model.safetensors", successor())
    Path("t.txt").write_text("abcdefgh" * 10)
    [whole] = results_of(llm("eval", "t.txt", "--json"))["results"]
    [short] = results_of(llm("eval", "t.txt", "--json", "--context", "4"))["results"]
    assert (short["context"], short["stride"]) == (4, 2)
    assert short["bits_per_byte"] == pytest.approx(whole["bits_per_byte"])  # a bigram model needs one token
    refused = llm("eval", "t.txt", "--context", "17")
    assert refused.exit_code == 2
    assert "--context 17 is longer than the model's context of 16 tokens; give --context 16 or less" in refused.stderr
    monkeypatch.setattr("llmcli.evaluation.evaluator.EVALUATION_CONTEXT", 8)
    limited = llm("eval", "t.txt", "--json")
    assert results_of(limited)["results"][0]["context"] == 8
    assert "context windows of 8 tokens (of 16; --context changes it)" in limited.stderr


# ---- lines


def test_lines_are_ranked_by_their_bits(llm: Llm) -> None:
    """By hand: with one token for each byte, every letter but the successors costs log2(2600) bits."""
    bigram_model("model.safetensors", successor())
    lines = ["abcdef", "abxdef", "abcdef", "qaqa", "", "abc"]
    Path("log.txt").write_text("\n".join(lines) + "\n", "utf-8")
    answer = results_of(llm("eval", "log.txt", "--per-line", "--json"))
    right, wrong = -math.log2(0.9), -math.log2(0.1 / 260)
    # a line end is no letter: after it, as at the beginning, all 261 are alike
    first = math.log2(261)
    expected = {
        1: first + 5 * right + wrong, 2: first + 3 * right + 2 * wrong + wrong, 3: first + 5 * right + wrong,
        4: first + 4 * wrong, 5: first, 6: first + 2 * right + wrong,
    }  # fmt: skip
    assert {row["line"]: row["bits"] for row in answer["lines"]} == pytest.approx(expected, abs=1e-3)
    assert [row["line"] for row in answer["lines"]][:2] == [4, 2]
    assert {row["line"]: row["text"] for row in answer["lines"]} == dict(enumerate(lines, 1))
    four = answer["lines"][0]
    assert four["bits_per_byte"] == pytest.approx(four["bits"] / 5, abs=1e-3)
    assert four["most_surprising"]["bits"] == pytest.approx(wrong, abs=1e-3) and four["file"] == "log.txt"
    shown = llm("eval", "log.txt", "--per-line").stdout.splitlines()
    assert shown[0] == "bits\tper byte\tline\tmost surprising token\ttext" and len(shown) == 7
    assert shown[1].endswith("qaqa") and shown[2].endswith("abxdef")


def test_lines_of_the_part_that_was_held_out_keep_their_numbers(llm: Llm) -> None:
    text = "".join(f"line {i}\n" for i in range(1, 41))
    Path("t.txt").write_text(text, "utf-8")
    start = text.index("line 31")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    file = {"name": "t.txt", "bytes": len(text), "sha256": sha256, "held_out": len(text) - start}
    bigram_model("model.safetensors", UNIFORM, {"corpus": [file], "train_bytes": start})
    rows = results_of(llm("eval", "t.txt", "--per-line", "--json"))["lines"]
    assert sorted(row["line"] for row in rows) == list(range(31, 41))
    assert all(row["text"] == f"line {row['line']}" for row in rows)
    assert len(results_of(llm("eval", "t.txt", "--per-line", "--json", "--whole"))["lines"]) == 40
