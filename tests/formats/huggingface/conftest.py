"""A local hub with a tiny model, and an empty cache."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import write_tiny_model
from tests.local_hub import Repository, local_hub


@pytest.fixture(scope="session")
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

    cache = tmp_path / "cache"
    with local_hub() as hub:
        hub.repositories["owner/tiny"] = tiny = Repository(files)
        for key, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_CACHE", str(cache)), ("HF_HUB_OFFLINE", False)):
            monkeypatch.setattr(constants, key, value)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        yield SimpleNamespace(hub=hub, tiny=tiny, cache=cache)
