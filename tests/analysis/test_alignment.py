"""Word alignment: words as runs of tokens, and weights compared with those of `explain`."""

from pathlib import Path

import numpy as np
import pytest

from llmcli.analysis.alignment import align, split_words
from llmcli.analysis.explain import MAX_TOKENS, explain
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import load
from llmcli.formats.loading import open_tokenizer
from llmcli.generation.token_healing import Prompt
from llmcli.models.numpy_runtime import NumpyRuntime


def byte_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text as tokens of one byte each."""
    by_bytes = {data: token for token, data in enumerate(tokenizer.token_bytes) if len(data) == 1}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def test_words_of_letters_are_joined_and_characters_are_kept_whole(tiny_model: Path) -> None:
    tokenizer = open_tokenizer(load(tiny_model))
    ids = byte_tokens(tokenizer, "Two big cats. 猫を")
    words = split_words(tokenizer, ids)
    assert [word.text for word in words] == ["Two", "big", "cats", ".", "猫", "を"]
    assert [(word.start, word.end) for word in words] == [(0, 3), (4, 7), (8, 12), (12, 13), (14, 17), (17, 20)]
    assert [word.start for word in split_words(tokenizer, ids, 8)] == [8, 12, 14, 17]


def test_weights_are_the_sums_of_those_of_explain(tiny_model: Path) -> None:
    model = load(tiny_model)
    tokenizer, runtime = open_tokenizer(model), NumpyRuntime(model)
    header, prompt = tokenizer.encode("Q: "), "The cat sat"
    ids = [*header, *byte_tokens(tokenizer, prompt), *tokenizer.encode("\n")]
    answer = byte_tokens(tokenizer, "A dog")
    found = align(runtime, tokenizer, prompt, ids, answer)
    assert [word.text for word in found.prompt] == ["The", "cat", "sat"]
    assert [word.text for word in found.answer] == ["A", "dog"]
    truth = explain(NumpyRuntime(model), tokenizer, Prompt([*ids, *answer]), literal=True).attention
    rows = len(ids) + np.array([0, 2]) - 1  # the tokens before A and before dog
    cat = slice(len(header) + 4, len(header) + 7)
    np.testing.assert_allclose(found.weights[:, :, :, 1], truth[:, :, rows, cat].sum(-1), atol=1e-6)
    layer, head, weight = found.strongest_head(1, 1)
    assert align(runtime, tokenizer, prompt, ids, []).weights.shape[2:] == (0, 3)
    assert weight == found.weights[layer - 1, head - 1, 1, 1] == found.weights[:, :, 1, 1].max()


def test_what_cannot_be_aligned_is_an_error(tiny_model: Path) -> None:
    model = load(tiny_model)
    tokenizer, runtime = open_tokenizer(model), NumpyRuntime(model)
    ids = byte_tokens(tokenizer, "The cat")
    with pytest.raises(LLMError, match="the prompt is empty"):
        align(runtime, tokenizer, " ", byte_tokens(tokenizer, " "), ids)
    with pytest.raises(LLMError, match="changes the text of the prompt"):
        align(runtime, tokenizer, "the cat", ids, ids)
    with pytest.raises(LLMError, match="at most 256 can be shown"):
        align(runtime, tokenizer, "The cat", ids, ids * MAX_TOKENS)
