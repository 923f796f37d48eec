"""What a GGUF file says of a tokenizer gives the same tokenizer again; what it cannot say is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli import gguf_tokenizer
from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.tokenizer import Tokenizer

TEXT = "Anna likes tea. りんご 🍎 and 12 more.\n" * 20
KEYS = {  # the writer's methods by the keys that they write
    "add_tokenizer_model": "model", "add_tokenizer_pre": "pre", "add_token_merges": "merges",
    "add_token_scores": "scores", "add_add_space_prefix": "add_space_prefix", "add_token_list": "tokens",
    "add_token_types": "token_type", "add_bos_token_id": "bos_token_id", "add_eos_token_id": "eos_token_id",
    "add_add_bos_token": "add_bos_token", "add_add_eos_token": "add_eos_token",
}  # fmt: skip
TOKENIZERS = {"bpe": Tokenizer.train_bpe([TEXT], 300), "characters": Tokenizer.train_char([TEXT])}


def facts(tokenizer: Tokenizer, more: int = 0) -> dict[str, Any]:
    config = ModelConfig(tokenizer.vocab_size + more, 32, 64, 1, 2, 2, 16, 32, eos_token_id=tokenizer.eos_id)
    told = gguf_tokenizer.facts_of(json.loads(tokenizer.to_json()), config)
    return {f"tokenizer.ggml.{KEYS[method]}": value for method, value in told}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(words=st.lists(st.sampled_from(["Anna", " likes", " tea", ".", "\n", "りんご", "🍎", " 12"]), max_size=12))
def test_the_tokenizer_comes_back(kind: str, words: list[str]) -> None:
    found, start = gguf_tokenizer.read(facts(TOKENIZERS[kind]))
    assert start is None
    text = "".join(words)
    again = Tokenizer.from_json(found)
    assert list(again.encode(text)) == list(TOKENIZERS[kind].encode(text))
    assert again.vocab_size == TOKENIZERS[kind].vocab_size


def test_tokens_that_a_model_has_beyond_its_tokenizer_have_names_of_their_own() -> None:
    told = facts(TOKENIZERS["bpe"], more=2)
    count = TOKENIZERS["bpe"].vocab_size
    assert told["tokenizer.ggml.tokens"][-2:] == [f"<unused {count}>", f"<unused {count + 1}>"]
    assert told["tokenizer.ggml.token_type"][-2:] == [5, 5]  # GGUF's number of an unused token


def test_words_cut_in_a_way_without_a_name_are_refused() -> None:
    found = json.loads(TOKENIZERS["bpe"].to_json())
    found["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    with pytest.raises(LLMError, match="no name for; use --to hf"):
        gguf_tokenizer.facts_of(found, ModelConfig(300, 32, 64, 1, 2, 2, 16, 32))
