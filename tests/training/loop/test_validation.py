"""Evaluation of the validation slice and of the held-out text in a run: what they measure, and on how much memory."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcli.config import EVALUATION_CONTEXT, ModelConfig
from llmcli.data.sources import Sources
from llmcli.data.text.corpus import Corpus
from llmcli.data.text.split import CorpusSplit
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.tokens import tokenize
from llmcli.evaluation.evaluator import Score, measure
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models import ngram_cache
from llmcli.models.ngram_runtime import with_ngram_cache
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch.runtime import score
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.inputs import Inputs
from llmcli.training.data.position import Position
from llmcli.training.data.prepare import Prepared
from llmcli.training.data.run_data import RunData
from llmcli.training.loop import final_evaluation, trainer, validation
from llmcli.training.loop.best_weights import BestWeights
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Done
from llmcli.training.loop.final_evaluation import FinalEvaluator, final_evaluation_tokens
from llmcli.training.loop.record import FinalEvaluation, _measured
from llmcli.training.loop.run import Run
from llmcli.training.planning.cost_model import CorpusSize
from llmcli.training.planning.plan import Plan, PlanRequest
from llmcli.training.planning.task import Task
from tests.conftest import random_checkpoint
from tests.models.test_ngram_cache import WEIGHTS
from tests.training.plans import plan
from tests.training.small_runs import LINES, prepared, with_slice

BYTES = Tokenizer.train_bpe(["a"], 261)  # one token for each byte


def run_data(made: Plan, tokenizer: Tokenizer, tokens: np.ndarray, start: Checkpoint | None = None) -> RunData:
    """The data of a run that trains on the tokens of its held-out text."""
    task, text = Task(PlanRequest(), CorpusSize(len(tokens), len(tokens)), tokenizer.vocab_size, 0), Corpus(())
    inputs, split = Inputs(Sources(text, ()), base=start), CorpusSplit(text, text, "")
    return RunData(Prepared(inputs, made, task, tokenizer, split, text, tokens, tokens))


def test_a_model_with_a_long_context_is_evaluated_with_a_shorter_one_that_is_recorded(monkeypatch) -> None:
    config = ModelConfig(300, 16, 32, 1, 1, 1, 16, 131_072)
    model = LanguageModel(config)
    model.initialize(torch.Generator().manual_seed(0))
    base = Checkpoint(config, BYTES.to_json(), model.to_arrays())
    tokens = np.random.default_rng(0).integers(100, 200, size=12_000).astype(np.uint16)
    made = plan(PlanRequest(steps=2, batch_tokens=64), train_tokens=len(tokens), vocab_size=300, base=config)
    lengths = []

    def recorded_score(model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths.append(ids.shape[1] - 1)
        return score(model, ids)

    monkeypatch.setattr(validation, "score_with_torch", recorded_score)
    begun = Run(run_data(made, BYTES, tokens, base), Clock(made.train))
    begun.begin(None)
    *_, done = trainer.train(begun)
    assert isinstance(done, Done) and done.score and done.base_score
    assert max(lengths) == EVALUATION_CONTEXT
    assert done.checkpoint.record.document["held_out_measured"]["context"] == EVALUATION_CONTEXT
    assert (done.base_score.tokens, done.base_score.bytes) == (done.score.tokens, done.score.bytes)


INNER = BYTES._inner
TOKENIZERS = {
    "one token before and after": BYTES,
    "another token before": Tokenizer(INNER, BYTES.kind, bos_token="<|im_start|>"),
    "a space before": Tokenizer(INNER, BYTES.kind, prefix_space="prepend"),
}
DOCUMENTS = [LINES[:130], "Ben.", "", LINES[50:90], LINES[300:345], LINES[200:390]]


@pytest.fixture
def model() -> LanguageModel:
    model = LanguageModel(ModelConfig(BYTES.vocab_size, 32, 64, 2, 4, 2, 8, 32))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def held_out(model: LanguageModel, tokenizer: Tokenizer, eval_tokens: int) -> FinalEvaluator:
    tokens = tokenize(iter([iter([document]) for document in DOCUMENTS]), tokenizer)
    made = plan(PlanRequest(steps=2, batch_tokens=64), train_tokens=9000, vocab_size=261)
    settings = replace(made.train, context=32, eval_tokens=eval_tokens)
    return FinalEvaluator(model, run_data(replace(made, train=settings), tokenizer, tokens), Clock(settings))


def final_score(evaluator: FinalEvaluator, model: LanguageModel) -> tuple[Score, FinalEvaluation]:
    final = evaluator.score_held_out(model.to_arrays(), 0, cache=WEIGHTS)
    assert final.score is not None
    return final.score, final


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("block", [40, 1000])
def test_both_final_figures_are_those_of_llm_eval(model: LanguageModel, name: str, block: int, monkeypatch) -> None:
    """Whatever token precedes a document, and however long the text is: of documents in several blocks of the n-gram
    cache, and of several documents in one."""
    monkeypatch.setattr(ngram_cache, "BLOCK_TOKENS", block)
    monkeypatch.setattr(final_evaluation, "MAX_CACHED_TOKENS", 100)
    tokenizer = TOKENIZERS[name]
    evaluator = held_out(model, tokenizer, eval_tokens=10**6)
    assert evaluator.tokens > 400
    found, final = final_score(evaluator, model)
    network = NumpyRuntime(Checkpoint(model.config, "", model.to_arrays()))
    expected = Score(0.0, 0, 0)
    for document in filter(None, DOCUMENTS):
        expected += measure("it", [document], with_ngram_cache(network, WEIGHTS), tokenizer)
    assert (found.tokens, found.bytes, found.correct) == (expected.tokens, expected.bytes, expected.correct)
    assert found.bytes == sum(len(document.encode()) for document in DOCUMENTS)
    assert found.network_bits_per_byte == pytest.approx(expected.network_bits_per_byte, rel=1e-5)
    assert found.adapting_bits_per_byte == pytest.approx(expected.adapting_bits_per_byte, rel=1e-5)
    assert abs(found.network_bits_per_byte / found.bits_per_byte - 1) > 0.01 and final.cached_tokens == 0


def test_a_sample_of_a_long_text_says_how_much_the_cache_held(model: LanguageModel, monkeypatch) -> None:
    evaluator = held_out(model, BYTES, eval_tokens=100)
    score, final = final_score(evaluator, model)
    assert score.tokens < 200 and final.cached_tokens == 0  # a short text: as it runs
    monkeypatch.setattr(final_evaluation, "MAX_CACHED_TOKENS", 100)
    score, final = final_score(evaluator, model)
    assert score.tokens < 200 and final.cached_tokens == final_evaluation.SAMPLE_CACHE_TOKENS
    measured = _measured(score, final, 32)
    assert measured == {"tokens": score.tokens, "bytes": score.bytes, "cached_tokens": 8192}


def test_calibration_also_measures_the_loss_of_the_calibrated_model(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt")
    model = LanguageModel(ready.plan.model)
    model.load_arrays(random_checkpoint(ready.plan.model).tensors)  # overconfident
    ready = with_slice(ready, 660)
    best = BestWeights(model, RunData(ready), Clock(ready.plan.train), Position(), is_compiled=False)
    _, uncalibrated = best._measure()
    best._calibrates = True
    factor, bits = best._measure()
    assert bits < 0.99 * uncalibrated
    model.logit_factor = factor
    best._calibrates = False
    assert best._measure() == (1.0, pytest.approx(bits, rel=1e-3))


def test_the_text_is_not_held_in_memory(tmp_path: Path) -> None:
    """Validation windows, batches and evaluations of 10 MB of memory-mapped tokens take a fifth of that."""
    ready = prepared(tmp_path / "c.txt", layers=1, width=32)
    settings = replace(ready.plan.train, context=256, batch_size=2)
    model = LanguageModel(replace(ready.plan.model, max_position_embeddings=256))
    np.full(5_000_000, 100, np.uint16).tofile(tmp_path / "tokens")
    tokens = np.memmap(tmp_path / "tokens", np.uint16, "r")
    tracemalloc.start()
    try:
        settings = replace(settings, calibration_tokens=8192)
        made = replace(ready.plan, train=settings)
        data = RunData(replace(ready, tokens=tokens, held_out=tokens, plan=made))
        batches = [data.next_batch(Position(step, progress))[0] for step, progress in ((0, 0.0), (10**6, 1.0))]
        assert sum(batch.size for batch in batches) > 1000
        best = BestWeights(model, data, Clock(settings), Position(), is_compiled=False)
        assert best.evaluate(hurried=False) and best.cost == 31 * 256
        score = FinalEvaluator(model, data, Clock(settings)).score_held_out(model.to_arrays(), 0, hurried=True).score
        assert score is not None and score.tokens >= settings.eval_tokens
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data.tokens_per_epoch + data.validation.size == len(tokens)
    assert peak < 2_000_000


def test_the_final_evaluation_grows_with_the_run() -> None:
    for trained, held_out, tokens in [
        (0, 10**9, 4096),
        (160_000, 10**9, 10_000),
        (1_600_000, 10**9, 65_536),
        (6_400_000, 10**9, 100_000),
        (1_600_000, 5000, 5000),
        (10**10, 10**9, 4_194_304),
    ]:
        assert final_evaluation_tokens(trained, 4096, held_out) == tokens
