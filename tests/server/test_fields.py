"""Fields of requests: what is wrong is a 400 that names the field, and what is unknown is ignored."""

import json

import pytest

from llmcli.server.errors import ApiError
from llmcli.server.fields import Fields, parse_object
from llmcli.server.limits import MAX_PROMPTS, MAX_STOPS, MAX_TOKENS

HUGE = 10**400
WRONG_SAMPLING = {
    "max_tokens": [-1, MAX_TOKENS + 1, HUGE, 1.5, "5", True, [5], {}],
    "temperature": [-0.1, 101, "hot", True, HUGE, []],
    "top_p": [-0.1, 1.1, "x", False],
    "top_k": [-2, 1.5, "x", HUGE],
    "min_p": [-1, 2, "x"],
    "repetition_penalty": [0, -1, 1e7],
    "seed": [-1, 1 << 63, "x", 0.5],
    "n": [0, -1, 33, 1.5, HUGE],
    "stop": ["", [""], [1], {}, 3, ["x"] * (MAX_STOPS + 1), "x" * 1001],
    "stream": [1, "true"],
    "stream_options": [{"include_usage": True}, "x"],
    "model": [3, ["text"]],
    "presence_penalty": [0.5],
    "frequency_penalty": [-1, "x"],
    "logit_bias": [{"5": 1}],
    "best_of": [2],
    "suffix": ["end"],
    "guided_json": [{}],
}
WRONG = {
    "/v1/completions": WRONG_SAMPLING
    | {
        "prompt": [
            None, "", [], [[]], [""], 5, {}, [1, "x"], [1.5], [-1], [300], [HUGE], ["x"] * (MAX_PROMPTS + 1), [True],
        ],
        "logprobs": [-1, 6, "x", True],
        "echo": ["yes"],
    },
    "/v1/chat/completions": WRONG_SAMPLING
    | {
        "messages": [
            None, [], "x", {}, ["x"], [{}], [{"role": "user"}], [{"role": "robot", "content": "x"}],
            [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "image_url"}]}],
            [{"role": "user", "content": [{"type": "text"}]}], [{"role": ["user"], "content": "x"}],
            [{"role": "user", "content": "x"}] * 1001,
        ],
        "logprobs": [1, "x"],
        "top_logprobs": [-1, 21, 2],  # 2 without logprobs
        "max_completion_tokens": [-1, "x"],
        "tools": [[{"type": "function"}]],
        "tool_choice": ["required"],
        "response_format": [{"type": "json_object"}],
        "echo": [True],
    },
    "/v1/next": {"prompt": [None, "", 3], "n": [0, 101, "x"]},
    "/v1/explain": {"prompt": [None, "", 3, "x" * 4001], "n": [0], "literal": [1]},
    "/v1/memory": {"text": [None, 3, "x" * 20_001]},
    "/v1/experts": {"token_ids": [[1]]},  # this model has none
    "/tokenize": {"prompt": [None, 3], "with_pieces": [1], "messages": ["x"]},
    "/detokenize": {"tokens": [None, "x", [1.5], [-1], [300], [True]]},
}  # fmt: skip
RIGHT = {
    "prompt": "The cat",
    "messages": [{"role": "user", "content": "x"}],
    "text": "x",
    "tokens": [1],
    "model": "chat",
}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_field_is_named(client, path):
    for name, values in WRONG[path].items():
        for value in values:
            body = {key: one for key, one in RIGHT.items() if key != "messages" or "chat" in path} | {name: value}
            response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            error = response.json()["error"]
            assert response.status_code in (400, 404), (name, str(value)[:50], response.text)
            assert set(error) == {"message", "type", "param", "code"}
            if path != "/v1/experts" and not (path == "/tokenize" and name == "messages"):
                assert (error["param"] or name).startswith(name) or "prompt" in error["message"], (name, error)


def test_a_list_of_different_kinds_is_shown_whole(client):
    error = client.post("/v1/completions", json={"prompt": [1, "x"]}).json()["error"]["message"]
    assert error == "prompt must be a text, a list of token ids, or a list of either, found [1, 'x']"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/next", "/v1/explain"])
def test_an_empty_prompt(client, path):
    error = client.post(path, json={"prompt": ""}).json()["error"]
    assert (error["message"], error["param"]) == ("prompt is empty; give a text to continue", "prompt")


def test_neutral_values_and_unknown_fields_change_nothing(completion):
    plain = completion(prompt="The cat")["choices"]
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "suffix": None}
    unknown = {"user": "me", "store": True, "no_such_field": {"a": 1}, "top_k": -1, "echo": None, "stop": None}
    assert completion(prompt="The cat", **neutral, **unknown)["choices"] == plain


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"5", b"null", b'"x"', b"{", b"\xff", b"{}x", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 100_000,
     b'{"a":' * 50_000, b'{"a": "\\ud800"}', b'{"a": ' + b"9" * 5_000 + b"}"],
)  # fmt: skip
def test_a_body_that_is_no_object(client, data):
    with pytest.raises(ApiError):
        parse_object(data)
    response = client.post("/v1/completions", content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400 and "body" in response.json()["error"]["message"]


def test_null_is_a_field_that_is_left_out():
    fields = Fields({"n": None, "stop": None, "flag": None})
    assert (fields.integer("n", 3, 0, 9), fields.texts("stop", 2, 9), fields.flag("flag", True)) == (3, (), True)
    assert fields.given("n", "stop") is None
