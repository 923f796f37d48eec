"""/v1/experts, and the token ids that the page sends there: compared with `llm generate --experts`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason='needs starlette: pip install "llmcli[serve]"')

from starlette.testclient import TestClient

from tests.sample_models import run
from tests.server.conftest import client_of

PROMPT = "The cat sat"


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    paths = [models / f"{name}.safetensors" for name in ("m", "sparse", "mixture")]
    with client_of(paths) as opened:
        yield opened


@pytest.mark.slow
def test_weights_as_of_generate(client: TestClient, models: Path) -> None:
    for count in [8, 40]:
        for name, experts in [("sparse", ["0", "1"]), ("mixture", ["m", "other"])]:
            model = models / f"{name}.safetensors"
            answer = run("generate", PROMPT, "-m", model, "-t", 0, "-n", count, "--experts", "--json", "--literal")
            tokens = json.loads(answer.stdout)["tokens"]
            asked = {"model": name, "prompt": PROMPT, "token_ids": [token["id"] for token in tokens]}
            found = client.post("/v1/experts", json=asked).json()
            assert found["experts"] == experts, (count, name, experts)
            for weights, token in zip(found["weights"], tokens, strict=True):
                expected = [token["experts"].get(expert, 0.0) for expert in experts]
                assert weights == pytest.approx(expected, abs=2e-4), (count, name, experts)


@pytest.mark.slow
def test_a_wrong_request_is_an_error(client: TestClient) -> None:
    for fields, code, words in [
        ({"model": "m", "prompt": "a", "token_ids": [1]}, "no_experts", "m has no experts"),
        ({"model": "m", "prompt": "a"}, "no_experts", "m has no experts"),
        ({"model": "m", "token_ids": [1]}, "no_experts", "m has no experts"),
        ({"model": "sparse", "prompt": "a", "token_ids": []}, None, "a list of 1 to 32,768 token ids, found []"),
        ({"model": "sparse", "prompt": "a", "token_ids": [9999]}, None, "token_ids must have token ids from 0 to"),
        ({"model": "sparse", "prompt": "a " * 99, "token_ids": [1]}, "context_length_exceeded", "context length"),
        ({"model": "sparse", "token_ids": [1]}, None, "prompt is missing"),
        ({"model": "sparse", "messages": [{"role": "user", "content": "a"}], "token_ids": [1]}, "no_chat_template", ""),
    ]:
        response = client.post("/v1/experts", json=fields)
        assert response.status_code == 400, (fields, code, words)
        assert response.json()["error"]["code"] == code, (fields, code, words)
        assert words in response.json()["error"]["message"], (fields, code, words)


@pytest.mark.slow
def test_models_list_their_experts(client: TestClient) -> None:
    listed = {model["id"]: model["experts"] for model in client.get("/v1/models").json()["data"]}
    assert listed == {"m": [], "sparse": ["0", "1"], "mixture": ["m", "other"]}
