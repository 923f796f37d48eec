"""Batches, compared with one call for each prompt."""

import math
from itertools import chain

import pytest

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Message
from llmcli.formats.loading import load_any, open_tokenizer
from llmcli.generation import batch
from llmcli.generation.batch import answer_request, continuation_request, decode_batch
from llmcli.generation.chat import Assistant, open_assistant
from llmcli.generation.choices import ranked, score_continuations
from llmcli.generation.generator import generate
from llmcli.generation.token_healing import Prompt
from llmcli.models.open_runtime import open_runtime
from tests.cli.commands.test_chat import write_chat_model

PROMPTS = ["The cat", "", "The ca", "朝ごはん", "The cat sat on the mat. " * 30, "x\n", " ", "The dog "] * 3
GREEDY = SamplingConfig(temperature=0.0, max_tokens=12, stop=("q",))


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    source = load_any(write_chat_model(tmp_path_factory.mktemp("batch") / "model.safetensors", 128))
    for tensor in source.tensors.values():  # clearer differences: no text depends on the last bits
        tensor *= 1.5
    return open_assistant(source, open_runtime(source), open_tokenizer(source))


def test_continuations_are_those_of_single_calls_in_order(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "WINDOW", 5)
    runtime, tokenizer = assistant.runtime, assistant.tokenizer

    results = [*decode_batch(runtime, tokenizer, (continuation_request(one, tokenizer, GREEDY) for one in PROMPTS))]
    assert len(results) == len(PROMPTS)
    for prompt, result in zip(PROMPTS, results, strict=True):
        pieces = [*generate(runtime.fork(), tokenizer, prompt, GREEDY)]
        assert result.text == "".join(piece.text for piece in pieces), prompt
        assert result.finished.reason == pieces[-1].finish_reason and result.error is None
        tokens = len(Prompt.of(prompt, tokenizer).ids)
        assert result.started.prompt_tokens == min(tokens, runtime.context) == tokens - result.left_out.get("cut", 0)


def test_choices_have_the_probabilities_of_single_calls(assistant: Assistant) -> None:
    choices = ["The cat sat", "りんご", "x"]
    runtime, tokenizer = assistant.runtime, assistant.tokenizer
    continued = continuation_request("The ca", tokenizer, GREEDY, choices)
    answered = answer_request([Message("user", "Hello")], assistant, GREEDY, choices)
    too_long = answer_request([Message("user", "Hello")], assistant, GREEDY, ["The cat", "x " * 200])
    results = [*decode_batch(runtime, tokenizer, [continued, answered, too_long] * 2)]
    prompt = Prompt.of("The ca", tokenizer)
    for result, scored in zip(
        results[3:5],
        ([*chain.from_iterable(score_continuations(runtime.fork(), tokenizer, prompt, choices))],
         assistant.score([Message("user", "Hello")], choices)),
        strict=True,
    ):  # fmt: skip
        expected = [(choice.text, probability) for choice, probability in ranked(scored)]
        assert [text for text, _ in result.choices] == [text for text, _ in expected]
        assert [p for _, p in result.choices] == pytest.approx([p for _, p in expected], rel=1e-4)
        assert math.fsum(p for _, p in result.choices) == pytest.approx(1)
    assert "has" in str(results[2].error) and "use a shorter choice" in str(results[5].error)


def test_a_text_that_is_ended_early_leaves_the_others_alone(assistant: Assistant) -> None:
    """Some end at their first token, others at their third; more texts than are decoded together."""
    runtime, tokenizer = assistant.runtime, assistant.tokenizer
    requests = [continuation_request(prompt, tokenizer, GREEDY) for prompt in PROMPTS * 3]
    whole = [*decode_batch(runtime, tokenizer, requests)]
    seen: dict[int, int] = {}

    def ends(number: int, text: str) -> bool:
        seen[number] = seen.get(number, 0) + bool(text)
        return seen[number] >= number % 4 > 0 and bool(text)

    for number, (result, expected) in enumerate(
        zip(decode_batch(runtime, tokenizer, requests, ends), whole, strict=True)
    ):
        assert expected.text.startswith(result.text) and result.is_done
        if number % 4 == 0:
            assert result.text == expected.text and result.finished == expected.finished
        else:
            assert 0 < len(result.text) <= len(expected.text)


def test_an_error_of_the_machine_ends_the_batch(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("llmcli.generation.engine.engine.Engine._admit", fail)
    requests = [continuation_request("The cat", assistant.tokenizer, GREEDY)]
    with pytest.raises(MemoryError):
        next(decode_batch(assistant.runtime, assistant.tokenizer, requests))
