"""Requests that the server must refuse: tables of Host headers, heads and fields."""

import json
from collections.abc import Iterator

from llmcli.server.limits import MAX_PROMPTS, MAX_STOPS, MAX_TOKENS

LOCAL_HOSTS = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8000"]
FOREIGN_HOSTS = [
    "evil.com", "evil.com:8000", "127.0.0.1.evil.com", "", "192.168.1.5", "[::2]", "[", "localhost.evil.com",
    "evil.com@localhost", "localhost/evil", "localhost:80@evil.com", "localhost:x", "localhost, evil.com",
    "//localhost", "localhost?", "localhost#", "127.0.0.1:8000:9",
]  # fmt: skip
WRONG_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "")
DAMAGED_HEADS = [
    b"Content-Length: -1\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: x\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"A" * 100_000 + b": x\r\n", b"\x00\xff: x\r\n",
]  # fmt: skip

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
    "presence_penalty": [2.5, "x"],
    "frequency_penalty": [-3, "x"],
    "logit_bias": [{"5": 101}, {"x": 1}, {"5": "x"}, {"300": 1}, {"-1": 1}, [5], 5, {"5": HUGE}],
    "min_tokens": [-1, "x"],
    "response_format": ["json", {}, {"type": "json_schema", "json_schema": {}}, {"type": "json_object", "schema": {}}],
    "structured_outputs": [5, {"regex": "("}, {"regex": 5}, {"grammar": "x"}, {"grammar": 5}],
    "best_of": [2],
    "suffix": ["end"],
    "guided_json": [{"type": "object"}],
    "format": ["json", {"type": "object"}],
    "options": [{"temperature": 0}],
    "lora": [[{"id": 0, "scale": 0.5}]],
    "temprature": [0.5],
    "no_such_field": [0, False, {"a": 1}],
}
WRONG = {
    "/v1/completions": WRONG_SAMPLING
    | {
        "prompt": [
            None, [], [[]], 5, {}, [1, "x"], [1.5], [-1], [300], [HUGE], ["x"] * (MAX_PROMPTS + 1), [True],
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
        "echo": [True],
        "chat_template": ["{{ messages }}"],
        "chat_template_kwargs": [True, {"messages": []}, {"tools": [{}]}],
        "add_generation_prompt": [False, "x"],
        "continue_final_message": [True, "x"],
        "documents": [[{"text": "x"}]],
    },
    "/v1/next": {
        "prompt": [None, 3, [], [1, "x"], [300]], "n": [0, 101, "x"], "temperature": [-1, 101], "top_p": [2],
        "min_p": [-1], "unit": ["letters"], "token_id": [1, -1], "max_evaluations": [1, "x"], "top_k": [5],
        "truncate_prompt_tokens": [5],
    },
    "/v1/explain": {
        "prompt": [None, "", 3, "x" * 4001], "n": [0], "literal": [1], "temperature": [0], "compare": ["", 3],
        "without": ["1", [1], ["0"], ["1.0"], ["x"], ["9"], ["1.9"], ["1"] * 1025, ["cache"]],
        "include": ["next", ["lens"]], "position": ["x", 99, -99],
    },
    "/v1/memory": {"text": [None, 3, "x" * 20_001], "n": [1]},
    "/v1/experts": {"token_ids": [[1]]},  # this model has none
    "/tokenize": {"prompt": [None, 3], "content": ["another text"], "messages": ["x"]},
    "/detokenize": {"tokens": [None, "x", [1.5], [-1], [300], [True]], "stream": [True]},
}  # fmt: skip
RIGHT = {
    "prompt": "The cat", "messages": [{"role": "user", "content": "x"}], "text": "x", "tokens": [1], "model": "chat",
}  # fmt: skip


def wrong_fields(path: str) -> Iterator[tuple[str, object, str]]:
    """(name of the wrong field, its value, the body as JSON) of each row for a route."""
    read = {"model", *WRONG[path]}
    for name, values in WRONG[path].items():
        for value in values:
            body = {key: one for key, one in RIGHT.items() if key in read and (key != "messages" or "chat" in path)}
            body[name] = value
            yield name, value, json.dumps(body)
