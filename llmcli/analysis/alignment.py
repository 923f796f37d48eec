"""Word alignment between an answer and its prompt, from the model's attention.

In a translation model, attention shows the word alignment (Bahdanau, Cho and Bengio 2014). A word is one or more
tokens, whose weights are summed; the attending token is the one before the word. numpy only, never torch.

A, P = words in the answer and in the prompt; L, H = layers, heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmcli.analysis.explain import MAX_TOKENS, record_activations
from llmcli.data.text.words import character_class
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Array


@dataclass(frozen=True)
class Word:
    """The consecutive tokens of a word between spaces, or one token in a script without spaces."""

    text: str
    start: int  # its first token
    end: int  # the token after it


@dataclass(frozen=True)
class Alignment:
    """The attention from the words of an answer to the words of its prompt."""

    prompt: list[Word]
    answer: list[Word]
    weights: Array  # [L, H, A, P]

    def strongest_head(self, answer: int, prompt: int) -> tuple[int, int, float]:
        """Return the head that attends most from one word to another as (layer, head, weight), counted from 1."""
        weights = self.weights[:, :, answer, prompt]
        layer, head = np.unravel_index(int(weights.argmax()), weights.shape)
        return int(layer) + 1, int(head) + 1, float(weights.max())


def align(
    runtime: NumpyRuntime, tokenizer: Tokenizer, text: str, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> Alignment:
    """Align an answer with `text`, which is part of the prompt. Raises LLMError if it is empty or too long."""
    ids = [*prompt_ids, *answer_ids]
    if len(ids) > MAX_TOKENS:
        raise LLMError(
            f"prompt and answer have {len(ids):,} tokens; at most {MAX_TOKENS} can be shown; use a shorter prompt"
        )
    first, last = _find(tokenizer, prompt_ids, text)
    prompt, answer = split_words(tokenizer, ids[:last], first), split_words(tokenizer, ids, len(prompt_ids))
    if not prompt:
        raise LLMError("the prompt is empty; give a text to answer")
    _, recorder = record_activations(runtime, ids, len(ids))
    weights = recorder.weights[:, :, [word.start - 1 for word in answer]]  # [L, H, A, N]
    return Alignment(prompt, answer, np.stack([weights[..., word.start : word.end].sum(-1) for word in prompt], -1))


def split_words(tokenizer: Tokenizer, ids: Sequence[int], start: int = 0) -> list[Word]:
    """Split the tokens from `start` on into words without white space; ` umbrell` and `as` are joined."""
    words: list[Word] = []
    for text, first, end in characters_of_tokens([tokenizer.token_bytes[token] for token in ids[start:]]):
        if words and all(character_class(c) == "letters" for c in (words[-1].text[-1], text[0])):
            last = words.pop()
            words.append(Word(last.text + text, last.start, start + end))
        else:
            words.append(Word(text, start + first, start + end))
    return [Word(word.text.strip(), word.start, word.end) for word in words if word.text.strip()]


def characters_of_tokens(tokens: Sequence[bytes]) -> Iterator[tuple[str, int, int]]:
    """Yield (characters that begin in a token, index of the token, index of the next token in which a character
    begins).

    >>> list(characters_of_tokens(["a赤".encode()[:2], "赤".encode()[1:], b"b"]))
    [('a赤', 0, 2), ('b', 2, 3)]
    """
    begins, offset = [], 0  # (token, where its first character begins)
    for i, token in enumerate(tokens):
        begins += [(i, offset + k) for k, byte in enumerate(token) if byte & 0xC0 != 0x80][:1]
        offset += len(token)
    data = b"".join(tokens)
    for (first, begin), (next_, end) in pairwise([*begins, (len(tokens), len(data))]):
        yield data[begin:end].decode("utf-8", "replace"), first, next_


def _find(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> tuple[int, int]:
    """Find the tokens that hold the last occurrence of a text, as (first, last + 1)."""
    data = [tokenizer.token_bytes[token] for token in ids]
    target = text.strip().encode()
    place = b"".join(data).rfind(target)
    if place < 0:
        raise LLMError("the model's chat template changes the text of the prompt; use llm chat and /why")
    ends = np.cumsum([len(token_bytes) for token_bytes in data])
    first, last = np.searchsorted(ends, [place, place + len(target) - 1], side="right").tolist()
    return first, last + 1
