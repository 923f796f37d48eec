"""Speculative decoding: the drafts, and texts that are the same with and without them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig, SamplingConfig
from llmcli.generation.drafts import LONGEST, SHORTEST, Drafts
from llmcli.generation.generator import GeneratedText, decode
from llmcli.models.ngram_runtime import NgramRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import random_checkpoint
from tests.generation.fakes import Digits, FakeRuntime
from tests.models.test_ngram_cache import WEIGHTS

LETTERS = Digits(*"abcd")


def copied(ids, most):
    """The draft for a text, by comparing its end with every earlier place."""
    for length in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                text = list(ids)
                for i in range(end, end + min(most, length - 1)):
                    text.append(text[i])
                return text[len(ids) :]
    return []


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 5), st.integers(1, 4))
def test_a_draft_is_what_followed_the_longest_earlier_match(ids, most, step):
    drafts = Drafts()
    for length in range(0, len(ids) + 1, step):
        assert drafts.draft(ids[:length], most) == copied(ids[:length], most)


def decoded(runtime, tokenizer, prompt, sampling):
    """The pieces of a text, and the tokens that the runtime then holds."""
    runtime.rewind()
    text = GeneratedText(tokenizer, prompt, sampling)
    pieces = list(decode(runtime, text))
    return pieces, text.ids


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    context=st.integers(8, 60),
    sampling=st.builds(
        SamplingConfig,
        temperature=st.sampled_from([0.0, 0.3, 1.0]),
        max_tokens=st.integers(0, 40),
        seed=st.integers(0, 5),
        stop=st.sampled_from([(), ("ab",), ("dcb", "a")]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        min_tokens=st.sampled_from([0, 3]),
    ),
)
def test_a_text_is_the_same_with_and_without_drafts(prompt, seed, context, sampling):
    def logits_of(cached):  # by the last two tokens, so that texts repeat themselves
        return np.random.default_rng([seed, *cached[-2:]]).normal(0, 3, 5)

    plain, drafting = (FakeRuntime(context, logits_of, draft_tokens) for draft_tokens in (0, 3))
    assert decoded(drafting, LETTERS, prompt, sampling) == decoded(plain, LETTERS, prompt, sampling)
    assert drafting.cached == plain.cached
    assert drafting.evaluations <= plain.evaluations


def test_a_repetitive_text_takes_a_quarter_of_the_evaluations():
    runtime = FakeRuntime(1000, lambda cached: 50 * np.eye(5)[cached[-1] % 4 + 1], draft_tokens=3)
    pieces, _ = decoded(runtime, LETTERS, [1, 2, 3, 4, 1, 2], SamplingConfig(max_tokens=43, temperature=0.0))
    assert "".join(piece.text for piece in pieces) == "cdab" * 10 + "cda"
    assert runtime.evaluations == 1 + 1 + 40 / 4  # the prompt gives one token, a draft of one two, the others four


def test_a_network_and_its_ngram_cache_are_as_without_drafts():
    model = random_checkpoint(ModelConfig(5, 64, 96, 2, 4, 2, 16, 48))
    sampling = SamplingConfig(max_tokens=60, temperature=0.5, seed=3)
    runtimes = [NgramRuntime(NumpyRuntime(model), WEIGHTS) for _ in range(2)]
    assert runtimes[0].draft_tokens == 0  # the model is small
    runtimes[1].draft_tokens = 3
    (plain, ids), (drafting, drafted_ids) = (decoded(r, LETTERS, [1, 2, 1, 2, 3], sampling) for r in runtimes)
    assert drafted_ids == ids
    np.testing.assert_allclose([p.logprob for p in drafting], [p.logprob for p in plain], rtol=1e-4, atol=1e-5)
    assert runtimes[0].length == runtimes[1].length
    assert vars(runtimes[1].cache) == vars(runtimes[0].cache)  # the text, and what followed its contexts
