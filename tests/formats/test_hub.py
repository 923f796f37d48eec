"""Models by their name on the hub, from a local server that speaks the part of its API that huggingface_hub uses."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

import llmcli
from llmcli.errors import LLMError
from llmcli.formats.open_file import local_path
from tests.conftest import Llm, write_tiny_model

COMMIT = "1234567890" * 4
NAME = "hf:owner/tiny"


class Handler(BaseHTTPRequestHandler):
    """Serves `server.hub.files`: model_info, and HEAD and GET of a file, with ranges."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub  # type: ignore[attr-defined]
        hub.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if found := re.fullmatch(r"/api/models/(.+?)/revision/([^?]+)(\?.*)?", self.path):
            if found[1] != "owner/tiny":
                self.answer(404, {"X-Error-Code": "RepoNotFound"})
            elif found[2] not in ("main", COMMIT):
                self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                self.answer(200, {}, json.dumps(self.model_info(hub)).encode())
            return
        name = self.path.rpartition("/")[2]
        if hub.gated and self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, {"X-Error-Code": "GatedRepo"})
            return
        if name not in hub.files or name in hub.missing:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        data = hub.files[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if name.endswith(".safetensors") and hub.redirect:
            self.answer(302, headers | {"Location": f"{hub.redirect}/{name}", "X-Linked-Size": str(len(data))})
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        status = 206 if start else 200
        data = hub.served.get(name, data)[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{start + len(data)}"
        cut = hub.cut_after if name.endswith(".safetensors") and self.command == "GET" else None
        self.answer(status, headers, data, cut)

    def answer(self, status: int, headers: dict[str, str], data: bytes = b"", cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        self.close_connection = True

    @staticmethod
    def model_info(hub: SimpleNamespace) -> dict:
        siblings = []
        for name, data in hub.files.items():
            sibling = {"rfilename": name, "size": hub.sizes.get(name, len(data))}
            if name.endswith((".safetensors", ".gguf")):
                sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            siblings.append(sibling)
        card = {"license": "apache-2.0"}
        return {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "siblings": siblings, "cardData": card}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny model as a Hugging Face directory, and some that are not to be downloaded."""
    from typer.testing import CliRunner

    from llmcli.cli.app import app

    place = tmp_path_factory.mktemp("hub")
    write_tiny_model(place / "tiny.safetensors")
    words = ("export", place / "tiny.safetensors", place / "tiny", "--to", "hf", "--license", "apache-2.0")
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    content = {path.name: path.read_bytes() for path in (place / "tiny").iterdir()}
    return content | {"pytorch_model.bin": b"pickle", "code.py": b"print()"}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = SimpleNamespace(
        files=dict(files), served={}, sizes={}, missing=set(), requests=[], gated=False, redirect="", cut_after=None,
        cache=tmp_path / "cache", endpoint=f"http://127.0.0.1:{server.server_port}",
    )  # fmt: skip
    server.hub = state  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for key, value in (("ENDPOINT", state.endpoint), ("HF_HUB_CACHE", str(state.cache)), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(constants, key, value)
    template = f"{state.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield state
    server.shutdown()
    server.server_close()


def test_a_model_is_downloaded_once_and_runs(hub: SimpleNamespace, llm: Llm, tmp_path: Path) -> None:
    answer = llm("generate", "The cat", "-m", NAME, "-n", 4, "--seed", 1)
    assert answer.exit_code == 0, answer.stderr
    assert re.search(r"downloading hf:owner/tiny: [\d.]+ kB to \S+cache \(license: apache-2\.0\)", answer.stderr)
    asked = {path.rpartition("/")[2] for method, path, *_ in hub.requests if method == "GET"}
    assert "model.safetensors" in asked and not asked & {"pytorch_model.bin", "code.py"}
    hub.requests.clear()
    again = llm("generate", "The cat", "-m", f"{NAME}@{COMMIT}", "-n", 4, "--seed", 1)
    assert again.stdout == answer.stdout and "downloading" not in again.stderr and not hub.requests
    imported = llm("import", NAME, "-o", "tiny.safetensors", "--json")
    assert imported.exit_code == 0, imported.stderr
    assert json.loads(imported.stdout)["imported"]["name"] == "owner/tiny"
    assert llmcli.load(NAME).parameters == llmcli.load("tiny.safetensors").parameters
    mixed = llm("mix", NAME, "tiny.safetensors", "-o", "mixed.safetensors")
    assert mixed.exit_code == 0 and llmcli.load("mixed.safetensors").parameters > 0, mixed.stderr
    run = llm("train", write_text(), "--from", NAME, "--steps", 1, "-o", "tuned.safetensors")
    assert run.exit_code == 0 and llmcli.load("tuned.safetensors").record["base"]["file"] == "tiny", run.stderr


def write_text() -> Path:
    Path("c.txt").write_text("The cat sat on the mat.\n" * 40, "utf-8")
    return Path("c.txt")


def test_an_interrupted_download_goes_on(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrived before a connection breaks is kept: by new versions of huggingface_hub while the command runs, by
    older ones until it is typed again. Files that are complete are always kept."""
    from huggingface_hub import constants, file_download

    def requests() -> list[tuple[str, str | None]]:
        return [(path.rpartition("/")[2], range_) for method, path, range_, _ in hub.requests if method == "GET"]

    for module in (constants, file_download):  # old versions copy it
        monkeypatch.setattr(module, "DOWNLOAD_CHUNK_SIZE", 1000, raising=False)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    hub.cut_after = 0
    with pytest.raises(LLMError, match=r"cannot download hf:owner/tiny from .*; run the command again to resume"):
        local_path(NAME)
    assert not list(hub.cache.rglob("model.safetensors")) and ("config.json", None) in requests()
    hub.requests.clear()
    hub.cut_after = len(hub.files["model.safetensors"]) // 2
    for _ in range(5):
        with contextlib.suppress(LLMError):
            local_path(NAME)
    assert (local_path(NAME) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert ("model.safetensors", None) in requests() and ("config.json", None) not in requests()
    assert any(name == "model.safetensors" and range_ for name, range_ in requests())


def test_damaged_weights_are_removed(hub: SimpleNamespace) -> None:
    data = hub.files["model.safetensors"]
    hub.served["model.safetensors"] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(LLMError, match=r"model\.safetensors arrived damaged .* was removed; type the command again"):
        local_path(NAME)
    hub.served.clear()
    assert (local_path(NAME) / "model.safetensors").read_bytes() == data


@pytest.mark.parametrize("served", [b"", b"0" * 3_000_000])
def test_weights_of_another_size_are_refused(hub: SimpleNamespace, served: bytes) -> None:
    hub.served["model.safetensors"] = served
    with pytest.raises(LLMError, match=r"^hf:owner/tiny: model\.safetensors arrived damaged|^cannot download"):
        local_path(NAME)


def test_errors_say_what_to_do(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def message(name: str) -> str:
        with pytest.raises(LLMError) as caught:
            local_path(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is not the name of a model on the Hugging Face hub; wanted hf:OWNER/NAME" in message("hf:tiny")
    assert message("hf:owner/none").startswith(f"there is no model {hub.endpoint}/owner/none; check the name")
    assert message(f"{NAME}@v2").startswith(f"{NAME}@v2: there is no revision v2")
    assert message(f"{NAME}/a.gguf") == f"{NAME}/a.gguf: there is no such file"
    hub.gated = True
    assert message(NAME) == (
        f"hf:owner/tiny is gated: accept its terms at {hub.endpoint}/owner/tiny, and set HF_TOKEN to a token of your "
        "account"
    )
    hub.gated, hub.redirect = False, "http://elsewhere.example"
    assert "redirects model.safetensors to another place, http://elsewhere.example; nothing is" in message(NAME)
    hub.redirect, hub.missing = "", {"model.safetensors"}
    assert message(NAME).startswith("cannot download hf:owner/tiny from ")
    hub.missing, hub.sizes = set(), {"model.safetensors": 10**18, "tokenizer.json": 5}
    assert re.search(r"has over 1,000,000 TB, and .* has space for .*; set HF_HOME", message(NAME))
    hub.sizes = {"tokenizer.json": 10**9}
    assert "tokenizer.json has 1.00 GB, too much for a file of this kind" in message(NAME)
    hub.sizes = {}
    del hub.files["model.safetensors"]
    assert "has only pytorch_model.bin, a Python pickle, which can run code" in message(NAME)
    hub.files |= {"a-q4.gguf": b"GGUF4", "a-q8.gguf": b"GGUF8"}
    assert message(NAME) == f"{NAME} has 2 GGUF files; name one: {NAME}/a-q4.gguf, {NAME}/a-q8.gguf"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert message(NAME).endswith("and HF_HUB_OFFLINE forbids to download it; unset it once")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert local_path(f"{NAME}/a-q8.gguf").read_bytes() == b"GGUF8"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert message("hf:owner/other").startswith("cannot download hf:owner/other from http://127.0.0.1:9: ")


def test_models_are_listed_and_removed(hub: SimpleNamespace, llm: Llm, tiny_model: Path) -> None:
    Path("no.gguf").write_bytes(b"GGUF")
    local_path(NAME)
    hub.files = {"a-q4.gguf": b"GGUF4", "a-q8.gguf": b"GGUF8"}
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


def test_a_token_is_sent_to_the_hub(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert (local_path(NAME) / "model.safetensors").is_file()


def test_a_local_file_of_that_name_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hf:owner").mkdir()
    Path("hf:owner/tiny").write_bytes(b"")
    assert local_path("hf:owner/tiny") == Path("hf:owner/tiny")
