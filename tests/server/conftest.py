"""Two tiny models with random weights, served in this process: "text" continues text, "chat" answers conversations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')

from starlette.applications import Starlette
from starlette.testclient import TestClient

from llmcli.config import ModelConfig
from llmcli.data.conversations.chat_template import CHATML, with_chat_template
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load_any, open_tokenizer
from llmcli.generation.engine.requests import EngineLimits
from llmcli.server.api.models import Models
from llmcli.server.http.access import LOOPBACK_NAMES, Access
from llmcli.server.http.app import create_app
from tests.conftest import TEXT, random_checkpoint

URL = "http://127.0.0.1:8000"


def models_of(
    paths: Sequence[Path], on_note: Callable[[str], None] = lambda note: None, context: int | None = None
) -> Models:
    return Models(paths, device="cpu", quantize=None, context=context, cache=True, on_note=on_note)


def app_of(
    paths: Sequence[Path],
    on_note: Callable[[str], None] = lambda note: None,
    context: int | None = None,
    **options: Any,
) -> Starlette:
    """The application that serves these model files, to this computer."""
    usual: dict[str, Any] = {
        "limits": EngineLimits(), "access": Access(LOOPBACK_NAMES, frozenset(), None, None), "log": lambda line: None,
        "log_contents": False, "on_ready": lambda: None, "on_load_error": lambda error: None,
    }  # fmt: skip
    return create_app(models_of(paths, on_note, context), **usual | options)


def client_of(paths: Sequence[Path], *arguments: Any, **options: Any) -> TestClient:
    """A client of `app_of`."""
    return TestClient(app_of(paths, *arguments, **options), base_url=URL)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files text.safetensors, with a context of 64 tokens, and chat.safetensors, with 128."""
    directory = tmp_path_factory.mktemp("served")
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    paths = directory / "text.safetensors", directory / "chat.safetensors"
    for path, context in zip(paths, (64, 128), strict=True):
        config = ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, context)
        checkpoint = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
        if path.stem == "chat":
            checkpoint = replace(checkpoint, tokenizer_config_json=with_chat_template("{}", CHATML))
        save(path, checkpoint)
    return paths


@pytest.fixture(scope="session")
def tokenizer(served: tuple[Path, Path]) -> Tokenizer:
    return open_tokenizer(load_any(served[0]))


@pytest.fixture(scope="session")
def client(served: tuple[Path, Path]) -> Iterator[TestClient]:
    """A client of both models; "text" is the default."""
    with client_of(served) as client:
        yield client


@pytest.fixture(scope="session")
def completion(client: TestClient):
    """`completion(prompt="The cat")` posts to /v1/completions, greedily, and returns the answer's JSON."""

    def post(path: str = "/v1/completions", **fields: object) -> dict:
        response = client.post(path, json={"temperature": 0} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    return post
