"""Models by their name on the hub, from a local server that speaks the part of its API that huggingface_hub uses."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import llmcli
from llmcli.config import ARCHITECTURES, REWRITTEN
from llmcli.errors import LLMError
from llmcli.formats.huggingface import download
from llmcli.formats.huggingface.names import local_path
from tests.conftest import Llm
from tests.local_hub import COMMIT, TOKEN, local_hub

NAME = "hf:owner/tiny"


def test_a_model_is_downloaded_once_and_runs(hub: SimpleNamespace, llm: Llm, tmp_path: Path) -> None:
    answer = llm("generate", "The cat", "-m", NAME, "-n", 4, "--seed", 1)
    assert answer.exit_code == 0, answer.stderr
    assert re.search(r"downloading hf:owner/tiny: [\d.]+ kB to \S+cache \(license: apache-2\.0\)", answer.stderr)
    asked = {path.rpartition("/")[2] for method, path, *_ in hub.hub.requests if method == "GET"}
    assert "model.safetensors" in asked and not asked & {"pytorch_model.bin", "code.py"}
    hub.hub.requests.clear()
    again = llm("generate", "The cat", "-m", f"{NAME}@{COMMIT}", "-n", 4, "--seed", 1)
    assert again.stdout == answer.stdout and "downloading" not in again.stderr and not hub.hub.requests
    imported = llm("import", NAME, "-o", "tiny.safetensors", "--json")
    assert imported.exit_code == 0, imported.stderr
    assert json.loads(imported.stdout)["imported"]["name"] == "owner/tiny"
    assert llmcli.load(NAME).parameters == llmcli.load("tiny.safetensors").parameters
    mixed = llm("mix", NAME, "tiny.safetensors", "-o", "mixed.safetensors")
    assert mixed.exit_code == 0 and llmcli.load("mixed.safetensors").parameters > 0, mixed.stderr
    assert f"\n{NAME}\t" in llm("eval", write_text(), "-m", NAME).stdout
    run = llm("train", write_text(), "--from", NAME, "--steps", 1, "-o", "tuned.safetensors")
    assert run.exit_code == 0 and llmcli.load("tuned.safetensors").record["base"]["file"] == "tiny", run.stderr


def test_a_short_name_is_a_model_on_the_hub(hub: SimpleNamespace, llm: Llm, own_directory: Path) -> None:
    hub.hub.repositories["HuggingFaceTB/SmolLM2-135M"] = hub.tiny
    tuned = llm("train", write_text(), "--from", "smollm2", "--lora", 2, "--steps", 1, "-o", "tuned.safetensors")
    assert tuned.exit_code == 0 and "downloading hf:HuggingFaceTB/SmolLM2-135M:" in tuned.stderr, tuned.stderr
    exported = llm("export", "smollm2", "--quantize", "int8")
    assert exported.exit_code == 0 and Path("SmolLM2-135M-int8.safetensors").is_file(), exported.stderr
    mixed = llm("mix", "smollm2", "tuned.safetensors", "-o", "mixed.safetensors")
    assert mixed.exit_code == 0 and "hf:HuggingFaceTB/SmolLM2-135M" in llm("models").stdout, mixed.stderr
    Path("smollm2").mkdir()
    assert local_path("smollm2") == Path("smollm2")


def write_text() -> Path:
    Path("c.txt").write_text("The cat sat on the mat.\n" * 40, "utf-8")
    return Path("c.txt")


def test_an_interrupted_download_goes_on(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrived before a connection breaks is kept: by new versions of huggingface_hub while the command runs, by
    older ones until it is typed again. Files that are complete are always kept."""
    from huggingface_hub import constants, file_download

    def requests() -> list[tuple[str, str | None]]:
        return [(path.rpartition("/")[2], range_) for method, path, range_, _ in hub.hub.requests if method == "GET"]

    for module in (constants, file_download):  # old versions copy it
        monkeypatch.setattr(module, "DOWNLOAD_CHUNK_SIZE", 1000, raising=False)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    hub.hub.cut_after = 0
    with pytest.raises(LLMError, match=r"cannot download hf:owner/tiny from .*; check the connection and run"):
        local_path(NAME)
    assert not list(hub.cache.rglob("model.safetensors")) and ("config.json", None) in requests()
    hub.hub.requests.clear()
    hub.hub.cut_after = len(hub.tiny.files["model.safetensors"]) // 2
    for _ in range(5):
        with contextlib.suppress(LLMError):
            local_path(NAME)
    assert (local_path(NAME) / "model.safetensors").read_bytes() == hub.tiny.files["model.safetensors"]
    assert ("model.safetensors", None) in requests() and ("config.json", None) not in requests()
    assert any(name == "model.safetensors" and range_ for name, range_ in requests())


def test_damaged_weights_are_removed(hub: SimpleNamespace) -> None:
    data = hub.tiny.files["model.safetensors"]
    for served in (data[:-1] + bytes([data[-1] ^ 1]), b"", b"0" * 3_000_000):
        hub.tiny.served["model.safetensors"] = served
        damaged = r"model\.safetensors was damaged during the download .* was removed; run the command again"
        with pytest.raises(LLMError, match=rf"^hf:owner/tiny: {damaged}|^cannot download"):
            local_path(NAME)
    hub.tiny.served.clear()
    assert (local_path(NAME) / "model.safetensors").read_bytes() == data


def test_errors_say_what_to_do(hub: SimpleNamespace, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def message(name: str) -> str:
        with pytest.raises(LLMError) as caught:
            local_path(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is not the name of a model on the Hugging Face hub; wanted hf:OWNER/NAME" in message("hf:tiny")
    assert message("hf:owner/none").startswith(f"there is no model {hub.hub.endpoint}/owner/none; check the name")
    assert message(f"{NAME}@v2").startswith(f"{NAME}@v2: there is no revision v2")
    assert message(f"{NAME}/a.gguf") == f"{NAME}/a.gguf: there is no such file; its GGUF files: none"
    hub.tiny.gated = True
    assert message(NAME) == (
        f"hf:owner/tiny is gated: accept its terms at {hub.hub.endpoint}/owner/tiny, and set HF_TOKEN to a token of "
        "your account"
    )
    hub.tiny.gated = False
    hub.tiny.missing = {"model.safetensors"}
    assert message(NAME).startswith("cannot download hf:owner/tiny from ")
    hub.tiny.missing = set()
    hub.tiny.sizes = {"model.safetensors": 10**18, "tokenizer.json": 5}
    assert re.search(r"has over 1,000,000 TB, and .* has space for .*; set HF_HOME", message(NAME))
    shutil.rmtree(hub.cache)
    hub.tiny.sizes = {}
    hub.tiny.files = files | {"config.json": b'{"model_type": "resnet"}'}
    assert message(NAME).startswith(f"{NAME} is not downloaded: its config.json sets model_type to")
    hub.tiny.files = {name: data for name, data in files.items() if name != "tokenizer.json"}
    assert "has no tokenizer.json, which a model needs" in message(NAME)
    hub.tiny.files = dict(files)
    hub.tiny.sizes = {"tokenizer.json": 10**9}
    assert "tokenizer.json has 1.00 GB, too large for a file of this kind" in message(NAME)
    hub.tiny.sizes = {}
    del hub.tiny.files["model.safetensors"]
    assert "has only Python pickles, which can run code" in message(NAME)
    hub.tiny.files |= {"a-q4.gguf": b"GGUF4", "a-q8.gguf": b"GGUF8"}
    assert message(NAME) == f"{NAME}: name one file; its GGUF files: {NAME}/a-q4.gguf, {NAME}/a-q8.gguf"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert message(NAME).endswith(
        "and HF_HUB_OFFLINE forbids downloading it; unset this variable and run the command again"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert local_path(f"{NAME}/a-q8.gguf").read_bytes() == b"GGUF8"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert message("hf:owner/other").startswith("cannot download hf:owner/other from http://127.0.0.1:9: ")


def test_a_model_that_would_not_run_is_refused_before_its_weights_are_downloaded(hub: SimpleNamespace) -> None:
    whole = dict(hub.tiny.files)
    for file, change, message in (
        ("config.json", {"model_type": "resnet"}, "its config.json sets model_type to"),
        ("config.json", {"hidden_act": "relu"}, "its config.json sets hidden_act to"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "the tokenizer changes the text with a Lowercase"),
        ("config.json", {"vocab_size": 20}, "tokens, its model only 20"),
    ):
        hub.tiny.files = whole | {file: json.dumps(json.loads(whole[file]) | change).encode()}
        shutil.rmtree(hub.cache, ignore_errors=True)
        with pytest.raises(LLMError, match=f"^{NAME} is not downloaded: .*{message}"):
            local_path(NAME)
    asked = [path.rpartition("/")[2] for _, path, *_ in hub.hub.requests]
    assert "tokenizer.json" in asked and "model.safetensors" not in asked


def test_each_architecture_is_accepted_before_its_weights_are_there(hub: SimpleNamespace) -> None:
    """The config.json of some becomes that of another architecture."""
    config = json.loads(hub.tiny.files["config.json"]) | {"num_experts": 2, "num_local_experts": 2}
    config |= {"bos_token_id": 0, "num_experts_per_tok": 1, "moe_intermediate_size": 64, "sliding_window": 16}
    del config["attention_bias"]
    own = ("vocab_size", "hidden_size", "num_attention_heads", "bos_token_id", "eos_token_id")
    gpt2 = {key: config[key] for key in own}
    for kind in (*ARCHITECTURES, *REWRITTEN):
        other = (gpt2 if kind == "gpt2" else config) | {"model_type": kind}
        hub.tiny.files["config.json"] = json.dumps(other).encode()
        shutil.rmtree(hub.cache, ignore_errors=True)
        assert (local_path(NAME) / "model.safetensors").is_file()


def test_a_token_is_sent_to_the_hub_and_not_to_the_storage_that_it_names(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tiny.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with local_hub() as storage:
        storage.objects["model.safetensors"] = hub.tiny.files["model.safetensors"]
        hub.hub.redirect = f"{storage.endpoint}/bucket"
        path = local_path(NAME) / "model.safetensors"
    assert path.read_bytes() == hub.tiny.files["model.safetensors"]
    assert {token for *_, token in hub.hub.requests} == {f"Bearer {TOKEN}"}
    assert [(place, token) for _, place, _, token in storage.requests] == [("/bucket/model.safetensors", None)]


def test_a_hub_with_https_may_not_redirect_to_http(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.example")
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename="a.gguf", size=5, lfs=None)], card_data=None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **more: info)
    location = SimpleNamespace(location="http://storage.example/a.gguf?key=1")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **more: location)
    with pytest.raises(
        LLMError, match=r"^hf:owner/tiny: mirror\.example redirects a\.gguf to http://storage\.example, "
    ):
        local_path(NAME)


def test_an_endpoint_that_is_no_address_is_one_line() -> None:
    pytest.importorskip("huggingface_hub")
    code = "from llmcli.formats.huggingface.names import local_path; local_path('hf:a/b', print, progress=False)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HF_ENDPOINT": "http://[::1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "LLMError: HF_ENDPOINT is not an address (Invalid IPv6 URL)" in result.stderr


@pytest.mark.usefixtures("no_hang")
def test_a_hub_that_never_answers_is_not_waited_for(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(download, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(LLMError, match=r"cannot download hf:a/b from http://127\.0\.0\.1:.*run the command again"):
            local_path("hf:a/b", progress=False)
