"""A base model whose vocabulary lacks the tokens of a chat template: the same model with rows for them.

The new rows of the embeddings are the mean of the others, so that at first a new token is neither likelier nor less
likely than an average one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmcli.config import EMBEDDING, HEAD
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint


def with_chat_format(base: Checkpoint) -> tuple[Checkpoint, ChatTemplate | None, int]:
    """(a model that has the tokens of its chat template, or of ChatML; its own template, None if it has none; the
    number of tokens that were appended to its vocabulary). Raises LLMError for a damaged tokenizer or template."""
    tokenizer = loading.open_tokenizer(base)
    template = loading.open_chat_template(base, tokenizer)
    if template is not None:
        return base, template, 0
    extended = tokenizer.with_chat_tokens()
    if extended.vocab_size == tokenizer.vocab_size:
        return base, None, 0
    return with_token_rows(base, tokenizer.vocab_size, extended), None, extended.vocab_size - tokenizer.vocab_size


def with_token_rows(base: Checkpoint, first: int, tokenizer: Tokenizer) -> Checkpoint:
    """A model with another tokenizer, whose tokens from `first` on are new. Rows that the model has beyond its
    vocabulary, which no token used, are taken for them before any is appended."""
    config = replace(base.config, vocab_size=max(base.config.vocab_size, tokenizer.vocab_size))
    tensors = _TensorsWithRows(base.tensors, first, tokenizer.vocab_size)
    return replace(base, config=config, tensors=tensors, tokenizer_json=tokenizer.to_json())


class _TensorsWithRows(Mapping[str, NDArray[np.float32]]):
    """Tensors of a model, each computed on access; the embeddings have new rows `first` to `end` - 1."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]], first: int, end: int) -> None:
        self._tensors, self._first, self._end = tensors, first, end

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[name]
        if name not in (EMBEDDING, HEAD):
            return tensor
        known = tensor[: self._first]
        mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.concatenate([known, np.tile(mean, (self._end - self._first, 1)), tensor[self._end :]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
