"""`llm export --to handover`: files are read by code of this module, and compared with the text and `llm tokenize`."""

import ast
import hashlib
import itertools
import json
import os
import random
import re
import string
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from llmcli.config import ModelConfig
from llmcli.data.text.repetitions import STRIDE
from llmcli.data.tokens import corpus_tokens
from llmcli.formats import checkpoint, loading
from llmcli.handover.splits import index
from llmcli.training.planning.model_shapes import SIZES
from tests.conftest import TEXT
from tests.platforms import linux

pytest.importorskip("pyarrow")
LONG, SHORT, HELD_OUT, LEFT_OUT = "Where is the cat?\n" + TEXT, "The dog sat.\n", "A hat, りんご.\n", 7
SHARED = 100  # bytes at the end of LONG that are held out


@pytest.fixture
def model(tiny_model: Path) -> Path:
    """A model that was trained on the beginning of a long document and on a short one; another one was held out."""
    corpus = []
    for name, text, sizes in (
        ("long.txt", LONG, {"held_out": SHARED, "left_out": LEFT_OUT}),
        ("short.txt", SHORT, {}),
        ("held_out.txt", HELD_OUT, {"held_out": len(HELD_OUT.encode())}),
    ):
        data = text.encode("utf-8")
        Path(name).write_bytes(data)
        corpus.append({"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **sizes})
    opened = loading.load(tiny_model)
    opened.record |= {"corpus": corpus, "ngram_cache": {"weights": [[0, 0, 0, 0]]}}
    opened.tensors = {name: np.array(opened.tensors[name]) for name in opened.tensors}
    opened.tokenizer_config_json = loading.open_tokenizer(opened).to_config_json(32)
    checkpoint.save(tiny_model, opened)
    return tiny_model


def parts() -> dict[str, list[tuple[str, str]]]:
    """The documents of each split as (name, text), cut here by hand."""
    data = LONG.encode("utf-8")
    return {
        "train": [("long.txt", data[: -SHARED - LEFT_OUT].decode()), ("short.txt", SHORT)],
        "val": [("long.txt", data[-SHARED:].decode()), ("held_out.txt", HELD_OUT)],
    }


def documents(stem: str) -> list[list[int]]:
    """Read the tokens of each document by the layout of Megatron-LM's files, in order of their bytes."""
    data, tokens = Path(f"{stem}.idx").read_bytes(), Path(f"{stem}.bin").read_bytes()
    assert data[:9] == b"MMIDIDX\x00\x00" and struct.unpack_from("<Q", data, 9) == (1,)
    item = {8: 2, 4: 4}[data[17]]
    sequences, ends = struct.unpack_from("<QQ", data, 18)
    lengths = struct.unpack_from(f"<{sequences}i", data, 34)
    positions = struct.unpack_from(f"<{sequences}q", data, 34 + 4 * sequences)
    bounds = struct.unpack_from(f"<{ends}q", data, 34 + 12 * sequences)
    assert len(data) == 34 + 12 * sequences + 8 * ends and bounds[0] == 0 and bounds[-1] == sequences
    read = [
        list(struct.unpack_from(f"<{length}{'H' if item == 2 else 'i'}", tokens, position))
        for length, position in zip(lengths, positions, strict=True)
    ]
    assert sum(lengths) * item == len(tokens)
    return [list(itertools.chain(*read[first:end])) for first, end in itertools.pairwise(bounds)]


def test_long_documents_are_cut_into_sequences_of_the_same_tokens(model: Path, llm, monkeypatch) -> None:
    assert llm("export", "model.safetensors", "whole", "--to", "handover").exit_code == 0
    monkeypatch.setattr(corpus_tokens, "PIECE_BYTES", 500)
    assert llm("export", "model.safetensors", "cut", "--to", "handover").exit_code == 0
    assert documents("cut/tokens/train") == documents("whole/tokens/train")
    sequences = [
        struct.unpack_from("<Q", Path(f"{name}/tokens/train.idx").read_bytes(), 18)[0] for name in ("whole", "cut")
    ]
    assert sequences[0] == 2 and sequences[1] > 4


def test_large_vocabularies_are_stored_as_int32() -> None:
    data = index([3, 70_000], [0, 1], "<u4")
    assert data[17] == 4 and struct.unpack_from("<2q", data, 34 + 8) == (0, 12)


def test_tokens_text_and_hashes(model: Path, llm) -> None:
    import pyarrow.parquet

    assert llm("export", "model.safetensors", "out", "--to", "handover").exit_code == 0
    manifest = json.loads(Path("out/handover.json").read_text("utf-8"))
    entries = {entry["name"]: entry for entry in manifest["documents"]}
    eos = loading.load(model).config.eos_token_id
    for split, file in (("train", "train"), ("val", "validation")):
        for (_, text), ids in zip(parts()[split], documents(f"out/tokens/{split}"), strict=True):
            assert ids == [eos, *json.loads(llm("tokenize", "-", "--json", stdin=text.encode()).stdout)["ids"]]
        rows = pyarrow.parquet.read_table(f"out/text/{file}.parquet").to_pylist()
        assert [(row["name"], row["text"]) for row in rows] == parts()[split]
        for row in rows:
            data = row["text"].encode("utf-8")
            part = entries[row["name"]][split]
            assert row["sha256"] == hashlib.sha256(Path(row["name"]).read_bytes()).hexdigest()
            assert (part["sha256"], part["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        counts = {name: entry[split]["tokens"] for name, entry in entries.items() if split in entry}
        assert list(counts.values()) == [len(ids) for ids in documents(f"out/tokens/{split}")]
        assert sum(counts.values()) == manifest["tokens"][split]
        if split == "train":
            shares = {name: entry["share"] for name, entry in entries.items() if "share" in entry}
            assert shares == {name: round(count / sum(counts.values()), 6) for name, count in counts.items()}
    tokenizer = Path("out/model/tokenizer.json").read_bytes()
    assert manifest["tokenizer_sha256"] == hashlib.sha256(tokenizer).hexdigest()


@linux
def test_names_of_directories(model: Path, llm) -> None:
    for name in ("s3:out", os.fsdecode(b"out\xff")):
        assert llm("export", "model.safetensors", name, "--to", "handover").exit_code == 0


def parameters(shape: dict) -> int:
    """Count the parameters of a Qwen3 of a shape in litgpt's names."""
    d, head = shape["n_embd"], shape["head_size"]
    attention = d * head * (2 * shape["n_head"] + 2 * shape["n_query_groups"]) + 2 * head
    layer = attention + 3 * d * shape["intermediate_size"] + 2 * d
    return 2 * shape["padded_vocab_size"] * d + shape["n_layer"] * layer + d


def test_engine_files(model: Path, llm) -> None:
    answer = llm("export", "model.safetensors", "out", "--to", "handover")
    assert "not included: the n-gram cache" in answer.stderr and "the weights of the network" in answer.stderr
    for name in ("litgpt_data.py", "torchtitan_config.py", "trl_sft.py"):
        ast.parse(Path("out", name).read_text("utf-8"))
    litgpt, nemo, task = (
        yaml.safe_load(Path("out", f"{name}.yaml").read_text("utf-8"))
        for name in ("litgpt", "nemo_automodel", "skypilot")
    )
    assert parameters(litgpt["model_config"]) == loading.load(model).parameters
    assert litgpt["model_config"]["norm_eps"] == 1e-6 and litgpt["optimizer"]["init_args"]["lr"] == 3e-4
    assert litgpt["train"]["max_tokens"] % (litgpt["train"]["global_batch_size"] * 32) == 0
    steps = nemo["step_scheduler"]
    assert steps["global_batch_size"] % (16 * steps["local_batch_size"]) == 0  # each GPU of the task has its part
    for stems in nemo["dataset"]["paths"].values():
        assert all(Path("out", f"{stem}.idx").is_file() for stem in stems)
    assert nemo["validation_dataset"]["paths"] == nemo["dataset"]["paths"]
    splits = [nemo[name]["splits_to_build"] for name in ("dataset", "validation_dataset")]
    assert splits == ["train", "validation"]
    assert task["num_nodes"] == 2 and "$SKYPILOT_NODE_RANK" in task["run"]
    before = llm("eval", "held_out.txt", "-m", model, "--no-cache", "--json", "--context", 32)
    after = llm("eval", "held_out.txt", "-m", "out/model", "--json", "--context", 32)
    figures = [json.loads(each.stdout)["results"][0]["bits_per_byte"] for each in (before, after)]
    assert figures[0] == figures[1]


def test_a_larger_model_has_random_weights_and_the_tokenizer(model: Path, llm, monkeypatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(SIZES, "1b", (3, 64))
    answer = llm("export", "model.safetensors", "out", "--to", "handover", "--size", "1b", "--dtype", "bf16", "--json")
    assert answer.exit_code == 0 and "the larger model begins with random weights" in answer.stderr
    larger, old = loading.load("out/model"), loading.load(model)
    assert json.loads(answer.stdout)["model"]["parameters"] == larger.parameters
    assert (larger.config.num_hidden_layers, larger.config.hidden_size) == (3, 64)
    assert larger.config.max_position_embeddings == 2048 and larger.dtypes["model.norm.weight"] == "BF16"
    assert larger.tokenizer_json == old.tokenizer_json
    assert json.loads(Path("out/model/tokenizer_config.json").read_text())["model_max_length"] == 2048
    assert not larger.tensors["model.layers.2.self_attn.o_proj.weight"].any()
    values = larger.tensors["model.layers.2.mlp.up_proj.weight"]
    assert values.std() == pytest.approx((3 * 64) ** -0.5, rel=0.05)


def test_other_architectures_have_fewer_files(model: Path, llm) -> None:
    opened = loading.load(model)
    config = ModelConfig(opened.config.vocab_size, 32, 64, 2, 4, 2, 8, 32, model_type="llama")
    opened.tensors = {name: np.array(opened.tensors[name]) for name in config.tensor_shapes()}
    opened.config = config
    checkpoint.save("llama.safetensors", opened)
    answer = llm("export", "llama.safetensors", "out", "--to", "handover")
    assert "without litgpt.yaml, torchtitan_config.py, skypilot.yaml" in answer.stderr
    assert {file.name for file in Path("out").iterdir()} == {
        "README.md", "handover.json", "model", "nemo_automodel.yaml", "text", "tokens", "trl_sft.py",
    }  # fmt: skip


def test_the_corpus_can_be_given_with_more_text(model: Path, llm) -> None:
    Path("elsewhere").mkdir()
    for name in ("long.txt", "short.txt", "held_out.txt"):
        Path(name).rename(Path("elsewhere", f"renamed-{name}"))
    Path("elsewhere/new.txt").write_text("A new text, of which a tenth is held out.\n" * 50)
    answer = llm("export", "model.safetensors", "out", "--to", "handover", "--corpus", "elsewhere", "--json")
    assert "not in the training record, newly split: elsewhere/new.txt" in answer.stderr
    entries = {entry["name"]: entry for entry in json.loads(answer.stdout)["documents"]}
    assert {name: sorted(entry.keys() & {"train", "val"}) for name, entry in entries.items()} == {
        "long.txt": ["train", "val"], "short.txt": ["train"], "new.txt": ["train", "val"], "held_out.txt": ["val"],
    }  # fmt: skip
    assert entries["new.txt"]["val"]["bytes"] == 42 * 5
    readme = Path("out/README.md").read_text("utf-8")
    assert "- the split:" in readme and "- the mixture: 1 text added" in readme
    held_out = llm(
        "export", "model.safetensors", "out2", "--to", "handover", "--corpus", "elsewhere", "--corpus", "out"
    )
    assert held_out.exit_code == 1 and "is part of an earlier handover" in held_out.stderr


def test_text_that_repeats_held_out_text_is_not_handed_over(model: Path, llm) -> None:
    """A second edition: what the model held out of the first stands in its middle."""
    import pyarrow.parquet

    first = "".join(random.Random(0).choices(string.ascii_lowercase, k=9000))
    data = first.encode()
    entry = {"name": "a.txt", "bytes": 9000, "sha256": hashlib.sha256(data).hexdigest(), "held_out": 900}
    opened = loading.load(model)
    opened.record |= {"corpus": [entry]}
    checkpoint.save(model, opened)
    Path("a.txt").write_bytes(data)
    Path("b.txt").write_text(first + "".join(random.Random(1).choices(string.ascii_lowercase, k=9000)))
    answer = llm("export", model, "out", "--to", "handover", "--corpus", "a.txt", "--corpus", "b.txt", "--json")
    rows = pyarrow.parquet.read_table("out/text/train.parquet").to_pylist()
    sizes = [len(row["text"]) for row in rows]
    assert [row["name"] for row in rows] == ["a.txt", "b.txt", "b.txt"]
    assert sizes == [8100, 8100, pytest.approx(7200, abs=STRIDE)]
    assert first[:8100] == rows[0]["text"] == rows[1]["text"] and not any(first[8150:8200] in r["text"] for r in rows)
    note = f"not included: the mixture: 1 text added, newly split; {17_100 - sum(sizes[1:]) - 900} bytes of training"
    assert note in answer.stderr
    entries = {entry["name"]: entry["train"] for entry in json.loads(answer.stdout)["documents"]}
    text = rows[1]["text"] + rows[2]["text"]
    assert entries["b.txt"]["bytes"] == sum(sizes[1:])
    assert entries["b.txt"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert len(documents("out/tokens/train")) == 3


def test_files_that_are_not_handed_over_are_named(model: Path, llm) -> None:
    Path("more").mkdir()
    Path("more/table.csv").write_text("question,answer\nWho?,I.\nWhere?,Here.\n")
    Path("more/data.bin").write_bytes(b"\xff\0")
    named = [word for name in ("long.txt", "short.txt", "held_out.txt", "more") for word in ("--corpus", name)]
    answer = llm("export", "model.safetensors", "out", "--to", "handover", *named)
    assert answer.exit_code == 0 and "skipped: more/data.bin" in answer.stderr
    assert "conversations: more/table.csv" in answer.stderr


def test_wrong_use(model: Path, llm) -> None:
    cases = [
        ("short.txt", (), 1, "the training text of model.safetensors, short.txt, is missing or has changed"),
        ("short.txt", ("--corpus", "."), 1, "short.txt, is missing or has changed: no file in . has its sha256"),
        ("", ("--size", "2b"), 2, "--size must be 100m, 350m, 1b, 3b or 7b, found 2b"),
        ("", ("--dtype", "int8"), 2, "--dtype must be f32, f16, bf16 with --to handover"),
        ("out/own.txt", (), 1, "out contains own.txt, which is not part of a handover"),
    ]
    for change, words, status, message in cases:
        if change:
            Path(change).parent.mkdir(exist_ok=True)
            Path(change).write_text("changed")
        answer = llm("export", "model.safetensors", "out", "--to", "handover", *words)
        assert (answer.exit_code, answer.stderr.count("\n")) == (status, 1) and message in answer.stderr, change


def test_a_directory_is_only_replaced_with_force(model: Path, llm) -> None:
    assert llm("export", "model.safetensors", "out", "--to", "handover").exit_code == 0
    again = llm("export", "model.safetensors", "out", "--to", "handover")
    assert again.exit_code == 1 and "out is not empty; add --force to replace the handover in it" in again.stderr
    assert llm("export", "model.safetensors", "out", "--to", "handover", "--force").exit_code == 0
    for added in ("model/lit_model.pth", "outputs/step-10"):  # what an engine trained there
        Path("out", added).parent.mkdir(exist_ok=True)
        Path("out", added).write_text("weights")
        refused = llm("export", "model.safetensors", "out", "--to", "handover", "--force")
        missing = "outputs" if added.startswith("outputs") else added
        assert refused.exit_code == 1 and f"out contains {missing}," in refused.stderr
        assert Path("out", added).read_text() == "weights"
        Path("out", added).unlink()


def test_models_without_a_record_need_a_corpus(tiny_model: Path, llm, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = llm("export", "model.safetensors", "out", "--to", "handover")
    assert "does not record its training text; name it: --corpus FILE" in answer.stderr
    Path("own.txt").write_text("A text of this user, and one more sentence.\n" * 50)
    assert llm("export", "model.safetensors", "out", "--to", "handover", "--corpus", "own.txt").exit_code == 0
    readme = Path("out/README.md").read_text("utf-8")
    assert "- the split:" not in readme and "the model has no record of them; 1 text newly split" in readme
    tokens = json.loads(Path("out/handover.json").read_text("utf-8"))["tokens"]["train"]
    steps = yaml.safe_load(Path("out/nemo_automodel.yaml").read_text("utf-8"))["step_scheduler"]
    read = steps["max_steps"] * steps["global_batch_size"] * 32
    assert f"{steps['max_steps']} steps read the text about {read / tokens:,.0f} times" in readme
    assert f"max_steps={steps['max_steps']}," in Path("out/trl_sft.py").read_text("utf-8")
    typed = re.search("`llm (eval .+)`", readme)[1].replace("trained.safetensors", "../model.safetensors").split()
    monkeypatch.chdir("out")
    assert llm(*typed).exit_code == 0
    monkeypatch.chdir("..")
    missing = llm("export", "model.safetensors", "no/out", "--to", "handover", "--corpus", "own.txt")
    assert "there is no directory no; make it first: mkdir -p no" in missing.stderr
    assert llm("export", "model.safetensors", "m", "--to", "hf", "--size", "1b").exit_code == 2
    assert not Path("m").exists()


def test_other_splits_of_an_archive_are_not_handed_over(tiny_model: Path, llm) -> None:
    import pyarrow.parquet

    with zipfile.ZipFile("set.zip", "w") as archive:
        for split in ("train", "test"):
            archive.writestr(f"{split}.jsonl", "".join(f'{{"text": "The {split} row {i}."}}\n' for i in range(99)))
    assert llm("export", "model.safetensors", "out", "--to", "handover", "--corpus", "set.zip").exit_code == 0
    read = [row for path in Path("out").rglob("*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()]
    assert "train row" in str(read) and "test row" not in str(read)
