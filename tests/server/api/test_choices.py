"""structured_outputs.choice: the text is one of the choices, by the probabilities of `llm`."""

import math
from collections import Counter

import pytest

from llmcli.formats.loading import load_any, open_tokenizer

QUESTION = {"role": "user", "content": "What did the cat do?"}
CHOICES = ["It sat", "It ate", "🍎"]
FORM = {"choice": CHOICES}
CHAT = {"model": "chat", "messages": [QUESTION]}


@pytest.fixture(scope="module")
def expected(served, client) -> dict[str, list[tuple[str, float]]]:
    """The probabilities of `llmcli`, best first, of answers and of continuations."""
    import llmcli

    text, chat = map(llmcli.load, served)
    return {"chat": chat.choose([QUESTION], CHOICES), "text": text.choose("The ca", CHOICES)}


def test_the_answer_is_the_best_choice(completion, served, expected) -> None:
    tokens = open_tokenizer(load_any(served[1])).encode(expected["chat"][0][0])
    answer = completion("/v1/chat/completions", **CHAT, structured_outputs=FORM, logprobs=True, top_logprobs=3)
    [choice] = answer["choices"]
    assert choice["message"]["content"] == expected["chat"][0][0] and choice["finish_reason"] == "stop"
    [token] = choice["logprobs"]["content"]
    found = [(one["token"], math.exp(one["logprob"])) for one in token["top_logprobs"]]
    assert [text for text, _ in found] == [text for text, _ in expected["chat"]]
    assert [share for _, share in found] == pytest.approx([share for _, share in expected["chat"]], rel=1e-3)
    assert answer["usage"]["completion_tokens"] == len(tokens) and answer["usage"]["prompt_tokens"] > 5


def test_a_prompt_that_ends_inside_a_word_is_continued(completion, expected) -> None:
    answer = completion(prompt="The ca", structured_outputs=FORM, logprobs=5)
    [choice] = answer["choices"]
    assert choice["text"] == expected["text"][0][0]
    [top] = choice["logprobs"]["top_logprobs"]
    assert {text: math.exp(one) for text, one in top.items()} == pytest.approx(dict(expected["text"]), rel=1e-3)


def test_answers_are_sampled_by_their_probabilities(completion, expected) -> None:
    """240 answers; each count is within four standard deviations."""
    counts: Counter[str] = Counter()
    for seed in range(0, 240, 30):
        sampled = {"temperature": 1, "min_p": 0, "n": 30, "seed": seed}
        answer = completion("/v1/chat/completions", **CHAT, structured_outputs=FORM, **sampled)
        counts.update(choice["message"]["content"] for choice in answer["choices"])
    for text, probability in expected["chat"]:
        assert abs(counts[text] - 240 * probability) <= 4 * math.sqrt(240 * probability * (1 - probability)) + 1


def test_an_answer_after_choices_continues_from_the_same_cache(completion) -> None:
    before = completion("/v1/chat/completions", **CHAT, max_tokens=6)
    completion("/v1/chat/completions", **CHAT, structured_outputs=FORM)
    after = completion("/v1/chat/completions", **CHAT, max_tokens=6)
    assert after["choices"] == before["choices"]
    assert after["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_wrong_choices_are_one_clear_error(client) -> None:
    for form, message in [
        (FORM, "stop has no effect with structured_outputs.choice"),
        ({"choice": ["a", "a"]}, "structured_outputs.choice has 'a' twice"),
        ({"choice": ["a", ""]}, "structured_outputs.choice has an empty text"),
        ({"choice": ["a", "x" * 400]}, "the context length of chat is 128"),
    ]:
        stop = {"stop": "a"} if form == FORM else {}
        response = client.post("/v1/chat/completions", json=CHAT | {"structured_outputs": form} | stop)
        assert response.status_code == 400 and message in response.json()["error"]["message"], response.text
