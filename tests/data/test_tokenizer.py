"""Text <-> ids: nothing is lost, nothing becomes a control token, and the `tokenizers` library agrees."""

import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from llmcli.data import text_pieces
from llmcli.data import tokenizer as module
from llmcli.data.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer
from llmcli.data.tokenizer_json import PATTERNS, PRE_TOKENIZERS, describe
from llmcli.errors import LLMError
from tests.conftest import TEXT

BPE = Tokenizer.train_bpe([TEXT], 290)
CHAR = Tokenizer.train_char([TEXT])
BOTH = pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])

AWKWARD = [
    "", " ", "  ", "\n", "\r\n", "\t", "\0", "\x1c", "\x85", "\xa0", "\u3000", "\ufeff", "\ufffd", "\uffff",
    "\U0010ffff", "e\u0301", "é", "Å", "\u0301", "が", "か\u3099", "りんご", "🍎", "👩\u200d👩\u200d👧", "🇯🇵", "ﬁ",
    "the cat", "'s", "12", END_OF_TEXT, "<|endoftext", "|>", "<0x41>", "<0xFF>", "Ġ", "Ċ", "▁", "\x7f", "\x80", "ÿ",
]  # fmt: skip
ANY_TEXT = st.lists(st.sampled_from(AWKWARD) | st.text(st.characters(codec="utf-8"), max_size=8), max_size=8).map(
    "".join
)


def ids_in_parts(tokenizer: Tokenizer, parts: Iterable[str]) -> list[int]:
    return [i for ids in tokenizer.encode_stream(parts) for i in ids]


def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer.json in the hands of the library alone."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    inner.encode_special_tokens = True
    return inner


def library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return library(tokenizer).encode(text, add_special_tokens=False).ids


def edited(tokenizer: Tokenizer = BPE, **parts: object) -> str:
    """A tokenizer.json with some of its parts replaced."""
    return json.dumps(json.loads(tokenizer.to_json()) | parts)


def edited_model(tokenizer: Tokenizer = BPE, **parts: object) -> str:
    return edited(tokenizer, model=json.loads(tokenizer.to_json())["model"] | parts)


# ---- text -> ids -> text


@BOTH
@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_awkward_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@BOTH
@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back_as_text_and_as_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert tokenizer.eos_id not in ids


@BOTH
@settings(max_examples=80, deadline=None)
@given(text=ANY_TEXT)
def test_the_library_gives_the_same_ids_and_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == library_ids(tokenizer, text)
    assert library(tokenizer).decode(ids, skip_special_tokens=False) == text


@BOTH
@settings(max_examples=60, deadline=None)
@given(text=ANY_TEXT)
def test_reading_its_own_json_changes_no_id(tokenizer: Tokenizer, text: str) -> None:
    assert Tokenizer.from_json(tokenizer.to_json()).encode(text) == tokenizer.encode(text)


@BOTH
@pytest.mark.parametrize("text", [END_OF_TEXT, f"a{END_OF_TEXT}b", f"{END_OF_TEXT}\n{END_OF_TEXT}"])
def test_the_end_of_text_typed_by_a_user_is_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("train", [Tokenizer.train_bpe, Tokenizer.train_char])
def test_a_corpus_full_of_end_of_text_still_does_not_make_it_typeable(train) -> None:
    tokenizer = train([END_OF_TEXT * 500], 400)
    ids = tokenizer.encode(END_OF_TEXT * 2)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == END_OF_TEXT * 2


@BOTH
def test_the_control_token_is_id_0_and_writes_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id == 0
    assert tokenizer.token_bytes[0] == b""
    assert tokenizer.decode([*tokenizer.encode("a"), 0, *tokenizer.encode("b")]) == "ab"


@BOTH
def test_half_a_character_decodes_to_its_bytes_and_shows_as_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\u0416")  # 0xD0 0x96, not in the corpus: two tokens
    assert len(ids) == 2
    assert tokenizer.decode_bytes(ids[:1]) == b"\xd0"
    assert tokenizer.decode(ids[:1]) == "\ufffd"


@BOTH
@pytest.mark.parametrize("text", ["\ud800", "ok \udce9 ok", "\udfff"], ids=ascii)
def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(LLMError, match=f"position {next(i for i, c in enumerate(text) if ord(c) > 0xD7FF)} "):
        tokenizer.encode(text)


@BOTH
@pytest.mark.parametrize("offset", [-1, 0, 10**12])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, offset: int) -> None:
    bad = offset if offset else tokenizer.vocab_size
    with pytest.raises(LLMError, match=f"no token {bad}; this vocabulary has 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode([1, bad])


# ---- however the text comes


def long_text() -> str:
    """300,000 characters of words, odd white space, contractions, Japanese and emoji; a word end every few letters."""
    rng = random.Random(7)
    words = [
        "the",
        "cat's",
        "I'm",
        "12,000",
        "...",
        "--",
        "りんごを",
        "食べる。",
        "🍎🍎",
        "x\u3000y",
        "e\u0301",
        "a\xa0b",
        "naïve",
    ]
    spaces = [" ", " ", " ", "\n", "\n\n", "  ", "   ", "\n  ", "\r\n", "\t", " \u3000", "\n\n\n"]
    return "".join(rng.choice(words) + rng.choice(spaces) for _ in range(60_000))


@pytest.mark.parametrize("train", [Tokenizer.train_bpe, Tokenizer.train_char])
@pytest.mark.slow
def test_long_text_gives_the_ids_of_the_library_whatever_its_parts(train) -> None:
    text = long_text()
    tokenizer = train([text[:30_000]], 500)
    assert len(text) > 4 * text_pieces.PIECE_CHARACTERS
    wanted = library_ids(tokenizer, text)
    assert tokenizer.encode(text) == wanted
    for size in (1, 1000, 65_536, 100_003):
        parts = [text[i : i + size] for i in range(0, len(text), size)] if size > 1 else [*text[:50], text[50:]]
        assert ids_in_parts(tokenizer, parts) == wanted, size


def test_long_japanese_with_line_ends_gives_the_ids_of_the_library() -> None:
    rng = random.Random(3)
    text = "\n".join("".join(rng.choices("りんごを食べる。犬と猫", k=rng.randrange(1, 300))) for _ in range(1400))
    assert len(text) > 3 * text_pieces.PIECE_CHARACTERS
    tokenizer = Tokenizer.train_bpe([text[:30_000]], 400)
    assert tokenizer.encode(text) == library_ids(tokenizer, text)


def test_long_text_without_a_space_comes_back_and_does_not_depend_on_its_parts() -> None:
    text = "りんご" * 60_000
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert ids_in_parts(BPE, [text[:5], text[5:100_000], text[100_000:]]) == ids


SPACED = Tokenizer.train_bpe(["a   b\n\n\nc\n  d\n\ne  f \u3000g \th " * 9], 300)  # has merges of white space
WORD = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from(["a", "b'", "1", ".", "あ", "🍎", "e\u0301", "'s", "\x1c", "\u3000"]),
    st.sampled_from(["", "\x1c", "\xa0", "\r", "\u2028", "\x85"]),
    st.sampled_from(["t", "h", "9", "!", "'", "あ", "\u0301", "Ж"]),
)
SPACE = st.sampled_from([" ", "\n", "  ", "\n\n", " \t", "\n ", " \u3000", " \x1c", "   ", "\n\n\n", "\n  "])


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(WORD, SPACE), min_size=8, max_size=40),
    cuts=st.lists(st.integers(0, 250), max_size=5),
)
def test_cutting_where_a_word_ends_changes_no_id(pairs: list[tuple[str, str]], cuts: list[int]) -> None:
    text = "".join(word + space for word, space in pairs)  # a word end in every 16 characters
    edges = [0, *sorted(cuts), len(text)]
    parts = [text[low:high] for low, high in itertools.pairwise(edges)]
    with mock.patch.object(text_pieces, "PIECE_CHARACTERS", 16):
        assert ids_in_parts(SPACED, parts) == library_ids(SPACED, text)


PLAIN = st.sampled_from([" ", "\n", "  ", "\n\n", " \t"])  # after which every way to cut words ends one


@pytest.mark.parametrize("name", list(PRE_TOKENIZERS))
@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(WORD.filter(lambda word: not word[0].isspace()), PLAIN), min_size=8, max_size=40),
    cuts=st.lists(st.integers(0, 250), max_size=5),
)
@pytest.mark.slow
def test_cutting_changes_no_id_however_words_are_cut(name: str, pairs: list[tuple[str, str]], cuts: list[int]) -> None:
    found = json.loads(SPACED.to_json()) | {"pre_tokenizer": PRE_TOKENIZERS[name]}
    for left, right in (("!", "Ċ"), ("Ċ", "!")):  # what Llama 3 and Qwen 2 put into a word, and what nobody does
        found["model"]["vocab"][left + right] = len(found["model"]["vocab"])
        found["model"]["merges"].append([left, right])
    tokenizer = Tokenizer.from_json(json.dumps(found))
    text = "".join(word + space for word, space in pairs)
    edges = [0, *sorted(cuts), len(text)]
    parts = [text[low:high] for low, high in itertools.pairwise(edges)]
    with mock.patch.object(text_pieces, "PIECE_CHARACTERS", 16):
        assert ids_in_parts(tokenizer, parts) == library_ids(tokenizer, text)


# ---- training


@pytest.mark.parametrize("train", [Tokenizer.train_bpe, Tokenizer.train_char])
def test_training_twice_gives_the_same_json(train) -> None:
    text = long_text()[:60_000]
    assert train([text], 500).to_json() == train(iter([text]), 500).to_json()


@pytest.mark.parametrize("train", [Tokenizer.train_bpe, Tokenizer.train_char])
def test_training_does_not_depend_on_the_parts_of_the_text(train) -> None:
    parts = [TEXT[i : i + 7] for i in range(0, len(TEXT), 7)]
    assert train(parts, 300).to_json() == train([TEXT], 300).to_json()


def test_byte_pair_encoding_learns_the_commonest_pair_first() -> None:
    tokenizer = Tokenizer.train_bpe(["ab ab ab ab abc abc"], 259)
    # pairs in "ab", " ab" x3, " abc" x2: a+b 6 times, " "+ab 5 times
    assert json.loads(tokenizer.to_json())["model"]["merges"] == [["a", "b"], ["Ġ", "ab"]]
    assert tokenizer.token_bytes[257:] == [b"ab", b" ab"]
    assert tokenizer.encode("ab abc") == [257, 258, *tokenizer.encode("c")]


def test_byte_pair_vocabulary_is_the_end_of_text_then_the_256_bytes_then_merges() -> None:
    assert BPE.vocab_size == 290
    assert sorted(BPE.token_bytes[1:257]) == [bytes([b]) for b in range(256)]
    assert all(len(piece) >= 2 for piece in BPE.token_bytes[257:])


@pytest.mark.parametrize("train", [Tokenizer.train_bpe, Tokenizer.train_char])
@pytest.mark.parametrize("size", [256, 1, 0, -5])
def test_a_vocabulary_below_257_is_wrong_usage(train, size: int) -> None:
    with pytest.raises(LLMError, match=f"at least 257.*found {size}") as caught:
        train([TEXT], size)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("train", [Tokenizer.train_bpe, Tokenizer.train_char])
def test_a_vocabulary_of_257_is_bytes_and_the_end_of_text(train) -> None:
    tokenizer = train([TEXT], 257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode("the 🍎")) == len("the 🍎".encode())
    assert sorted(tokenizer.token_bytes) == sorted([b"", *(bytes([b]) for b in range(256))])


def test_a_text_with_few_pairs_ends_with_a_smaller_vocabulary() -> None:
    assert Tokenizer.train_bpe(["aa aa"], 5000).vocab_size == 258  # "aa" twice; " aa" only once


FAMILY = "👨\u200d👩\u200d👧\u200d👦"


REPEATED = ["a" * 300_000, FAMILY * 5000, " " * 100_000, "ab" * 50_000, "=" * 99_999, "あ" * 50_000]


@pytest.mark.parametrize("text", REPEATED, ids=lambda text: text[:2])
def test_no_token_is_so_long_that_it_swallows_a_text_that_repeats_itself(text: str, no_hang: None) -> None:
    tokenizer = Tokenizer.train_bpe([text], 8192)
    assert max(map(len, tokenizer.token_bytes)) <= module.MAX_TOKEN_BYTES == 63
    ids = tokenizer.encode(text)
    assert len(text.encode()) / 63 <= len(ids) <= len(text.encode()) / 25  # and yet merged well
    assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_no_word_is_so_long_that_learning_from_it_takes_its_square() -> None:
    """The work is the sum of the squares of the words' lengths: for all of Unicode once a thousandth of what it was."""
    unicode = "".join(chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)

    def work(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> int:
        return sum(len(word) ** 2 for word, _ in pre_tokenizer.pre_tokenize_str(text))

    cut, gpt2 = module._training_pre_tokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    longest = 4 * module.MAX_TRAINING_WORD + 1  # bytes of so many characters, with a space before them
    for text in (unicode, "a" * 300_000, FAMILY * 5000, "\n" * 3000 + " x"):
        words = [word for word, _ in cut.pre_tokenize_str(text)]
        assert "".join(words) == "".join(word for word, _ in gpt2.pre_tokenize_str(text))
        assert max(map(len, words)) <= longest
    assert 1000 * work(cut, unicode) < work(gpt2, unicode)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["don't", "I'll", " ", "\n", "\t", "12", "x", "Ω", "り", "é", "!?", "🍎", "\u0301"])))
def test_words_to_learn_from_are_gpt2s(parts: list[str]) -> None:
    text = "".join(parts)
    words, wanted = (
        pre_tokenizer.pre_tokenize_str(text)
        for pre_tokenizer in (module._training_pre_tokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    )
    assert words == wanted


def test_of_ordinary_text_the_library_learns_the_same_vocabulary() -> None:
    text = TEXT + "".join(path.read_text("utf-8") for path in sorted(Path(__file__).parent.parent.rglob("test_c*.py")))
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, min_frequency=2, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator([text], trainer)
    found, wanted = json.loads(Tokenizer.train_bpe([text], 900).to_json()), json.loads(inner.to_str())
    assert found["model"] == wanted["model"]
    assert found["pre_tokenizer"] == wanted["pre_tokenizer"]


def test_pre_tokenizer_is_gpt2s() -> None:
    found = json.loads(BPE.to_json())
    assert found["pre_tokenizer"]["type"] == "ByteLevel"
    assert found["pre_tokenizer"]["add_prefix_space"] is False
    assert found["pre_tokenizer"]["use_regex"] is True
    assert found["decoder"]["type"] == "ByteLevel"
    assert found["normalizer"] is None
    split = library(BPE).pre_tokenizer.pre_tokenize_str("I'm  here12!\n\n x \n")
    assert [piece for piece, _ in split] == ["I", "'m", "Ġ", "Ġhere", "12", "!", "ĊĊ", "Ġx", "ĠĊ"]


def test_each_character_of_the_corpus_is_one_token() -> None:
    assert CHAR.kind == "char"
    for character in set(TEXT):
        assert len(CHAR.encode(character)) == 1, character
    assert CHAR.vocab_size == 257 + len({c for c in TEXT if ord(c) >= 128})
    assert len(CHAR.encode(TEXT)) == len(TEXT)


@pytest.mark.parametrize("unseen", ["é", "Ж", "漢", "🍐", "\U0010ffff", "Z", "\0", "\x80"], ids=ascii)
def test_a_character_that_the_corpus_lacks_is_spelled_in_bytes(unseen: str) -> None:
    assert unseen not in TEXT
    ids = CHAR.encode(unseen)
    assert [CHAR.token_bytes[i] for i in ids] == [bytes([b]) for b in unseen.encode("utf-8")]


def test_a_small_char_vocabulary_keeps_the_most_frequent_characters() -> None:
    tokenizer = Tokenizer.train_char(["ああいいいうええええ"], 259)
    assert tokenizer.vocab_size == 259
    assert [len(tokenizer.encode(c)) for c in "あいうえ"] == [3, 1, 3, 1]


def test_of_characters_as_frequent_as_each_other_the_first_in_unicode_is_kept() -> None:
    tokenizer = Tokenizer.train_char(["うあい"], 258)
    assert [len(tokenizer.encode(c)) for c in "うあい"] == [3, 1, 3]


def test_char_tokens_are_stored_as_byte_fallback_without_merges() -> None:
    model = json.loads(CHAR.to_json())["model"]
    assert (model["type"], model["byte_fallback"], model["merges"]) == ("BPE", True, [])


# ---- reading a tokenizer.json


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


def no_regex(step: dict[str, object]) -> dict[str, object]:
    return step | {"use_regex": False}


def split(pattern: object, behavior: str = "Isolated") -> dict[str, object]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


REFUSED = {
    "empty text": ("", "not JSON"),
    "not JSON": ("hello", "not JSON"),
    "cut off": (BPE.to_json()[:-10], "not JSON"),
    "nested too deep": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "has no model"),
    "no model": ("{}", "has no model"),
    "model is text": ('{"model": "BPE"}', "has no model"),
    "WordPiece": (of_model(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), "of type 'WordPiece'"),
    "Unigram": (of_model(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)), "of type 'Unigram'"),
    "WordLevel": (of_model(models.WordLevel({"a": 0}, unk_token="a")), "of type 'WordLevel'"),
    "BPE of characters": (of_model(models.BPE({"a": 0}, []), pre=False), "not byte-level"),
    "Lowercase": (with_normalizer(normalizers.Lowercase()), "Lowercase normalizer"),
    "NFKC": (with_normalizer(normalizers.NFKC()), "NFKC normalizer"),
    "StripAccents": (with_normalizer(normalizers.StripAccents()), "StripAccents normalizer"),
    "Lowercase in a sequence": (with_normalizer(normalizers.Sequence([normalizers.Lowercase()])), "normalizer"),
    "ids with a gap": (
        of_model(models.BPE({name: i + (i > 5) for i, name in enumerate(BPE._names)}, [])),
        "without gaps",
    ),
    "negative id": (edited_model(vocab={"a": -1}, merges=[]), "without gaps"),
    "an id twice": (edited_model(vocab={"a": 0, "b": 0}, merges=[]), "without gaps"),
    "an id beyond all bounds": (edited_model(vocab={"a": 4_294_967_295}, merges=[]), "without gaps"),
    "an id that is text": (edited_model(vocab={"a": "0"}, merges=[]), "a vocabulary or merges of the wrong type"),
    "merges are a number": (edited_model(merges=7), "a vocabulary or merges of the wrong type"),
    "added tokens are a number": (edited(added_tokens=5), "added tokens of the wrong type"),
    "an added token is a number": (edited(added_tokens=[5]), "added tokens of the wrong type"),
    "an added token of nothing": (
        edited(added_tokens=[{"id": 290, "content": ""}]),
        "without an id",
    ),
    "an added token too long": (
        edited(added_tokens=[{"id": 290, "content": "x" * 2000}]),
        "of 1 to 1,024 char",
    ),
    "too many added tokens": (edited(added_tokens=[{"id": i, "content": "x"} for i in range(1 << 15)]), "32,768 added"),
    "a pattern that never ends": (
        edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [split({"Regex": "(a+)+$"}), BYTE_LEVEL]}),
        "a pattern that is none of GPT-2, Llama 3, Qwen 2's",
    ),
    "a split by nothing": (
        edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [split({"String": ""}), BYTE_LEVEL]}),
        "a pattern",
    ),
    "too long": (" " * (1 << 25) + "{}", "33,554,434 characters long"),
    "merge of unknown tokens": (edited_model(merges=[["zz", "qq"]]), "could not be read"),
    "char without all bytes": (of_model(models.BPE({"a": 0}, [], byte_fallback=True), pre=False), "256 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_from_json_refuses(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(LLMError, match=message) as caught:
        Tokenizer.from_json(text)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("normalizer", ["Lowercase", [1], 5], ids=repr)
def test_from_json_refuses_a_normalizer_that_is_no_object(normalizer: object) -> None:
    with pytest.raises(LLMError):
        Tokenizer.from_json(edited(normalizer=normalizer))


@pytest.mark.parametrize("normalizer", ["Lowercase", [1], 5], ids=repr)
def test_describe_does_not_stumble_over_a_normalizer_that_is_no_object(normalizer: object) -> None:
    assert describe(edited(normalizer=normalizer)).get("kind", "?") == "?"


def test_from_json_refuses_a_vocabulary_of_nothing() -> None:
    with pytest.raises(LLMError):
        Tokenizer.from_json(
            edited(added_tokens=[], model=json.loads(BPE.to_json())["model"] | {"vocab": {}, "merges": []})
        )


class Panic(BaseException):
    """As the library's: no Exception."""


def test_from_json_turns_a_panic_of_the_library_into_an_error() -> None:
    library = mock.Mock(**{"Tokenizer.from_str.side_effect": Panic("index out of bounds")})
    with mock.patch.object(module, "tokenizers", library), pytest.raises(LLMError, match="index out of bounds"):
        Tokenizer.from_json(BPE.to_json())


def test_the_library_sees_nothing_that_is_not_needed() -> None:
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
    """The vocabulary with another token in the place of one byte."""
    vocab = {("zzz" if key == name else key): i for key, i in json.loads(tokenizer.to_json())["model"]["vocab"].items()}
    return edited_model(tokenizer, vocab=vocab, merges=[])


DOUBTFUL = {
    "byte-level without a byte": lacking(BPE, "q"),
    "char without a byte": lacking(CHAR, "<0xFF>"),
    "char without a needed byte": lacking(CHAR, "<0xC3>"),
    "a space put before": edited(pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True}),
    "white space thrown away": edited(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTE_LEVEL]}
    ),
    "an added word in Latin-1": with_added("é"),
    "an added word that eats the space before it": with_added(tokenizers.AddedToken("cat", lstrip=True)),
}
ACCEPTED = {
    "NFC's fixed points": with_normalizer(normalizers.NFC()),
    **{
        f"{name}'s pattern": edited(
            pre_tokenizer={"type": "Sequence", "pretokenizers": [split({"Regex": pattern}), no_regex(BYTE_LEVEL)]}
        )
        for name, pattern in PATTERNS.items()
    },
    "a sequence": edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}),
    "an added word in ASCII": with_added("<tool_call>"),
    "no merges": edited_model(vocab={name: i for i, name in enumerate(BPE._names[:257])}, merges=[]),
}
TEXTS = ["quick  brown\n\tcat", "  the  cat", "café", "<tool_call>é</tool_call>", "りんご🍎\U0010ffff"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_from_json_takes_a_byte_level_tokenizer_of_others_and_loses_no_text(name: str) -> None:
    tokenizer = Tokenizer.from_json(ACCEPTED[name])
    assert tokenizer.kind == "bpe"
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_tokenizer_that_would_lose_text_is_refused_or_made_to_lose_none(name: str) -> None:
    try:
        tokenizer = Tokenizer.from_json(DOUBTFUL[name])
    except LLMError:
        return
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


def test_of_a_model_s_tokenizer_only_text_that_it_lacks_is_refused() -> None:
    found = json.loads(Tokenizer.train_bpe([TEXT], 257).to_json())
    del found["model"]["vocab"]["z"]
    found["model"]["vocab"] = {token: i for i, token in enumerate(found["model"]["vocab"])}
    with pytest.raises(LLMError, match="no token for 1 of the 256 bytes"):
        Tokenizer.from_json(json.dumps(found))
    tokenizer = Tokenizer.from_json(json.dumps(found), max_vocab_size=300)
    assert tokenizer.decode(tokenizer.encode("a cat")) == "a cat"
    with pytest.raises(LLMError, match="no token for the byte 0x7a, which the text has"):
        tokenizer.encode("a zebra")


def test_more_tokens_than_the_model_has_are_refused() -> None:
    assert Tokenizer.from_json(BPE.to_json(), max_vocab_size=290).vocab_size == 290
    with pytest.raises(LLMError, match="has 290 tokens, its model only 289"):
        Tokenizer.from_json(BPE.to_json(), max_vocab_size=289)


def test_padding_and_truncation_in_a_tokenizer_json_are_switched_off() -> None:
    inner = library(BPE)
    inner.enable_truncation(3)
    inner.enable_padding(length=50)
    tokenizer = Tokenizer.from_json(inner.to_str())
    assert tokenizer.encode(TEXT) == BPE.encode(TEXT)


@pytest.mark.parametrize(
    ("special", "wanted"),
    [(["<pad>", "</s>"], "</s>"), (["<s>", "<|endoftext|>"], "<|endoftext|>"), (["<|im_end|>"], "<|im_end|>")],
)
def test_the_end_of_a_document_is_found_by_its_name(special: list[str], wanted: str) -> None:
    inner = tokenizers.Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    tokenizer = Tokenizer.from_json(inner.to_str())
    assert tokenizer.eos_id == 256 + special.index(wanted)
    assert tokenizer.eos_id not in tokenizer.encode(wanted)
    assert tokenizer.decode(tokenizer.encode(wanted)) == wanted


# ---- saying what it is


def test_describe_says_kind_and_size() -> None:
    assert describe(BPE.to_json()) == {"kind": "bpe", "vocab_size": 290}
    assert describe(CHAR.to_json()) == {"kind": "char", "vocab_size": CHAR.vocab_size}
    assert describe(of_model(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))) == {
        "kind": "?",
        "vocab_size": 2,
    }


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "null", "{}", '{"model": 1}', '{"model": {"vocab": []}}', "[" * 100_000, edited(added_tokens=5)],
)
def test_describe_of_anything_else_is_empty(text: str) -> None:
    assert describe(text) == {}


def test_config_json_names_the_end_and_the_context() -> None:
    found = json.loads(BPE.to_config_json(1234))
    assert found["eos_token"] == found["bos_token"] == END_OF_TEXT
    assert found["model_max_length"] == 1234
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert found["add_prefix_space"] is found["add_bos_token"] is found["clean_up_tokenization_spaces"] is False


# ---- bytes that come in pieces

BROKEN = [
    b"a", b"\x80", b"\xbf", b"\xc0\x80", b"\xc3", b"\xc3\xa9", b"\xe0\x80", b"\xe3", b"\xe3\x81", b"\x82",
    b"\xe3\x81\x82", b"\xed\xa0\x80", b"\xed\xa0", b"\xed", b"\xf0\x9f", b"\xf0\x9f\x8d", b"\xf0\x9f\x8d\x8e",
    b"\xf0\x80", b"\xf4\x90", b"\xf5", b"\xff", b"\xfe", b"\0",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(chunks=st.lists(st.sampled_from(BROKEN) | st.binary(max_size=4), max_size=12))
def test_stream_decoder_says_what_decoding_at_once_says(chunks: list[bytes]) -> None:
    decoder = StreamDecoder()
    text = "".join(decoder.feed(chunk) for chunk in chunks) + decoder.finish()
    assert text == b"".join(chunks).decode("utf-8", "replace")


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=30))
def test_stream_decoder_gives_each_character_with_its_last_byte_and_never_a_replacement(text: str) -> None:
    decoder = StreamDecoder()
    for character in text:
        *before, last = character.encode("utf-8")
        assert [decoder.feed(bytes([b])) for b in before] == [""] * len(before)
        assert decoder.feed(bytes([last])) == character
    assert decoder.finish() == ""


def test_stream_decoder_does_not_withhold_bytes_that_are_no_text() -> None:
    decoder = StreamDecoder()
    assert [decoder.feed(b"\x80") for _ in range(4000)] == ["\ufffd"] * 4000
    assert decoder.finish() == ""


def test_stream_decoder_shows_a_replacement_as_soon_as_it_is_certain() -> None:
    decoder = StreamDecoder()
    assert [decoder.feed(b) for b in (b"\xe3", b"A", b"\xf0\x9f", b"\xe3\x81", b"\x82")] == [
        "",
        "\ufffdA",
        "",
        "\ufffd",
        "あ",
    ]
    assert StreamDecoder().feed(b"\xff") == "\ufffd"


def test_stream_decoder_finishes_with_a_replacement_for_half_a_character() -> None:
    decoder = StreamDecoder()
    assert (decoder.feed(b"a\xf0\x9f\x8d"), decoder.finish()) == ("a", "\ufffd")


def test_parts_are_the_merges_and_spell_their_token() -> None:
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat, the rat ate the cat " * 9], 300)
    pieces = tokenizer.token_bytes
    merged = [(i, pair) for i, pair in enumerate(tokenizer.merge_pairs) if pair != (-1, -1)]
    assert len(merged) == tokenizer.vocab_size - 257 > 5
    assert all(pieces[left] + pieces[right] == pieces[i] for i, (left, right) in merged)


def test_characters_have_no_parts() -> None:
    assert set(Tokenizer.train_char(["りんごを食べる"]).merge_pairs) == {(-1, -1)}


def nested(depth: int) -> dict[str, Any]:
    """A pre-tokenizer inside so many sequences."""
    found: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    for _ in range(depth):
        found = {"type": "Sequence", "pretokenizers": [found]}
    return found


@pytest.mark.parametrize(
    "cutter",
    [nested(100), nested(400), {"type": "Sequence", "pretokenizers": [nested(0)] * 100_000},
     {"type": "Sequence", "pretokenizers": [nested(1)] * 40}, {"type": []}, {"type": {}}, [], [{}], {}],
    ids=["deep", "deeper", "many", "many in sequences", "a list", "an object", "nothing", "a list of one", "no type"],
)  # fmt: skip
def test_a_pre_tokenizer_of_no_known_kind_or_of_many_steps_is_refused(cutter: Any) -> None:
    made = json.loads(Tokenizer.train_bpe(["the cat sat on the mat " * 9], 260).to_json())
    with pytest.raises(LLMError, match=r"the tokenizer (is not byte-level|splits words with)") as caught:
        Tokenizer.from_json(json.dumps(made | {"pre_tokenizer": cutter}))
    assert len(str(caught.value)) < 200
    assert Tokenizer.from_json(json.dumps(made | {"pre_tokenizer": nested(9)})).encode("the cat")
