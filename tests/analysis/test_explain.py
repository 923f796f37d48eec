"""What flows through the graph, held against the same graph written out in torch, and against `generate`."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcli.analysis import explain as explain_module
from llmcli.analysis.explain import Explanation, explain
from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.data.vocabulary import START
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint, load
from llmcli.generation.generator import generate
from llmcli.generation.prompt import INSIDE_WORD
from llmcli.generation.sampler import Sampler
from llmcli.models.logits import softmax
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import PREFILL_CHUNK
from tests.conftest import TEXT, random_checkpoint

TOKENIZER = Tokenizer.train_bpe([TEXT], 300)
CONFIG = ModelConfig(300, 32, 64, 3, 4, 2, 8, 2 * PREFILL_CHUNK + 40)


def written_out(model: Checkpoint, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Qwen3 in float64: attention weights [L, H, T, T], and the logits of the lens [L + 1, T, V]."""
    W = {name: torch.from_numpy(np.asarray(array)).double() for name, array in model.tensors.items()}
    c = model.config
    T, H, G, D = len(ids), c.num_attention_heads, c.num_key_value_heads, c.head_dim

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).rsqrt() * weight

    angles = torch.arange(T)[:, None].double() * torch.tensor(c.rope_frequencies()).double()
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1) * sin

    x, streams, attention = W["model.embed_tokens.weight"][ids], [], []
    for layer in range(c.num_hidden_layers):
        streams.append(x)
        name = f"model.layers.{layer}."
        h = rms(x, W[name + "input_layernorm.weight"])
        q, k, v = (
            (h @ W[f"{name}self_attn.{which}_proj.weight"].T).reshape(T, n, D)
            for which, n in (("q", H), ("k", G), ("v", G))
        )
        q = turned(rms(q, W[name + "self_attn.q_norm.weight"]))
        k = turned(rms(k, W[name + "self_attn.k_norm.weight"])).repeat_interleave(H // G, 1)
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(D)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        attention.append(scores)
        y = torch.einsum("hts,shd->thd", scores, v.repeat_interleave(H // G, 1)).reshape(T, H * D)
        x = x + y @ W[name + "self_attn.o_proj.weight"].T
        h = rms(x, W[name + "post_attention_layernorm.weight"])
        gate, up = (h @ W[f"{name}mlp.{which}_proj.weight"].T for which in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ W[name + "mlp.down_proj.weight"].T
    head = W.get("lm_head.weight", W["model.embed_tokens.weight"])
    return torch.stack(attention), rms(torch.stack([*streams, x]), W["model.norm.weight"]) @ head.T


def explained(prompt: str, config: ModelConfig = CONFIG, **options: object) -> tuple[Explanation, Checkpoint]:
    model = random_checkpoint(config)
    return explain(NumpyRuntime(model), TOKENIZER, prompt, **{"literal": True, **options}), model  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("words", [1, 6, PREFILL_CHUNK])
def test_attention_and_the_lens_are_those_of_torch(words: int, tied: bool) -> None:
    """Prompts of one piece of the graph's intake, and of several."""
    config = replace(CONFIG, tie_word_embeddings=tied)
    found, model = explained(" cat" * words, config, candidates=8, everywhere=True)
    attention, lens = written_out(model, found.ids)
    N = len(found.ids)
    assert words <= N and found.attention.shape == (3, 4, N, N)
    np.testing.assert_allclose(found.attention, attention.numpy(), atol=1e-4)
    chances = lens.softmax(-1)
    top = chances.topk(8)
    np.testing.assert_allclose(found.lens.probabilities[:-1], top.values.numpy()[:-1], atol=1e-4)
    np.testing.assert_allclose(found.lens.probabilities[-1, :-1], top.values.numpy()[-1, :-1], atol=1e-4)
    np.testing.assert_allclose(
        np.take_along_axis(chances.numpy(), found.lens.ids, -1), found.lens.probabilities, atol=1e-4
    )
    answer = torch.where(torch.from_numpy(TOKENIZER.vocabulary.allowed(START)), chances[-1, -1], 0).topk(8)
    np.testing.assert_allclose(found.lens.probabilities[-1, -1], answer.values.numpy(), atol=1e-4)
    bits = -lens[-1].log_softmax(-1)[range(N - 1), found.ids[1:]].numpy() / math.log(2)
    np.testing.assert_allclose(found.surprises[1:], bits, atol=1e-3)
    assert np.isnan(found.surprises[0])


def test_of_many_tokens_the_last_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures as when all are; PREFILL_CHUNK cuts between those looked at and those before."""
    prompt = "The cat sat on the mat." * 40
    whole, _ = explained(prompt, everywhere=True)
    for most in (1, 7, len(whole.ids) - PREFILL_CHUNK, len(whole.ids) - PREFILL_CHUNK + 3):
        monkeypatch.setattr(explain_module, "MOST_TOKENS", most)
        some, _ = explained(prompt, everywhere=True)
        assert some.ids == whole.ids[-most:] and some.earlier == whole.earlier + len(whole.ids) - most
        np.testing.assert_allclose(some.attention, whole.attention[:, :, -most:, -most:], atol=1e-6)
        np.testing.assert_allclose(some.lens.probabilities, whole.lens.probabilities[:, -most:], atol=1e-6)


def test_an_effect_is_what_a_fresh_model_says_without_the_token() -> None:
    found, model = explained("The dog ate", candidates=3)
    answer = found.likeliest(1)[0]

    def bits(ids: list[int]) -> float:
        return float(written_out(model, ids)[1][-1, -1].log_softmax(-1)[answer]) / math.log(2)

    wanted = [bits(found.ids) - bits(found.ids[:i] + found.ids[i + 1 :]) for i in range(len(found.ids))]
    np.testing.assert_allclose(found.effects, wanted, atol=1e-3)


def test_a_single_token_has_no_effect_to_measure() -> None:
    found, _ = explained("a")
    assert len(found.ids) == 1 and np.isnan(found.effects).all()


def test_of_a_large_model_only_the_last_tokens_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = explained("The dog ate the hat.")
    monkeypatch.setattr(explain_module, "MOST_WORK", CONFIG.parameters * 4.5)
    found, _ = explained("The dog ate the hat.")
    assert np.isnan(found.effects).tolist() == [True] * (len(found.ids) - 3) + [False] * 3
    np.testing.assert_allclose(found.effects[-3:], whole.effects[-3:])


def test_of_a_large_model_fewer_tokens_are_asked_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "MOST_ASKED", 3.5 * 4 * 300 * 32)
    found, _ = explained("The dog ate the hat.", everywhere=True)
    assert len(found.ids) == 3 and found.lens.ids.shape[:2] == (4, 3) and found.earlier > 0
    assert len(explained("The dog ate the hat.")[0].ids) == 3 + found.earlier


# ---- the probabilities are those of generate


class Spy(Sampler):
    """Keeps what it is asked about."""

    def __init__(self) -> None:
        super().__init__(SamplingConfig(temperature=0.0))
        self.asked: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = []

    def __call__(self, logits, seen=(), *, own=None, tokens=None):
        self.asked.append((logits, own, tokens))
        return super().__call__(logits, seen, own=own, tokens=tokens)


@pytest.mark.parametrize("context", [16, 32, 200])
@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("prompt", ["T", "The cat sat on", "The dog ate the hat. " * 8 + "supercalifragil", "食べ"])
def test_probabilities_are_those_of_generate_to_the_digit(prompt: str, literal: bool, context: int) -> None:
    model = random_checkpoint(replace(CONFIG, max_position_embeddings=context))
    found = explain(NumpyRuntime(model), TOKENIZER, prompt, literal=literal)
    spy = Spy()
    pieces: Iterator = generate(
        NumpyRuntime(model), TOKENIZER, prompt, SamplingConfig(max_tokens=1), literal=literal, sampler=spy
    )  # type: ignore[arg-type]
    answer = next(pieces).id
    [(logits, own, tokens)] = spy.asked
    asked = logits if own is None else own
    total = float(np.log(float(np.exp(asked - asked.max()).sum())))
    logprobs = np.where(np.isneginf(logits), -np.inf, (asked - asked.max()).astype(np.float64) - total)
    wanted = np.full(300, -np.inf)
    np.logaddexp.at(wanted, range(300) if tokens is None else tokens, logprobs)
    assert np.array_equal(found.logprobs, wanted)
    assert found.likeliest(1) == [answer] == [found.lens.ids[-1, -1, 0]]
    assert found.lens.probabilities[-1, -1, 0] == np.float32(np.exp(found.logprobs.max()))
    assert literal is False or found.tail == ""


def test_where_a_token_goes_beyond_the_prompt_it_is_the_answer() -> None:
    """After "The do" the model knows " dog": it takes in "The", and what it says then includes the prompt's end."""
    model = random_checkpoint(CONFIG)
    [dog] = TOKENIZER.encode(" dog")
    head = model.tensors["lm_head.weight"]
    row = head[dog].copy()
    head[:] = 0
    head[dog] = row
    if NumpyRuntime(model).prefill(TOKENIZER.encode("The"))[dog] < 0:
        head[dog] = -row
    found = explain(NumpyRuntime(model), TOKENIZER, "The do", literal=False, candidates=3)
    assert found.ids == TOKENIZER.encode("The") and found.tail == " do" and found.likeliest(1) == [dog]
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-6)
    table = TOKENIZER.token_bytes
    fits = [i for i, data in enumerate(table) if data in (b" ", b" d") or data.startswith(b" do")]
    assert set(found.lens.ids[:-1, -1].ravel().tolist()) <= set(fits)

    def chances(*path: int) -> np.ndarray:
        return softmax(NumpyRuntime(model).prefill([*TOKENIZER.encode("The"), *path]))

    def paths(rest: bytes) -> Iterator[list[int]]:
        """Every way to spell it."""
        for i, data in enumerate(table):
            if data and rest.startswith(data):
                yield from ([i, *more] for more in (paths(rest[len(data) :]) if data != rest else [[]]))

    beyond = chances()[dog] * INSIDE_WORD
    allowed = TOKENIZER.vocabulary.allowed(START) * np.where(TOKENIZER.vocabulary.begins_with_letter, INSIDE_WORD, 1)
    ends = 0.0
    for path in paths(b" do"):
        spelled = math.prod(float(chances(*path[:n])[path[n]]) for n in range(len(path)))
        ends += spelled * float((chances(*path) * allowed).sum())
    # what has less than a thousandth of what is known is not followed
    assert found.probabilities[dog] == pytest.approx(beyond / (beyond + ends), rel=1e-2)


def test_of_a_prompt_longer_than_the_context_the_end_is_seen() -> None:
    found, model = explained("The cat sat on the mat. " * 9, replace(CONFIG, max_position_embeddings=16))
    ids = TOKENIZER.encode("The cat sat on the mat. " * 9)
    assert found.ids == ids[-16:] and found.cut == len(ids) - 16 and found.earlier == 0
    np.testing.assert_allclose(found.attention, written_out(model, ids[-16:])[0].numpy(), atol=1e-4)


def test_looking_on_leaves_the_model_as_it_was(tiny_model: Path) -> None:
    runtime, other = NumpyRuntime(load(tiny_model)), NumpyRuntime(load(tiny_model))
    explain(runtime, TOKENIZER, "The cat", literal=True)
    runtime.rewind()
    assert np.array_equal(runtime.prefill([1, 2, 3]), other.prefill([1, 2, 3]))


def test_an_empty_prompt_and_damaged_weights_are_told() -> None:
    with pytest.raises(LLMError, match="the prompt is empty"):
        explained("")
    model = random_checkpoint(CONFIG)
    model.tensors["model.norm.weight"][:] = np.nan
    with pytest.raises(LLMError, match="NaN or infinite logits"):
        explain(NumpyRuntime(model), TOKENIZER, "The cat", literal=True)


def test_the_entropy_of_equal_chances_is_the_logarithm_of_their_number() -> None:
    model = random_checkpoint(CONFIG)
    model.tensors["lm_head.weight"][:] = 0
    found = explain(NumpyRuntime(model), TOKENIZER, "The cat", literal=True)
    allowed = TOKENIZER.vocabulary.allowed(START)
    assert found.entropy == pytest.approx(math.log2(allowed.sum()))
    assert found.likeliest(3) == np.flatnonzero(allowed)[:3].tolist()
