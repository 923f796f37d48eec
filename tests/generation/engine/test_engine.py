"""The engine, compared with generate() alone: many requests at once, cancelled, failing, sharing prefixes."""

import itertools
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.engine import sequence as sequence_module
from llmcli.generation.engine.engine import Engine
from llmcli.generation.engine.requests import (
    EngineLimits,
    Finished,
    GenerationRequest,
    Started,
    Token,
    UnavailableError,
)
from llmcli.generation.generator import GeneratedText, decode, generate
from llmcli.generation.token_healing import Prompt
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.logits import log_softmax
from llmcli.models.ngram_runtime import with_ngram_cache
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx.runtime import OnnxRuntime
from tests.conftest import TEXT, random_checkpoint
from tests.models.test_ngram_cache import WEIGHTS
from tests.platforms import needs_onnxruntime

TOKENIZER = Tokenizer.train_bpe([TEXT], 300)
V = TOKENIZER.vocab_size
DENSE = ModelConfig(V, 32, 64, 2, 4, 2, 16, 64)
MOE = ModelConfig(V, 32, 64, 2, 4, 2, 16, 64, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)
GREEDY = SamplingConfig(temperature=0.0, max_tokens=30)
SECONDS = 60  # after which an event that did not come counts as lost


def trained() -> Checkpoint:
    """A model whose probabilities are not close to each other: greedy texts do not depend on the last bits."""
    model = random_checkpoint(DENSE, seed=3)
    model.tensors["lm_head.weight"] *= 8
    return model


def drafting() -> NumpyRuntime:
    """The model with drafts, as if it were large: the texts below are compared with those without drafts."""
    runtime = NumpyRuntime(trained())
    runtime.draft_tokens = 3
    return runtime


MODELS = {
    "dense": drafting,
    "moe": lambda: NumpyRuntime(random_checkpoint(MOE, seed=1)),
    "ensemble": lambda: EnsembleRuntime([NumpyRuntime(random_checkpoint(DENSE, seed)) for seed in range(2)]),
    "int8": lambda: OnnxRuntime(trained(), "int8"),
}


@cache
def runtime_of(name):
    return MODELS[name]()


class Client:
    """Collects the events of a request."""

    def __init__(self):
        self.events = []
        self.ended = threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Finished | Exception):
            self.ended.set()

    def wait(self):
        assert self.ended.wait(SECONDS), f"no end after {self.events}"
        return self

    @property
    def text(self):
        return "".join(event.text for event in self.events if isinstance(event, Token))

    @property
    def tokens(self):
        return [event for event in self.events if isinstance(event, Token)]


@pytest.fixture
def start():
    engines = []

    def start(limits=None, open_model=lambda name: (runtime_of(name), TOKENIZER)):
        engines.append(Engine(open_model, limits))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def ask(engine, prompt, sampling=GREEDY, model="dense", group=None, **more):
    client = Client()
    prompt = prompt if isinstance(prompt, Prompt) else Prompt([*prompt], written=more.pop("written", 0))
    client.sequence = engine.submit(GenerationRequest(model, prompt, sampling, **more), client, group)
    return client


def alone(model, prompt, sampling=GREEDY):
    """(text, why it ended) of generate() or decode()."""
    runtime = runtime_of(model).fork()
    runtime.draft_tokens = 0
    text = generate(runtime, TOKENIZER, prompt, sampling) if isinstance(prompt, str) else None
    pieces = list(text if text is not None else decode(runtime, GeneratedText(TOKENIZER, prompt, sampling)))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


def as_prompt(prompt):
    return Prompt.of(prompt, TOKENIZER) if isinstance(prompt, str) else tuple(prompt)


def assert_as_alone(client, model, prompt, sampling=GREEDY):
    client.wait()
    assert isinstance(client.events[0], Started), client.events
    assert (client.text, client.events[-1].reason) == alone(model, prompt, sampling)


PROMPTS = [
    "The cat sat on the m", "The dog", "りんご", TEXT[:30], TEXT[:45], "hat. The d", TOKENIZER.encode("The c"), [5],
]  # fmt: skip


@pytest.mark.parametrize("model", ["dense", "moe", "ensemble", pytest.param("int8", marks=needs_onnxruntime)])
@pytest.mark.slow
def test_texts_generated_together_are_those_generated_alone(start, model):
    engine = start(EngineLimits(concurrent=5, prefix_bytes=0))
    samplings = [
        GREEDY,
        SamplingConfig(temperature=0.0, max_tokens=80, stop=("at", "e.")),
        SamplingConfig(temperature=0.0, max_tokens=90, repetition_penalty=1.3),
        SamplingConfig(temperature=0.7, max_tokens=20, seed=3),
    ]
    cases = [(prompt, sampling) for prompt in PROMPTS for sampling in samplings]
    clients = [ask(engine, as_prompt(prompt), sampling, model) for prompt, sampling in cases]
    for client, (prompt, sampling) in zip(clients, cases, strict=True):
        assert_as_alone(client, model, prompt, sampling)


def test_tokens_have_the_log_probabilities_of_a_forward_pass(start):
    """Those of the prompt too."""
    for model, length in itertools.product(["dense", "moe"], [1, 2, 40, 60]):
        ids = np.random.default_rng(length).integers(0, V, length).tolist()
        sampling = SamplingConfig(temperature=0.0, max_tokens=64 - length)
        client = ask(start(), tuple(ids), sampling, model, top_logprobs=3, prompt_logprobs=True).wait()
        started, finished = client.events[0], client.events[-1]
        assert started == replace(started, prompt_tokens=length, cached_tokens=0, ids=tuple(ids))
        assert finished.tokens == sum(not token.ends_text for token in client.tokens)
        for token in client.tokens:
            assert token.text_bytes == (b"" if token.ends_text else TOKENIZER.token_bytes[token.id])
        first, *later = tokens = [*started.prompt, *client.tokens]
        assert first.logprob is None and first.alternatives == ()
        assert [token.id for token in started.prompt] == ids
        rows = runtime_of(model).fork().logits([token.id for token in tokens[:-1]])
        for token, row in zip(later, rows, strict=True):
            logprobs = log_softmax(row[:V])
            best = np.argsort(-logprobs, kind="stable")[:3]
            assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-4)
            assert [one.logprob for one in token.alternatives] == pytest.approx(logprobs[best], abs=1e-4)
            assert [one.id for one in token.alternatives] == best.tolist()
            # exactly: lm_eval compares the two with `==`
            assert (token.logprob == token.alternatives[0].logprob) == (token.id == best[0]), (model, length)


def test_a_first_token_after_an_open_word_is_no_likelier_than_the_first_alternative(start):
    for model in ["dense", "moe"]:
        for token in ask(start(), Prompt.of("The cat sat", TOKENIZER), model=model, top_logprobs=2).wait().tokens:
            best = token.alternatives[0]
            assert best.logprob == max(one.logprob for one in token.alternatives) >= token.logprob, model
            assert best.id != token.id or best.logprob == token.logprob, model  # another one is not valid UTF-8


def test_a_conversation_processes_only_its_new_tokens(start):
    engine = start()
    ids = TOKENIZER.encode(TEXT[:40])
    first = ask(engine, tuple(ids), SamplingConfig(temperature=0.0, max_tokens=4)).wait()
    answer = [token.id for token in first.tokens]
    longer = [*ids, *answer, *TOKENIZER.encode(" The dog")]
    second = ask(engine, tuple(longer)).wait()
    assert second.events[0].cached_tokens >= len(ids) + len(answer) - 1
    assert_as_alone(second, "dense", longer)
    again = ask(engine, tuple(ids)).wait()  # the beginning is copied from the longer one
    assert again.events[0].cached_tokens == len(ids) - 1


class Blocking(Client):
    """Stops the engine's thread at the first event, until `go_on` is set."""

    def __init__(self):
        super().__init__()
        self.stopped = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, event):
        if not self.events:
            self.stopped.set()
            self.go_on.wait(SECONDS)
        super().__call__(event)


def blocked(engine):
    """A client for which the engine's thread waits."""
    client = Blocking()
    engine.submit(GenerationRequest("dense", Prompt([9]), SamplingConfig(max_tokens=1)), client)
    assert client.stopped.wait(SECONDS)
    return client


def test_equal_prompts_that_run_together_are_processed_once(start):
    engine = start()
    ids = tuple(TOKENIZER.encode(TEXT[:40]))
    blocking = blocked(engine)
    samplings = [SamplingConfig(temperature=1.0, max_tokens=10, seed=seed) for seed in range(4)]
    clients = [ask(engine, ids, sampling) for sampling in samplings]
    blocking.go_on.set()
    for client, sampling in zip(clients, samplings, strict=True):
        assert_as_alone(client, "dense", list(ids), sampling)
    assert [client.events[0].cached_tokens for client in clients] == [0] + [len(ids) - 1] * 3


CHOICES = {"choices": ("The cat", "The dog", "りんご")}


@pytest.mark.parametrize("more", [{}, CHOICES], ids=["texts", "choices"])
@pytest.mark.parametrize("groups", [1, 3])
def test_groups_of_many_texts_delay_another_by_one_chunk_each(start, monkeypatch, more, groups):
    """So they do for each chunk of its prompt."""
    turns, sequence_class = [], sequence_module.GeneratedSequence
    advance = sequence_class.advance
    monkeypatch.setattr(sequence_module, "PREFILL_CHUNK", 8)
    monkeypatch.setattr(sequence_class, "advance", lambda one: (turns.append(one.group), advance(one)))
    engine = start(EngineLimits(prefix_bytes=0))
    blocking = blocked(engine)
    many = [ask(engine, (5, text, *range(30)), group=group, **more) for group in range(groups) for text in range(8)]
    few_tokens = SamplingConfig(temperature=0.0, max_tokens=5)
    one = ask(engine, tuple(range(100, 140)), few_tokens, group="one")
    turns.clear()
    blocking.go_on.set()
    assert_as_alone(one, "dense", list(range(100, 140)), few_tokens)
    chunks = [number for number, group in enumerate(turns) if group == "one"]
    assert len(chunks) == 5 and np.diff([-1, *chunks]).max() <= groups + 1
    for client in many:
        client.wait()


def test_groups_have_equal_numbers_of_places(start):
    """A text that gives up its place goes on later as if nothing had happened."""
    engine = start(EngineLimits(concurrent=4))
    ended, long = [], SamplingConfig(temperature=0.8, max_tokens=60)
    most = Counter()

    class Member(Client):
        def __init__(self, group):
            super().__init__()
            self.group = group

        def __call__(self, event):
            placed = Counter(sequence.group for sequence in engine.active if not sequence.is_aside)
            most.update({group: max(0, count - most[group]) for group, count in placed.items()})
            ended.extend([self.group] * isinstance(event, Finished))
            super().__call__(event)

    many = [Member("many") for _ in range(8)]
    for client in many:
        engine.submit(GenerationRequest("dense", Prompt([5, 6]), long), client, "many")
    while not all(client.events for client in many[:4]):
        time.sleep(0.001)
    few = [Member("few") for _ in range(3)]
    for client in few:
        engine.submit(GenerationRequest("dense", Prompt([7, 8]), replace(long, max_tokens=6)), client, "few")
    for client in few:
        assert_as_alone(client, "dense", [7, 8], replace(long, max_tokens=6))
    for client in many:
        assert_as_alone(client, "dense", [5, 6], long)
    assert most == {"many": 4, "few": 2}
    assert ended[:3] == ["few"] * 3


class Failing(NumpyRuntime):
    """A runtime that fails for one token."""

    def _process(self, ids, *rest):
        if 13 in ids:
            raise ZeroDivisionError("unlucky")
        return super()._process(ids, *rest)

    @staticmethod
    def step_batch(runtimes, tokens):
        if 13 in tokens:
            raise ZeroDivisionError("unlucky")
        return NumpyRuntime.step_batch(runtimes, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, WEIGHTS])
def test_an_error_ends_one_request_alone(start, cache):
    """The step of the others is done again, and what they wrote still does not count in their n-gram caches."""
    engine = start(open_model=lambda name: (with_ngram_cache(Failing(trained()), cache), TOKENIZER))
    samplings = [SamplingConfig(temperature=3.0, min_p=0, max_tokens=40, seed=seed) for seed in range(30)]
    clients = [ask(engine, (5, 6), sampling).wait() for sampling in samplings]
    together = [ask(engine, (5, 6), sampling) for sampling in samplings]
    failed = 0
    for client, other in zip(clients, together, strict=True):
        other.wait()
        assert [token.id for token in other.tokens] == [token.id for token in client.tokens]
        end = other.events[-1]
        if isinstance(end, Exception):
            failed += 1
            assert isinstance(end, ZeroDivisionError)
            assert other.tokens[-1].id == 13
    assert 0 < failed < 30
    assert isinstance(ask(engine, (13,)).wait().events[-1], ZeroDivisionError)


def test_damaged_weights_are_errors_of_the_request(start):
    damaged = random_checkpoint(DENSE)
    damaged.tensors["lm_head.weight"][:] = np.nan
    runtime = NumpyRuntime(damaged)
    engine = start(open_model=lambda name: (runtime if name == "damaged" else runtime_of("dense"), TOKENIZER))
    for prompt in (Prompt.of("The cat", TOKENIZER), (5, 6)):
        assert "NaN or infinite" in str(ask(engine, prompt, model="damaged").wait().events[-1])
    assert_as_alone(ask(engine, (5, 6)), "dense", [5, 6])


def test_a_listener_that_raises_ends_its_request(start):
    engine = start()

    def raising(event):
        raise RuntimeError("the event loop is closed")

    engine.submit(GenerationRequest("dense", Prompt([5, 6]), SamplingConfig(max_tokens=10**9)), raising)
    assert_as_alone(ask(engine, (5, 6)), "dense", [5, 6])


def test_models_are_opened_at_their_first_use_and_again_after_an_error(start):
    opened = []

    def open_model(name):
        opened.append(name)
        if name == "broken" and opened.count("broken") == 1:
            raise LLMError("no such file")
        return runtime_of("moe" if name == "broken" else name), TOKENIZER

    engine = start(open_model=open_model)
    assert opened == []
    clients = [ask(engine, (5, 6), model=name) for name in ("dense", "moe", "dense", "moe")]
    for client, name in zip(clients, ("dense", "moe", "dense", "moe"), strict=True):
        assert_as_alone(client, name, [5, 6])
    assert sorted(opened) == ["dense", "moe"]
    assert str(ask(engine, (5,), model="broken").wait().events[-1]) == "no such file"
    assert_as_alone(ask(engine, (5, 6), model="broken"), "moe", [5, 6])


def test_functions_run_on_a_runtime_of_their_own(start):
    engine = start()
    client = ask(engine, (5, 6))
    results = [engine.run("dense", lambda runtime, n=n: runtime.prefill([n]).argmax()) for n in range(5)]
    for n, result in enumerate(results):
        assert result.result(SECONDS) == runtime_of("dense").fork().prefill([n]).argmax()
    with pytest.raises(ZeroDivisionError):
        engine.run("dense", lambda runtime: 1 // 0).result(SECONDS)
    assert_as_alone(client, "dense", [5, 6])


def test_texts_are_generated_while_a_function_runs(start):
    engine = start()
    half, go_on = threading.Event(), threading.Event()

    def weights(runtime):
        runtime.prefill([5])
        half.set()
        assert go_on.wait(SECONDS)
        return runtime.expert_weights()

    result = engine.run("moe", weights)
    assert half.wait(SECONDS)
    assert_as_alone(ask(engine, (7, 8), model="moe"), "moe", [7, 8])
    go_on.set()
    alone = runtime_of("moe").fork()
    alone.prefill([5])
    np.testing.assert_array_equal(result.result(SECONDS), alone.expert_weights())


def test_more_requests_than_may_wait_are_refused(start):
    engine = start(EngineLimits(concurrent=1, queue=2))
    blocking = blocked(engine)
    clients = [ask(engine, (5, 6)), ask(engine, (7,))]
    with pytest.raises(UnavailableError, match="2 requests are waiting"):
        ask(engine, (8,))
    blocking.go_on.set()
    assert_as_alone(clients[0], "dense", [5, 6])
    assert_as_alone(clients[1], "dense", [7])


def test_sequences_wait_for_memory(start):
    per_token = runtime_of("dense").cache_bytes_per_token
    engine = start(EngineLimits(live_bytes=70 * per_token))  # for one of 64 tokens, or for two of 35
    most = []

    class Watching(Client):
        def __call__(self, event):
            most.append(len(engine.active))
            super().__call__(event)

    clients = [Watching() for _ in range(5)]
    for client in clients:
        sampling = SamplingConfig(temperature=0.0, max_tokens=33)
        engine.submit(GenerationRequest("dense", Prompt([5, 6]), sampling), client)
    for client in clients:
        assert_as_alone(client, "dense", [5, 6], SamplingConfig(temperature=0.0, max_tokens=33))
    assert max(most) == 2


@pytest.mark.parametrize("bos_token", [None, "<|im_start|>"])
def test_the_context_can_be_limited(start, bos_token):
    tokenizer = Tokenizer(TOKENIZER._inner, TOKENIZER.kind, bos_token)
    runtime = runtime_of("dense").fork()
    runtime.context = 16
    engine = start(open_model=lambda name: (runtime.fork(), tokenizer))
    for prompt in ("The cat sat on the mat. The dog ate the hat. The cat", "The"):
        client = ask(engine, Prompt.of(prompt, tokenizer)).wait()
        runtime.rewind()
        assert client.text == "".join(piece.text for piece in generate(runtime, tokenizer, prompt, GREEDY))


def test_closing_fails_all_requests(start):
    engine = start(EngineLimits(concurrent=1))
    running = ask(engine, (7,), SamplingConfig(temperature=0.9, max_tokens=10**9))
    deadline = time.monotonic() + SECONDS
    while not running.events and time.monotonic() < deadline:
        time.sleep(0.001)
    waiting = [ask(engine, (8,), SamplingConfig(max_tokens=10**9)) for _ in range(3)]
    engine.close()
    for client in (*waiting, running):
        assert client.ended.is_set() and "stopping" in str(client.events[-1])
    with pytest.raises(LLMError, match="stopping"):
        ask(engine, (5,))
    with pytest.raises(LLMError, match="stopping"):
        engine.run("dense", lambda runtime: None)


def test_closing_waits_for_no_function_and_no_model_that_is_being_loaded():
    go_on, loading = threading.Event(), threading.Event()

    def open_model(name):
        if name == "slow":
            loading.set()
            go_on.wait(SECONDS)
        return runtime_of("dense"), TOKENIZER

    engine, running = Engine(open_model), threading.Event()
    engine.start()
    engine.run("slow", lambda runtime: None)
    assert loading.wait(SECONDS)
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "load-model"] == [True]
    other = Engine(lambda name: (runtime_of(name), TOKENIZER))
    other.start()
    other.run("dense", lambda runtime: (running.set(), go_on.wait(SECONDS)))
    assert running.wait(SECONDS)
    for one in (engine, other):
        began = time.monotonic()
        one.close()
        assert time.monotonic() - began < SECONDS / 2
    go_on.set()


@settings(max_examples=15, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, len(PROMPTS) - 1),
            st.integers(0, 40),  # tokens
            st.sampled_from([0.0, 0.8]),
            st.booleans(),  # cancelled
            st.sampled_from([None, "a", "b"]),  # group
            st.sampled_from([0.0, 0.0, 0.002]),  # seconds before the next
        ),
        min_size=1,
        max_size=12,
    ),
    concurrent=st.integers(1, 6),
)
@pytest.mark.slow
def test_any_schedule_of_arrivals_and_cancellations_gives_the_same_texts(arrivals, concurrent):
    engine = Engine(lambda name: (runtime_of("dense"), TOKENIZER), EngineLimits(concurrent=concurrent))
    engine.start()
    try:
        clients = []
        for prompt, tokens, temperature, cancels, group, wait in arrivals:
            sampling = SamplingConfig(max_tokens=tokens, temperature=temperature, seed=tokens)
            client = ask(engine, as_prompt(PROMPTS[prompt]), sampling, group=group)
            clients.append((client, PROMPTS[prompt], sampling, cancels))
            time.sleep(wait)
            if cancels:
                engine.cancel(client.sequence)
        for client, prompt, sampling, cancels in clients:
            if cancels:
                text = alone("dense", prompt, sampling)[0]
                assert text.startswith(client.text)
            else:
                assert_as_alone(client, "dense", prompt, sampling)
    finally:
        engine.close()
    assert engine.prefixes.bytes <= EngineLimits().prefix_bytes
