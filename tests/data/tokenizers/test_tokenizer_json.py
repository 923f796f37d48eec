"""A tokenizer.json of any origin: what is supported keeps all text, anything else is an error."""

import json
from typing import Any
from unittest import mock

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from llmcli.data.tokenizers import tokenizer as module
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.tokenizer_json import PATTERNS, describe
from llmcli.errors import LLMError
from tests.conftest import TEXT
from tests.data.corpora import error_of
from tests.data.tokenizers.test_tokenizer import BPE, CHAR, edited, edited_model, library, without_chat_tokens


def of_model(model: object, pre: bool = True) -> str:
    inner = tokenizers.Tokenizer(model)
    if pre:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return inner.to_str()


def with_normalizer(normalizer: object) -> str:
    inner = library(BPE)
    inner.normalizer = normalizer
    return inner.to_str()


BYTE_LEVEL = json.loads(BPE.to_json())["pre_tokenizer"]
SPM = without_chat_tokens("spm")
NAMES = [BPE._inner.id_to_token(i) for i in range(BPE.vocab_size)]


def split(pattern: object, behavior: str = "Isolated") -> dict[str, object]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def in_sequence(step: dict[str, object], last: dict[str, object] = BYTE_LEVEL) -> str:
    """A tokenizer.json with a step before the byte level."""
    return edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [step, last]})


REFUSED = {
    "not JSON": ("hello", "not JSON"),
    "nested too deep": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "has no model"),
    "model is text": ('{"model": "BPE"}', "has no model"),
    "WordPiece": (of_model(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), "of type 'WordPiece'"),
    "BPE of characters": (of_model(models.BPE({"a": 0}, []), pre=False), "not byte-level"),
    "Lowercase": (with_normalizer(normalizers.Lowercase()), "Lowercase normalizer"),
    "Lowercase in a sequence": (with_normalizer(normalizers.Sequence([normalizers.Lowercase()])), "normalizer"),
    "ids with a gap": (of_model(models.BPE({name: i + (i > 5) for i, name in enumerate(NAMES)}, [])), "without gaps"),
    "an id twice": (edited_model(vocab={"a": 0, "b": 0}, merges=[]), "without gaps"),
    "no vocabulary": (edited_model(vocab=None), "the tokenizer has no vocabulary; "),
    "an id that is text": (edited_model(vocab={"a": "0"}, merges=[]), "merges or added tokens of the wrong type"),
    "merges are a number": (edited_model(merges=7), "a vocabulary, merges or added tokens of the wrong type"),
    "added tokens are a number": (edited(added_tokens=5), "a vocabulary, merges or added tokens of the wrong type"),
    "an added token is a number": (edited(added_tokens=[5]), "has an added token without an id"),
    "an added token of nothing": (edited(added_tokens=[{"id": 290, "content": ""}]), "without an id"),
    "an added token too long": (edited(added_tokens=[{"id": 290, "content": "x" * 2000}]), "of 1 to 1,024 char"),
    "too many added tokens": (edited(added_tokens=[{"id": i, "content": "x"} for i in range(1 << 15)]), "32,768 added"),
    "a pattern that never ends": (
        in_sequence(split({"Regex": "(a+)+$"})),
        "an unknown pattern (known: GPT-2, Llama",
    ),
    "a split by nothing": (in_sequence(split({"String": ""})), "an unknown pattern"),
    "too long": (" " * (1 << 26) + "{}", "67,108,866 characters long"),
    "a merge of three": (edited_model(merges=["a b c"]), "not a pair of tokens"),
    "a merge without a space": (edited_model(merges=["ab"]), "not a pair of tokens"),
    "merges of two kinds": (edited_model(merges=[["a", "b"], "ab"]), "not a pair of tokens"),
    "an added token with another id": (edited(added_tokens=[{"id": 290, "content": "a"}]), "added token 'a'"),
    "merge of unknown tokens": (edited_model(merges=[["zz", "qq"]]), "could not be read"),
    "no tokens": (edited(added_tokens=[], model={"type": "BPE", "vocab": {}, "merges": []}), ""),
    **{f"the normalizer {part}": (edited(normalizer=part), "normalizer") for part in ("Lowercase", [1], 5)},
    "char without all bytes": (of_model(models.BPE({"a": 0}, [], byte_fallback=True), pre=False), "256 bytes"),
}


def test_an_unsupported_tokenizer_json_is_an_error() -> None:
    for name in REFUSED:
        text, message = REFUSED[name]
        assert message in error_of(Tokenizer.from_json, text), name
        assert "normalizer" not in name or describe(text)["kind"] == "?"


def test_the_library_has_the_tokenizer_of_the_file() -> None:
    for tokenizer in [BPE, CHAR, BPE.with_chat_tokens()]:
        inner = library(tokenizer)
        for text in (tokenizer.to_json(), inner.to_str(pretty=True), as_strings(tokenizer.to_json())):
            assert json.loads(Tokenizer.from_json(text).to_json()) == json.loads(inner.to_str()), tokenizer
            assert Tokenizer.from_json(json.loads(text)).token_bytes == tokenizer.token_bytes, tokenizer


def as_strings(text: str) -> str:
    """A tokenizer.json with its merges as in older files."""
    document = json.loads(text)
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    return json.dumps(document)


def test_a_file_is_parsed_once_and_its_vocabulary_not_read_back() -> None:
    text, inner = BPE.to_json(), tokenizers.Tokenizer
    with (
        mock.patch.object(json, "loads", wraps=json.loads) as parse,
        mock.patch.object(inner, "from_str", wraps=inner.from_str) as build,
        mock.patch.object(inner, "get_vocab") as read_back,
    ):
        tokenizer = Tokenizer.from_json(text)
        assert tokenizer.decode(tokenizer.encode("a cat")) == "a cat"
    assert [len(call.args[0]) > 1000 for call in parse.call_args_list] == [True]
    assert all(len(call.args[0]) < 1000 for call in build.call_args_list) and not read_back.called


def test_added_tokens_get_their_ids_in_any_order() -> None:
    document = json.loads(BPE.with_chat_tokens().to_json())
    more = [{"id": i + 290, "content": f"<{i}>", "special": True} for i in range(3)]
    tokenizer = Tokenizer.from_json(
        json.dumps(document | {"added_tokens": [*reversed(more), *document["added_tokens"]]})
    )
    assert [tokenizer.control_ids[f"<{i}>"] for i in range(3)] == [290, 291, 292]


class Panic(BaseException):
    """Like a panic of the library: not an Exception."""


def test_a_panic_of_the_library_becomes_an_error() -> None:
    library = mock.Mock(**{"Tokenizer.from_str.side_effect": Panic("index out of bounds")})
    with mock.patch.object(module, "tokenizers", library), pytest.raises(LLMError, match="index out of bounds"):
        Tokenizer.from_json(BPE.to_json())


def test_the_library_gets_only_the_parts_that_are_needed() -> None:
    hostile = json.loads(BPE.to_json()) | {
        "padding": {"strategy": {"Fixed": 1 << 40}, "pad_id": 0},
        "truncation": {"max_length": 1 << 40},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 99},
        "decoder": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x" * 99},
        "surprise": 1,
    }
    seen = []
    real = module.tokenizers.Tokenizer.from_str
    library = mock.Mock(**{"Tokenizer.from_str.side_effect": lambda text: seen.append(json.loads(text)) or real(text)})
    with mock.patch.object(module, "tokenizers", library):
        tokenizer = Tokenizer.from_json(json.dumps(hostile))
    assert {key for key, value in seen[0].items() if value is not None} == {
        "version", "added_tokens", "pre_tokenizer", "model",
    }  # fmt: skip
    assert tokenizer.to_json() == BPE.to_json()


def with_added(token: object) -> str:
    inner = library(BPE)
    inner.add_tokens([token])
    return inner.to_str()


def lacking(tokenizer: Tokenizer, name: str) -> str:
    """A tokenizer.json without the token of one byte."""
    vocab = {("zzz" if key == name else key): i for key, i in json.loads(tokenizer.to_json())["model"]["vocab"].items()}
    return edited_model(tokenizer, vocab=vocab, merges=[])


DOUBTFUL = {
    "byte-level without a byte": lacking(BPE, "q"),
    "char without a byte": lacking(CHAR, "<0xFF>"),
    "char without a needed byte": lacking(CHAR, "<0xC3>"),
    "a space put before": edited(pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True}),
    "white space thrown away": in_sequence({"type": "Whitespace"}),
    "an added word in Latin-1": with_added("é"),
    "spaces written as another sign and then removed": json.dumps(
        json.loads(SPM.to_json()) | {"pre_tokenizer": split({"String": " "}, "Removed") | {"invert": True}}
    ),
}

ACCEPTED = {
    "NFC's fixed points": with_normalizer(normalizers.NFC()),
    **{
        f"{name}'s pattern": in_sequence(split({"Regex": pattern}), BYTE_LEVEL | {"use_regex": False})
        for name, pattern in PATTERNS.items()
    },
    "a sequence": edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}),
    "an added word in ASCII": with_added("<tool_call>"),
    "an added word that strips the space before it": with_added(tokenizers.AddedToken("cat", lstrip=True)),
    "no merges": edited_model(vocab={name: i for i, name in enumerate(NAMES[:261])}, merges=[]),
}

TEXTS = ["quick  brown\n\tcat", "  the  cat", "café", "<tool_call>é</tool_call>", "りんご🍎\U0010ffff"]


def test_other_byte_level_tokenizers_are_supported_and_keep_all_text() -> None:
    for name in ACCEPTED:
        tokenizer = Tokenizer.from_json(ACCEPTED[name])
        assert tokenizer.kind == "bpe", name
        assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS, name


def test_a_tokenizer_that_could_lose_text_is_an_error_or_keeps_all_text() -> None:
    for name in DOUBTFUL:
        try:
            tokenizer = Tokenizer.from_json(DOUBTFUL[name])
        except LLMError:
            continue
        assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS, name


def test_the_tokenizer_of_a_model_may_lack_a_byte_until_text_needs_it() -> None:
    result = json.loads(Tokenizer.train_bpe([TEXT], 261).to_json())
    del result["model"]["vocab"]["z"]
    result["model"]["vocab"] = {token: i for i, token in enumerate(result["model"]["vocab"])}
    assert "no token for 1 of the 256 bytes" in error_of(Tokenizer.from_json, json.dumps(result))
    tokenizer = Tokenizer.from_json(json.dumps(result), max_vocab_size=300)
    assert tokenizer.decode(tokenizer.encode("a cat")) == "a cat"
    assert "no token for the byte 0x7a in the text" in error_of(tokenizer.encode, "a zebra")


def test_control_tokens_beyond_the_model_are_left_out_and_other_tokens_are_an_error() -> None:
    text = with_added(tokenizers.AddedToken("<image>", special=True))
    assert Tokenizer.from_json(text).vocab_size == Tokenizer.from_json(text, max_vocab_size=291).vocab_size == 291
    tokenizer = Tokenizer.from_json(text, max_vocab_size=290)
    assert tokenizer.to_json() == BPE.to_json()
    assert tokenizer.decode(tokenizer.encode("a <image>")) == "a <image>"
    for more, found in ((text, 290), (with_added("word"), 291)):
        with pytest.raises(LLMError, match=f"has {found} tokens, its model only {found - 1}"):
            Tokenizer.from_json(more, max_vocab_size=found - 1)


def test_the_end_of_a_document_is_found_by_its_name() -> None:
    for special, expected in [
        (["<pad>", "</s>"], "</s>"),
        (["<s>", "<|endoftext|>"], "<|endoftext|>"),
        (["<|im_end|>"], "<|im_end|>"),
    ]:
        inner = tokenizers.Tokenizer(
            models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
        )
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(special)
        tokenizer = Tokenizer.from_json(inner.to_str())
        assert tokenizer.eos_id == 256 + special.index(expected), special
        assert tokenizer.eos_id not in tokenizer.encode(expected), special
        assert tokenizer.decode(tokenizer.encode(expected)) == expected, special


def test_describe_returns_kind_and_size() -> None:
    assert describe(BPE.to_json()) == {"kind": "bpe", "vocab_size": 290}
    assert describe(CHAR.to_json()) == {"kind": "char", "vocab_size": CHAR.vocab_size}
    word_piece = of_model(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert describe(word_piece) == {"kind": "?", "vocab_size": 2}
    for text in ("", "x", "[]", "null", "{}", '{"model": 1}', '{"model": {"vocab": []}}', edited(added_tokens=5)):
        assert describe(text) == {}, text


def nested(depth: int) -> dict[str, Any]:
    """A pre-tokenizer inside `depth` sequences."""
    result: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    for _ in range(depth):
        result = {"type": "Sequence", "pretokenizers": [result]}
    return result


def test_an_unknown_or_very_long_pre_tokenizer_is_an_error() -> None:
    sequences = [{"type": "Sequence", "pretokenizers": steps} for steps in ([nested(0)] * 100_000, [nested(1)] * 40)]
    for cutter in [nested(100), nested(400), *sequences, {"type": []}, {"type": {}}, [], [{}], {}]:
        made = json.loads(Tokenizer.train_bpe(["the cat sat on the mat " * 9], 264).to_json())
        message = error_of(Tokenizer.from_json, json.dumps(made | {"pre_tokenizer": cutter}))
        assert ("is not byte-level" in message or "splits words with" in message) and len(message) < 200, cutter
        assert Tokenizer.from_json(json.dumps(made | {"pre_tokenizer": nested(9)})).encode("the cat"), cutter
