"""/v1/completions: the text of `llm generate`, log probabilities computed by hand, and the shapes of OpenAI."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load, load_any
from llmcli.formats.training_record import TrainingRecord
from llmcli.models.logits import log_softmax
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import TEXT
from tests.models.test_ngram_cache import WEIGHTS
from tests.server.conftest import client_of
from tests.server.streams import choices, events

PROMPT = "The cat sat on"
CACHE = {"ngram_cache": WEIGHTS._asdict()}


@pytest.fixture
def generated(served, llm):
    """`generated(PROMPT, "--seed", 1)` is the text of `llm generate`."""

    def run(prompt, *options):
        result = llm("generate", prompt, "-m", served[0], "--json", *options)
        return json.loads(result.stdout)

    return run


def logprobs_by_hand(path, ids):
    """Log probabilities [T, V] after each token."""
    return np.array([log_softmax(row) for row in NumpyRuntime(load_any(path)).logits(ids)])


def test_greedy_text_is_that_of_generate(completion, generated):
    for prompt in [PROMPT, "りんご", "The do", "A"]:
        answer = completion(prompt=prompt, max_tokens=20, logprobs=0)
        expected = generated(prompt, "-t", 0, "-n", 20)
        [choice] = answer["choices"]
        assert choice["text"] == expected["text"], prompt
        assert choice["finish_reason"] == expected["finish_reason"], prompt
        logprobs = choice["logprobs"]["token_logprobs"][: len(expected["tokens"])]
        assert logprobs == pytest.approx([token["logprob"] for token in expected["tokens"]], abs=1e-5), prompt


def test_a_text_that_is_continued_token_by_token_is_that_of_one_request(served, tmp_path, tokenizer):
    """With an n-gram cache, which does not count what the model wrote: not in a request, and not in the next one."""
    save(tmp_path / "text.safetensors", replace(load(served[0]), record=TrainingRecord.from_json(CACHE)))
    fields = {"temperature": 0, "logprobs": 0, "return_token_ids": True}
    prompt = tokenizer.encode("The cat sat. The cat sat. The cat")
    with client_of([tmp_path / "text.safetensors"]) as client:

        def tokens(**more):
            choice = client.post("/v1/completions", json=fields | more).json()["choices"][0]
            return [(token["id"], token["logprob"]) for token in choice["logprobs"]["content"]]

        together = tokens(prompt=prompt, max_tokens=12)
        whole = [*prompt, *(token for token, _ in together)]
        scored = tokens(prompt=whole, echo=True, max_tokens=0, generated_tokens=12)
        expected = [logprob for _, logprob in together]
        assert [logprob for _, logprob in scored[len(prompt) :]] == pytest.approx(expected, abs=1e-4)
        ids, differences = list(prompt), []
        for count, (token, logprob) in enumerate(together):
            [[found, own]] = tokens(prompt=ids, max_tokens=1, generated_tokens=count)
            assert (found, own) == (token, pytest.approx(logprob, abs=1e-4))
            asked = {"prompt": ids, "unit": "tokens", "n": 1, "generated_tokens": count}
            [shown] = client.post("/v1/next", json=asked).json()["next"]
            if shown["id"] == token:  # otherwise the likeliest one is a byte that no text has
                assert shown["probability"] >= np.exp(logprob) - 1e-4
            differences.append(abs(tokens(prompt=ids, max_tokens=1)[0][1] - logprob))
            ids.append(token)
        assert differences[0] < 1e-4 < max(differences)
        refused = client.post("/v1/completions", json={"prompt": "The cat", "generated_tokens": 1})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "generated_tokens")


def test_each_choice_has_a_seed_of_its_own(completion, generated):
    fields = {"prompt": PROMPT, "temperature": 1.2, "min_p": 0, "n": 3, "seed": 7, "max_tokens": 8}
    answer = completion(**fields)
    expected = [generated(PROMPT, "-t", 1.2, "--min-p", 0, "-n", 8, "--seed", seed)["text"] for seed in (7, 8, 9)]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert len(set(expected)) == 3


def test_echo_has_the_log_probabilities_of_the_prompt(completion, served, tokenizer):
    """What lm_eval reads: the first is null; each later one is that of the token given those before it."""
    ids = tokenizer.encode("The dog ate the hat.")
    [choice] = completion(prompt=ids, echo=True, logprobs=2, max_tokens=1, return_token_ids=True)["choices"]
    expected = logprobs_by_hand(served[0], ids)
    figures = choice["logprobs"]
    assert figures["token_logprobs"][0] is None and figures["top_logprobs"][0] is None
    given = [expected[i, token] for i, token in enumerate(ids[1:])]
    assert figures["token_logprobs"][1:-1] == pytest.approx(given, abs=1e-5)
    assert figures["token_logprobs"][-1] == pytest.approx(expected[-1].max(), abs=1e-5)
    for i, top in enumerate(figures["top_logprobs"][1:]):
        assert max(top.values()) == pytest.approx(expected[i].max(), abs=1e-5)
        assert figures["token_logprobs"][i + 1] in top.values()  # the very same float
    assert choice["text"].startswith("The dog ate the hat.")
    assert "".join(figures["tokens"][: len(ids)]) == "The dog ate the hat."
    assert [token["id"] for token in figures["content"][:-1]] == ids
    assert [token["logprob"] for token in figures["content"]] == figures["token_logprobs"]


def test_the_first_token_is_what_it_adds_to_a_prompt_whose_last_word_goes_on(completion, tokenizer):
    """The token itself may begin in the prompt."""
    begins_in_prompt = 0
    for end in range(5, 25):
        choice = completion(prompt=TEXT[:end], max_tokens=3, logprobs=2, return_token_ids=True)["choices"][0]
        first = choice["logprobs"]["content"][0]
        assert choice["text"].encode().startswith(bytes(first["bytes"])) or not choice["text"].isprintable()
        whole = tokenizer.vocabulary.token_bytes[first["id"]]
        assert whole.endswith(bytes(first["bytes"]))
        begins_in_prompt += len(whole) > len(first["bytes"])
    assert begins_in_prompt


def test_offsets_count_characters(completion):
    [choice] = completion(prompt="りんごを食べる", echo=True, logprobs=0, max_tokens=4)["choices"]
    figures = choice["logprobs"]
    for text, start in zip(figures["tokens"], figures["text_offset"], strict=True):
        if not text.startswith(("bytes:", "<|")):
            assert choice["text"][start:].startswith(text)


def test_no_tokens(completion):
    answer = completion(prompt=PROMPT, max_tokens=0)
    assert answer["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]
    echoed = completion(prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    assert echoed["choices"][0]["text"] == PROMPT
    assert len(echoed["choices"][0]["logprobs"]["tokens"]) == echoed["usage"]["prompt_tokens"]
    assert echoed["usage"]["completion_tokens"] == 0


def test_several_prompts_of_either_kind(completion, tokenizer):
    single = [completion(prompt=text)["choices"][0]["text"] for text in (PROMPT, "The dog")]
    answer = completion(prompt=[PROMPT, "The dog"], n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [single[0], single[0], single[1], single[1]]
    assert answer["usage"]["prompt_tokens"] == sum(len(tokenizer.encode(text)) for text in (PROMPT, "The dog"))
    ids = [tokenizer.encode(PROMPT), tokenizer.encode("The dog")]
    of_ids = [completion(prompt=one)["choices"][0]["text"] for one in ids]
    assert [choice["text"] for choice in completion(prompt=ids)["choices"]] == of_ids


def test_the_default_is_sixteen_tokens(completion):
    answer = completion(prompt=PROMPT)
    assert answer["object"] == "text_completion" and answer["model"] == "text" and answer["id"].startswith("cmpl-")
    assert answer["usage"]["completion_tokens"] == 16
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stop_string_ends_the_text_before_it(completion):
    text = completion(prompt=PROMPT, max_tokens=30)["choices"][0]["text"]
    stop = text[5:8]
    [choice] = completion(prompt=PROMPT, max_tokens=30, stop=[stop, "never found"])["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert completion(prompt=PROMPT, max_tokens=30, stop=stop)["choices"] == [choice]


def test_a_stream_has_the_same_text(client, completion):
    body = {"prompt": [PROMPT, "りんご"], "temperature": 0, "max_tokens": 20, "logprobs": 1, "n": 2, "echo": True}
    whole = completion(**body)
    response = client.post("/v1/completions", json=body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all("usage" not in event for event in events(response.text))  # it is not asked for
    for choice in whole["choices"]:
        chunks = choices(response.text, choice["index"])
        assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
        assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [choice["finish_reason"]]
        for key, values in choice["logprobs"].items():
            streamed = [value for chunk in chunks if chunk["logprobs"] for value in chunk["logprobs"][key]]
            if key == "text_offset":
                assert streamed == values
            else:
                assert json.dumps(streamed)[:200] == json.dumps(values)[:200] or streamed == pytest.approx(values)
