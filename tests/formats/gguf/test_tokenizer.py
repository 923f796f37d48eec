"""A tokenizer round trips through the fields of a GGUF, or is an error if they cannot express it."""

import json
import time
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.gguf import tokenizer as gguf_tokenizer

TEXT = "Anna likes tea. りんご 🍎 and 12 more.\n" * 20
TOKENIZERS = {"bpe": Tokenizer.train_bpe([TEXT], 300), "characters": Tokenizer.train_char([TEXT])}


def fields_of(tokenizer: Tokenizer, more: int = 0) -> dict[str, Any]:
    config = ModelConfig(tokenizer.vocab_size + more, 32, 64, 1, 2, 2, 16, 32, eos_token_id=tokenizer.eos_id)
    fields = gguf_tokenizer.to_fields(json.loads(tokenizer.to_json()), config)
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZERS)
@given(words=st.lists(st.sampled_from(["Anna", " likes", " tea", ".", "\n", "りんご", "🍎", " 12"]), max_size=12))
def test_the_tokenizer_round_trips(kind: str, words: list[str]) -> None:
    result, start = gguf_tokenizer.to_document(fields_of(TOKENIZERS[kind]))
    assert start is None
    text = "".join(words)
    again = Tokenizer.from_json(result)
    assert list(again.encode(text)) == list(TOKENIZERS[kind].encode(text))
    assert again.vocab_size == TOKENIZERS[kind].vocab_size and again.control_ids == TOKENIZERS[kind].control_ids
    assert tokenizers.Tokenizer.from_str(json.dumps(result)).decode(again.encode(text)) == text  # in other programs


def test_control_tokens_beyond_the_model_are_left_out() -> None:
    result, size = json.loads(TOKENIZERS["bpe"].to_json()), TOKENIZERS["bpe"].vocab_size
    result["added_tokens"] += [
        {"id": size, "content": "<tag>", "special": False},
        {"id": size + 1, "content": "<image>", "special": True},
    ]
    fields = gguf_tokenizer.to_fields(result, ModelConfig(size + 1, 32, 64, 1, 2, 2, 16, 32))
    assert (fields["tokens"][-1], fields["token_type"][-1]) == ("<tag>", 4)  # 4: defined by the user


def test_the_token_that_ends_an_answer_is_a_field() -> None:
    tokenizer = TOKENIZERS["bpe"]
    config = ModelConfig(tokenizer.vocab_size, 32, 64, 1, 2, 2, 16, 32, extra_eos_ids=(2, 3))
    fields = gguf_tokenizer.to_fields(json.loads(tokenizer.to_json()), config)
    assert fields["eos_token_id"] == 0 and fields["eot_token_id"] == 2
    assert "tokenizer.ggml.eot_token_id" not in fields_of(tokenizer)


def test_embedding_rows_without_a_token_get_unique_names() -> None:
    fields = fields_of(TOKENIZERS["bpe"], more=2)
    count = TOKENIZERS["bpe"].vocab_size
    assert fields["tokenizer.ggml.tokens"][-2:] == [f"<unused {count}>", f"<unused {count + 1}>"]
    assert fields["tokenizer.ggml.token_type"][-2:] == [5, 5]  # GGUF's number of an unused token


def test_an_unnamed_pre_tokenizer_is_an_error() -> None:
    result = json.loads(TOKENIZERS["bpe"].to_json())
    result["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    with pytest.raises(LLMError, match="does not know; use `to` hf"):
        gguf_tokenizer.to_fields(result, ModelConfig(300, 32, 64, 1, 2, 2, 16, 32))


def merges_by_definition(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All splits of a token into two tokens: the highest score first, and for one token the longest first part."""
    cuts = [
        (-scores[i], i, -cut, (token[:cut], token[cut:]))
        for token, i in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [pair for *_, pair in sorted(cuts)]


@given(st.lists(st.text("ab▁", min_size=1, max_size=8), unique=True, max_size=40), st.randoms())
def test_merges_equal_those_by_definition(tokens: list[str], random: Any) -> None:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    scores = [float(random.randrange(4)) for _ in tokens]
    assert gguf_tokenizer._merges(vocabulary, scores, [1] * len(tokens)) == merges_by_definition(vocabulary, scores)


LONG = [f"{i:0100}" for i in range(1 << 16)]


def test_a_hostile_tokenizer_is_an_error_within_seconds() -> None:
    cases = [
        ("llama", LONG, [], "its tokens are too long"),
        ("llama", ["a", "b" * 1025], [], "its token 1 has 1,025 characters; tokens of at most 1,024 are supported"),
        # 525 kB, whose merges have 358 MB
        ("llama", ["a" * n for n in range(1, 1025)], [], "too long: .* 358,438,400 characters; at most 268,435,456"),
        ("llama", ["a" * length for length in range(1, 400)], [], "208 of the 256 bytes"),
        ("llama", ["a"] * (1 << 16), [], "208 of the 256 bytes"),
        ("gpt2", ["a", "b", "ab"], ["a b"] * (1 << 18), "of the 256 bytes"),
        ("gpt2", LONG, [], "of the 256 bytes"),
    ]
    for kind, tokens, merges, problem in cases:
        values = {"model": kind, "pre": "gpt-2", "tokens": tokens, "scores": [0.0] * len(tokens), "merges": merges}
        fields = {f"tokenizer.ggml.{key}": value for key, value in (values | {"add_bos_token": False}).items()}
        start = time.process_time()
        with pytest.raises(LLMError, match=problem) as caught:
            Tokenizer.from_json(gguf_tokenizer.to_document(fields)[0])
        assert time.process_time() - start < 5 and "\n" not in str(caught.value), (kind, tokens, merges, problem)
