"""Structured output (constrained decoding): JSON that fits a schema, a regular expression, or a context-free grammar.

llguidance follows the text with an Earley parser, and names the tokens that it can continue with; all others get a
probability of 0. It knows the tokens as bytes, so any tokenizer will do. Where the form prescribes a text, the model
still chooses among its tokenizations. V = size of the vocabulary.
"""

import json
import re
from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import Grammar
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, missing_extra, usage

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NAMES = {"schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
# JSON is written on one line, with spaces as json.dumps puts them or without: between values, a model that has seen no
# JSON would go on with white space forever. A schema may have other settings in its own "x-guidance".
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
MAX_LEXER_STATES = 50_000  # of 1 to 2 kB
_EXCERPT = re.compile(r"\s+\d+ \| .*|\s*\^+\s*")  # of the grammar, in an error
_PLACE = re.compile(r"at \d+\(\d+\): (failed to compile JSON schema: )?")


def check_grammar(grammar: Grammar, tokenizer: Tokenizer) -> None:
    """Raise LLMError for a grammar that cannot be used, or if llguidance is not installed."""
    _compiled(grammar, tokenizer.of_any_bytes, False)


class GrammarState:
    """A text during generation: which tokens its grammar allows next."""

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer, end_ids: Collection[int], *, is_answer: bool) -> None:
        """`end_ids` end the text. The answer in a conversation may begin with SentencePiece's space."""
        begins_with_space = is_answer and tokenizer.adds_prefix_space
        self._matcher = _compiled(grammar, tokenizer.of_any_bytes, begins_with_space).deep_copy()
        self._vocabulary, self._end_ids, self._name = tokenizer.vocabulary, list(end_ids), NAMES[grammar.kind]
        self._allowed: NDArray[np.bool_] | None = None

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Mask [V] of the tokens that may be next. Raises LLMError if there is none."""
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            allowed = np.unpackbits(bits, count=len(self._vocabulary), bitorder="little").view(bool)
            allowed[self._end_ids] = self._matcher.is_accepting()
            self._check()
            if not allowed.any():
                raise LLMError(f"no token of the vocabulary fits the {self._name} here")
            self._allowed = allowed
        return self._allowed

    def allows(self, text: bytes) -> bool:
        """Return whether the next bytes may be these, which no single token spells."""
        byte = self._vocabulary.find(text[:1])
        if byte is not None and not self.allowed[byte]:  # nearly always, for thousands of texts
            return False
        ids = self._vocabulary.spell(text)
        return self._matcher.validate_tokens(ids) == len(ids)

    def append(self, token: int, text: bytes) -> None:
        """Add a token to the text; `text` is the part of it that the prompt does not have."""
        self._allowed = None
        is_whole = text == self._vocabulary.token_bytes[token]
        self._matcher.consume_tokens([token] if is_whole else self._vocabulary.spell(text))
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the text fits the grammar, and nothing longer does."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _one_line(self._matcher.get_error())
            raise LLMError(f"the {self._name} cannot be fulfilled, or is too complex ({reason}); use a simpler one")


@lru_cache(maxsize=64)
def _compiled(grammar: Grammar, tokenizer: Tokenizer, begins_with_space: bool) -> "LLMatcher":
    """Return the matcher at the beginning of a text. Raises LLMError."""
    tokens = _tokens(tokenizer)
    from llguidance import LLMatcher, LLParserLimits

    try:
        lark = _as_lark(grammar, begins_with_space)
    except Exception as problem:  # of the converter of GBNF
        raise usage(f"the {NAMES[grammar.kind]} cannot be read: {problem}") from problem
    # the model, not a tokenizer, chooses the tokens of a prescribed text
    lark += '\n%llguidance {"no_forcing": true}'
    limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
    matcher = LLMatcher(tokens, lark, log_level=0, limits=limits)
    if matcher.is_error():
        error = _one_line(matcher.get_error())
        error = error if grammar.kind == "grammar" else _PLACE.sub("", error)  # not a line of the user's
        raise usage(f"the {NAMES[grammar.kind]} cannot be used: {error}")
    return matcher


def _as_lark(grammar: Grammar, begins_with_space: bool) -> str:
    from llguidance import regex_to_lark
    from llguidance.gbnf_to_lark import any_to_lark

    space = '" "? ' if begins_with_space else ""
    if grammar.kind == "schema":
        schema = json.loads(grammar.text)
        options = ONE_LINE | {"lenient": grammar.lenient} | schema.pop("x-guidance", {})
        return f"start: {space}%json {json.dumps(schema | {'x-guidance': options}, ensure_ascii=False)}"
    if grammar.kind == "regex":
        return f"start: {space}/{regex_to_lark(grammar.text, 'd')}/"  # \d is 0 to 9; \w also letters outside ASCII
    return any_to_lark(grammar.text)


@lru_cache(maxsize=4)
def _tokens(tokenizer: Tokenizer) -> "LLTokenizer":
    try:
        from llguidance import LLTokenizer
    except ImportError as error:
        raise missing_extra("structured output", "llguidance", "structured") from error
    return LLTokenizer(_Tokens(tokenizer))  # type: ignore[arg-type]  # it reads the attributes


class _Tokens:
    """A vocabulary as llguidance reads it."""

    is_tokenizer_wrapper, bos_token_id = True, None

    def __init__(self, tokenizer: Tokenizer) -> None:
        data = tokenizer.token_bytes
        self._vocabulary, self.eos_token_id = tokenizer.vocabulary, tokenizer.eos_id
        self.special_token_ids = [i for i, text in enumerate(data) if not text]
        # a grammar may name control tokens: <|im_end|>
        self.tokens = [text or tokenizer.label(i).encode("utf-8") for i, text in enumerate(data)]

    def __call__(self, text: Any) -> list[int]:
        return self._vocabulary.spell(text.encode("utf-8") if isinstance(text, str) else text)


def _one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if not _EXCERPT.fullmatch(line)]
    return " ".join(filter(None, lines)).removesuffix(" <non-verbose/>")[:300]
