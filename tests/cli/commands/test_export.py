"""`llm export` and `llm import`: the files they write, and their errors."""

import hashlib
import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llmcli.formats import atomic_io, checkpoint, file_lock, loading
from tests import platforms
from tests.conftest import TEXT
from tests.data.documents.samples import warc
from tests.sample_models import write_unhashed


def test_a_tokenizer_that_cannot_be_used_is_refused_before_anything_is_written(tiny_model: Path, llm) -> None:
    write_unhashed(tiny_model, {"tokenizer.json": "null"})
    for to, output in (("hf", "k"), ("gguf", "k.gguf")):
        answer = llm("export", tiny_model, output, "--to", to)
        assert answer.exit_code == 1 and "the tokenizer has no model" in answer.stderr and not Path(output).exists()


@pytest.mark.parametrize(
    ("output", "command"),
    [
        ("k.json", "export model.safetensors k.json --to tokenizer"),
        ("k.safetensors", "export model.safetensors k.safetensors --quantize int8"),
        ("k.html", "export model.safetensors k.html --to html"),
        ("k", "export model.safetensors k --to hf"),
        ("k.safetensors", "import hf -o k.safetensors"),
        ("k.safetensors", "mix model.safetensors other.safetensors -o k.safetensors"),
        ("k.html", "explain The -m model.safetensors --html k.html"),
        ("k.jsonl", "generate --batch prompts.txt -m model.safetensors -n 2 -o k.jsonl"),
    ],
)
def test_what_a_killed_run_left_beside_its_output_is_removed(tiny_model: Path, llm, output: str, command: str) -> None:
    Path("prompts.txt").write_text("The cat\n")
    Path("text.txt").write_text(TEXT)
    Path("other.safetensors").write_bytes(tiny_model.read_bytes())
    if command.startswith("import"):
        assert llm("export", tiny_model, "hf", "--to", "hf").exit_code == 0
    left = Path(f".{output}.123456.tmp")
    left.mkdir()
    (left / output).write_bytes(b"part of it")
    with file_lock.locked(Path(output)):
        assert "another run is writing to" in llm(*command.split()).stderr
    assert left.exists() and not Path(output).exists()
    assert llm(*command.split()).exit_code == 0
    assert Path(output).exists() and not list(Path().glob(".*"))


def test_weights_too_large_for_float16_are_refused(tiny_model: Path, llm) -> None:
    model = loading.load(tiny_model)
    tensors = {name: np.array(model.tensors[name]) for name in model.config.tensor_shapes()}
    tensors["model.norm.weight"][3] = -70000
    model.tensors = tensors
    checkpoint.save("big.safetensors", model)
    answer = llm("export", "big.safetensors", "there", "--to", "hf", "--dtype", "f16")
    assert answer.exit_code == 1 and "model.norm.weight contains 70000, the largest float16 is 65,504" in answer.stderr
    assert not Path("there").exists()


def test_a_modelfile_for_ollama_is_written_beside_a_gguf(tiny_model: Path, llm) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    answer = llm("export", "model.safetensors", "m.gguf", "--to", "gguf", "--license", "mit", "--name", "Cat")
    assert answer.exit_code == 0 and "for Ollama: ollama create m -f m.Modelfile" in answer.stderr
    expected = 'FROM ./m.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 32\nPARAMETER temperature 0.8\n'
    assert Path("m.Modelfile").read_text() == expected
    metadata = loading.load("m.gguf").record.document["imported"]
    assert (metadata["name"], metadata["license"]) == ("Cat", "mit")
    Path("m.Modelfile").write_text("# mine\nFROM ./m.gguf\n")
    Path("m.gguf").unlink()
    assert "kept the existing m.Modelfile" in llm("export", "model.safetensors", "m.gguf", "--to", "gguf").stderr
    assert Path("m.Modelfile").read_text().startswith("# mine")
    again = llm("export", "model.safetensors", "m.gguf", "--to", "gguf", "--force", "--json")
    assert json.loads(again.stdout)["to"] == "gguf" and Path("m.Modelfile").read_text() == expected
    Path("m.Modelfile").unlink()
    Path("m.Modelfile").symlink_to("model.safetensors")
    weights = tiny_model.read_bytes()
    refused = llm("export", "model.safetensors", "m.gguf", "--to", "gguf", "--force")
    assert refused.exit_code == 1 and "m.Modelfile exists and does not begin like a .Modelfile file" in refused.stderr
    assert tiny_model.read_bytes() == weights


EXPORTS = {"hf": "out", "gguf": "out.gguf", "html": "out.html", "handover": "handed/model"}  # format -> weights


@pytest.mark.slow
def test_nothing_in_an_exported_model_leads_to_its_training_text(llm) -> None:
    """Neither directories nor addresses of pages in a web archive nor hashes of files; the names of files are told."""
    for extra in ("fastwarc", "resiliparse"):
        pytest.importorskip(extra)
    folder = Path("hidden-folder/inner-folder")
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"{number}.txt").write_text(TEXT.replace("cat", f"cat {number}") * 2)
    page = b"<html><body><p>" + b"The dog sat on a hat. " * 40 + b"</p></body></html>"
    with warc(("Content-Type: text/html", page), ("Content-Type: text/html", page.replace(b"dog", b"fox"))) as file:
        (folder / "crawl.warc").write_bytes(file.read())
    Path("hidden-val").mkdir()
    Path("hidden-val/val.txt").write_text("A mat and a hat. " * 20)
    run = ("--steps", 2, "--layers", 1, "--width", 32, "--context", 32, "--batch-tokens", 64)
    assert llm("train", "hidden-folder", *run, "-o", "base.safetensors").exit_code == 0
    options = ("--from", "base.safetensors", "--val", "hidden-val/val.txt", "--strip-boilerplate")
    answer = llm("train", "hidden-folder", *run[:2], *options, "-o", "model.safetensors")
    assert answer.exit_code == 0, answer.stderr
    record = loading.load("model.safetensors").record
    hashes = {file.sha256 for stage in record.stages for file in (*stage.corpus, *stage.held_out.files)}
    hidden = {"hidden-folder", "inner-folder", "hidden-val", "example.org", *hashes}
    stored = str(record.to_json())
    assert all(text in stored for text in hidden - {"hidden-val"})
    for to in EXPORTS:
        if not all(map(find_spec, {"gguf": ["gguf"], "handover": ["pyarrow"]}.get(to, []))):
            continue
        texts = ("--corpus", "hidden-folder", "--corpus", "hidden-val") if to == "handover" else ()
        answer = llm("export", "model.safetensors", EXPORTS[to].split("/")[0], "--to", to, *texts)
        assert answer.exit_code == 0, answer.stderr
        exported = Path(EXPORTS[to])
        data = b"".join(file.read_bytes() for file in (exported.iterdir() if exported.is_dir() else [exported]))
        assert [text for text in hidden if text.encode() in data] == []
        assert b"0.txt" in data and (to == "html" or b"crawl.warc" in data)  # a page names only three


@pytest.mark.parametrize(("to", "name"), [("hf", "d"), ("gguf", "d.gguf")])
def test_an_exported_model_does_not_know_its_training_text(tiny_model: Path, llm, to: str, name: str) -> None:
    """Its file knows it, and so does a model that was fine-tuned from it."""
    if to == "gguf":
        pytest.importorskip("gguf", reason="needs the extra gguf")
    text = "The cat sat on the mat. A dog barks at night.\n" * 30
    Path("c.txt").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    corpus = [{"name": "c.txt", "bytes": len(text), "sha256": sha256, "held_out": 200}]
    base = {"stage": "base model", "file": "old.safetensors", "corpus": [{"name": "b.txt", "bytes": 9, "sha256": "b"}]}
    model = loading.load(tiny_model)
    record = model.record | {"corpus": corpus, "earlier_stages": [base], "base": {"file": "old.safetensors"}}
    checkpoint.save("tuned.safetensors", replace(model, record=record))
    assert llm("export", "tuned.safetensors", name, "--to", to).exit_code == 0
    assert llm("import", name, "-o", "back.safetensors").exit_code == 0
    for file in (name, "back.safetensors", "tuned.safetensors"):
        answer = llm("eval", "c.txt", "-m", file, "--json")
        measured = json.loads(answer.stdout)["results"][0]["bytes"]
        if file == "tuned.safetensors":
            assert measured == 200 and "this text was held out in training" in answer.stderr
        else:
            assert measured == len(text) and "so this text may be part of it" in answer.stderr
    if to == "hf":
        assert "on c.txt. Its base model, old.safetensors, was trained on b.txt." in Path("d/README.md").read_text()


def test_the_card_of_a_model_whose_base_names_no_text_is_written(tiny_model: Path, llm) -> None:
    model = loading.load(tiny_model)
    record = model.record | {"earlier_stages": [{"stage": "base model", "file": "old.safetensors"}]}
    checkpoint.save("tuned.safetensors", replace(model, record=record))
    answer = llm("export", "tuned.safetensors", "d", "--to", "hf")
    assert answer.exit_code == 0, answer.stderr
    assert "old.safetensors" not in Path("d/README.md").read_text()


def test_import_of_a_file_of_this_program_is_a_copy(tiny_model: Path, llm) -> None:
    assert llm("import", tiny_model, "-o", "again.safetensors").exit_code == 0
    one, two = loading.load(tiny_model), loading.load("again.safetensors")
    assert one.config == two.config and one.record == two.record
    for name in one.config.tensor_shapes():
        np.testing.assert_array_equal(one.tensors[name], two.tensors[name])


def test_a_divergence_within_the_noise_is_reported_as_small(tiny_model: Path, llm, monkeypatch) -> None:
    for divergence, message in [
        (-0.0016, "from the original: less than 0.001 bits"),
        (0.0004, "from the original: less than 0.001 bits"),
        (0.0123, "from the original: 0.0123 bits"),
    ]:
        monkeypatch.setattr("llmcli.evaluation.evaluator.divergence", lambda *_, value=divergence: (value, 0.0))
        answer = llm("export", "model.safetensors", "small.safetensors", "--quantize", "int4", "--force")
        assert answer.exit_code == 0 and message in answer.stderr and "-0.0" not in answer.stderr


def test_one_argument_is_the_model_and_the_output_is_named_like_it(tiny_model: Path, llm) -> None:
    Path("food.safetensors").write_bytes(tiny_model.read_bytes())
    tiny_model.unlink()
    formats = {
        ("--to", "html"): "food.html", ("--to", "tokenizer"): "food.json", ("--to", "hf"): "food-hf",
        ("--quantize", "int8"): "food-int8.safetensors",
    }  # fmt: skip
    for words, output in formats.items():
        answer = llm("export", "food.safetensors", *words, "--json")
        assert answer.exit_code == 0 and json.loads(answer.stdout)["file"] == output and Path(output).exists()
    again = llm("export", "food-int8.safetensors", "smaller.safetensors", "--quantize", "int8")
    assert again.exit_code == 1 and "already quantized as int8" in again.stderr
    assert llm("export", "food-hf", "--to", "tokenizer").exit_code == 0 and Path("food-hf.json").exists()
    Path("food.safetensors").rename("model.safetensors")
    assert llm("export", "--to", "html").exit_code == 0 and Path("model.html").exists()
    answer = llm("export", "page.html", "--to", "html")
    advice = "there is no model page.html; if it is the output, name the model before it: llm export model.safetensors"
    assert answer.exit_code == 1 and f"{advice} page.html --to html" in answer.stderr


@platforms.posix
def test_an_output_that_is_no_such_file_is_refused_with_a_name_to_type(tiny_model: Path, llm) -> None:
    Path("d").mkdir()
    os.mkfifo("pipe")
    endings = {
        "--to gguf": ".gguf", "--to html": ".html", "--to tokenizer": ".json", "--quantize int8": ".safetensors",
    }  # fmt: skip
    for words, ending in endings.items():
        model, notes = f"model{ending}", f"notes{ending}"
        Path(notes).write_text("mine")
        for output, message in (
            ("/dev/null", f"/dev/null is not a regular file; give a file name: {model}"),
            ("pipe", f"pipe is not a regular file; give a file name: {model}"),
            ("/dev/stdout", f"expected a file, found /dev/stdout, which is standard output; give a file name: {model}"),
            ("d/", f"d is a directory; give a file name: {Path('d', model)}"),
            (
                notes,
                f"{notes} exists and does not begin like a {ending} file, so it is not replaced; give another name",
            ),
        ):
            answer = llm("export", "model.safetensors", output, *words.split(), "--force")
            assert answer.exit_code == 1 and answer.stderr == f"error: {message}\n"
        assert Path(notes).read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        "export model.safetensors m.gguf --to gguf --dtype q8_0",
        "export model.safetensors m.html --to html",
        "export model.safetensors d --to hf",
        "export model.safetensors m.safetensors --quantize int8",
        "explain a --html m.html",
        "import model.safetensors -o m.safetensors",
        "mix model.safetensors other.safetensors -o m.safetensors",
    ],
)
def test_the_space_on_the_disk_is_checked_before_a_weight_is_read(
    tiny_model: Path, llm, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    if "gguf" in words:
        pytest.importorskip("gguf", reason="needs the extra gguf")
    Path("other.safetensors").write_bytes(tiny_model.read_bytes())

    def load(tensors: checkpoint.TensorsOnDisk, name: str) -> None:
        raise AssertionError(f"{name} is read")

    monkeypatch.setattr(checkpoint.TensorsOnDisk, "_load", load)
    monkeypatch.setattr(atomic_io.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    answer = llm(*words.split())
    assert answer.exit_code == 1 and " has 0.0 MB left, " in answer.stderr, answer.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["model.safetensors", "other.safetensors"]
