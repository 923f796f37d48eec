"""Probabilities of given texts, compared with sums over all token sequences and with plain forward passes."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError
from llmcli.formats.loading import load_any, open_chat_template, open_tokenizer
from llmcli.generation import choices as module
from llmcli.generation.chat import open_assistant
from llmcli.generation.choices import ScoredText, ranked, score_continuations
from llmcli.generation.token_healing import Prompt
from llmcli.models.ngram_runtime import NgramRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Runtime
from tests.cli.commands.test_chat import write_chat_model
from tests.generation.fakes import Table
from tests.generation.test_token_healing import PROMPTS, TABLE, TOKENS, Model, all_texts, factor
from tests.models.test_ngram_cache import WEIGHTS

CHOICES = ["a", "ba", " b", ".", "b.", "ab a"]
MESSAGES = [Message("user", "What did the cat do?")]
ANSWERS = ["The cat sat", "りんごを食べる。", "The", "qx🍎 z"]


def in_batches(batches: Iterable[list[ScoredText]]) -> list[ScoredText]:
    return [*itertools.chain.from_iterable(batches)]


def probability(seed: int, prompt: str, continuation: str) -> float:
    """The weight of all sequences that spell the prompt and begin the rest with the continuation, as a share of those
    that spell the prompt."""
    known = Prompt.of(prompt, TABLE)  # type: ignore[arg-type]
    tail = b"".join(TOKENS[token] for token in known.tail)
    totals = {b"": 0.0, continuation.encode(): 0.0}
    for path, share in all_texts(seed, known.head, tail).items():
        rest = b"".join(TOKENS[token] for token in path)[len(tail) :]
        for beginning in totals:
            totals[beginning] += share * factor(prompt, rest) * rest.startswith(beginning)
    return totals[continuation.encode()] / totals[b""]


def test_continuations_have_the_probability_of_all_sequences_that_spell_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the prompt ends inside a word, and a token crosses its end; weighted as in generation."""
    monkeypatch.setattr(module, "default_evaluations", lambda runtime: 10_000)
    monkeypatch.setattr(module, "NEGLIGIBLE", 0.0)
    for seed, prompt in itertools.product(range(2), PROMPTS):
        known = Prompt.of(prompt, TABLE)  # type: ignore[arg-type]
        for choice in in_batches(score_continuations(Model(seed), TABLE, known, CHOICES)):  # type: ignore[arg-type]
            expected = probability(seed, prompt, choice.text)
            assert choice.probability == pytest.approx(expected, rel=1e-4), (seed, prompt)


def test_few_evaluations_miss_little() -> None:
    """With the default number, the probability is a lower bound near the sum."""
    known = Prompt.of("b a", TABLE)  # type: ignore[arg-type]
    for choice in in_batches(score_continuations(Model(3), TABLE, known, CHOICES)):  # type: ignore[arg-type]
        assert 0.8 < choice.probability / probability(3, "b a", choice.text) < 1.05


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory):
    return load_any(write_chat_model(tmp_path_factory.mktemp("chat") / "chat.safetensors"))


@pytest.fixture
def assistant(chat_model):
    return open_assistant(chat_model, open_runtime(chat_model, "cpu", None), open_tokenizer(chat_model))


def test_an_answer_has_the_probability_of_a_plain_forward_pass(chat_model, assistant) -> None:
    """Over the conversation as in training: the answer's tokens, then either token that ends it."""
    runtime, tokenizer = open_runtime(chat_model, "cpu", None), open_tokenizer(chat_model)
    template = open_chat_template(chat_model, tokenizer)
    for choice in assistant.score(MESSAGES, ANSWERS):
        ids, loss_mask = template.encode_conversation([*MESSAGES, Message("assistant", choice.text)])
        learned = np.flatnonzero(loss_mask)
        assert choice.tokens == len(learned)
        totals = []
        for end in template.stop_ids:
            losses = runtime.score(np.array([[*ids[: learned[-1]], end]]))[0][0]
            totals.append(-losses[learned[0] - 1 :].sum(dtype=np.float64))
        assert len(totals) == 2
        assert choice.logprob == pytest.approx(np.logaddexp.reduce(totals), abs=1e-4)


WORDS = ["The cat", "The cat sat", " sat on", "りんご", "を食べる。", "x", "q" * 40, "The", "t on the mat. The cat"]


@pytest.fixture(scope="module")
def runtimes(chat_model) -> dict[str, Runtime]:
    network = NumpyRuntime(chat_model)
    return {"network": network, "n-gram cache": NgramRuntime(network.fork(), WEIGHTS)}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=9, unique=True),
    st.sampled_from(["The cat sat. The ca", "", "りんご", "The cat sat on the mat. " * 9]),
    st.sampled_from([1, 12, module.BATCH_TOKENS]),
    st.sampled_from(["network", "n-gram cache"]),
)
def test_choices_together_have_the_probabilities_of_each_alone(runtimes, chat_model, choices, prompt, batch, kind):
    """Answers to a conversation and continuations of a text, in batches of any size."""
    runtime, tokenizer = runtimes[kind], open_tokenizer(chat_model)
    assistant, known = open_assistant(chat_model, runtime.fork(), tokenizer), Prompt.of(prompt, tokenizer)
    messages = [Message("user", prompt or "?")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_TOKENS", batch)
        answered = assistant.score(messages, choices)
        continued = in_batches(score_continuations(runtime.fork(), tokenizer, known, choices))
    for choice, *scored in zip(choices, answered, continued, strict=True):
        [answer] = open_assistant(chat_model, runtime.fork(), tokenizer).score(messages, [choice])
        [continuation] = in_batches(score_continuations(runtime.fork(), tokenizer, known, [choice]))
        for one, alone in zip(scored, (answer, continuation), strict=True):
            assert (one.text, one.tokens) == (alone.text, alone.tokens)
            assert one.logprob == pytest.approx(alone.logprob, abs=1e-3)


def test_probabilities_of_choices_sum_to_1() -> None:
    rows = ranked([ScoredText("a", -1000.0, 1), ScoredText("b", -1000.0 + math.log(3), 1), ScoredText("c", -1e9, 1)])
    assert [choice.text for choice, _ in rows] == ["b", "a", "c"]
    assert [probability for _, probability in rows] == pytest.approx([0.75, 0.25, 0.0])


def test_a_choice_longer_than_the_context_is_one_clear_error(assistant) -> None:
    with pytest.raises(LLMError, match=r"the choice 'x+…? has 300 tokens after 2\d of the prompt, and the context"):
        assistant.score(MESSAGES, ["yes", "x" * 300])
    assert assistant.score(MESSAGES, ["yes"])[0].tokens > 1
    known = Prompt.of("b a", TABLE)  # type: ignore[arg-type]
    with pytest.raises(LLMError, match="has 10 tokens after 1 of the prompt, and the context length is 10"):
        list(score_continuations(Model(0, context=10), TABLE, known, ["a", "." * 10]))  # type: ignore[arg-type]


def test_a_space_that_the_tokenizer_puts_before_a_text_is_no_part_of_a_continuation() -> None:
    """As in SentencePiece: the same probabilities as with a tokenizer that adds none."""

    class Prefixing(Table):
        def encode(self, text: str) -> list[int]:
            return super().encode(f" {text}") if text else []

    known = Prompt([3], [4])
    found = in_batches(score_continuations(Model(1), Prefixing(*TOKENS[1:]), known, CHOICES))  # type: ignore[arg-type]
    expected = in_batches(score_continuations(Model(1), TABLE, known, CHOICES))  # type: ignore[arg-type]
    assert [choice.logprob for choice in found] == pytest.approx([choice.logprob for choice in expected], abs=0.05)
