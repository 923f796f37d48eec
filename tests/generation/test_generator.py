"""The generation loop, on models with known logits: characters, stop strings, limits, the context, the seed."""

import codecs
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.generator import Piece, generate
from tests.generation.fakes import Digits, FakeRuntime, Table

SAMPLE = "the cat sat on the mat, the cat ate. りんごを食べる。日本語 🍎👨‍👩‍👧 naïve\n" * 8
BPE = Tokenizer.train_bpe([SAMPLE], 320)
CHAR = Tokenizer.train_char([SAMPLE])
GREEDY = SamplingConfig(temperature=0.0, max_tokens=10_000)


LETTERS = Digits(*(bytes([c]) for c in b"abcdefghi"))  # "1" is a, "2" is b, ...


def scripted(script, vocab_size):
    """A model that predicts these tokens, one after the other, and then the end of the text."""
    tokens = iter([*script, 0])
    return FakeRuntime(100_000, lambda _: 50 * np.eye(vocab_size)[next(tokens)])


def alphabetical(context):
    """A model of LETTERS that predicts b after a, c after b, ..., a after i."""
    return FakeRuntime(context, lambda cached: 50 * np.eye(10)[cached[-1] % 9 + 1])


def pieces_of(script, tokenizer, sampling=GREEDY):
    model = scripted(script, len(tokenizer.token_bytes))
    return list(generate(model, tokenizer, "1", sampling, literal=True))


def pieces_of_texts(texts, stop=(), max_tokens=10_000):
    """The pieces of a model that predicts these texts, one token each."""
    table = Digits(" ", *texts)  # the prompt is a space
    sampling = SamplingConfig(temperature=0.0, max_tokens=max_tokens, stop=stop)
    return pieces_of(range(2, len(texts) + 2), table, sampling)


def joined(pieces):
    return "".join(piece.text for piece in pieces)


# ---- characters


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=20) | st.text("りんご食🍎👧\u200dïa \n\u0301未", max_size=20))
def test_a_piece_holds_each_character_as_soon_as_it_is_complete(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = pieces_of(ids, tokenizer)
    assert joined(pieces) == text == tokenizer.decode(ids)
    assert [piece.id for piece in pieces] == [*ids, None]
    for n in range(len(ids)):
        complete = tokenizer.decode_bytes(ids[:n]).decode("utf-8", "ignore")  # without an incomplete character
        assert joined(pieces[:n]) == complete


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=5), max_size=12), st.integers(0, 99))
def test_text_is_valid_utf_8_whatever_bytes_tokens_have(tokens, seed):
    table = Digits(b"a", *tokens, *(bytes([n]) for n in range(0x80, 0xC0)))
    rng = np.random.default_rng(seed)
    model = FakeRuntime(100, lambda _: rng.normal(0, 3, len(table.token_bytes)))
    pieces = list(generate(model, table, "1", SamplingConfig(max_tokens=8, temperature=1.0)))
    data = b"".join(table.token_bytes[piece.id] for piece in pieces[:-1])
    text = codecs.getincrementaldecoder("utf-8")().decode(data)  # raises for what is no UTF-8
    assert joined(pieces) == text
    if pieces[-1].finish_reason == "stop":
        assert text.encode() == data


def test_bytes_that_are_not_in_the_training_text_are_never_generated():
    seen = bytes(sorted(set(SAMPLE.encode())))
    for tokenizer, seed in itertools.product([BPE, CHAR], range(20)):
        known = Tokenizer.from_json(tokenizer.to_json(), seen_bytes=seen)
        rng = np.random.default_rng(seed)
        model = FakeRuntime(100, lambda _, rng=rng, size=tokenizer.vocab_size: rng.normal(0, 3, size))
        text = joined(generate(model, known, "the c", SamplingConfig(max_tokens=20, temperature=2.0)))
        assert set(text.encode()) <= set(seen)


def test_control_tokens_are_not_generated_unless_they_end_a_text():
    for literal, tokenizer in itertools.product([False, True], [BPE, CHAR]):
        likely = np.zeros(tokenizer.vocab_size)
        likely[0], likely[1:5] = -9.0, 9.0  # the end of text; <|im_start|>, <|im_end|> and the spare ones
        model, sampling = FakeRuntime(100, lambda _, row=likely: row), SamplingConfig(max_tokens=5, temperature=0)
        *pieces, last = generate(model, tokenizer, "the c", sampling, literal=literal)
        assert len(pieces) == 5 and last.finish_reason == "length"
        assert all(tokenizer.token_bytes[piece.id] for piece in pieces)
        ended = list(generate(model, tokenizer.for_model(None, [2]), "the c", sampling, literal=literal))
        assert ended[-1].finish_reason == "stop" and len(ended) <= 2


def test_an_imported_model_may_generate_any_control_token():
    tokenizer = BPE.for_model(None, [2])
    tokenizer.imported = True
    model = FakeRuntime(100, lambda _: 9.0 * np.eye(BPE.vocab_size)[1])
    pieces = list(generate(model, tokenizer, "the c", SamplingConfig(max_tokens=2, temperature=0), literal=True))
    assert [piece.id for piece in pieces] == [1, 1, None]


def test_logprobs_are_those_of_the_model_where_tokens_are_not_allowed():
    table = Digits(b"a", b"\xff")
    model = FakeRuntime(100, lambda _: [-math.inf, math.log(0.25), math.log(0.75)])
    pieces = list(generate(model, table, "1", SamplingConfig(max_tokens=3), literal=True))
    assert joined(pieces) == "aaa"
    assert [piece.logprob for piece in pieces[:-1]] == pytest.approx([math.log(0.25)] * 3)


def test_an_incomplete_character_at_the_end_is_dropped():
    for max_tokens in [2, 1]:
        pieces = pieces_of_texts([b"a\xe3", b"\x81"], max_tokens=max_tokens)
        assert [piece.text for piece in pieces] == ["a", *[""] * max_tokens], max_tokens
        assert pieces[-1] == Piece(None, "", 0.0, "length"), max_tokens


def test_a_character_may_begin_in_a_prompt_of_ids():
    table = Digits(b"\xe3\x81", b"a", b"\x82", b"\xe3\x82")
    model = FakeRuntime(100, lambda cached: [0, 0, 2, 1, 0] if cached[-1] == 1 else [9, 0, 0, 0, 0])
    pieces = list(generate(model, table, "1", SamplingConfig(max_tokens=2, temperature=0), literal=True))
    assert [piece.text for piece in pieces[:-1]] == ["\u3042"]


# ---- the end


def test_max_tokens_n_gives_n_tokens_for_n_evaluations():
    for count in [0, 1, 2, 7]:
        model = alphabetical(100)
        pieces = list(generate(model, LETTERS, "1", SamplingConfig(temperature=0.0, max_tokens=count)))
        assert joined(pieces) == "bcdefgh"[:count], count
        assert [piece.finish_reason for piece in pieces] == [None] * count + ["length"], count
        assert len(model.seen) == count, count


def test_control_tokens_without_text_count_as_tokens():
    pads = Digits(b"")  # id 1 is a control token too, but does not end the text
    pieces = list(generate(FakeRuntime(8, lambda _: [0, 9]), pads, "1", SamplingConfig(max_tokens=5, temperature=0.0)))
    assert joined(pieces) == ""
    assert pieces[-1].finish_reason == "length"


def test_tokens_that_the_tokenizer_does_not_have_are_never_generated():
    model = FakeRuntime(100, lambda _: [0.0, 1.0, 2.0, 9.0, 9.0])  # five logits
    assert joined(generate(model, Digits(b"a", b"b"), "1", SamplingConfig(temperature=0.0, max_tokens=3))) == "bbb"


# ---- stop strings


def test_generation_ends_before_a_stop_string():
    for texts, stop, expected in [
        (["a", "b", "c"], ("b",), "a"),
        (["a", "b", "c"], ("x",), "abc"),
        (["a", "E", "N", "D", "b"], ("END",), "a"),  # over several tokens
        (["ab", "cd", "ef"], ("bc",), "a"),  # from inside a token to inside another
        (["hello END more"], ("END",), "hello "),
        (["a", "E", "N"], ("END",), "aEN"),  # only a beginning of one
        (["a", "E", "N", "x", "y"], ("END",), "aENxy"),
        (["a", "E", "N", "E", "N", "D"], ("END",), "aEN"),
        (["E", "E", "E", "N", "D"], ("EEND",), "E"),  # begins again inside itself
        (["x", "b", "a"], ("a", "b"), "x"),  # the first of several
        (["ab", "a"], ("ba", "b"), "a"),
        ([b"x\xe6", b"\x97\xa5y"], ("日",), "x"),  # a character of two tokens
    ]:
        pieces = pieces_of_texts(texts, stop)
        assert joined(pieces) == expected, (texts, stop, expected)
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1), (texts, stop, expected)
        assert (pieces[-1].id, pieces[-1].finish_reason) == (None, "stop"), (texts, stop, expected)


def test_a_piece_cut_by_a_stop_string_keeps_its_token_and_probability():
    first, cut, last = pieces_of_texts(["one ", "two.", " three"], (". t",))
    assert (first.text, cut.id, cut.text) == ("one ", 3, "two")
    assert cut.logprob == pytest.approx(0, abs=1e-6)
    assert last == Piece(None, "", 0.0, "stop")


def test_the_beginning_of_a_stop_string_is_released_at_max_tokens():
    pieces = pieces_of_texts(["a", "E", "N", "D"], ("END",), max_tokens=3)
    assert joined(pieces) == "aEN"
    assert pieces[-1].finish_reason == "length"


def test_text_that_cannot_begin_a_stop_string_is_not_held_back():
    model = alphabetical(100)
    pieces = generate(model, LETTERS, "1", SamplingConfig(temperature=0.0, stop=("dz",)))
    assert [next(pieces).text, next(pieces).text] == ["b", "c"]
    assert len(model.seen) == 2
    assert next(pieces).text == "d"  # after "e" was seen
    assert len(model.seen) == 4
    model = alphabetical(100)
    list(generate(model, LETTERS, "1", SamplingConfig(temperature=0.0, stop=("cd",))))
    assert len(model.seen) == 3  # not after the stop string


# ---- the context


def test_the_end_of_a_long_prompt_is_used():
    for context, prompt, expected in [
        (5, "123456789", [5, 6, 7, 8, 9]),
        (5, "12", [1, 2]),
        (1, "123", [3]),
    ]:
        model = alphabetical(context)
        list(generate(model, LETTERS, prompt, SamplingConfig(max_tokens=1)))
        assert model.seen == [expected], (context, prompt, expected)


def test_the_oldest_tokens_leave_a_full_context_except_the_first():
    model = alphabetical(6)
    pieces = list(generate(model, LETTERS, "1234", SamplingConfig(temperature=0.0, max_tokens=7)))
    assert joined(pieces) == "efghiab"
    assert model.seen == [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 6],
        [1, 3, 4, 5, 6, 7],
        [1, 4, 5, 6, 7, 8],
        [1, 5, 6, 7, 8, 9],
        [1, 6, 7, 8, 9, 1],
    ]


def test_a_beginning_of_text_token_stays_at_the_beginning():
    letters, model = Digits(*(bytes([c]) for c in b"abcdefghi")), alphabetical(6)
    letters.bos_ids = [9]
    pieces = list(generate(model, letters, "3456712", SamplingConfig(temperature=0.0, max_tokens=5)))
    assert joined(pieces) == "cdefg"
    assert model.seen == [
        [9, *rest] for rest in ([5, 6, 7, 1, 2], [6, 7, 1, 2, 3], [7, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6])
    ]


# ---- prompts


EAT = Table(b"I", b" like", b" eat", b" ea", b" e", b"a", b"t", b"s", b"\n")  # ids 1 to 9


def test_only_text_after_the_prompt_is_a_piece():
    """`likely` are the most likely tokens after "I like" and after further tokens, the most likely first."""

    def logits_of(cached, likely):
        logits = np.zeros(10)
        for rank, token in enumerate(likely.get(cached[2:], [])):
            logits[token] = 50 - 20 * rank
        return logits

    for likely, expected in [
        ({(): [3]}, (3, "t")),  # " eat" spells " ea", and adds "t"
        ({(): [2, 8, 3]}, (3, "t")),  # tokens that do not fit the prompt are skipped, however likely
        ({(): [0, 3]}, (3, "t")),  # so is the end of the text
        ({(): [4], (4,): [7]}, (7, "t")),  # the prompt's own word is not a piece, and does not count
        ({(): [5], (5,): [6], (5, 6): [8]}, (8, "s")),
        ({(): [5], (5,): [8, 7, 6], (5, 6): [8]}, (8, "s")),
    ]:
        model = FakeRuntime(100, lambda cached, likely=likely: logits_of(cached, likely))
        pieces = list(generate(model, EAT, "I like ea", SamplingConfig(temperature=0.0, max_tokens=1)))
        assert [(piece.id, piece.text) for piece in pieces] == [expected, (None, "")]
        assert model.seen[0] == [1, 2]


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=12) | st.sampled_from(["the c", "the cat ", "りんごを食", "a\n\n", " "]), st.data())
def test_the_cache_holds_the_prompt_and_the_text_generated(tokenizer, prompt, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    model = FakeRuntime(10_000, lambda _: rng.normal(0, 3, tokenizer.vocab_size))
    sampling = SamplingConfig(max_tokens=6, temperature=1.5)  # whatever continuation is chosen
    pieces = list(generate(model, tokenizer, prompt, sampling))
    cached = list(model.seen[-1])
    if pieces[-1].finish_reason == "length":
        cached.append(pieces[-2].id)  # the last token is not processed any more
    # before a prompt of one word a line begins
    line = "" if tokenizer.kind == "char" or tokenizer.split_last_word(prompt)[0] else "\n"
    assert tokenizer.decode_bytes(cached).decode("utf-8", "ignore") == line + prompt + joined(pieces)


# ---- the seed


def test_a_used_runtime_is_rewound():
    model = alphabetical(9)
    model.prefill([7, 7, 7])
    assert joined(generate(model, LETTERS, "123", SamplingConfig(temperature=0.0, max_tokens=3))) == "def"
    assert model.seen[1] == [1, 2, 3]


def test_the_repetition_penalty_applies_to_the_prompt_and_to_generated_tokens():
    model = FakeRuntime(100, lambda _: [-9.0, 3.0, 2.5, 2.0, *[-9.0] * 6])
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=2.0, max_tokens=4)
    assert joined(generate(model, LETTERS, "1", sampling)) == "bcaa"
