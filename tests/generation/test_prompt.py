"""A prompt as tokens: its head and its tail."""

import pytest

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.prompt import MAX_TAIL_TOKENS, Prompt
from tests.conftest import TEXT


def test_the_tail_of_a_prompt_lies_in_its_last_word() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    for text in ["The cat", "The ca", "The cat ", "T", "りんごを食べ", "The zzzzzzzz", "a\n\n", "don't"]:
        prompt = Prompt.of(text, tokenizer)
        before, word = tokenizer.split_last_word(text)
        assert len(prompt.tail) <= MAX_TAIL_TOKENS and prompt.head
        assert word.encode().endswith(tokenizer.decode_bytes(prompt.tail))
        assert tokenizer.decode(prompt.ids) == ("" if before else "\n") + text
        assert prompt.tail, text


def test_a_literal_prompt_has_no_tail() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    prompt = Prompt.of("The cat", tokenizer, literal=True)
    assert prompt.ids == prompt.head == tokenizer.encode("The cat")
    assert not prompt.tail and not prompt.in_word


@pytest.mark.parametrize(("text", "in_word"), [("The ca", True), ("The ", False), ("3", True), ("りんご", False)])
def test_only_letters_and_digits_at_the_end_may_continue(text: str, in_word: bool) -> None:
    assert Prompt.of(text, Tokenizer.train_bpe([TEXT], 300)).in_word is in_word


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(LLMError, match="the prompt is empty; give a text to continue"):
        Prompt.of("", Tokenizer.train_bpe([TEXT], 300))
