"""A prompt as tokens."""

from dataclasses import dataclass, field

from llmcli.data.text.characters import character_class
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError

# Number of tokens at a prompt's end that may be tokenized differently. Four are no better than three; two are worse
# (tests/benchmarks/LOG.md).
MAX_TAIL_TOKENS = 3


@dataclass(frozen=True)
class Prompt:
    """A prompt as the tokenizer splits it; the tokens of its `tail` may be tokenized differently (first_token.py)."""

    head: list[int]
    tail: list[int] = field(default_factory=list)
    in_word: bool = False  # it ends with a letter, so its last word may continue

    @classmethod
    def of(cls, text: "str | Prompt", tokenizer: Tokenizer, *, literal: bool = False) -> "Prompt":
        """The tokens of a text. A `literal` prompt has no tail: it is tokenized once, as in other programs.

        A prompt that is tokens already, such as a conversation, is returned as it is. Raises LLMError for an empty
        text.
        """
        if isinstance(text, Prompt):
            return text
        if not text:
            raise LLMError('the prompt is empty; give a text to continue: llm generate "Once upon a time"')
        if literal:
            return cls(tokenizer.bos_ids + tokenizer.encode(text))
        before, last_word = tokenizer.split_last_word(text)
        # where no token begins a text, the beginning of a line does
        line = [] if before or tokenizer.bos_ids else tokenizer.encode("\n")
        ids = tokenizer.bos_ids + line + tokenizer.encode(text)
        cut = len(ids) - _tail_length(ids, len(last_word.encode("utf-8")), tokenizer)
        return cls(ids[:cut], ids[cut:], character_class(text[-1]) == "letters")

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return self.head + self.tail


def _tail_length(ids: list[int], word_bytes: int, tokenizer: Tokenizer) -> int:
    """How many tokens at the end lie within the last word of `word_bytes` bytes, at most MAX_TAIL_TOKENS."""
    length = 0
    while length < min(MAX_TAIL_TOKENS, len(ids) - 1):
        word_bytes -= len(tokenizer.token_bytes[ids[-1 - length]])
        if word_bytes < 0:
            break
        length += 1
    return length
