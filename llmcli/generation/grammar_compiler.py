"""Compiling grammars with llguidance, first in a child process, which runs this module.

A few hundred characters, such as 25 patterns that a text must all match, can keep llguidance busy for hours,
or fill the memory or the stack, and nothing can interrupt it. Therefore a child process with limits compiles
each grammar before this process does. Requests are lines of JSON on its stdin, answers lines on its stdout:

    {"kind": ..., "text": ..., "lenient": ..., "begins_with_space": ..., "vocabulary": [size, id of the
    end-of-text token, {id: control token}]} -> {"lark": the grammar in Lark's notation} or {"error": message}
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from llmcli.config import Grammar
from llmcli.data.child_process import ChildProcess, answer_requests

SECONDS = 5.0  # per grammar
# bytes of the child process, if the system can limit them; 5,000 properties need half of that
MEMORY = 1 << 28
STACK = 8 << 20  # bytes for compiling in the child process; each level of nested rules takes up to 10 kB
# JSON is on one line, with the spaces of json.dumps or without any: a model that has seen no JSON would
# otherwise generate white space between values forever. A schema may override this in its own "x-guidance".
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
MAX_LEXER_STATES = 50_000  # 1 to 2 kB each
MAX_ITEMS = 10_000  # parser items per token, which take 0.1 s while other texts wait
MAX_SYMBOLS = 50_000  # in all rules; llguidance supports 65,525

worker = ChildProcess(  # the child process
    "llmcli.generation.grammar_compiler", "the process that compiles grammars did not start; try again"
)
_stack_size_lock = threading.Lock()


@dataclass
class GrammarTokens:
    """A vocabulary as llguidance reads it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    tokens: list[bytes]
    eos_token_id: int | None
    special_token_ids: Sequence[int]
    spell: Callable[[bytes], list[int]]

    def __call__(self, text: Any) -> list[int]:
        return self.spell(text.encode("utf-8") if isinstance(text, str) else text)


def compile_lark(tokens: LLTokenizer, lark: str, stack: int) -> LLMatcher:
    """Compile a grammar in Lark's notation, in a thread with a stack of this many bytes. Returns a matcher at
    the beginning of a text. The matcher has an error if the grammar is invalid or no text fits it, which only
    the first mask shows."""
    limits = LLParserLimits(
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=MAX_SYMBOLS,
        step_max_items=MAX_ITEMS,
        verbose_errors=False,
    )
    with ThreadPoolExecutor(1) as pool:
        with _stack_size_lock:  # the size applies to all threads started from now on
            others = threading.stack_size(stack)
            compiling = pool.submit(LLMatcher, tokens, lark, log_level=0, limits=limits)
            threading.stack_size(others)
        matcher = compiling.result()
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def _as_lark(grammar: Grammar, begins_with_space: bool) -> str:
    """Convert a grammar to Lark's notation. Raises exceptions of any kind for a text that cannot be read."""
    space = '" "? ' if begins_with_space else ""
    if grammar.kind == "schema":
        schema = json.loads(grammar.text)
        options = ONE_LINE | {"lenient": grammar.lenient} | schema.pop("x-guidance", {})
        lark = f"start: {space}%json {json.dumps(schema | {'x-guidance': options}, ensure_ascii=False)}"
    elif grammar.kind == "regex":
        if (len(grammar.text) - len(grammar.text.rstrip("\\"))) % 2:  # which regex_to_lark leaves out
            raise ValueError("it ends with a single backslash")
        # "d": \d is 0 to 9, but \w includes non-ASCII letters
        lark = f"start: {space}/{regex_to_lark(grammar.text, 'd')}/"
    else:
        lark = any_to_lark(grammar.text)
    # the model, not a tokenizer, chooses the tokens of a prescribed text
    return lark + '\n%llguidance {"no_forcing": true}'


# ---- the child process


def main() -> None:
    answer_requests(_answer, MEMORY)


def _answer(request: Mapping[str, Any], _: object) -> dict[str, str]:
    size, eos_id, special = request["vocabulary"]
    grammar = Grammar(request["kind"], request["text"], request["lenient"])
    try:
        lark = _as_lark(grammar, request["begins_with_space"])
    except Exception as problem:  # the GBNF converter raises several types
        reason = " ".join(str(problem).split())
        return {"error": reason.replace("'root' rule", "'root' rule (GBNF) or 'start' rule (Lark)")}
    # its errors depend on the vocabulary
    compile_lark(_any_tokens(size, eos_id, tuple(special.items())), lark, STACK)
    return {"lark": lark}


@lru_cache(maxsize=4)
def _any_tokens(size: int, eos_id: int | None, special: Sequence[tuple[str, str]]) -> LLTokenizer:
    """Return a vocabulary of single bytes with the size and the control tokens of a real vocabulary."""
    tokens = [bytes([i % 256]) for i in range(size)]
    for i, name in special:
        tokens[int(i)] = name.encode("utf-8")
    vocabulary = GrammarTokens(tokens, eos_id, [int(i) for i, _ in special], list)
    return LLTokenizer(vocabulary)  # type: ignore[arg-type]
