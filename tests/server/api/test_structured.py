"""Structured output over HTTP, whole and streamed, alone and together."""

import json

import pytest

pytest.importorskip("llguidance", reason='needs pip install "llmcli[structured]"')

import jsonschema

from llmcli.generation import generator

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["りんご", "b🍎"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "What did the cat do?"}], "max_tokens": 90}
TEXT = {"prompt": "The ca", "max_tokens": 40}
FORMAT = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": SCHEMA, "strict": True}}
TOO_LONG = {"type": "string", "pattern": "^(a+)+$", "minLength": 100_000}
LENIENT = {"schema": {"enum": [1], "not": {}}, "strict": False}
OTHER_FIELDS = [
    ({"structured_outputs": {"regex": "[ab]"}}, "ab"),
    ({"structured_outputs": {"grammar": 'start: "a" | "b"'}}, "ab"),
    ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "ab"),
    ({"structured_outputs": {"grammar": 'root ::= [ab]', "regex": None}}, "ab"),
    ({"response_format": {"type": "json_schema", "json_schema": LENIENT}}, "1"),
]  # fmt: skip


def form(**fields: object) -> dict:
    return {"structured_outputs": fields}


def json_schema(schema: dict) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def text_of(choice: dict) -> str:
    assert choice["finish_reason"] == "stop", choice
    return choice["text"] if "text" in choice else choice["message"]["content"]


def test_the_text_fits_the_schema(completion) -> None:
    for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
        for choice in completion(path, **body, response_format=FORMAT, n=2, temperature=1)["choices"]:
            jsonschema.validate(json.loads(text_of(choice)), SCHEMA)


def test_the_text_has_the_form(completion) -> None:
    for fields, texts in OTHER_FIELDS:
        assert text_of(completion("/v1/chat/completions", **CHAT, **fields)["choices"][0]) in texts, (fields, texts)
        assert text_of(completion(**TEXT, **fields)["choices"][0]) in texts, (fields, texts)


def test_any_object(client, completion) -> None:
    brace, end = (client.post("/tokenize", json={"prompt": text}).json()["tokens"][0] for text in "{}")
    bias = {str(brace): 50, str(end): 100}
    [choice] = completion(**TEXT, response_format={"type": "json_object"}, logit_bias=bias)["choices"]
    assert json.loads(text_of(choice)) == {}


def test_a_bias_and_a_minimum_length(client, completion) -> None:
    [token] = client.post("/tokenize", json={"prompt": "Q"}).json()["tokens"]
    bias = {str(token): 100}
    [choice] = completion("/v1/chat/completions", **CHAT | {"max_tokens": 4}, logit_bias=bias)["choices"]
    assert choice["message"]["content"] == "QQQQ"
    plain = completion("/v1/chat/completions", **CHAT | {"max_tokens": 12})
    least = completion("/v1/chat/completions", **CHAT | {"max_tokens": 12}, min_tokens=12)
    assert plain["usage"]["completion_tokens"] <= least["usage"]["completion_tokens"] == 12


def test_wrong_forms_are_one_clear_error(client) -> None:
    for fields, message in [
        (json_schema({"not": {}}), 'response_format: the JSON schema cannot be used: Unimplemented keys: ["not"]'),
        (form(regex="("), "structured_outputs.regex: the regular expression cannot be used"),
        (form(regex="a") | {"response_format": FORMAT}, "response_format and structured_outputs.regex both constrain"),
        (form(regex="a") | {"stop": "b"}, "stop would cut the output of structured_outputs.regex short"),
        (form(structural_tag="x"), "structured_outputs.structural_tag is not supported"),
        ({"response_format": {"type": "xml"}}, 'response_format must be {"type": "json_object"}'),
        (form(grammar="start: a\na: a"), "structured_outputs.grammar: the grammar cannot be used: no text fits it"),
        (json_schema(TOO_LONG), "the JSON schema cannot be fulfilled, or is too complex (lexer error: too many expr"),
    ]:
        for stream in [False, True]:
            # some limits are met at a certain text, so the text must not depend on chance
            response = client.post("/v1/chat/completions", json=CHAT | {"temperature": 0} | fields | {"stream": stream})
            assert response.status_code == 400 or (stream and response.status_code == 200), response.text
            last = response.text if response.status_code == 400 else response.text.split("data: ")[-1]
            error = json.loads(last)["error"]
            assert error["type"] == "invalid_request_error" and "\n" not in error["message"], (fields, stream)
            assert message in error["message"], (fields, stream)


def test_the_engine_compiles_nothing(client, monkeypatch) -> None:
    """A grammar that takes seconds to compile would delay all other texts."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("compiled in the engine's thread")

    monkeypatch.setattr(generator, "compile_grammar", fail)
    for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
        assert client.post(path, json=body | form(regex="[ab]{3}") | {"n": 2}).status_code == 200
