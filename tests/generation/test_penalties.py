"""Presence and frequency penalty, logit bias and the minimum length, compared with their formulas."""

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.generation.generator import GeneratedText, generate
from tests.generation.fakes import Digits, FakeRuntime, Table

LETTERS = Digits("a", "b", "c", "d")
LOGITS = [-9.0, 2.0, 1.7, 1.4, 1.0]


def text_of(sampling: SamplingConfig, logits: list[float] = LOGITS) -> str:
    runtime = FakeRuntime(200, lambda _: logits)
    return "".join(piece.text for piece in generate(runtime, LETTERS, "11", sampling))


def test_greedy_texts_follow_the_formula() -> None:
    """OpenAI's: logit - count x frequency - (count > 0) x presence, over the generated tokens, not the prompt."""
    for presence, frequency in [(0.5, 0.0), (0.0, 0.371), (1.0, 0.217), (-0.5, 0.113), (0.2, -0.3)]:
        counts, expected = np.zeros(5), ""
        for _ in range(30):
            token = int(np.argmax(np.array(LOGITS) - counts * frequency - (counts > 0) * presence))
            counts[token] += 1
            expected += " abcd"[token]
        sampling = SamplingConfig(30, 0, presence_penalty=presence, frequency_penalty=frequency)
        assert text_of(sampling) == expected, (presence, frequency)


def test_a_bias_is_added_to_the_logit() -> None:
    assert text_of(SamplingConfig(3, 0, logit_bias=((1, -0.5),))) == "bbb"
    assert text_of(SamplingConfig(3, 0, logit_bias=((1, -0.2),))) == "aaa"
    assert text_of(SamplingConfig(3, 0, logit_bias=((4, 100.0), (4, 100.0)))) == "ddd"
    assert text_of(SamplingConfig(3, 0, logit_bias=((0, 100.0),))) == ""


def test_the_first_token_after_an_open_word_is_biased_too() -> None:
    """Its distribution is summed over tokenizations."""
    tokenizer = Table("\n", "a", "b", "ab", "c")
    runtime = FakeRuntime(50, lambda _: [-9.0, -9.0, 1.0, 1.0, 1.0, 1.0])
    for token, letter in ((4, "b"), (5, "c")):
        sampling = SamplingConfig(1, 0, logit_bias=((token, 90.0),))
        assert "".join(piece.text for piece in generate(runtime, tokenizer, "a", sampling)) == letter


def test_a_text_has_its_minimum_length() -> None:
    ends = [5.0, 1.0, 0.0, 0.0, 0.0]
    assert text_of(SamplingConfig(9, 0), ends) == ""
    assert text_of(SamplingConfig(9, 0, min_tokens=4), ends) == "aaaa"
    assert text_of(SamplingConfig(3, 0, min_tokens=4), ends) == "aaa"
    assert text_of(SamplingConfig(9, 0, min_tokens=4, stop=("a",))) == "aaaa"


def test_texts_do_not_share_their_penalties() -> None:
    sampling = SamplingConfig(9, 0, frequency_penalty=1.0)
    first, second = (GeneratedText(LETTERS, [1], sampling) for _ in range(2))
    logits = np.array(LOGITS, np.float32)
    for _ in range(4):
        first.append(first.choose(logits))
    assert second.choose(logits)[0] == 1
