"""The steps of generation: choices are those of `generate`, candidates those of a softmax computed here."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation import trace as trace_module
from llmcli.generation.generator import generate
from llmcli.generation.token_healing import Prompt, read_prompt
from llmcli.generation.trace import TraceStep, trace
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import TEXT, random_checkpoint
from tests.generation.fakes import Digits, FakeRuntime

TOKENIZER = Tokenizer.train_bpe([TEXT], 300)
CONFIG = ModelConfig(300, 32, 64, 2, 4, 2, 8, 32)
ALLOWED = TOKENIZER.vocabulary.allowed()


def traced(prompt: str, literal: bool = True, candidates: int = 5, **values: float) -> tuple[list[TraceStep], str]:
    """(the steps, the text that `generate` gives with the same options)"""
    sampling = SamplingConfig(**{"max_tokens": 6, "seed": 3, **values})  # type: ignore[arg-type]
    runtime = NumpyRuntime(random_checkpoint(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "SHOWN", candidates)
        steps = list(trace(runtime, TOKENIZER, prompt, sampling, literal=literal))
    pieces = list(generate(runtime, TOKENIZER, prompt, sampling, literal=literal))
    assert [piece.id for piece in pieces if piece.id is not None] == [step.chosen.id for step in steps]
    for piece, step in zip(pieces, steps, strict=False):
        assert step.chosen.probability == pytest.approx(math.exp(piece.logprob), rel=1e-5)
    return steps, "".join(piece.text for piece in pieces[:-1])


def test_steps_choose_the_tokens_of_generate() -> None:
    for literal in [True, False]:
        for values in [{}, {"temperature": 0.0}, {"top_k": 4, "top_p": 0.7}, {"repetition_penalty": 1.5}]:
            steps, text = traced("The cat sat", literal, **values)
            assert "".join(step.text for step in steps) == text, (literal, values)
            assert any(step.retokenized for step in steps) is not literal, (literal, values)


def test_steps_are_those_of_their_pieces_when_a_draft_is_right() -> None:
    runtime = FakeRuntime(1000, lambda cached: 50 * np.eye(5)[cached[-1] % 4 + 1], draft_tokens=3)
    steps = list(trace(runtime, Digits(*"abcd"), "123412", SamplingConfig(max_tokens=9, temperature=0.0)))
    assert "".join(step.text for step in steps) == "cdabcdabc"
    assert [step.chosen.id for step in steps] == [3, 4, 1, 2, 3, 4, 1, 2, 3]
    assert runtime.evaluations < 5


def test_probabilities_and_removals_are_those_of_the_definition() -> None:
    [step], _ = traced("The dog", max_tokens=1, temperature=0.5, top_k=20, top_p=0.8, min_p=0.0, candidates=300)
    logits = NumpyRuntime(random_checkpoint(CONFIG)).prefill(TOKENIZER.encode("The dog")).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    own = np.where(ALLOWED, probabilities, 0)
    assert [c.id for c in step.candidates] == np.argsort(-own)[: ALLOWED.sum()].tolist()
    own = own[ALLOWED]
    shares = own / own.sum()
    assert step.entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-4)
    np.testing.assert_allclose([c.probability for c in step.candidates], np.sort(own)[::-1], rtol=1e-4)
    squared = np.sort(own**2)[::-1][:20]  # temperature 0.5 squares probabilities
    kept = int(np.searchsorted(np.cumsum(squared / squared.sum()), 0.8)) + 1
    assert step.remaining == kept
    assert [(name, tokens) for name, tokens, _ in step.removals] == [
        ("top-k", len(own) - 20),
        ("top-p", 20 - kept),
    ]
    assert step.removals[0][2] == pytest.approx(np.sort(own)[:-20].sum(), rel=1e-4)
    sampling = [c.sampling_probability for c in step.candidates]
    np.testing.assert_allclose(sampling[:kept], squared[:kept] / squared[:kept].sum(), rtol=1e-4)
    assert not any(sampling[kept:])
    expected = [None] * kept + ["top-p"] * (20 - kept) + ["top-k"] * (len(own) - 20)
    assert [c.removed_by for c in step.candidates] == expected


def test_the_entropy_of_allowed_tokens_does_not_depend_on_how_unlikely_they_are() -> None:
    sampler = trace_module._RecordingSampler(SamplingConfig())
    logits = np.array([-np.inf, -200, -200], np.float32)  # a grammar excludes the first token
    sampler(logits, model_logits=np.array([0, -200, -200], np.float32))
    assert sampler.steps[0].entropy == 1


def test_at_temperature_0_one_token_remains() -> None:
    steps, _ = traced("The dog", temperature=0.0)
    assert all(step.remaining == 1 and not step.removals and step.chosen == step.candidates[0] for step in steps)
    assert [c.sampling_probability for c in steps[0].candidates] == [1, 0, 0, 0, 0]


def test_the_first_step_sums_over_tokenizations_of_the_last_word() -> None:
    steps, _ = traced("The do", literal=False, candidates=300)
    assert [step.retokenized for step in steps] == [True] + [False] * 5
    first = read_prompt(NumpyRuntime(random_checkpoint(CONFIG)), TOKENIZER, Prompt.of("The do", TOKENIZER))
    expected = {"".join(map(str, continuation.tokens[-1:])) for continuation in first.continuations(0)}
    assert {str(c.id) for c in steps[0].candidates} <= expected
    assert sum(c.probability for c in steps[0].candidates) == pytest.approx(1, abs=1e-5)
    assert sum(c.sampling_probability for c in steps[0].candidates) == pytest.approx(1, abs=1e-5)


def test_the_end_of_the_document_can_be_chosen() -> None:
    model = random_checkpoint(CONFIG)
    model.tensors["model.norm.weight"][:] = 0
    steps = list(
        trace(NumpyRuntime(model), TOKENIZER, "a", SamplingConfig(max_tokens=9, temperature=0.0), literal=True)
    )
    assert [(step.chosen.id, step.text, step.finish_reason) for step in steps] == [(0, "", "stop")]


@pytest.mark.slow
def test_the_output_fits_the_terminal_and_gives_reasons(tiny_model: Path) -> None:
    shown = STYLES.sub("", in_a_terminal("generate", "りんごを\x1b[31m食べる", "--steps", "3", "-k", "5", "--literal"))
    assert len(re.findall(r"top-k 5 removes \d+ tokens", shown)) == 3 and shown.count("→") == 3
    assert "sampled from 5" in shown
    assert "␛[31m" in shown and "\x1b" not in shown
    from rich.cells import cell_len

    assert all(cell_len(line.rstrip()) <= 80 for line in shown.splitlines())

    shown = STYLES.sub("", in_a_terminal("generate", "The cat", "--next", "3"))
    assert "The cat…" in shown and "█" in shown and "next word: entropy at least" in shown and "perplexity" in shown
