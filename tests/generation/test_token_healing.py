"""Prompts as tokens, and the first token after them, compared with a sum over all sequences of a tiny vocabulary."""

import itertools
import math
from collections import defaultdict
from functools import lru_cache

import numpy as np
import pytest

from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation import next_words as search
from llmcli.generation import token_healing
from llmcli.generation.generator import generate
from llmcli.generation.next_words import NextWords, next_words
from llmcli.generation.sampler import Sampler
from llmcli.generation.token_healing import CONTINUE_WORD_FACTOR, MAX_TAIL_TOKENS, Prompt, read_prompt
from llmcli.models.logits import softmax
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import TEXT, random_checkpoint
from tests.generation.fakes import FakeRuntime, Table
from tests.generation.test_next_words import reference_word

TOKENS = [b"", b"\n", b" ", b"a", b"b", b" a", b"ab", b"ba", b" ab", b"aba", b".", b" b", b"b."]
MAX_TOKENS = 5  # every text ends after so many


TABLE = Table(*TOKENS[1:])


@lru_cache(maxsize=100_000)
def next_token(seed: int, cached: tuple[int, ...]) -> np.ndarray:
    """The probabilities [V] of the token after others; after MAX_TOKENS the text ends."""
    if len(cached) >= MAX_TOKENS:
        return np.eye(len(TOKENS))[0]
    return np.random.default_rng([seed, *cached]).dirichlet(np.full(len(TOKENS), 0.6)).clip(1e-9)


class Model(FakeRuntime):
    """A runtime with known probabilities."""

    def __init__(self, seed: int, context: int = 50) -> None:
        def logits_of(cached: tuple[int, ...]) -> np.ndarray:
            with np.errstate(divide="ignore"):
                return np.log(next_token(seed, cached)) + 2

        super().__init__(context, logits_of)


def all_texts(seed: int, head: list[int], tail: bytes) -> dict[tuple[int, ...], float]:
    """The probability of every complete token sequence after the head whose bytes begin with the tail."""
    texts: dict[tuple[int, ...], float] = {}

    def visit(path: tuple[int, ...], data: bytes, probability: float) -> None:
        probabilities = next_token(seed, (*head, *path))
        probabilities = probabilities / probabilities.sum()
        for token, share in enumerate(probabilities):
            if token == 0:
                if len(data) >= len(tail):
                    texts[path] = probability * share
                continue
            new = data + TOKENS[token]
            if share > 0 and (new.startswith(tail) or tail.startswith(new)):
                visit((*path, token), new, probability * share)

    visit((), b"", 1.0)
    return texts


def factor(prompt: str, rest: bytes) -> float:
    return CONTINUE_WORD_FACTOR if prompt[-1].isalnum() and rest[:1].isalnum() else 1.0


def all_next_words(seed: int, prompt: str) -> NextWords:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "max_evaluations", lambda parameters: 100_000)
        return next_words(Model(seed), TABLE, prompt)  # type: ignore[arg-type]


PROMPTS = ["b a", " ab", "b aba", ". a b", "a ", "b.", "a ba"]


@pytest.mark.slow
def test_words_and_first_tokens_are_those_of_the_sum_over_all_sequences() -> None:
    for case in itertools.product(range(2), PROMPTS):
        seed, prompt = case
        known = Prompt.of(prompt, TABLE)  # type: ignore[arg-type]
        tail = b"".join(TOKENS[token] for token in known.tail)
        words: dict[tuple[str, bool], float] = defaultdict(float)
        firsts: dict[bytes, float] = defaultdict(float)
        for path, probability in all_texts(seed, known.head, tail).items():
            data = b"".join(TOKENS[token] for token in path)
            rest = data[len(tail) :]
            probability *= factor(prompt, rest)
            words[reference_word(rest.decode()), factor(prompt, rest) != 1] += probability
            end = next((n for n in itertools.accumulate(len(TOKENS[t]) for t in path) if n > len(tail)), len(tail))
            firsts[data[len(tail) : end]] += probability
        total = sum(words.values())

        found = all_next_words(seed, prompt)
        shares: dict[tuple[str, bool], float] = defaultdict(float)
        for word in found.words:
            shares[word.text, word.continues] += word.probability
        assert found.unexplored < 1e-3, case
        for word, probability in words.items():
            assert probability / total - found.unexplored - 1e-6 <= shares[word] <= probability / total + 1e-6, case

        first = read_prompt(Model(seed), TABLE, known, max_evaluations=100_000, negligible=0)  # type: ignore[arg-type]
        chosen = softmax(first.logits.astype(np.float64))
        first_texts: dict[bytes, float] = defaultdict(float)
        for entry in np.flatnonzero(chosen):
            first_texts[first.continuations_of(int(entry))[0].new_bytes] += chosen[entry]
        assert first_texts == pytest.approx({text: p / total for text, p in firsts.items() if p}, abs=1e-6), case
        assert sum(continuation.probability for continuation in first.continuations(0)) == pytest.approx(1), case
        assert first.unexplored == 0, case


def test_drawn_texts_have_the_frequencies_of_the_sum() -> None:
    prompt, seed, counts = "b a", 1, defaultdict(int)
    first = read_prompt(Model(seed), TABLE, Prompt.of(prompt, TABLE))  # type: ignore[arg-type]
    continuations = {continuation.tokens: continuation.probability for continuation in first.continuations(0)}
    sampler = Sampler(SamplingConfig(temperature=1.0, min_p=0.0, seed=3))
    for _ in range(4000):
        entry, _ = sampler(first.logits, tokens=first.tokens)
        found = first.continuations_of(entry)
        counts[found[sampler.choose([continuation.probability for continuation in found])].tokens] += 1
    for tokens, p in continuations.items():
        assert counts[tokens] / 4000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000) + 1e-3)


def test_at_temperature_0_the_text_with_the_highest_sum_is_chosen() -> None:
    """No continuation is more likely than " a" + ".", but " ab" and " a" + "b" both add "b"."""
    probabilities = {(5,): {10: 0.5, 4: 0.5}, (): {5: 0.5, 8: 0.3, 9: 0.2}}
    rows = {path: np.array([after.get(t, 1e-12) for t in range(len(TOKENS))]) for path, after in probabilities.items()}

    end = np.eye(len(TOKENS))[0] + 1e-12
    model = FakeRuntime(50, lambda cached: np.log(rows.get(cached[1:], end)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_healing, "CONTINUE_WORD_FACTOR", 1.0)
        pieces = list(generate(model, TABLE, "b a", SamplingConfig(max_tokens=1, temperature=0.0)))  # type: ignore[arg-type]
    assert (pieces[0].id, pieces[0].text) == (8, "b")
    assert pieces[0].logprob == pytest.approx(math.log(0.3 + 0.25) - math.log(0.8), abs=1e-5)


def test_the_tail_of_a_prompt_lies_in_its_last_word() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    for text in ["The cat", "The ca", "The cat ", "T", "りんごを食べ", "The zzzzzzzz", "a\n\n", "don't"]:
        prompt = Prompt.of(text, tokenizer)
        before, word = tokenizer.split_last_word(text)
        assert len(prompt.tail) <= MAX_TAIL_TOKENS and prompt.head
        assert word.encode().endswith(tokenizer.decode_bytes(prompt.tail))
        assert tokenizer.decode(prompt.ids) == ("" if before else "\n") + text
        assert prompt.tail, text


def test_only_letters_and_digits_at_the_end_may_continue() -> None:
    for text, in_word in [("The ca", True), ("The ", False), ("3", True), ("りんご", False)]:
        assert Prompt.of(text, Tokenizer.train_bpe([TEXT], 300)).in_word is in_word, (text, in_word)


def test_an_empty_prompt_is_what_begins_a_text() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    assert Prompt.of("", tokenizer) == Prompt(tokenizer.encode("\n"))
    assert Prompt.of("", tokenizer, literal=True) == Prompt(tokenizer.encode("\n"))
    assert Prompt.of("", tokenizer.for_model(b"ab")) == Prompt([tokenizer.bos_id])


def test_the_model_is_evaluated_no_more_often_than_allowed() -> None:
    for limit in [2, 3, 10]:
        model = Model(0)
        first = read_prompt(model, TABLE, Prompt.of("b abab", TABLE), max_evaluations=limit, negligible=0)  # type: ignore[arg-type]
        assert model.evaluations == first.search.evaluations <= limit, limit
        full = read_prompt(Model(0), TABLE, Prompt.of("b abab", TABLE), max_evaluations=1000, negligible=0)  # type: ignore[arg-type]
        for continuation in first.continuations(0):  # each probability is a lower bound
            exact = {c.tokens: c.probability for c in full.continuations(0)}[continuation.tokens]
            assert continuation.probability * (1 - first.unexplored) <= exact + 1e-9, limit


def test_a_large_model_is_evaluated_less_often() -> None:
    for parameters, limit in [(10**6, 2 + token_healing.MAX_EVALUATIONS), (135 * 10**6, 3), (10**9, 2)]:
        model = Model(0)
        model.parameters = parameters
        read_prompt(model, TABLE, Prompt.of("b abab", TABLE), negligible=0)  # type: ignore[arg-type]
        assert model.evaluations == limit, (parameters, limit)


@pytest.mark.parametrize("limit", [5, 20, 50])
def test_next_words_keeps_its_limit_after_a_very_long_word_and_reports_the_rest(limit: int, monkeypatch) -> None:
    monkeypatch.setattr(search, "max_evaluations", lambda parameters: limit)
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    runtime = NumpyRuntime(random_checkpoint(ModelConfig(300, 32, 64, 2, 4, 2, 8, 256)))
    calls = [0]
    for name in ("prefill", "logits", "continuation_logits"):
        inner = getattr(runtime, name)

        def counting(ids, inner=inner, several=name == "continuation_logits"):
            calls[0] += len(ids) if several else 1
            return inner(ids)

        setattr(runtime, name, counting)
    found = next_words(runtime, tokenizer, "The dog ate " + 150 * "q")
    assert calls[0] == found.evaluations <= limit
    assert sum(word.probability for word in found.words) + found.unexplored == pytest.approx(1, abs=1e-6)
    assert found.words or found.unexplored == 1


def test_a_literal_prompt_takes_one_evaluation_and_gives_the_models_own_logits() -> None:
    model = Model(0)
    first = read_prompt(model, TABLE, Prompt.of("b a", TABLE, literal=True))  # type: ignore[arg-type]
    assert model.evaluations == 1 and first.tokens is None
    assert first.model_logits is not None and np.array_equal(first.model_logits, Model(0).prefill(TABLE.encode("b a")))


def test_the_end_of_a_long_prompt_is_used() -> None:
    for context in range(1, 12):
        for reserve in (0, 2, 20):
            model = Model(0, context)
            read_prompt(model, TABLE, Prompt.of("ab. ab. ab. ab abab", TABLE), reserve=reserve)  # type: ignore[arg-type]
            assert 1 <= model.length <= context
