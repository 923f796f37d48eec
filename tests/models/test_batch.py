"""Forks of a runtime, and tokens of several forks processed together, compared with a runtime that is alone."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx.runtime import OnnxRuntime, is_installed
from tests.conftest import random_checkpoint

DENSE = ModelConfig(300, 64, 96, 2, 4, 2, 16, 200)
GEMMA = replace(
    DENSE, model_type="gemma3_text", layer_types=("sliding_attention", "full_attention"), sliding_window=9,
    hidden_act="gelu_pytorch_tanh", rope_local_base_freq=100.0,
)  # fmt: skip
MOE = replace(DENSE, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)


def torch_runtime():
    from llmcli.models.torch.runtime import TorchRuntime

    return TorchRuntime(random_checkpoint(DENSE), "cpu")


RUNTIMES = {
    "dense": lambda: NumpyRuntime(random_checkpoint(DENSE)),
    "qwen2": lambda: NumpyRuntime(random_checkpoint(replace(DENSE, model_type="qwen2", tie_word_embeddings=True))),
    "gemma": lambda: NumpyRuntime(random_checkpoint(GEMMA)),
    "moe": lambda: NumpyRuntime(random_checkpoint(MOE)),
    "ensemble": lambda: EnsembleRuntime([NumpyRuntime(random_checkpoint(DENSE, seed)) for seed in range(2)]),
    "torch": torch_runtime,
    "int8": lambda: OnnxRuntime(random_checkpoint(DENSE), "int8"),
    "int4": lambda: OnnxRuntime(random_checkpoint(DENSE), "int4"),
}


def runnable(names: Iterable[str] = RUNTIMES) -> list[str]:
    return [name for name in names if not name.startswith("int") or is_installed()]


def assert_close(name, logits, expected):
    """Products in int8 differ with the kernel, which depends on the number of tokens."""
    tolerance = 0.03 if name.startswith("int") else 1e-5
    assert np.sqrt(np.mean((logits - expected) ** 2)) < tolerance * expected.std()


def test_a_fork_continues_from_its_prefix_and_leaves_the_other():
    for name in runnable():
        rng = np.random.default_rng(0)
        ids, other = rng.integers(0, 300, (2, 40)).tolist()
        runtime, reference = RUNTIMES[name](), RUNTIMES[name]()
        runtime.prefill(ids)
        fork = runtime.fork(20)
        assert (fork.length, fork.context, fork.parameters) == (20, runtime.context, runtime.parameters), name
        assert_close(name, fork.prefill(other[:7]), reference.prefill([*ids[:20], *other[:7]]))
        reference.rewind()
        assert_close(name, runtime.prefill(other), reference.prefill([*ids, *other]))  # it was not changed
        assert runtime.fork().length == 0, name
        reference.rewind()
        assert_close(name, runtime.fork().prefill(other), reference.prefill(other))


def test_the_cache_takes_as_much_memory_as_it_says():
    for name in runnable():
        runtime = RUNTIMES[name]()
        runtime.prefill(list(range(150)))
        per_token = runtime.cache_bytes_per_token
        models = 2 if name == "ensemble" else 1
        assert per_token == 2 * 2 * 2 * 16 * 4 * models, name  # k and v, layers, G, D, float32
        assert 150 * per_token <= runtime.cache_bytes <= 2 * 150 * per_token, name


@pytest.mark.slow
def test_texts_that_come_and_go_get_the_logits_of_a_runtime_alone():
    for name in runnable():
        for seed in [0, 1]:
            rng = np.random.default_rng(seed)
            base, reference = RUNTIMES[name](), RUNTIMES[name]()
            texts, runtimes = [], []
            for _ in range(40):
                if len(runtimes) < 2 or (len(runtimes) < 9 and rng.random() < 0.4):  # one comes, perhaps as a fork
                    source = int(rng.integers(len(runtimes))) if runtimes and rng.random() < 0.5 else None
                    text = texts[source][: len(texts[source]) // 2] if source is not None else []
                    runtime = runtimes[source].fork(len(text)) if source is not None else base.fork()
                    new = rng.integers(0, 300, rng.integers(1, 70)).tolist()
                    runtime.prefill(new)
                    texts.append([*text, *new])
                    runtimes.append(runtime)
                elif rng.random() < 0.3:  # one goes
                    gone = int(rng.integers(len(runtimes)))
                    del texts[gone], runtimes[gone]
                elif rng.random() < 0.2:  # one starts again
                    runtimes[0].rewind(1)
                    texts[0] = texts[0][:1]
                stepped = [int(i) for i in rng.permutation(len(runtimes))[: rng.integers(1, len(runtimes) + 1)]]
                tokens = rng.integers(0, 300, len(stepped)).tolist()
                logits = base.step_batch([runtimes[i] for i in stepped], tokens)
                for i, token in zip(stepped, tokens, strict=True):
                    texts[i].append(token)
                    assert runtimes[i].length == len(texts[i])
                check = int(rng.integers(len(stepped)))
                reference.rewind()
                assert_close(name, logits[check], reference.prefill(texts[stepped[check]]))


def test_a_full_context_is_an_error_and_changes_no_runtime():
    for name in runnable(["dense", "int8", "ensemble"]):
        base = RUNTIMES[name]()
        full, other = base.fork(), base.fork()
        full.prefill([1] * 200)
        other.prefill([2, 3])
        with pytest.raises(LLMError, match="exceed the context length of 200"):
            base.step_batch([full, other], [4, 5])
        assert (full.length, other.length) == (200, 2), name


def test_texts_that_continue_one_cache_get_the_logits_of_a_runtime_alone(monkeypatch):
    """Together they exceed the context, of which each leaves a part; the cache grows, and is as it was afterwards."""
    for name in runnable():
        for prompt in [0, 1, 70]:
            monkeypatch.setattr("llmcli.models.torch.runtime.CACHED_TOKENS", 350)  # one, two or three at a time
            rng = np.random.default_rng(prompt)
            ids = rng.integers(0, 300, prompt).tolist()
            texts = [rng.integers(0, 300, length).tolist() for length in (1, 40, 2, 90, 3, 12, 40)]
            runtime, reference = RUNTIMES[name](), RUNTIMES[name]()
            if ids:
                runtime.read(ids)
            for text, logits in zip(texts, runtime.continuation_logits(texts), strict=True):
                reference.rewind()
                assert_close(name, logits, reference.logits([*ids, *text])[prompt:])
            assert runtime.length == prompt, (name, prompt)
            assert_close(name, runtime.prefill([5, 6]), reference.fork().prefill([*ids, 5, 6]))
            with pytest.raises(LLMError, match="exceed the context length of 200"):
                list(runtime.continuation_logits([[1], [2] * 199]))
