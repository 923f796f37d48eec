"""/v1/chat/completions: the answers of `llm chat`, and the shapes of OpenAI."""

import json
from dataclasses import replace

import pytest

from llmcli.config import SamplingConfig
from llmcli.data.conversations.chat_template import with_chat_template
from llmcli.data.conversations.messages import Message
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load_any, open_chat_template, open_tokenizer
from llmcli.generation.generator import generate
from llmcli.generation.token_healing import Prompt
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.server.conftest import client_of
from tests.server.streams import choices, events

QUESTION = {"role": "user", "content": "What did the cat do?"}


@pytest.fixture(scope="module")
def template(served):
    source = load_any(served[1])
    return open_chat_template(source, open_tokenizer(source))


@pytest.fixture(scope="session")
def chat(completion):
    """`chat([...messages], max_tokens=5)` is the greedy answer of the model "chat"."""
    return lambda messages, **fields: completion("/v1/chat/completions", model="chat", messages=messages, **fields)


def content(answer):
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    return choice["message"]["content"]


def test_the_answer_is_that_of_llm_chat(chat, served, llm):
    answer = chat([QUESTION], max_tokens=20)
    expected = json.loads(llm("chat", QUESTION["content"], "-m", served[1], "-t", 0, "-n", 20, "--json").stdout)
    assert content(answer) == expected["content"]
    assert answer["choices"][0]["finish_reason"] == expected["finish_reason"]
    assert answer["usage"]["prompt_tokens"] == expected["prompt_tokens"]
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["logprobs"] is None


def test_system_and_developer_are_one_role(chat, template):
    answers = [
        chat([{"role": role, "content": "Be brief."}, QUESTION], max_tokens=8) for role in ("system", "developer")
    ]
    assert content(answers[0]) == content(answers[1])
    assert answers[0]["usage"]["prompt_tokens"] > chat([QUESTION], max_tokens=1)["usage"]["prompt_tokens"]


def test_text_parts_are_joined(chat):
    parts = [{"type": "text", "text": "What did "}, {"type": "text", "text": "the cat do?"}]
    assert content(chat([{"role": "user", "content": parts}], max_tokens=8)) == content(chat([QUESTION], max_tokens=8))


def test_a_message_of_the_assistant_at_the_end_is_continued(chat, served, template):
    """As `generate` continues a text: the last word may go on."""
    beginning = {"role": "assistant", "content": "The cat sat on"}
    answer = chat([QUESTION, beginning], max_tokens=6)
    asked = template.encode([Message(**QUESTION)], add_generation_prompt=True)
    end = Prompt.of(beginning["content"], template.tokenizer)
    prompt = Prompt(asked + end.head, end.tail, end.in_word)
    assert answer["usage"]["prompt_tokens"] == len(prompt.ids)
    sampling = SamplingConfig(max_tokens=6, temperature=0)
    pieces = generate(NumpyRuntime(load_any(served[1])), template.tokenizer, prompt, sampling)
    assert content(answer) == "".join(piece.text for piece in pieces)


def test_template_arguments_reach_the_template(served, tmp_path):
    """`enable_thinking` and others of transformers' apply_chat_template."""
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if loud %}!{% endif %}{{ tone }}"
    path = tmp_path / "chat.safetensors"
    save(path, replace(load_any(served[1]), tokenizer_config_json=with_chat_template("{}", source)))
    with client_of([path]) as client:
        for variables, written in (({}, ""), ({"loud": True, "tone": "soft"}, "!soft"), (None, "")):
            body = {"messages": [QUESTION], "chat_template_kwargs": variables}
            ids = client.post("/tokenize", json=body).json()["tokens"]
            assert client.post("/detokenize", json={"tokens": ids}).json()["prompt"] == QUESTION["content"] + written
            answer = client.post("/v1/chat/completions", json=body | {"max_tokens": 1}).json()
            assert answer["usage"]["prompt_tokens"] == len(ids)


def test_the_end_of_the_prompt_is_that_of_the_messages(client, chat):
    """The fields of vLLM are taken where they ask for what is done, and refused otherwise."""
    beginning = {"role": "assistant", "content": "The cat"}
    plain = chat([QUESTION], max_tokens=3)["choices"]
    assert chat([QUESTION], max_tokens=3, add_generation_prompt=True, continue_final_message=False)["choices"] == plain
    same = chat([QUESTION, beginning], max_tokens=3)["choices"]
    asked = {"add_generation_prompt": False, "continue_final_message": True}
    assert chat([QUESTION, beginning], max_tokens=3, **asked)["choices"] == same
    for messages, wrong in (([QUESTION, beginning], False), ([QUESTION], True)):
        body = {"model": "chat", "messages": messages, "continue_final_message": wrong}
        assert client.post("/v1/chat/completions", json=body).json()["error"]["param"] == "continue_final_message"


def test_log_probabilities_alone_and_with_alternatives(chat):
    alone = chat([QUESTION], max_tokens=6, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert all(token["top_logprobs"] == [] for token in alone)
    answer = chat([QUESTION], max_tokens=6, logprobs=True, top_logprobs=3)
    tokens = answer["choices"][0]["logprobs"]["content"]
    data = bytes(byte for token in tokens for byte in token["bytes"])
    assert data.decode("utf-8", "replace").startswith(content(answer))
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        top = [one["logprob"] for one in token["top_logprobs"]]
        assert top == sorted(top, reverse=True) and token["logprob"] <= top[0]


def test_a_stream_has_the_same_text(client, chat):
    body = {"model": "chat", "messages": [QUESTION], "temperature": 0, "max_tokens": 20, "logprobs": True}
    whole = chat([QUESTION], max_tokens=20, logprobs=True)
    response = client.post(
        "/v1/chat/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    chunks = choices(response.text)
    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == content(whole)
    assert chunks[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all(chunk["finish_reason"] is None for chunk in chunks[:-1])
    streamed = [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]]
    expected = whole["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in streamed] == [token["token"] for token in expected]
    all_events = events(response.text)
    assert {event["object"] for event in all_events} == {"chat.completion.chunk"}
    assert all_events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all_events[-1]["choices"] == []


def test_max_completion_tokens(chat):
    assert chat([QUESTION], max_completion_tokens=4)["usage"]["completion_tokens"] == 4


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(chat):
    turns = [{"role": role, "content": "The cat sat on the mat. "} for _ in range(10) for role in ("user", "assistant")]
    answer = chat([*turns, QUESTION], max_tokens=4)
    assert answer["usage"]["dropped_turns"] > 0
    assert answer["usage"]["prompt_tokens"] <= 128 // 2
    assert "dropped_turns" not in chat([QUESTION], max_tokens=4)["usage"]


def test_a_message_that_does_not_fit_is_refused(client):
    long = {"role": "user", "content": "The cat sat on the mat. " * 60}
    response = client.post("/v1/chat/completions", json={"model": "chat", "messages": [long]})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_model_without_a_template_names_the_other_route_and_the_models_that_can_chat(client):
    response = client.post("/v1/chat/completions", json={"model": "text", "messages": [QUESTION]})
    assert response.status_code == 400
    assert response.json()["error"]["message"].endswith("; use /v1/completions, or a model that can chat: chat")
