"""`llm models`: the models in the cache of the hub, and here."""

import json
from pathlib import Path
from types import SimpleNamespace

from llmcli.formats.open_file import local_path
from tests.conftest import Llm

NAME = "hf:owner/tiny"


def test_models_are_listed_and_removed(hub: SimpleNamespace, llm: Llm, tiny_model: Path) -> None:
    Path("no.gguf").write_bytes(b"GGUF")
    local_path(NAME)
    hub.tiny.files = {"a-q4.gguf": b"GGUF4", "a-q8.gguf": b"GGUF8"}
    local_path("hf:owner/tiny/a-q8.gguf@main")
    listed = json.loads(llm("models", "--json").stdout)["models"]
    assert [one["name"] for one in listed] == [tiny_model.name, "no.gguf", NAME]
    assert "problem" in listed[1] and listed[0]["license"] == "" and listed[2]["license"] == "apache-2.0"
    assert (listed[2]["architecture"], listed[2]["chat"]) == ("qwen3", False)
    table = llm("models").stdout.splitlines()
    assert table[0].split("\t") == ["model", "architecture", "size", "license", "kind"] and len(table) == 4
    assert llm("models", "--remove", NAME).stderr.startswith(f"removed {NAME} from the hub's cache (")
    assert not list(hub.cache.glob("models--*")) and len(llm("models").stdout.splitlines()) == 3
    for name in (NAME, tiny_model, "hf:x"):
        assert "is not a model in the hub's cache; llm models lists them" in llm("models", "--remove", name).stderr
