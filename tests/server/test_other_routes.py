"""The routes besides completions and chats: they answer what the subcommands print."""

import hashlib
import json
import math
from dataclasses import replace

import pytest

from llmcli.config import SAMPLING, ModelConfig
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load, load_any, open_chat_template
from llmcli.formats.training_record import TrainingRecord
from llmcli.server.api.models import ServedModel
from llmcli.server.api.schema import openapi
from llmcli.server.errors import ApiError
from llmcli.server.http.analysis_routes import training_texts
from llmcli.server.http.app import OPERATIONS
from tests.conftest import random_checkpoint
from tests.server.conftest import client_of


def test_health_and_models(client):
    for path in ("/health", "/v1/health"):
        assert client.get(path).json() == {"status": "ok"}
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["text", "chat"]
    assert [model["chat"] for model in listed["data"]] == [False, True]
    assert client.get("/v1/models/chat").json() == listed["data"][1]
    missing = client.get("/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_tokens_and_back(client, tokenizer, served):
    text = "The cat <|endoftext|> りんご"
    answer = client.post("/tokenize", json={"prompt": text}).json()
    assert answer == {"tokens": tokenizer.encode(text), "count": len(tokenizer.encode(text)), "max_model_len": 64}
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    assert client.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
    template = open_chat_template(load_any(served[1]), tokenizer)
    from llmcli.data.conversations.messages import Message

    ids = template.encode([Message("user", "Hi")], add_generation_prompt=True)
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
    assert client.post("/tokenize", json=body).json()["tokens"] == ids


def test_what_lm_eval_asks_of_a_tokenizer(client, tokenizer):
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>" and info["bos_token"] is None
    ids = client.post("/tokenize", json={"prompt": info["eos_token"], "add_special_tokens": False}).json()["tokens"]
    assert ids == [tokenizer.eos_id]
    assert client.post("/detokenize", json={"tokens": ids}).json()["prompt"] == info["eos_token"]
    assert client.get("/tokenizer_info?model=chat").json()["chat_template"].startswith("{% for message")


def test_next_words_are_those_of_generate(client, served, llm, short_search):
    printed = json.loads(llm("generate", "The cat", "--next", 4, "--json", "-m", served[0]).stdout)
    assert client.post("/v1/next", json={"prompt": "The cat", "n": 4}).json() == {"model": "text"} | printed


def test_next_tokens_are_those_of_a_completion(client, completion, tokenizer):
    """In a prompt of token ids, and with the settings of the completion."""
    ids = tokenizer.encode("The cat")
    [choice] = completion(prompt=ids, max_tokens=1, logprobs=5, return_token_ids=True)["choices"]
    [token] = choice["logprobs"]["content"]
    most_likely = {one["id"]: math.exp(one["logprob"]) for one in token["top_logprobs"]}
    found = client.post("/v1/next", json={"prompt": ids, "unit": "tokens", "n": 5}).json()
    # random weights: a few tokens may be bytes that never occur, and are excluded
    allowed = {token["id"]: token["probability"] for token in found["next"]}
    shared = most_likely.keys() & allowed.keys()
    assert shared and found["unexplored"] == pytest.approx(1 - sum(allowed.values()), abs=1e-5)
    ratios = [allowed[token] / most_likely[token] for token in shared]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-4)
    hot = {"prompt": ids, "unit": "tokens", "n": 5, "temperature": 2, "token_id": found["next"][3]["id"]}
    hotter = client.post("/v1/next", json=hot).json()
    roots = [token["probability"] ** 0.5 for token in found["next"]]
    given = [token["probability"] for token in hotter["next"]]
    assert [one / given[0] for one in given] == pytest.approx([root / roots[0] for root in roots], rel=1e-3)
    assert hotter["token"]["rank"] == 4 and hotter["token"]["probability"] == pytest.approx(given[3], abs=1e-6)
    greedy = client.post("/v1/next", json={"prompt": ids, "temperature": 0, "return_token_ids": True}).json()
    text = completion(prompt=ids, max_tokens=8)["choices"][0]["text"]
    assert greedy["next"][0]["probability"] == 1 and text.startswith(greedy["next"][0]["added"])
    assert [token["id"] for token in greedy["tokens"]] == ids and greedy["prefix_tokens"] == 0


def test_a_prompt_longer_than_the_context_is_cut_where_that_is_asked(client):
    for path, fields in (("/v1/next", {"unit": "tokens"}), ("/v1/explain", {}), ("/v1/completions", {"max_tokens": 1})):
        for prompt in ("The cat " * 60, [5] * 100):
            body = {"prompt": prompt, **fields}
            refused = client.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded"), path
            assert client.post(path, json=body | {"truncate_prompt_tokens": -1}).status_code == 200
            assert client.post(path, json=body | {"prompt": [5] * 64}).status_code == 200


def test_a_limited_context_holds_in_all_routes(served):
    cut = {"prompt": [5, 6, 7] * 10, "truncate_prompt_tokens": -1, "n": 1}
    end = {"prompt": cut["prompt"][-8:], "n": 1}
    with client_of(served, context=8) as client:
        for path, key in (("/v1/next", "next"), ("/v1/explain", "tokens")):
            answers = [client.post(path, json=fields) for fields in (cut, end)]
            assert [answer.json()[key] for answer in answers] == [answers[1].json()[key]] * 2, path
        assert client.post("/v1/next", json={"prompt": cut["prompt"]}).status_code == 400


def test_the_tokens_before_a_continuation(client, completion, tokenizer):
    asked = {"prompt": "The ca", "max_tokens": 3, "return_token_ids": True, "logprobs": 0}
    choice = completion(**asked)["choices"][0]
    ids = [*choice["prompt_token_ids"], *(token["id"] for token in choice["logprobs"]["content"])]
    assert tokenizer.decode(ids).lstrip("\n") == "The ca" + choice["text"]
    assert tokenizer.decode(ids[: choice["prompt_prefix_tokens"]]) in ("", "\n")
    messages = [{"role": "user", "content": "Hi"}]
    chat = completion("/v1/chat/completions", model="chat", messages=messages, return_token_ids=True)["choices"][0]
    expected = client.post("/tokenize", json={"model": "chat", "messages": messages}).json()["tokens"]
    assert chat["prompt_token_ids"] == expected


def test_an_explanation_has_what_is_asked_for(client, short_search):
    whole = client.post("/v1/explain", json={"prompt": "The cat sat"}).json()
    part = client.post("/v1/explain", json={"prompt": "The cat sat", "include": ["attention"], "position": 1}).json()
    weights = [[head[1] for head in layer] for layer in whole["attention"]["weights"]]
    assert part["attention"]["weights"] == weights and part["lens"] == whole["lens"]
    assert part["next"] == [] and {token["effect_bits"] for token in part["tokens"]} == {None}
    assert "attention" not in client.post("/v1/explain", json={"prompt": "The cat", "include": []}).json()
    quick = client.post("/v1/explain", json={"prompt": "The cat sat", "include": ["next"], "max_evaluations": 3}).json()
    assert quick["unexplored"] > whole["unexplored"]


def test_any_token_is_explained_also_where_the_prompt_ends_inside_a_word(client, tokenizer):
    """With and without parts of the model, after the same tokens; these and the tail spell the prompt."""
    for prompt in ["The cat sat", "The ca", "The cat on the m"]:
        for fields in [{}, {"without": ["1.2"]}]:
            body = {"prompt": prompt, "include": [], **fields}
            for token in range(5, tokenizer.vocab_size, 19):
                answer = client.post("/v1/explain", json=body | {"token_id": token}).json()
                for one in (answer["first"], answer["second"]) if fields else (answer,):
                    assert one["attribution"]["id"] == token, (prompt, fields)
                    ids = [shown["id"] for shown in one["tokens"]]
                    assert (tokenizer.decode(ids) + one["tail"]).lstrip("\n") == prompt, (prompt, fields)
                    assert tokenizer.token_bytes[token].startswith(one["tail"].encode()), (prompt, fields)
                if fields:
                    assert answer["first"]["tokens"] == answer["second"]["tokens"], (prompt, fields)
            refused = client.post("/v1/explain", json=body | {"token_id": tokenizer.vocab_size})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "token_id"), (prompt, fields)


def test_explanations_and_comparisons_are_those_of_explain(client, served, llm, short_search):
    for fields in [{}, {"without": ["2.3", "1"]}, {"compare": "The dog"}]:
        options = [word for name, value in fields.items() for one in ([value] if name == "compare" else value)
                   for word in (f"--{name}", one)]  # fmt: skip
        printed = json.loads(llm("explain", "The cat", "--next", 4, "--json", "-m", served[0], *options).stdout)
        found = client.post("/v1/explain", json={"prompt": "The cat", "n": 4, **fields}).json()
        assert found == {"model": "text"} | printed, fields


def test_an_answer_is_explained_after_its_question(client):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "The cat"}]
    answer = client.post("/v1/explain", json={"model": "chat", "messages": messages}).json()
    assert answer["tokens"][0]["text"] == "<|im_start|>"
    assert len(answer["next_tokens"]) == 10 and answer["next"] == []


def test_the_card_shows_what_inspect_does(client, served, llm):
    printed = json.loads(llm("inspect", served[0], "--json").stdout)
    card = client.get("/v1/models/text/card").json()
    assert card == card | printed | {"file": "text.safetensors"}
    assert str(served[0].parent) not in json.dumps(card)


def test_examples_are_from_the_texts_of_the_model(client, tmp_path, served, monkeypatch):
    assert client.get("/v1/models/chat/examples").json() == {"questions": [], "prompts": []}
    monkeypatch.chdir(tmp_path)
    asked = [f"What is {number}?" for number in range(40)] + ["x" * 200]
    content = "".join(f"Q: {question}\nA: A number.\n\n" for question in asked).encode()
    model = load(served[1])
    sha256 = hashlib.sha256(content).hexdigest()
    file = {"name": "q.txt", "bytes": len(content), "sha256": sha256, "shape": "Q:/A: turns", "conversations": 41}
    texts = [[1, "like it"], [9, "like it here. She likes to eat soup. She likes to eat bread."]]
    model.record |= {"corpus": [file], "samples": {"prompt": "We all", "texts": texts}}
    save(tmp_path / "asked.safetensors", model)
    with client_of([tmp_path / "asked.safetensors"]) as other:
        prompts = ["We all like it", "She likes to eat"]
        assert other.get("/v1/models/asked/examples").json() == {"questions": ["We all"], "prompts": prompts}
        (tmp_path / "q.txt").write_bytes(content)  # now its questions are known
        found = other.get("/v1/models/asked/examples").json()
        assert found == {"questions": [asked[i] for i in (0, 10, 20, 30)], "prompts": prompts}


def test_the_training_text_must_be_at_hand(client, tmp_path):
    response = client.post("/v1/memory", json={"text": "The cat sat on the mat."})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "training_text_not_found")
    assert response.json()["error"]["message"] == "text does not record its training text"
    path = tmp_path / "pets.safetensors"
    record = {"corpus": [{"name": "cats.txt", "sha256": "0"}, {"name": "dogs.txt", "sha256": "1"}]}
    model = random_checkpoint(ModelConfig(300, 16, 16, 1, 2, 1, 8, 32))
    save(path, replace(model, record=TrainingRecord.from_json(record)))
    with pytest.raises(ApiError, match=r"of pets, cats.txt, dogs.txt, is missing or has changed; put it next to"):
        training_texts(ServedModel(path, None))


def test_the_description_lists_every_route(client):
    published = client.get("/openapi.json").json()
    assert published == json.loads(json.dumps(openapi(OPERATIONS)))
    listed = {(path, method) for path, operations in published["paths"].items() for method in operations}
    assert listed == {
        (route.path, method.lower()) for route in client.app.routes for method in route.methods - {"HEAD"}
    }
    body = published["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    body = published["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    n = body["properties"]["n"]
    assert (n["type"], n["default"], n["minimum"], n["maximum"]) == ("integer", 1, 1, 32)
    assert body["properties"]["min_p"]["description"] == SAMPLING["min_p"].help
    assert body["required"] == ["prompt"]


TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
ANSWERED = {
    "/models": None, "/models/chat": None, "/completions": {"prompt": "The"}, "/tokenize": {"prompt": "The"},
    "/detokenize": {"tokens": [5]}, "/v1/next": {"prompt": "The"}, "/v1/explain": {"prompt": "The cat"},
}  # fmt: skip


def test_answers_are_as_described(client, short_search):
    for path, body in ANSWERED.items():
        answer = client.get(path).json() if body is None else client.post(path, json=body).json()
        name = next(one.answer for one in OPERATIONS if one.path == path.replace("/chat", "/{id}"))
        described = openapi(OPERATIONS)["components"]["schemas"][name]["properties"]
        assert set(described) <= set(answer), path
        assert all(isinstance(answer[key], TYPES[described[key]["type"]]) for key in described), path


@pytest.mark.slow
def test_the_description_is_valid():
    validator = pytest.importorskip("openapi_spec_validator", reason="needs pip install openapi-spec-validator")
    validator.validate(openapi(OPERATIONS))


def test_routes_that_are_not_offered_name_those_that_are(client):
    for method, path, message in [
        ("POST", "/v1/embeddings", "/v1/embeddings is not offered here; there are /v1/chat/completions, "),
        ("GET", "/health/", "/health/ is not offered here; there are "),
        ("GET", "/v1/completions", "GET is not offered at /v1/completions; use POST"),
    ]:
        answer = client.request(method, path, json={"input": "x"} if method == "POST" else None)
        assert answer.status_code == (405 if message.startswith("GET") else 404), (method, path, message)
        assert message in answer.json()["error"]["message"], (method, path, message)
