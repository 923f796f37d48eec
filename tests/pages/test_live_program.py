"""The JavaScript of the page with a model inside, in a real browser: the same numbers and texts as in Python."""

import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmcli.analysis.explain import explain
from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers.tokenizer import CONTROL_TOKENS, Tokenizer
from llmcli.data.tokenizers.tokenizer_json import PRE_TOKENIZERS, prefix_space_steps
from llmcli.data.tokenizers.vocabulary import unfinished
from llmcli.formats import checkpoint, loading
from llmcli.formats.training_record import TrainingRecord
from llmcli.generation.chat import open_assistant
from llmcli.generation.generator import Piece, generate
from llmcli.generation.next_words import next_words
from llmcli.generation.sampler import Sampler
from llmcli.generation.token_healing import Prompt, last_tokens, read_prompt
from llmcli.models.logits import entropy, softmax
from llmcli.models.ngram_cache import NgramCache
from llmcli.models.ngram_runtime import with_ngram_cache
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.pages.live_text import tokenizer_data
from llmcli.pages.live_weights import with_page_values
from tests.conftest import TEXT, random_checkpoint
from tests.data.tokenizers.test_tokenizer import AWKWARD
from tests.ecosystem.conftest import tokenizer_with_pre_tokenizer
from tests.ecosystem.test_sentencepiece import trained_rules
from tests.ecosystem.texts import varied
from tests.models import decoders
from tests.pages.conftest import SENTENCES
from tests.pages.live import CACHE, Program, needs_browser, page_of, runtime_of, save_with_cache, switched_off

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, needs_browser]
PROMPTS = [
    "I like to eat", "I like to ea", "I like to ", "The cat", "The cat likes to sleep on the m", "T", "apple. I",
    "I like to drink green tea.", "the mat.\n", "\n", "私は", "私は毎朝リンゴを食", "猫", "寝ます。", "🍎",
    "食べます。🍎", "def add(a", "def add(a, b):\n    return", "    ", "A zebra & ещё <b> 漢",
]  # fmt: skip
assert len(PROMPTS) == 20


# ---- tokenizers


def published_bpe(pre_tokenizer: str) -> str:
    """A byte-level tokenizer as published models have it."""
    document = json.loads(tokenizer_with_pre_tokenizer(pre_tokenizer).to_json())
    document["model"]["ignore_merges"] = pre_tokenizer == "Llama 3"
    if pre_tokenizer == "Qwen 2":
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        document["added_tokens"].append({"id": len(document["model"]["vocab"]), "content": "<tool>", **flags})
    return json.dumps(document)


def sentencepiece(scheme: str) -> str:
    """A BPE with byte fallback, in which spaces are ▁, as Llama 2 has it."""
    return json.dumps(trained_rules() | prefix_space_steps(scheme))


TOKENIZERS = {
    "bpe": lambda: Tokenizer.train_bpe([TEXT, SENTENCES * 5], 500).to_json(),
    "char": lambda: Tokenizer.train_char([TEXT, SENTENCES]).to_json(),
    **{name: (lambda name=name: published_bpe(name)) for name in PRE_TOKENIZERS},
    **{f"spm {scheme}": (lambda scheme=scheme: sentencepiece(scheme)) for scheme in ("prepend", "always", "")},
}  # fmt: skip


def test_tokens_of_a_thousand_strings(blank: "Page", words_model: Path) -> None:
    Program(blank, page_of(words_model))
    for kind in TOKENIZERS:
        stored = TOKENIZERS[kind]()
        tokenizer = Tokenizer.from_json(stored, 10_000)
        strings = [*AWKWARD, *CONTROL_TOKENS, "it's IT'S don'ſ <tool> 12345", *varied(1000)]
        if kind.startswith("spm"):  # which this program reads as spaces
            strings = [text for text in strings if "▁" not in text]
        script = """([data, strings]) => {
        const tokenizer = new Tokenizer(data), all = strings.map((text) => tokenizer.encode(text));
        const textOf = (ids) => toText(ids.map((id) => data.tokens[id]).join(""));
        const texts = all.map((ids) => textOf(ids).replace(data.prefix_space ? /^ / : "", ""));
        return [all, texts, strings.map((text) => tokenizer.splitLastWord(text))];
    }"""
        ids, texts, split = blank.evaluate(script, [tokenizer_data(tokenizer, stored), strings])
        expected = [tokenizer.encode(text) for text in strings]
        assert ids == expected, kind
        assert texts == [tokenizer.decode(one) for one in expected], kind
        assert [tuple(one) for one in split] == [tokenizer.split_last_word(text) for text in strings], kind


# ---- the network, its cache, the sampler

SHAPES = {name: config for name, config in decoders.SHAPES.items() if config.model_type not in ("gemma3_text", "olmo2")}


def test_logits_are_those_of_numpy(blank: "Page", tmp_path: Path) -> None:
    for shape, dtype in [*((shape, "int8") for shape in SHAPES), ("untied", "f16"), ("tied", "f32")]:
        tokenizer = Tokenizer.train_bpe([TEXT], 300)
        model = random_checkpoint(SHAPES[shape], tokenizer_json=tokenizer.to_json())
        checkpoint.save(tmp_path / "m.safetensors", model)
        ids = np.random.default_rng(0).integers(300, size=40).tolist()
        logits = np.array(Program(blank, page_of(tmp_path / "m.safetensors", dtype)).logits(ids))
        expected = NumpyRuntime(with_page_values(model, dtype)).logits(ids)
        assert np.abs(logits - expected).max() < 1e-3, (shape, dtype)
        assert np.abs(logits - NumpyRuntime(model).logits(ids)).max() > (0 if dtype == "f32" else 1e-4), (shape, dtype)


def test_activations_and_switches(blank: "Page", tmp_path: Path) -> None:
    """Attention, logit lens, attribution and the effects of tokens agree with numpy, with all parts and without some: a
    switched-off head or layer adds nothing to the residual stream."""
    for shape in (name for name in SHAPES if name.startswith(("grouped", "experts", "gpt"))):
        tokenizer = Tokenizer.train_bpe([TEXT], 300)
        model = random_checkpoint(SHAPES[shape], tokenizer_json=tokenizer.to_json())
        checkpoint.save(tmp_path / "m.safetensors", model)
        quick = page_of(tmp_path / "m.safetensors").replace("MAX_EVALUATIONS = 1000", "MAX_EVALUATIONS = 50")
        program, prompt = Program(blank, quick), "The cat likes to sleep. "
        token = next_words(NumpyRuntime(model), tokenizer, prompt, evaluations=50).words[0].token
        for without in ([], ["1", "2.3"], []):
            changed = switched_off(model, without)
            expected = explain(
                NumpyRuntime(changed), tokenizer, Prompt.of(prompt, tokenizer), candidates=4, token=token
            )
            found = program.inside(prompt, without)
            layers = [layer for layer in range(2) if str(layer + 1) not in without]
            for layer in layers:
                assert np.abs(np.array(found["attention"][layer]) - expected.attention[layer]).max() < 1e-4
                assert np.abs(np.array(found["last"][layer]) - expected.attention[layer, :, -1]).max() < 1e-4
            assert not any(found["last"][layer] for layer in range(2) if layer not in layers)
            texts = np.exp(expected.prediction.text_logprobs)
            assert without or found["entropy"] == pytest.approx(entropy(texts / texts.sum()), abs=1e-3)
            lens = np.array([[one["probability"] for one in row] for row in found["lens"]])
            assert np.abs(lens - expected.logit_lens.probabilities)[:-1].max() < 1e-3  # the last: see below
            labels = [[tokenizer.label(id_) for id_ in row] for row in expected.logit_lens.ids[:-1]]
            assert [[one["label"] for one in row] for row in found["lens"][:-1]] == labels
            assert found["effects"][-1] is None
            assert np.abs(np.array(found["effects"][:-1]) - expected.ablation_effects[:-1]).max() < 1e-3
            for name, values in found["attribution"].items():
                assert np.abs(np.array(values) - getattr(expected.attribution, name)).max() < 1e-3, name
        assert np.abs(np.array(program.logits([5, 70])) - NumpyRuntime(model).logits([5, 70])).max() < 1e-3, shape


def test_parts_that_are_switched_off_change_the_next_word(blank: "Page", tmp_path: Path, words_model: Path) -> None:
    """Also at a prompt that ends inside a token. No word is a fragment of another, as tokens are."""
    for is_cached in [False, True]:
        model = loading.load(words_model)
        path = save_with_cache(tmp_path / "cached.safetensors", model) if is_cached else words_model
        slow = page_of(path).replace("SHOW_EVERY = 150", "SHOW_EVERY = 0")  # as if each evaluation took that long
        tokenizer, program = loading.open_tokenizer(model), Program(blank, slow)
        weights = loading.load(path).record.ngram_cache
        largest: list[float] = []
        for prompt, without in (
            ("I like to drink green tea. I like to", ["1", "2.1"]),
            ("The cat likes to slee", ["2.2"]),
        ):
            found = program.inside(prompt, without)
            assert found["quick"] and all(one["p"] > 0 and one["q"] > 0 for one in found["quick"])
            assert found["chosen"]["p"] > max(one["p"] for one in found["pairs"]) / 4
            for which, parts in (("p", []), ("q", without)):
                runtime = with_ngram_cache(NumpyRuntime(switched_off(model, parts)), weights)
                shown = {one["text"]: one[which] for one in found["pairs"]}
                for word in next_words(runtime, tokenizer, prompt).words[:5]:
                    if word.probability > 2e-3:
                        name = "…" * word.continues + word.text
                        assert shown[name] == pytest.approx(word.probability, abs=2e-3), (prompt, which)
            first = read_prompt(runtime, tokenizer, Prompt.of(prompt, tokenizer))
            probabilities = softmax(first.logits.astype(np.float64))
            assert found["pairs"][0]["bits"] == pytest.approx(
                math.log2(found["pairs"][0]["q"] / found["pairs"][0]["p"])
            )
            highest = [max(one["p"], one["q"]) for one in found["pairs"]]
            assert highest == sorted(highest, reverse=True)  # what wins without the parts is not the last bar
            largest.append(max(abs(one["bits"]) for one in found["pairs"]))
            lens = [one["probability"] for one in found["lens"][-1]]
            if is_cached or not found["tail"]:  # otherwise it is about one tokenization, as the rows before it
                assert lens == pytest.approx(np.sort(probabilities)[::-1][:4], abs=2e-3)
            assert len(found["lens"]) == model.config.num_hidden_layers + 1 + is_cached
        assert max(largest) > 0.1, is_cached
        alone = program.inside("I like to drink green tea. I like to", ["cache"])["pairs"]
        assert (max(abs(one["bits"]) for one in alone) > 0) == is_cached, is_cached
        network = next_words(NumpyRuntime(model), tokenizer, "I like to drink green tea. I like to").words
        assert max(one["q"] for one in alone) == pytest.approx(network[0].probability, abs=2e-3), is_cached


def test_the_ngram_cache_grows_and_shrinks_as_in_python(blank: "Page", words_model: Path) -> None:
    rng, weights = random.Random(3), TrainingRecord.from_json({"ngram_cache": CACHE}).ngram_cache
    assert weights is not None
    cache, operations, expected = NgramCache(weights), [], []
    logits = np.random.default_rng(1).normal(0, 2, 12).astype(np.float32)
    for _ in range(400):
        if rng.random() < 0.1:
            operations.append(["rewind", length := rng.randint(0, len(cache))])
            cache.rewind(length)
        elif rng.random() < 0.1:
            operations.append(["countFirst", count := rng.randint(0, len(cache) + 2)])
            cache.count_first(count)
        else:
            operations.append(["append", token := rng.randrange(4), counts := rng.random() < 0.8])
            cache.append(token, counts=counts)
        expected.append(cache.mix(logits))
    Program(blank, page_of(words_model))
    script = """([orders, operations, logits]) => {
        const cache = new NgramCache(orders);
        return operations.map(([name, ...values]) => (cache[name](...values), [...cache.mix(logits)]));
    }"""
    mixed = blank.evaluate(script, [CACHE["weights"], operations, logits.tolist()])
    assert np.abs(np.array(mixed) - np.stack(expected)).max() < 1e-5
    assert np.abs(np.stack(expected) - logits).max() > 1


def test_colors_of_a_text_longer_than_the_context(blank: "Page", tmp_path: Path, words_model: Path) -> None:
    """Every token after the first has its probability after at least half a context, or after the whole text before
    it; a beginning-of-text token stays at the beginning of what is read."""
    for written in [0, 50]:
        for is_cached in [False, True]:
            model = loading.load(words_model)
            path = save_with_cache(tmp_path / "cached.safetensors", model) if is_cached else words_model
            Program(blank, page_of(path))
            tokenizer = loading.open_tokenizer(model)
            context, bos = model.config.max_position_embeddings, [7]
            ids = bos + tokenizer.encode(SENTENCES * 3)
            assert len(ids) > 2 * context, (written, is_cached)
            found = blank.evaluate(
                "([ids, written, bos]) => { tokenizer.bos_ids = bos; return atOnce.color({ids, prefix: 1, written}) }",
                [ids, written, bos],
            )
            case = (written, is_cached)
            assert found["legend"] == ["probabilityLegend"] and len(found["marks"]) == len(ids) - 1, case
            start, end, expected = 0, context, list[float]()
            while len(expected) < len(ids) - 1:
                window = last_tokens(ids[:end], end - start, bos)
                runtime = runtime_of(path)
                runtime.begin_prompt(0, len(window), max(0, end - (len(ids) - written)))
                rows = runtime.logits(window)
                for i in range(len(expected) + 1, end):
                    text = b"".join(tokenizer.token_bytes[j] for j in ids[:i])
                    allowed = tokenizer.vocabulary.allowed(unfinished(text, "ignore") or b"")
                    row = rows[i - start - 1][: tokenizer.vocab_size].astype(np.float64)
                    expected.append(float(softmax(row if allowed is None else np.where(allowed, row, -np.inf))[ids[i]]))
                start, end = end - context // 2, min(len(ids), end + context - context // 2)
            assert [mark["probability"] for mark in found["marks"]] == pytest.approx(expected, abs=1e-4), case


def test_the_windows_in_which_tokens_are_colored(blank: "Page", words_model: Path) -> None:
    """Each token is colored once, up to a limit; it has half a context before it, or the beginning of the text."""
    Program(blank, page_of(words_model))
    work = blank.evaluate("MAX_COLOR_WORK")
    for length, most in ((1000, 1), (1000, 300), (150, 1000), (1, 9)):
        script = "([length, parameters]) => colorWindows(length, 64, parameters)"
        windows = blank.evaluate(script, [length, work / most])
        colored = [i for window in windows for i in range(window["from"], window["end"])]
        assert colored == list(range(max(1, length - max(64, most)), length))
        assert all(window["from"] - window["start"] >= min(32, window["from"]) for window in windows)
        assert all(window["end"] - window["start"] <= 64 for window in windows)


def test_sampling_probabilities(blank: "Page", words_model: Path) -> None:
    Program(blank, page_of(words_model))
    for temperature in [0.0, 0.4, 1.0, 1.7]:
        for top_p, min_p in [(1.0, 0.0), (0.8, 0.0), (1.0, 0.1), (0.6, 0.3)]:
            case = (temperature, top_p, min_p)
            logits = np.random.default_rng(2).normal(0, 2, 200).astype(np.float32)
            logits[7] = -np.inf
            sampling = SamplingConfig(temperature=temperature, top_p=top_p, min_p=min_p)
            expected = Sampler(sampling).probabilities(logits)
            script = """([logits, settings]) => {
        const row = Float32Array.from(logits, (logit) => logit ?? -Infinity);
        const chances = samplingProbabilities(row, settings);
        const drawn = Array.from({ length: 1000 }, (_, i) => draw(chances, () => (i + 0.5) / 1000));
        return [[...chances], drawn];
    }"""
            settings = {"temperature": temperature, "topP": top_p, "minP": min_p}
            found, drawn = blank.evaluate(
                script, [[x if math.isfinite(x) else None for x in logits.tolist()], settings]
            )
            assert np.abs(np.array(found) - expected).max() < 1e-5, case
            assert (np.array(found) > 0).tolist() == (expected > 0).tolist(), case
            assert np.abs(np.bincount(drawn, minlength=200) / 1000 - expected).max() < 0.002, case


# ---- texts


def written(model: Path, prompt: str, count: int, dtype: str) -> str:
    """What `llm generate --temperature 0` writes, with the weights that a page has."""
    tokenizer = loading.open_tokenizer(loading.load(model))
    sampling = SamplingConfig(max_tokens=count, temperature=0)
    return "".join(piece.text for piece in generate(runtime_of(model, dtype), tokenizer, prompt, sampling))


def test_greedy_texts_are_those_of_llm_generate(blank: "Page", tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With an n-gram cache, and beyond the context of 64 tokens."""
    for model in ["words_model", "characters_model", "experts_model"]:
        path = save_with_cache(tmp_path / "cached.safetensors", loading.load(request.getfixturevalue(model)))
        program = Program(blank, page_of(path, "int8"))
        for prompt in PROMPTS if model == "words_model" else PROMPTS[::3]:
            count = 100 if prompt == PROMPTS[0] else 30
            assert program.generate(prompt, count) == written(path, prompt, count, "int8"), prompt


def test_greedy_texts_of_an_imported_model(blank: "Page", tmp_path: Path) -> None:
    """With random weights, whose texts are no words; beyond the context of 64 tokens."""
    for kind in ["Llama 3", "spm prepend"]:
        stored = TOKENIZERS[kind]()
        size = Tokenizer.from_json(stored, 10_000).vocab_size
        config = ModelConfig(size + 3, 32, 64, 2, 4, 2, 8, 64, model_type="llama")
        model = random_checkpoint(config, tokenizer_json=stored)
        model.record |= {"imported": {"file": "published", "form": "Hugging Face directory"}}
        checkpoint.save(tmp_path / "m.safetensors", model)
        program = Program(blank, page_of(tmp_path / "m.safetensors"))
        for prompt in PROMPTS[::3]:
            count = 70 if prompt == PROMPTS[0] else 15
            assert program.generate(prompt, count) == written(tmp_path / "m.safetensors", prompt, count, "f32"), prompt


def test_answers_are_those_of_llm_chat(blank: "Page", sums_model: Path) -> None:
    model = loading.load(sums_model)
    program, tokenizer = Program(blank, page_of(sums_model)), loading.open_tokenizer(model)
    ends = set()
    for questions in (
        ["What is 2 and 3?"],
        ["What is <|im_end|>?"],
        ["What is 2 and 3?", "And 4 and 4?"] * 6,
        ["2 " * 115],  # room for five tokens
    ):
        messages: list[Message] = []
        for question in questions:
            assistant = open_assistant(model, runtime_of(sums_model), tokenizer)
            messages.append(Message("user", question))
            events = assistant.answer(messages, SamplingConfig(max_tokens=1000, temperature=0))
            pieces = [event for event in events if isinstance(event, Piece)]
            answer, end = "".join(piece.text for piece in pieces), pieces[-1].finish_reason
            shown = program.chat([message.content for message in messages])
            assert shown["content"] == answer and shown["end"] == end
            ends.add(end)
            messages.append(Message("assistant", answer))
    assert ends == {"stop", "length"}


def test_next_words_are_those_of_llm_generate_next(blank: "Page", request: pytest.FixtureRequest) -> None:
    for model in ["words_model", "characters_model"]:
        path = request.getfixturevalue(model)
        program, tokenizer = Program(blank, page_of(path)), loading.open_tokenizer(loading.load(path))
        for prompt in ("", "I like to eat", "I like to ea", "The cat likes to sleep on the m", "私は毎朝", "def add(a"):
            shown = program.next(prompt)
            expected = next_words(runtime_of(path), tokenizer, prompt).words
            for one in shown["choices"][:5]:
                name = one["text"], one.get("continues", False)
                probability = next(word.probability for word in expected if (word.text, word.continues) == name)
                assert one["probability"] == pytest.approx(probability, abs=2e-3), (prompt, name)
            assert shown["choices"][0]["text"] == expected[0].text
            total = sum(one["probability"] for one in shown["choices"]) + shown["rest"]
            assert total == pytest.approx(1, abs=1e-9)
