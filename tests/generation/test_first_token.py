"""What may come first after a prompt, held against a sum over every token sequence of a tiny vocabulary."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest

from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.data.vocabulary import Vocabulary
from llmcli.generation import first_token
from llmcli.generation import prompt as prompt_module
from llmcli.generation.first_token import CONTINUE_WORD_FACTOR, read_prompt
from llmcli.generation.generator import generate
from llmcli.generation.next_words import next_words
from llmcli.generation.prompt import Prompt
from llmcli.generation.sampler import Sampler
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.logits import softmax
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import TEXT, random_checkpoint
from tests.generation.test_next_words import reference_word

TOKENS = [b"", b"\n", b" ", b"a", b"b", b" a", b"ab", b"ba", b" ab", b"aba", b".", b" b", b"b."]
LENGTH = 5  # tokens after which every text ends


class Table:
    """A tokenizer of these tokens; the longest that fit are taken. The last word is what follows the last space."""

    eos_ids, bos_ids, token_bytes, vocabulary = frozenset({0}), [], TOKENS, Vocabulary(TOKENS)

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            ids.append(max((i for i, t in enumerate(TOKENS) if t and data.startswith(t)), key=lambda i: len(TOKENS[i])))
            data = data[len(TOKENS[ids[-1]]) :]
        return ids

    def split_last_word(self, text: str) -> tuple[str, str]:
        cut = max(0, text.rfind(" "))
        return text[:cut], text[cut:]


@lru_cache(maxsize=100_000)
def row(seed: int, taken: tuple[int, ...]) -> np.ndarray:
    """The probabilities of the token after others; in the end that of the end is 1."""
    if len(taken) >= LENGTH:
        return np.eye(len(TOKENS))[0]
    return np.random.default_rng([seed, *taken]).dirichlet(np.full(len(TOKENS), 0.6)).clip(1e-9)


class Model:
    """A runtime of which every probability is known; counts how often it is evaluated."""

    parameters = 1

    def __init__(self, seed: int, context: int = 50) -> None:
        self.seed, self.context, self.evaluations = seed, context, 0
        self.taken: list[int] = []

    @property
    def length(self) -> int:
        return len(self.taken)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        return self.logits(ids)[-1]

    def step(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        assert self.length + len(ids) <= self.context
        self.evaluations += 1
        rows = []
        for token in ids:
            self.taken.append(token)
            with np.errstate(divide="ignore"):
                rows.append((np.log(row(self.seed, tuple(self.taken))) + 2).astype(np.float32))
        return np.stack(rows)

    def rewind(self, length: int = 0) -> None:
        del self.taken[length:]


def every_text(seed: int, head: list[int], tail: bytes) -> dict[tuple[int, ...], float]:
    """Each whole token sequence after the head whose bytes begin with the tail, and its probability."""
    found: dict[tuple[int, ...], float] = {}

    def walk(path: tuple[int, ...], data: bytes, chance: float) -> None:
        chances = row(seed, (*head, *path))
        chances = chances / chances.sum()
        for token, share in enumerate(chances):
            if token == 0:
                if len(data) >= len(tail):
                    found[path] = chance * share
                continue
            new = data + TOKENS[token]
            if share > 0 and (new.startswith(tail) or tail.startswith(new)):
                walk((*path, token), new, chance * share)

    walk((), b"", 1.0)
    return found


def weight(prompt: str, rest: bytes) -> float:
    return CONTINUE_WORD_FACTOR if prompt[-1].isalnum() and rest[:1].isalnum() else 1.0


PROMPTS = ["b a", " ab", "b aba", ". a b", "a ", "b.", "a ba"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.slow
def test_words_and_first_tokens_are_those_of_the_sum_over_every_sequence(prompt: str, seed: int) -> None:
    known = Prompt.of(prompt, Table())  # type: ignore[arg-type]
    tail = b"".join(TOKENS[token] for token in known.tail)
    words: dict[str, float] = defaultdict(float)
    firsts: dict[bytes, float] = defaultdict(float)
    for path, chance in every_text(seed, known.head, tail).items():
        data = b"".join(TOKENS[token] for token in path)
        rest = data[len(tail) :]
        chance *= weight(prompt, rest)
        words[reference_word(rest.decode())] += chance
        end = next((n for n in itertools.accumulate(len(TOKENS[t]) for t in path) if n > len(tail)), len(tail))
        firsts[data[len(tail) : end]] += chance
    total = sum(words.values())

    found = next_words(Model(seed), Table(), prompt, 100_000)  # type: ignore[arg-type]
    shares: dict[str, float] = defaultdict(float)
    for word in found.words:
        shares[word.text] += word.probability
    assert found.unexplored < 1e-3
    for text, chance in words.items():
        assert chance / total - found.unexplored - 1e-6 <= shares[text] <= chance / total + 1e-6

    first = read_prompt(Model(seed), Table(), known, max_evaluations=100_000, negligible=0)  # type: ignore[arg-type]
    chosen = softmax(first.logits.astype(np.float64))
    said: dict[bytes, float] = defaultdict(float)
    for entry in np.flatnonzero(chosen):
        said[first.continuations_of(int(entry))[0].new_bytes] += chosen[entry]
    assert said == pytest.approx({text: chance / total for text, chance in firsts.items() if chance}, abs=1e-6)
    assert sum(way.probability for way in first.continuations(0)) == pytest.approx(1)
    assert first.unexplored == 0


@pytest.mark.parametrize("prompt", PROMPTS)
def test_sampling_and_next_agree(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chance that sampling at temperature 1 comes to a word, followed token by token, is what --next says."""
    monkeypatch.setattr("llmcli.generation.next_words.MAX_UNEXPLORED", 1e-9)
    monkeypatch.setattr("llmcli.generation.next_words.MIN_PROBABILITY", 1e-14)
    for seed in range(4):
        words: dict[str, float] = defaultdict(float)
        known = Prompt.of(prompt, Table())  # type: ignore[arg-type]
        first = read_prompt(Model(seed), Table(), known, max_evaluations=10**5, negligible=0)  # type: ignore[arg-type]

        def follow(
            path: tuple[int, ...],
            new: bytes,
            chance: float,
            words: dict[str, float] = words,
            start: tuple[int, ...] = tuple(known.head),
            seed: int = seed,
        ) -> None:
            if path[-1] == 0 or re.match(rb" *(\n|\.|\w+\W)", new):
                words[reference_word(new.decode())] += chance
                return
            chances = row(seed, (*start, *path))
            for token in np.flatnonzero(chances).tolist():
                follow((*path, token), new + TOKENS[token], chance * chances[token] / chances.sum())

        chosen = softmax(first.logits.astype(np.float64))
        for entry in np.flatnonzero(chosen).tolist():
            ways = first.continuations_of(entry)
            for way in ways:
                share = way.probability / sum(way.probability for way in ways)
                follow(way.tokens, way.new_bytes, chosen[entry] * share)
        shares: dict[str, float] = defaultdict(float)
        for word in next_words(Model(seed), Table(), prompt, 100_000).words:  # type: ignore[arg-type]
            shares[word.text] += word.probability
        assert {text for text, chance in words.items() if chance > 1e-6} <= set(shares)
        for text, chance in words.items():
            assert shares[text] == pytest.approx(chance, abs=1e-6)


def test_drawn_texts_have_the_frequencies_of_the_sum() -> None:
    prompt, seed, counts = "b a", 1, defaultdict(int)
    first = read_prompt(Model(seed), Table(), Prompt.of(prompt, Table()))  # type: ignore[arg-type]
    ways = {way.tokens: way.probability for way in first.continuations(0)}
    sampler = Sampler(SamplingConfig(temperature=1.0, min_p=0.0, seed=3))
    for _ in range(4000):
        entry, _ = sampler(first.logits, tokens=first.tokens)
        found = first.continuations_of(entry)
        counts[found[sampler.choose([way.probability for way in found])].tokens] += 1
    for tokens, chance in ways.items():
        assert counts[tokens] / 4000 == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 4000) + 1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_model_holds_prompt_and_answer_whatever_way_was_taken(prompt: str, seed: int) -> None:
    for draw in range(6):
        model = Model(seed)
        pieces = list(generate(model, Table(), prompt, SamplingConfig(max_tokens=3, seed=draw, temperature=1.5)))  # type: ignore[arg-type]
        last = [piece.id for piece in pieces if piece.id is not None]
        held = model.taken + (last[-1:] if pieces[-1].finish_reason == "length" else [])
        line = "" if prompt.rfind(" ") > 0 else "\n"
        assert b"".join(TOKENS[token] for token in held).decode() == line + prompt + "".join(p.text for p in pieces)


def test_at_temperature_0_the_text_with_the_highest_sum_is_taken() -> None:
    """Of the ways to go on none is likelier than " a" + ".", but " ab" and " a" + "b" both write "b"."""
    chances = {(5,): {10: 0.5, 4: 0.5}, (): {5: 0.5, 8: 0.3, 9: 0.2}}
    rows = {path: np.array([after.get(t, 1e-12) for t in range(len(TOKENS))]) for path, after in chances.items()}

    class Small(Model):
        def logits(self, ids: Sequence[int]) -> np.ndarray:
            self.taken += ids
            taken = [tuple(self.taken[1 : len(self.taken) - n]) for n in reversed(range(len(ids)))]
            return np.stack([np.log(rows.get(t, np.eye(len(TOKENS))[0] + 1e-12)) for t in taken]).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_token, "CONTINUE_WORD_FACTOR", 1.0)
        pieces = list(generate(Small(0), Table(), "b a", SamplingConfig(max_tokens=1, temperature=0.0)))  # type: ignore[arg-type]
    assert (pieces[0].id, pieces[0].text) == (8, "b")
    assert pieces[0].logprob == pytest.approx(math.log(0.3 + 0.25) - math.log(0.8), abs=1e-5)


# ---- the work it takes


@pytest.mark.parametrize("most", [2, 3, 10])
def test_the_model_is_evaluated_no_more_often_than_allowed(most: int) -> None:
    model = Model(0)
    first = read_prompt(model, Table(), Prompt.of("b abab", Table()), max_evaluations=most, negligible=0)  # type: ignore[arg-type]
    assert model.evaluations == first.evaluations <= most
    full = read_prompt(Model(0), Table(), Prompt.of("b abab", Table()), max_evaluations=1000, negligible=0)  # type: ignore[arg-type]
    for way in first.continuations(0):  # what was found is a lower bound
        true = {w.tokens: w.probability for w in full.continuations(0)}[way.tokens]
        assert way.probability * (1 - first.unexplored) <= true + 1e-9


@pytest.mark.parametrize(
    ("parameters", "most"), [(10**6, 2 + first_token.MAX_EVALUATIONS), (135 * 10**6, 3), (10**9, 2)]
)
def test_a_large_model_is_evaluated_less_often(parameters: int, most: int) -> None:
    class Large(Model):
        pass

    Large.parameters = parameters
    model = Large(0)
    read_prompt(model, Table(), Prompt.of("b abab", Table()), negligible=0)  # type: ignore[arg-type]
    assert model.evaluations == most


@pytest.mark.parametrize("most", [5, 20, 50])
def test_next_keeps_its_limit_after_a_very_long_word_and_says_what_is_unexplored(most: int) -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    runtime = NumpyRuntime(random_checkpoint(ModelConfig(300, 32, 64, 2, 4, 2, 8, 256)))
    calls = [0]
    for name in ("prefill", "logits", "step"):
        inner = getattr(runtime, name)
        if name != "step":
            setattr(runtime, name, lambda ids, inner=inner: (calls.__setitem__(0, calls[0] + 1), inner(ids))[1])
    found = next_words(runtime, tokenizer, "The dog ate " + 150 * "q", most)
    assert calls[0] == found.evaluations <= most
    assert sum(word.probability for word in found.words) + found.unexplored == pytest.approx(1, abs=1e-6)
    assert found.words or found.unexplored == 1


def test_a_literal_prompt_costs_one_evaluation_and_gives_the_models_own_logits() -> None:
    model = Model(0)
    first = read_prompt(model, Table(), Prompt.of("b a", Table(), literal=True))  # type: ignore[arg-type]
    assert model.evaluations == 1 and first.tokens is None
    assert first.model_logits is not None and np.array_equal(
        first.model_logits, Model(0).prefill(Table().encode("b a"))
    )


def test_of_a_long_prompt_the_end_is_read() -> None:
    for context in range(1, 12):
        for room in (0, 2, 20):
            model = Model(0, context)
            read_prompt(model, Table(), Prompt.of("ab. ab. ab. ab abab", Table()), reserve=room)  # type: ignore[arg-type]
            assert 1 <= model.length <= context


# ---- other models


def test_a_mixture_reads_a_prompt_like_one_model_when_its_models_are_the_same() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    model = random_checkpoint(ModelConfig(300, 32, 64, 2, 4, 2, 8, 32))
    known = Prompt.of("The dog", tokenizer)
    one = read_prompt(NumpyRuntime(model), tokenizer, known, max_evaluations=50, negligible=1e-6)
    both = read_prompt(
        EnsembleRuntime([NumpyRuntime(model), NumpyRuntime(model)]),
        tokenizer,
        known,
        max_evaluations=50,
        negligible=1e-6,
    )
    np.testing.assert_allclose(softmax(both.logits), softmax(one.logits), atol=1e-5)


def test_the_last_tokens_of_a_word_are_split_anew_and_nothing_before_it() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    for text in ["The cat", "The ca", "The cat ", "T", "りんごを食べ", "The zzzzzzzz", "a\n\n", "don't"]:
        known = Prompt.of(text, tokenizer)
        before, word = tokenizer.split_last_word(text)
        assert len(known.tail) <= prompt_module.RETOKENIZED and known.head
        assert word.encode().endswith(tokenizer.decode_bytes(known.tail))
        assert tokenizer.decode(known.ids) == ("" if before else "\n") + text
        assert known.tail, text
