"""Text <-> ids: nothing is lost, nothing becomes a control token, and the `tokenizers` library agrees."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from llmcli.config import MIN_VOCAB_SIZE
from llmcli.data.tokenizers import tokenizer as module
from llmcli.data.tokenizers.tokenizer import CONTROL_TOKENS, END_OF_TEXT, IM_END, IM_START, Tokenizer, stream_decoder
from llmcli.errors import LLMError
from tests.conftest import TEXT
from tests.data.corpora import error_of

BPE = Tokenizer.train_bpe([TEXT], 290)

CHAR = Tokenizer.train_char([TEXT])

BOTH = pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])

AWKWARD = [
    "", " ", "  ", "\n", "\r\n", "\t", "\0", "\x1c", "\x85", "\xa0", "\u3000", "\ufeff", "\ufffd", "\uffff",
    "\U0010ffff", "e\u0301", "é", "Å", "\u0301", "が", "か\u3099", "りんご", "🍎", "👩\u200d👩\u200d👧", "🇯🇵", "ﬁ",
    "the cat", "'s", "12", *CONTROL_TOKENS, "<|endoftext", "|>", "<0x41>", "<0xFF>", "Ġ", "Ċ", "▁", "\x7f", "\x80", "ÿ",
]  # fmt: skip

ANY_TEXT = st.lists(st.sampled_from(AWKWARD) | st.text(st.characters(codec="utf-8"), max_size=8), max_size=8).map(
    "".join
)


def ids_in_parts(tokenizer: Tokenizer, parts: Iterable[str]) -> list[int]:
    return [i for ids in tokenizer.encode_stream(parts) for i in ids]


def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer.json in the library, without our code."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    inner.encode_special_tokens = True
    return inner


def library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return library(tokenizer).encode(text, add_special_tokens=False).ids


def edited(tokenizer: Tokenizer = BPE, **parts: object) -> str:
    """A tokenizer.json with parts replaced."""
    return json.dumps(json.loads(tokenizer.to_json()) | parts)


def edited_model(tokenizer: Tokenizer = BPE, **parts: object) -> str:
    return edited(tokenizer, model=json.loads(tokenizer.to_json())["model"] | parts)


@BOTH
@settings(max_examples=80, deadline=None)
@given(text=ANY_TEXT)
@example(text="".join(AWKWARD))
def test_any_text_round_trips_with_the_ids_of_the_library(tokenizer: Tokenizer, text: str) -> None:
    """A control token that a user typed is text."""
    ids = tokenizer.encode(text)
    assert ids == library_ids(tokenizer, text) == Tokenizer.from_json(tokenizer.to_json()).encode(text)
    assert tokenizer.decode(ids) == library(tokenizer).decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert not {*ids} & {*tokenizer.control_ids.values()}


CONTROL_IDS = {name: i for i, name in enumerate(CONTROL_TOKENS)}


def test_training_on_control_tokens_does_not_make_them_typeable() -> None:
    for train in [Tokenizer.train_bpe, Tokenizer.train_char]:
        text = "".join(CONTROL_TOKENS)
        tokenizer = train([text * 500], 500)
        ids = tokenizer.encode(text * 2)
        assert not set(ids) & set(CONTROL_IDS.values()), train
        assert tokenizer.decode(ids) == text * 2, train


@BOTH
def test_the_control_tokens_are_the_first_ids_and_have_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.control_ids == CONTROL_IDS
    assert tokenizer.eos_id == 0 and tokenizer.eos_ids == {0}
    assert tokenizer.token_bytes[:5] == [b""] * 5
    assert [tokenizer.label(i) for i in range(5)] == list(CONTROL_IDS)
    assert tokenizer.decode([*tokenizer.encode("a"), 0, *tokenizer.encode("b")]) == "ab"
    assert 256 + len(CONTROL_TOKENS) == MIN_VOCAB_SIZE


@given(ids=st.lists(st.integers(0, BPE.vocab_size - 1)))
def test_streamed_text_equals_the_text_decoded_at_once(ids: list[int]) -> None:
    decoder = stream_decoder()
    streamed = "".join(decoder.decode(BPE.token_bytes[i]) for i in ids) + decoder.decode(b"", final=True)
    assert streamed == b"".join(BPE.token_bytes[i] for i in ids).decode("utf-8", "replace")


@BOTH
def test_half_a_character_decodes_to_a_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\u0416")  # 0xD0 0x96, not in the corpus: two tokens
    assert len(ids) == 2
    assert tokenizer.decode_bytes(ids[:1]) == b"\xd0"
    assert tokenizer.decode(ids[:1]) == "\ufffd"


@BOTH
def test_a_lone_surrogate_is_an_error(tokenizer: Tokenizer) -> None:
    for text in ["\ud800", "ok \udce9 ok", "\udfff"]:
        with pytest.raises(LLMError, match=f"position {next(i for i, c in enumerate(text) if ord(c) > 0xD7FF)} "):
            tokenizer.encode(text)


@BOTH
def test_an_id_outside_the_vocabulary_is_an_error(tokenizer: Tokenizer) -> None:
    for offset in [-1, 0, 10**12]:
        bad = offset if offset else tokenizer.vocab_size
        with pytest.raises(LLMError, match=f"no token {bad}; this vocabulary has 0 to {tokenizer.vocab_size - 1}"):
            tokenizer.decode([1, bad])


def long_text() -> str:
    """300,000 characters of words, odd white space, contractions, Japanese and emoji; a word end every few letters."""
    rng = random.Random(7)
    words = ["the", "cat's", "12,000", "...", "--", "りんごを", "食べる。", "🍎🍎", "x\u3000y", "e\u0301", "a\xa0b"]
    spaces = [" ", " ", " ", "\n", "\n\n", "  ", "   ", "\n  ", "\r\n", "\t", " \u3000", "\n\n\n"]
    return "".join(rng.choice(words) + rng.choice(spaces) for _ in range(60_000))


def test_training_does_not_depend_on_the_parts_of_the_text() -> None:
    for train in [Tokenizer.train_bpe, Tokenizer.train_char]:
        parts = [TEXT[i : i + 7] for i in range(0, len(TEXT), 7)]
        assert train(parts, 300).to_json() == train([TEXT], 300).to_json(), train


def test_a_vocabulary_of_261_is_bytes_and_control_tokens() -> None:
    assert BPE.vocab_size == 290 and sorted(BPE.token_bytes[5:261]) == [bytes([b]) for b in range(256)]
    for train in [Tokenizer.train_bpe, Tokenizer.train_char]:
        tokenizer = train([TEXT], 261)
        assert tokenizer.vocab_size == 261, train
        assert len(tokenizer.encode("the 🍎")) == len("the 🍎".encode()), train
        assert sorted(tokenizer.token_bytes) == sorted([*[b""] * 5, *(bytes([b]) for b in range(256))]), train


FAMILY = "👨\u200d👩\u200d👧\u200d👦"

REPEATED = ["a" * 300_000, FAMILY * 5000, " " * 100_000, "ab" * 50_000, "=" * 99_999, "あ" * 50_000]


def test_repetitive_text_gives_no_very_long_tokens(no_hang: None) -> None:
    for text in REPEATED:
        tokenizer = Tokenizer.train_bpe([text], 8192)
        assert max(map(len, tokenizer.token_bytes)) <= module.MAX_TOKEN_BYTES == 63, text
        ids = tokenizer.encode(text)
        assert len(text.encode()) / 63 <= len(ids) <= len(text.encode()) / 25, text  # and yet merged well
        assert tokenizer.decode(ids) == text, text


@pytest.mark.slow
def test_long_words_are_cut_so_training_does_not_take_quadratic_time() -> None:
    """The work is the sum of the squared lengths of words; for the first planes of Unicode it shrinks to a fiftieth."""
    unicode = "".join(chr(code) for code in range(1, 0x32000) if not 0xD800 <= code < 0xE000)

    def work(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> int:
        return sum(len(word) ** 2 for word, _ in pre_tokenizer.pre_tokenize_str(text))

    cut, gpt2 = module._training_pre_tokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    longest = 4 * module.MAX_TRAINING_WORD + 1  # bytes of this many characters and a space
    for text in (unicode, "a" * 300_000, FAMILY * 5000, "\n" * 3000 + " x"):
        words = [word for word, _ in cut.pre_tokenize_str(text)]
        assert "".join(words) == "".join(word for word, _ in gpt2.pre_tokenize_str(text))
        assert max(map(len, words)) <= longest
    assert 50 * work(cut, unicode) < work(gpt2, unicode)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["don't", "I'll", " ", "\n", "\t", "12", "x", "Ω", "り", "é", "!?", "🍎", "\u0301"])))
def test_ordinary_words_are_split_as_by_gpt2(parts: list[str]) -> None:
    text = "".join(parts)
    words, expected = (
        pre_tokenizer.pre_tokenize_str(text)
        for pre_tokenizer in (module._training_pre_tokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    )
    assert words == expected


@pytest.mark.slow
def test_ordinary_text_gives_the_vocabulary_of_the_library() -> None:
    text = TEXT + "".join(
        path.read_text("utf-8") for path in sorted(Path(__file__).parent.parent.parent.rglob("test_c*.py"))
    )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, min_frequency=2, special_tokens=list(CONTROL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator([text], trainer)
    result, expected = json.loads(Tokenizer.train_bpe([text], 900).to_json()), json.loads(inner.to_str())
    assert result["model"] == expected["model"]
    assert result["pre_tokenizer"] == expected["pre_tokenizer"]


def test_each_character_of_the_corpus_is_one_token() -> None:
    assert CHAR.kind == "char"
    for character in set(TEXT):
        assert len(CHAR.encode(character)) == 1, character
    assert CHAR.vocab_size == 261 + len({c for c in TEXT if ord(c) >= 128})
    assert len(CHAR.encode(TEXT)) == len(TEXT)


def test_an_unseen_character_is_encoded_as_bytes() -> None:
    for unseen in ["é", "Ж", "漢", "🍐", "\U0010ffff", "Z", "\0", "\x80"]:
        assert unseen not in TEXT, unseen
        ids = CHAR.encode(unseen)
        assert [CHAR.token_bytes[i] for i in ids] == [bytes([b]) for b in unseen.encode("utf-8")], unseen


def test_a_small_char_vocabulary_keeps_the_most_frequent_characters() -> None:
    tokenizer = Tokenizer.train_char(["ああいいいうええええ"], 263)
    assert tokenizer.vocab_size == 263
    assert [len(tokenizer.encode(c)) for c in "あいうえ"] == [3, 1, 3, 1]
    tokenizer = Tokenizer.train_char(["うあい"], 262)  # of equally frequent ones, the first in Unicode
    assert [len(tokenizer.encode(c)) for c in "うあい"] == [3, 1, 3]


# ---- tokenizers without the control tokens of ChatML


def without_chat_tokens(kind: str, eos: str = END_OF_TEXT) -> Tokenizer:
    """A tokenizer with one control token, as earlier versions of this program trained it, or as Llama's."""
    if kind == "bpe":
        return Tokenizer.from_json(BPE_JSON.read_text("utf-8").replace(END_OF_TEXT, eos))
    if kind == "char":
        return Tokenizer.from_json(CHARACTERS_JSON.read_text("utf-8").replace(END_OF_TEXT, eos))
    names = [eos, *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    inner = tokenizers.Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [("▁", "a"), ("a", "b"), ("▁", "ab")], byte_fallback=True)
    )
    inner.add_special_tokens([eos])
    prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([prepend, replace])
    return Tokenizer.from_json(inner.to_str())


GOLDEN = Path(__file__).parent.parent.parent / "golden"
BPE_JSON, CHARACTERS_JSON = GOLDEN / "bpe.json", GOLDEN / "characters.json"
KINDS = pytest.mark.parametrize("kind", ["bpe", "char", "spm"])


@KINDS
def test_missing_chat_tokens_are_appended(kind: str) -> None:
    for eos in [END_OF_TEXT, "</s>", "<end>"]:
        old = without_chat_tokens(kind, eos)
        assert old.kind == kind and old.control_ids == {eos: 0}, eos
        tokenizer = old.with_chat_tokens()
        size = old.vocab_size
        assert tokenizer.control_ids == {eos: 0, IM_START: size, IM_END: size + 1}, eos
        assert (tokenizer.kind, tokenizer.vocab_size) == (kind, size + 2), eos
        assert (tokenizer.eos_id, tokenizer.eos_ids, tokenizer.bos_ids) == (0, {0}, old.bos_ids), eos
        text = f"a ab {IM_START}b{IM_END} {eos}"
        assert tokenizer.encode(text) == old.encode(text), eos
        assert tokenizer.decode([size, *tokenizer.encode(text), size + 1]) == text, eos
        assert tokenizer.with_chat_tokens() is tokenizer, eos
        assert old.control_ids == {eos: 0}, eos  # unchanged
        again = Tokenizer.from_json(tokenizer.to_json(), eos_ids=[0, size + 1])
        assert again.control_ids == tokenizer.control_ids and again.eos_id == 0 and again.eos_ids == {0, size + 1}, eos


def test_only_the_chat_token_that_is_missing_is_appended() -> None:
    inner = library(without_chat_tokens("bpe"))
    inner.add_special_tokens([IM_END])
    old = Tokenizer.from_json(inner.to_str())
    assert old.with_chat_tokens().control_ids == old.control_ids | {IM_START: old.vocab_size}


def test_a_chat_token_that_text_becomes_is_an_error() -> None:
    rules = json.loads(without_chat_tokens("spm").to_json())
    parts = ["<|im_end|>"[:n] for n in range(1, 11)]
    for part in (*"<|imend_>", *parts):
        rules["model"]["vocab"].setdefault(part, len(rules["model"]["vocab"]))
    rules["model"]["merges"] += [[part[:-1], part[-1]] for part in parts[1:]]
    tokenizer = Tokenizer.from_json(json.dumps(rules))
    assert tokenizer.vocab_size == len(rules["model"]["vocab"])
    assert "makes <|im_end|> from ordinary text" in error_of(tokenizer.with_chat_tokens)


def test_more_tokens_may_end_a_text() -> None:
    tokenizer = BPE.for_model(b"abc", [2])
    assert tokenizer.eos_ids == {0, 2} and tokenizer.eos_id == 0 and BPE.eos_ids == {0}
    assert tokenizer.seen_bytes == b"abc"


# ---- parts of a text between control tokens

METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}


def test_a_part_gets_a_space_as_in_the_library() -> None:
    for text in ["ab{0}ab", "{0}a b{0} ab{0}", " ab{0}▁ab", "{0}{0}", "é{0}é"]:
        for scheme in ["prepend", "always", "first", "never"]:
            rules = json.loads(without_chat_tokens("spm").to_json())
            if scheme != "prepend":
                rules |= {"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": scheme}}
            tokenizer = Tokenizer.from_json(json.dumps(rules))
            assert json.loads(tokenizer.to_json())["pre_tokenizer"] in (rules["pre_tokenizer"], None), scheme
            expected = tokenizers.Tokenizer.from_str(json.dumps(rules)).encode(text.format(END_OF_TEXT)).ids
            for read in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
                ids: list[int] = []
                for number, part in enumerate(text.split("{0}")):
                    ids += [0] * (number > 0) + read.encode_part(part, after_control_token=number > 0)[0]
                assert ids == expected, scheme


@BOTH
@given(text=ANY_TEXT)
@settings(max_examples=60, deadline=None)
def test_a_part_has_the_ids_of_its_text_and_spans_that_cover_it(tokenizer: Tokenizer, text: str) -> None:
    ids, spans = tokenizer.encode_part(text, after_control_token=True)
    assert ids == tokenizer.encode(text) and len(spans) == len(ids)
    for token, (start, end) in zip(ids, spans, strict=True):
        assert tokenizer.token_bytes[token] in text[start:end].encode("utf-8")
    covered = {i for start, end in spans for i in range(start, end)}
    assert covered == set(range(len(text)))


@pytest.mark.slow
def test_spans_of_a_long_part_are_positions_in_it() -> None:
    text = long_text()
    ids, spans = BPE.encode_part(text, after_control_token=False)
    assert ids == BPE.encode(text)
    for token, (start, end) in zip(ids, spans, strict=True):
        if BPE.token_bytes[token].isascii():
            assert text[start:end].encode() == BPE.token_bytes[token]
    assert spans[-1][1] == len(text)


def test_merge_pairs_spell_their_token() -> None:
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat, the rat ate the cat " * 9], 300)
    pieces = tokenizer.token_bytes
    merged = [(i, pair) for i, pair in enumerate(tokenizer.merge_pairs.tolist()) if pair != [-1, -1]]
    assert len(merged) == tokenizer.vocab_size - 261 > 5
    assert all(pieces[left] + pieces[right] == pieces[i] for i, (left, right) in merged)
    assert (Tokenizer.train_char(["りんごを食べる"]).merge_pairs == -1).all()
