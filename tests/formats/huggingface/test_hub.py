"""`llm models`: the models in the cache of the hub, and here."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from llmcli.formats import checkpoint, loading
from llmcli.formats.huggingface.names import local_path
from tests.conftest import Llm

NAME = "hf:owner/tiny"


def test_models_are_listed(hub: SimpleNamespace, llm: Llm, tiny_model: Path) -> None:
    Path("no.gguf").write_bytes(b"GGUF")
    Path(".out.1.tmp").mkdir()  # a directory that an export writes
    Path(".out.1.tmp/config.json").touch()
    local_path(NAME)
    hub.tiny.files = {"a-q4.gguf": b"GGUF4", "a-q8.gguf": b"GGUF8"}
    local_path("hf:owner/tiny/a-q8.gguf@main")
    listed = json.loads(llm("models", "--json").stdout)["models"]
    assert [one["name"] for one in listed] == [tiny_model.name, "no.gguf", NAME]
    assert "problem" in listed[1] and listed[0]["license"] == "" and listed[2]["license"] == "apache-2.0"
    assert (listed[2]["architecture"], listed[2]["chat"]) == ("qwen3", False)
    table = llm("models").stdout.splitlines()
    columns = ["model", "architecture", "origin", "size", "license", "kind"]
    assert table[0].split("\t") == columns and len(table) == 4


def test_models_that_llm_does_not_run_are_counted(hub: SimpleNamespace, llm: Llm) -> None:
    """Other programs share the cache: models for images, datasets."""
    config = json.dumps({"model_type": "resnet"}).encode()
    for kind, name, files in (
        ("models", "timm--resnet", {"config.json": config, "model.safetensors": b""}),
        ("datasets", "owner--data", {"a.parquet": b""}),
        ("models", "owner--half", {"config.json": b"{}"}),
    ):
        directory = hub.cache / f"{kind}--{name}" / "snapshots" / ("0" * 40)
        directory.mkdir(parents=True)
        for file, data in files.items():
            (directory / file).write_bytes(data)
    answer = llm("models")
    assert not answer.stdout
    assert answer.stderr == "0 models here and in the hub's cache; 1 in the cache are of kinds that llm does not run\n"
    Path("torn.safetensors").write_bytes(b"torn")
    answer = llm("models")
    assert "torn.safetensors" in answer.stdout
    assert answer.stderr.startswith("0 models here and in the hub's cache; 1 cannot be read; 1 in the cache are of")


def test_the_table_says_what_a_model_was_made_from(hub: SimpleNamespace, llm: Llm, tiny_model: Path) -> None:
    corpus = [{"name": name, "bytes": 1} for name in ("a.txt", "b.txt", "c.txt")]
    origin = {"name": "IBM Granite", "architecture": "granite", "license": "mit"}
    for name, record in (("b", {"corpus": corpus[:1]}), ("c", {"imported": origin, "corpus": corpus})):
        model = loading.load(tiny_model)
        checkpoint.save(f"{name}.safetensors", replace(model, record=model.record | record))
    rows = [line.split("\t") for line in llm("models").stdout.splitlines()]
    assert rows[1][:3] == ["b.safetensors", "qwen3", "a.txt"]
    assert rows[2][:3] == ["c.safetensors", "granite", "IBM Granite + a.txt, b.txt and 1 more"]
