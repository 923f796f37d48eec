"""Fields of requests: what is wrong or not supported is a 400 that names the field."""

import itertools

import pytest
from pydantic import ValidationError

from llmcli.server.api.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ExpertsBody,
    ExplainBody,
    NextBody,
    RequestMessage,
)
from llmcli.server.api.schema import parse_object
from llmcli.server.errors import ApiError
from tests.server.wrong_requests import WRONG, wrong_fields

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "What did the cat do?"}], "max_tokens": 8}


def test_a_wrong_field_is_named(client):
    for path in WRONG:
        for name, value, body in wrong_fields(path):
            response = client.post(path, content=body, headers={"content-type": "application/json"})
            error = response.json()["error"]
            assert response.status_code in (400, 404), (name, str(value)[:50], response.text)
            assert set(error) == {"message", "type", "param", "code"}, path
            if path != "/v1/experts" and not (path == "/tokenize" and name == "messages"):
                assert (error["param"] or name).startswith(name) or "prompt" in error["message"], (name, error)


def test_a_number_beyond_all_bounds_is_a_400(client):
    for name, value in itertools.product(("temperature", "n", "seed"), ("1e400", "-1e400", "1" + "0" * 400)):
        body = f'{{"prompt": "x", "{name}": {value}}}'
        response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, body


def test_an_empty_prompt_begins_a_text_and_empty_token_ids_are_an_error(client):
    for path in ["/v1/completions", "/v1/next", "/v1/explain"]:
        error = client.post(path, json={"prompt": []}).json()["error"]
        assert (error["message"], error["param"]) == ("prompt is empty; give token ids or a text", "prompt"), path
    for fields, name in [({"prompt": ""}, "prompt"), ({"prompt": "x", "compare": ""}, "compare")]:
        error = client.post("/v1/explain", json=fields).json()["error"]
        assert (error["message"], error["param"]) == (f"{name} is empty; give a text to continue", name)
    for wrong in ([], [300], "cat " * 99):
        error = client.post("/v1/explain", json={"prompt": "x", "compare": wrong}).json()["error"]
        assert error["param"] == "compare" and error["message"].startswith("compare "), wrong
    assert client.post("/v1/next", json={"prompt": ""}).json()["next"]
    request = {"prompt": ["", "x"], "max_tokens": 3, "echo": True, "logprobs": 1}
    first, second = client.post("/v1/completions", json=request).json()["choices"]
    assert first["logprobs"]["text_offset"][0] == 0 and len(first["logprobs"]["tokens"]) <= 3
    assert second["logprobs"]["tokens"][0] == second["text"][0] == "x"


def test_neutral_values_and_harmless_fields_change_nothing(completion):
    plain = completion(prompt="The cat")["choices"]
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "suffix": None}
    harmless = {"user": "me", "store": True, "top_k": -1, "echo": None, "stop": None, "no_such_field": None}
    assert completion(prompt="The cat", **neutral, **harmless)["choices"] == plain


def test_only_a_similar_name_is_suggested():
    similar = {"max_token": "max_tokens", "max_new_tokens": "max_tokens", "respons_format": "response_format"}
    hints = {name: f"did you mean {hint}?" for name, hint in similar.items()}
    for name, hint in (hints | dict.fromkeys(("web_search_options", "response_schema"), "leave it out")).items():
        with pytest.raises(ApiError) as error:
            ChatBody.read({name: {}})
        assert error.value.message == f"{name} is not supported here; {hint}", (name, hint)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_tools_are_refused_with_what_to_use_instead(client):
    for fields in [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tool_choice": "required", "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"functions": [TOOL["function"]]},
        {"function_call": {"name": "weather"}, "functions": [TOOL["function"]]},
    ]:
        response = client.post("/v1/chat/completions", json=fields | CHAT)
        error = response.json()["error"]
        assert response.status_code == 400 and error["code"] == "unsupported_parameter", fields
        assert error["param"] in fields and error["message"].startswith("tools are not supported; leave out "), fields
        assert error["message"].endswith("give a JSON schema in response_format"), fields


def test_tools_that_are_not_to_be_called_change_nothing(completion):
    for fields in [
        {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": True},
        {"function_call": "none", "functions": [TOOL["function"]]},
        {"tools": [], "tool_choice": "auto"},
        {"tools": None, "tool_choice": None},
    ]:
        plain = completion("/v1/chat/completions", **CHAT)["choices"]
        assert completion("/v1/chat/completions", **CHAT, **fields)["choices"] == plain, fields


def test_a_body_that_is_no_object(client):
    deep = [b"[" * 100_000, b'{"a":' * 50_000, b'{"a": ' + b"9" * 5_000 + b"}"]
    values = [b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": "\\ud800"}']
    for data in [b"", b"[]", b"5", b"null", b'"x"', b"{", b"\xff", b"{}x", *values, *deep]:
        with pytest.raises(ApiError) as error:
            parse_object(data)
        assert "sys." not in error.value.message
        response = client.post("/v1/completions", content=data, headers={"content-type": "application/json"})
        assert response.status_code == 400 and "body" in response.json()["error"]["message"], data


def test_null_and_harmless_fields_in_an_object_change_nothing():
    harmless = {"include_obfuscation": False, "continuous_usage_stats": True}
    for options in ({"include_usage": True} | harmless, {"include_usage": None}, harmless):
        body = CompletionBody.read({"prompt": "x", "stream": True, "stream_options": options})
        assert body.stream_options and body.stream_options.include_usage == bool(options.get("include_usage"))
    body = CompletionBody.read({"prompt": "x", "structured_outputs": {"choice": ["a", "b"], "json": None}})
    assert body.choices == ("a", "b")


def test_reading_the_parts_of_a_message_ends_at_the_first_wrong_one():
    with pytest.raises(ValidationError) as error:
        RequestMessage.model_validate({"role": "user", "content": [{"type": "image_url"}] * 1000})
    assert error.value.error_count() <= 3


def test_reading_token_ids_ends_at_the_first_wrong_one():
    """Otherwise, a body of a megabyte has hundreds of thousands of errors, which take seconds and a gigabyte."""
    for wrong in (True, "a", 1.5, [True]):
        for body in (CompletionBody, ExplainBody, ExpertsBody, NextBody):
            with pytest.raises(ValidationError) as raised:
                body.model_validate({"prompt": [1, *[wrong] * 1000, None], "token_ids": [wrong] * 1000})
            assert raised.value.error_count() < 10, (wrong, body)
    with pytest.raises(ValidationError) as raised:
        DetokenizeBody.model_validate({"tokens": [None] * 1000})
    assert raised.value.error_count() == 1


def test_an_error_says_what_was_found_and_what_is_wanted():
    for fields, message in [
        ({}, "messages is missing"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"temperature": "hot"}, 'temperature must be a valid number, found "hot"'),
        ({"stop": ["x" * 1001]}, "stop must be a text or a list of at most 16 texts, each of 1 to 1,000 characters, "),
        ({"model": ["x"] * 61}, 'model must be a valid string, found ["x", '),
        ({"suffix": "end"}, 'suffix is not supported, found "end"; leave it out'),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage must be a valid boolean, found 1"),
        (
            CHAT | {"chat_template_kwargs": {"tools": []}},
            "chat_template_kwargs must be an object without add_generation_prompt, documents, messages, tools, found ",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls is not supported here; leave it out",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            'messages.0.content.0.type must be "text", found "image_url"',
        ),
        (
            {"messages": [{"role": "user", "content": {"a": None}}]},
            'messages.0.content must be a valid string or a valid list, found {"a": null}',
        ),
        (CHAT | {"min_tokens": 9}, "min_tokens must be at most max_tokens, 8, found 9"),
        (CHAT | {"max_tokens": None, "min_tokens": 1001}, "min_tokens must be at most max_tokens, 1,000, found 1,001"),
        (CHAT | {"max_completion_tokens": 4}, "max_completion_tokens and max_tokens differ; give only one of them"),
        ({"messages": []}, "messages must have at least 1 item, found []"),
        ({"messages": ["x"]}, 'messages.0 must be a valid object, found "x"'),
        (CHAT | {"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice must have at least 2 items, "),
    ]:
        with pytest.raises(ApiError) as error:
            ChatBody.read(fields)
        assert error.value.message.startswith(message), (fields, message)
    with pytest.raises(ApiError, match="min_tokens must be at most max_tokens, 16, found 17"):
        CompletionBody.read({"prompt": "x", "min_tokens": 17})
    for fields in ({"prompt": "x" * 4001}, {"prompt": [1, "x"]}, {"prompt": "x", "compare": [None]}):
        with pytest.raises(ApiError, match="must be a text of at most 4,000 characters, or a list of token ids"):
            ExplainBody.read(fields)
