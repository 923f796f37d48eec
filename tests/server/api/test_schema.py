"""Fields of requests: what is wrong or not supported is a 400 that names the field."""

import pytest

from llmcli.server.api.bodies import ChatBody, CompletionBody
from llmcli.server.api.schema import parse_object
from llmcli.server.errors import ApiError
from tests.server.wrong_requests import WRONG, wrong_fields

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "What did the cat do?"}], "max_tokens": 8}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_field_is_named(client, path):
    for name, value, body in wrong_fields(path):
        response = client.post(path, content=body, headers={"content-type": "application/json"})
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


def test_neutral_values_and_harmless_fields_change_nothing(completion):
    plain = completion(prompt="The cat")["choices"]
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "suffix": None}
    harmless = {"user": "me", "store": True, "top_k": -1, "echo": None, "stop": None, "no_such_field": None}
    assert completion(prompt="The cat", **neutral, **harmless)["choices"] == plain


def test_a_field_of_another_name_is_refused_with_the_one_that_is_meant(client):
    error = client.post("/v1/completions", json={"prompt": "The cat", "temprature": 0}).json()["error"]
    assert error["message"] == "temprature is not supported here; did you mean temperature?"
    assert (error["param"], error["code"]) == ("temprature", "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_token", "did you mean max_tokens?"), ("max_new_tokens", "did you mean max_tokens?"),
        ("freq_penalty", "did you mean frequency_penalty?"), ("respons_format", "did you mean response_format?"),
        ("web_search_options", "leave it out"), ("response_schema", "leave it out"), ("system", "leave it out"),
    ],
)  # fmt: skip
def test_only_a_similar_name_is_suggested(name, hint):
    with pytest.raises(ApiError) as error:
        ChatBody.read({name: {}})
    assert error.value.message == f"{name} is not supported here; {hint}"


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "auto"}, {"tool_choice": "required", "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {"functions": [TOOL["function"]]},
        {"function_call": {"name": "weather"}, "functions": [TOOL["function"]]},
    ],
)  # fmt: skip
def test_tools_are_refused_with_what_to_use_instead(client, fields):
    response = client.post("/v1/chat/completions", json=fields | CHAT)
    error = response.json()["error"]
    assert response.status_code == 400 and error["message"].startswith("tools are not supported; leave out their ")
    assert error["message"].endswith("give a JSON schema in response_format")
    assert error["param"] == next(name for name in ("tools", "functions", *fields) if name in fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": True},
        {"function_call": "none", "functions": [TOOL["function"]]},
        {"tools": [], "tool_choice": "auto"}, {"tools": None, "tool_choice": None},
    ],
)  # fmt: skip
def test_tools_that_are_not_to_be_called_change_nothing(completion, fields):
    plain = completion("/v1/chat/completions", **CHAT)["choices"]
    assert completion("/v1/chat/completions", **CHAT, **fields)["choices"] == plain


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
    nothing = dict.fromkeys(("n", "stop", "echo", "logprobs", "model", "stream_options", "unknown"))
    assert CompletionBody.read({"prompt": "x"} | nothing) == CompletionBody(prompt="x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "messages is missing; give a list of 1 to 1,000 messages"),
        ({"n": 0}, "n must be an integer from 1 to 32, found 0"),
        ({"temperature": "hot"}, "temperature must be a number from 0 to 100, found 'hot'"),
        ({"stream": 1}, "stream must be true or false, found 1"),
        ({"stop": ["x" * 1001]}, "stop must be a text or a list of at most 16 texts, each of 1 to 1,000 characters, "),
        ({"model": ["x"] * 61}, "model must be a text, found 61 values"),
        ({"suffix": "end"}, "suffix is not supported, found 'end'; leave it out"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage must be true or false, found 1"),
        ({"stream_options": {"usage": True}}, "stream_options.usage is not supported here; "),
        ({"messages": [{"role": "x"}]}, 'messages[0] must be {"role": system or developer or user or assistant, "con'),
    ],
)
def test_an_error_says_what_was_found_and_what_is_wanted(fields, message):
    with pytest.raises(ApiError) as error:
        ChatBody.read(fields)
    assert error.value.message.startswith(message)
