"""Structured output (constrained decoding): JSON that fits a schema, a regular expression, or a context-free
grammar.

llguidance parses the text with an Earley parser and determines the tokens that may continue it; all others
get a probability of 0. It treats tokens as bytes, so any tokenizer works. Where the grammar prescribes a
text, the model still chooses among its tokenizations. V = size of the vocabulary.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmcli.config import Grammar
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.vocabulary import Vocabulary
from llmcli.errors import missing_extra, usage
from llmcli.models.runtime import Bools

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NAMES = {"schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
MAX_CHARACTERS = 200_000
MAX_REASON = 300  # characters of llguidance's error that are shown
NO_TEXT = "NoExtension"  # llguidance's reason for a rule that never ends
_EXCERPT = r"\s+\d+ \| .*|\s*\^+\s*"  # lines of the grammar quoted in an error
_PLACE = r"at \d+\(\d+\): (failed to compile JSON schema: )?"


def compile_grammar(grammar: Grammar, tokenizer: Tokenizer, *, is_answer: bool) -> "GrammarState":
    """Compile a grammar, which may take seconds. The answer in a conversation may begin with SentencePiece's
    space. Raises LLMError for a grammar that cannot be used, or if llguidance is not installed."""
    return _compiled(grammar, tokenizer.of_any_bytes, is_answer and tokenizer.adds_prefix_space)


class GrammarState:
    """The state of a compiled grammar in a text: the tokens that it allows next."""

    def __init__(
        self, name: str, matcher: "LLMatcher", vocabulary: Vocabulary, end_ids: Iterable[int] = ()
    ) -> None:
        """`name` is for errors; `end_ids` end the text."""
        self._name = name
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._end_ids = list(end_ids)
        self._allowed: Bools | None = None

    def copy(self, end_ids: Iterable[int]) -> "GrammarState":
        """Return the state for another text, which `end_ids` end."""
        return GrammarState(self._name, self._matcher.deep_copy(), self._vocabulary, end_ids)

    @property
    def allowed(self) -> Bools:
        """Mask [V] of the tokens that may be next. Raises LLMError if there is none."""
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            allowed = np.unpackbits(bits, count=len(self._vocabulary), bitorder="little").view(bool)
            allowed[self._end_ids] = self._matcher.is_accepting()
            self._check()
            if not allowed.any():
                raise usage(f"no token of the vocabulary fits the {self._name} here")
            self._allowed = allowed
        return self._allowed

    def allows(self, text: bytes) -> bool:
        """Return whether the text may continue with these bytes, which no single token spells."""
        byte = self._vocabulary.find(text[:1])
        if byte is not None and not self.allowed[byte]:  # a fast check that rules out nearly all texts
            return False
        ids = self._vocabulary.spell(text)
        return self._matcher.validate_tokens(ids) == len(ids)

    def append(self, token: int, text: bytes) -> None:
        """Add a token to the text; `text` is the part of the token after the prompt."""
        self._allowed = None
        is_whole = text == self._vocabulary.token_bytes[token]
        self._matcher.consume_tokens([token] if is_whole else self._vocabulary.spell(text))
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the text fits the grammar and cannot be continued."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise usage(
                f"the {self._name} cannot be fulfilled, or is too complex ({_reason(self._matcher)}); "
                "use a simpler one"
            )


@lru_cache(maxsize=8)  # entries may take 150 MB
def _compiled(grammar: Grammar, tokenizer: Tokenizer, begins_with_space: bool) -> GrammarState:
    name = NAMES[grammar.kind]
    if len(grammar.text) > MAX_CHARACTERS:
        raise usage(f"the {name} has {len(grammar.text):,} characters; use one of at most {MAX_CHARACTERS:,}")
    tokens = _tokens(tokenizer)
    from llmcli.generation.grammar_compiler import STACK, compile_lark

    # twice the stack with which the child process compiled the grammar
    matcher = compile_lark(tokens, _as_lark(grammar, tokenizer, begins_with_space), 2 * STACK)
    if matcher.is_error():
        reason = _reason(matcher)
        # the line number in the converted grammar means nothing to the user
        reason = reason if grammar.kind == "grammar" else re.sub(_PLACE, "", reason)
        raise usage(f"the {name} cannot be used: {reason}")
    return GrammarState(name, matcher, tokenizer.vocabulary)


def _as_lark(grammar: Grammar, tokenizer: Tokenizer, begins_with_space: bool) -> str:
    """Convert a grammar to Lark's notation, in a child process that also tries to compile it. Raises
    LLMError."""
    from llmcli.generation.grammar_compiler import SECONDS, worker

    name = NAMES[grammar.kind]
    special = {i: tokenizer.label(i) for i in _special_ids(tokenizer)}
    request = {
        "kind": grammar.kind,
        "text": grammar.text,
        "lenient": grammar.lenient,
        "begins_with_space": begins_with_space,
        "vocabulary": [tokenizer.vocab_size, tokenizer.eos_id, special],
    }
    try:
        answer = worker.ask(request, SECONDS)
    except (TimeoutError, EOFError) as error:
        took_long = isinstance(error, TimeoutError)
        reason = (
            f"it takes over {SECONDS:g} seconds"
            if took_long
            else "it needs too much memory or recurses too deeply"
        )
        raise usage(f"the {name} is too complex to compile ({reason}); use a simpler one") from None
    if "error" in answer:
        raise usage(f"the {name} cannot be read: {_shortened(answer['error'])}")
    return str(answer["lark"])


@lru_cache(maxsize=4)
def _tokens(tokenizer: Tokenizer) -> "LLTokenizer":
    try:
        from llguidance import LLTokenizer
    except ImportError as error:
        raise missing_extra("structured output", "llguidance", "structured") from error
    from llmcli.generation.grammar_compiler import GrammarTokens

    # a grammar may name control tokens: <|im_end|>
    tokens = [text or tokenizer.label(i).encode("utf-8") for i, text in enumerate(tokenizer.token_bytes)]
    spell = tokenizer.vocabulary.spell
    vocabulary = GrammarTokens(tokens, tokenizer.eos_id, _special_ids(tokenizer), spell)
    return LLTokenizer(vocabulary)  # type: ignore[arg-type]


def _special_ids(tokenizer: Tokenizer) -> list[int]:
    return [i for i, text in enumerate(tokenizer.token_bytes) if not text]


def _reason(matcher: "LLMatcher") -> str:
    """Return the error of a matcher in one line."""
    message = matcher.get_error().removesuffix("<non-verbose/>")
    for addition in ("<backtrace>", "; either increase limits."):
        message = message.partition(addition)[0]
    lines = [line.strip() for line in message.splitlines() if not re.fullmatch(_EXCERPT, line)]
    return "no text fits it" if message.startswith(NO_TEXT) else _shortened(" ".join(filter(None, lines)))


def _shortened(message: str) -> str:
    """Shorten a message in the middle: the end says what is wrong with the part of the grammar quoted at the
    beginning."""
    half = MAX_REASON // 2
    return message if len(message) <= MAX_REASON else f"{message[:half]} … {message[-half:]}"
