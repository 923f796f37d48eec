"""The generation loop, on models whose every answer is known: characters, stops, limits, the window, the seed."""

import codecs
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmcli.config import SamplingConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.data.vocabulary import Vocabulary
from llmcli.errors import LLMError
from llmcli.generation.generator import Piece, generate

SAMPLE = "the cat sat on the mat, the cat ate. りんごを食べる。日本語 🍎👨‍👩‍👧 naïve\n" * 8
BPE = Tokenizer.train_bpe([SAMPLE], 320)
CHAR = Tokenizer.train_char([SAMPLE])
GREEDY = SamplingConfig(temperature=0.0, max_tokens=10_000)
ENOUGH = 2000  # questions to a model after which a test calls it endless


class Model:
    """A runtime whose logits are a function of the tokens it holds; notes what it was asked."""

    def __init__(self, context, answer):
        self.context, self.answer = context, answer
        self.taken, self.prefills, self.seen = [], [], []

    parameters = 1

    @property
    def length(self):
        return len(self.taken)

    def prefill(self, ids):
        assert len(ids) > 0
        self.prefills.append(list(ids))
        return self._take(ids)

    def step(self, token):
        return self._take([token])

    def logits(self, ids):
        return np.stack([self._take([token]) for token in ids])

    def rewind(self, length=0):
        del self.taken[length:]

    def _take(self, ids):
        self.taken += ids
        assert self.length <= self.context
        self.seen.append(list(self.taken))
        assert len(self.seen) <= ENOUGH, "generation does not end"
        return np.asarray(self.answer(tuple(self.taken)), np.float32)


class Table:
    """A tokenizer that is a table: id 0 ends the text, id n writes the n-th bytes. A prompt is written as digits."""

    eos_id, eos_ids, bos_ids = 0, frozenset({0}), []

    def __init__(self, *written):
        self.token_bytes = [b"", *written]
        self.vocabulary = Vocabulary(self.token_bytes)

    def encode(self, text):
        return [int(c) for c in text]

    def split_last_word(self, text):
        return text, ""


LETTERS = Table(*(bytes([c]) for c in b"abcdefghi"))  # "1" is a, "2" is b, ...


class Whole:
    """A real tokenizer that takes no word back from a prompt, so that a script can begin at once."""

    bos_ids: list[int] = []  # noqa: RUF012

    def __init__(self, inner):
        self.eos_ids = inner.eos_ids
        self.token_bytes, self.eos_id, self.encode = inner.token_bytes, inner.eos_id, inner.encode
        self.vocabulary = inner.vocabulary

    def split_last_word(self, text):
        return text, ""


def says(script, vocab_size):
    """A model that surely says these tokens, one after the other, and then ends the text."""
    answers = iter([*script, 0])
    return Model(100_000, lambda _: 50 * np.eye(vocab_size)[next(answers)])


def counts_on(context):
    """A model of LETTERS: after a comes b, after b comes c, ..., after i comes a."""
    return Model(context, lambda taken: 50 * np.eye(10)[taken[-1] % 9 + 1])


def undecided(context=100):
    """A model of LETTERS to which all nine are alike, and the end impossible."""
    return Model(context, lambda _: [-math.inf] + [0.0] * 9)


def pieces_of(script, tokenizer, sampling=GREEDY):
    return list(generate(says(script, len(tokenizer.token_bytes)), tokenizer, "1", sampling))


def pieces_of_texts(texts, stop=(), max_tokens=10_000):
    """What comes when a model says these texts, a token each."""
    table = Table(*(text if isinstance(text, bytes) else text.encode() for text in texts))
    sampling = SamplingConfig(temperature=0.0, max_tokens=max_tokens, stop=stop)
    return pieces_of(range(1, len(texts) + 1), table, sampling)


def joined(pieces):
    return "".join(piece.text for piece in pieces)


# ---- characters


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=20) | st.text("りんご食🍎👧\u200dïa \n\u0301未", max_size=20))
def test_pieces_tell_each_character_as_soon_as_it_is_whole(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = pieces_of(ids, Whole(tokenizer))
    assert joined(pieces) == text == tokenizer.decode(ids)
    assert [piece.id for piece in pieces] == [*ids, None]
    for n in range(len(ids)):
        whole = tokenizer.decode_bytes(ids[:n]).decode("utf-8", "ignore")  # without the character that is not done
        assert joined(pieces[:n]) == whole


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
def test_an_emoji_of_several_tokens_comes_with_its_last_one(tokenizer):
    ids = tokenizer.encode("🥝")  # not in the sample: spelled by its bytes
    assert len(ids) >= 3
    assert [piece.text for piece in pieces_of(ids, Whole(tokenizer))] == [""] * (len(ids) - 1) + ["🥝", ""]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=5), max_size=12), st.integers(0, 99))
def test_what_is_written_is_valid_whatever_bytes_tokens_have(tokens, seed):
    """However likely a token is that breaks a character, and where the text ends inside one."""
    table = Table(*tokens, b"a", *(bytes([n]) for n in range(0x80, 0xC0)))
    rng = np.random.default_rng(seed)
    model = Model(100, lambda _: rng.normal(0, 3, len(table.token_bytes)))
    pieces = list(generate(model, table, "1", SamplingConfig(max_tokens=8, temperature=1.0)))
    data = b"".join(table.token_bytes[piece.id] for piece in pieces[:-1])
    text = codecs.getincrementaldecoder("utf-8")().decode(data)  # raises for what is no UTF-8
    assert joined(pieces) == text
    if pieces[-1].finish_reason == "stop":
        assert text.encode() == data


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
def test_bytes_that_the_training_text_does_not_have_are_never_written(tokenizer):
    seen = bytes(sorted(set(SAMPLE.encode())))
    known = Tokenizer.from_json(tokenizer.to_json(), seen_bytes=seen)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        model = Model(100, lambda _, rng=rng: rng.normal(0, 3, tokenizer.vocab_size))
        text = joined(generate(model, known, "the c", SamplingConfig(max_tokens=20, temperature=2.0)))
        assert set(text.encode()) <= set(seen)


def test_logprob_is_of_the_model_itself_where_tokens_are_ruled_out():
    table = Table(b"a", b"\xff")
    model = Model(100, lambda _: [-math.inf, math.log(0.25), math.log(0.75)])
    pieces = list(generate(model, table, "1", SamplingConfig(max_tokens=3), literal=True))
    assert joined(pieces) == "aaa"
    assert [piece.logprob for piece in pieces[:-1]] == pytest.approx([math.log(0.25)] * 3)


@pytest.mark.parametrize("max_tokens", [2, 1])
def test_half_a_character_at_the_end_is_not_written(max_tokens):
    pieces = pieces_of_texts([b"a\xe3", b"\x81"], max_tokens=max_tokens)
    assert [piece.text for piece in pieces] == ["a", *[""] * max_tokens]
    assert pieces[-1] == Piece(None, "", 0.0, "length")


# ---- the end


def test_max_tokens_0_asks_nothing_and_says_nothing():
    model = counts_on(9)
    assert list(generate(model, LETTERS, "1", SamplingConfig(max_tokens=0))) == [Piece(None, "", 0.0, "length")]
    assert model.seen == []


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_tokens_n_gives_n_tokens_for_n_questions(count):
    model = counts_on(100)
    pieces = list(generate(model, LETTERS, "1", SamplingConfig(temperature=0.0, max_tokens=count)))
    assert joined(pieces) == "bcdefgh"[:count]
    assert [piece.finish_reason for piece in pieces] == [None] * count + ["length"]
    assert len(model.seen) == count


def test_the_end_of_text_ends_the_text_and_is_no_piece():
    pieces = pieces_of_texts(["a", "b"])
    assert [(piece.id, piece.text, piece.finish_reason) for piece in pieces] == [
        (1, "a", None),
        (2, "b", None),
        (None, "", "stop"),
    ]


def test_a_model_that_ends_at_once_says_nothing():
    assert pieces_of_texts([]) == [Piece(None, "", 0.0, "stop")]


def test_control_tokens_that_write_nothing_count_as_tokens():
    pads = Table(b"")  # id 1 is a control token too, but does not end the text
    pieces = list(generate(Model(8, lambda _: [0, 9]), pads, "1", SamplingConfig(max_tokens=5, temperature=0.0)))
    assert joined(pieces) == ""
    assert pieces[-1].finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 0.1, 3.0])
def test_logprob_is_of_the_model_itself_whatever_the_temperature(temperature):
    model = Model(100, lambda _: [-math.inf, math.log(0.5), math.log(0.3), math.log(0.2)])
    table = Table(b"a", b"b", b"c")
    pieces = list(generate(model, table, "1", SamplingConfig(temperature=temperature, max_tokens=30, min_p=0.0)))
    for piece in pieces[:-1]:
        assert piece.logprob == pytest.approx(math.log({1: 0.5, 2: 0.3, 3: 0.2}[piece.id]), abs=1e-6)


def test_tokens_that_the_tokenizer_does_not_have_are_never_written():
    model = Model(100, lambda _: [0.0, 1.0, 2.0, 9.0, 9.0])  # five logits
    try:
        pieces = list(generate(model, Table(b"a", b"b"), "1", SamplingConfig(temperature=0.0, max_tokens=3)))
    except LLMError:
        return
    assert joined(pieces) == "bbb"


# ---- stop texts


@pytest.mark.parametrize(
    ("texts", "stop", "expected"),
    [
        (["a", "b", "c"], ("b",), "a"),
        (["a", "b", "c"], ("a",), ""),
        (["a", "b", "c"], ("x",), "abc"),
        (["a", "E", "N", "D", "b"], ("END",), "a"),  # over several tokens
        (["ab", "cd", "ef"], ("bc",), "a"),  # from inside a token to inside another
        (["hello END more"], ("END",), "hello "),
        (["a", "E", "N"], ("END",), "aEN"),  # only begins like one
        (["a", "E", "N", "x", "y"], ("END",), "aENxy"),
        (["a", "E", "N", "E", "N", "D"], ("END",), "aEN"),
        (["E", "E", "E", "N", "D"], ("EEND",), "E"),  # begins again inside itself
        (["x", "b", "a"], ("a", "b"), "x"),  # the first of several
        (["ab", "a"], ("ba", "b"), "a"),
        (["one\n", "\n", "two"], ("\n\n",), "one"),
        (["日", "本"], ("本",), "日"),
        ([b"x\xe6", b"\x97\xa5y"], ("日",), "x"),  # a character of two tokens
    ],
)
def test_text_ends_before_a_stop_text(texts, stop, expected):
    pieces = pieces_of_texts(texts, stop)
    assert joined(pieces) == expected
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].id, pieces[-1].finish_reason) == (None, "stop")


def test_a_piece_cut_by_a_stop_text_keeps_its_token_and_probability():
    first, cut, last = pieces_of_texts(["one ", "two.", " three"], (". t",))
    assert (first.text, cut.id, cut.text) == ("one ", 2, "two")
    assert cut.logprob == pytest.approx(0, abs=1e-6)
    assert last == Piece(None, "", 0.0, "stop")


def test_what_began_like_a_stop_text_is_released_when_the_tokens_are_used_up():
    pieces = pieces_of_texts(["a", "E", "N", "D"], ("END",), max_tokens=3)
    assert joined(pieces) == "aEN"
    assert pieces[-1].finish_reason == "length"


def test_a_stop_text_in_the_last_token_allowed_is_still_seen():
    pieces = pieces_of_texts(["a", "E", "N", "D"], ("END",), max_tokens=4)
    assert (joined(pieces), pieces[-1].finish_reason) == ("a", "stop")


def test_nothing_is_asked_after_a_stop_text():
    model = counts_on(100)
    list(generate(model, LETTERS, "1", SamplingConfig(temperature=0.0, stop=("cd",))))
    assert len(model.seen) == 3


def test_text_that_cannot_begin_a_stop_text_is_told_at_once():
    model = counts_on(100)
    pieces = generate(model, LETTERS, "1", SamplingConfig(temperature=0.0, stop=("dz",)))
    assert [next(pieces).text, next(pieces).text] == ["b", "c"]
    assert len(model.seen) == 2
    assert next(pieces).text == "d"  # after "e" was seen
    assert len(model.seen) == 4


def inside(stop, others):
    return any(stop != other and stop in other for other in others)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_output_is_the_text_cut_at_the_earliest_stop_text(texts, stops):
    assume(not any(inside(stop, stops) for stop in stops))
    whole = "".join(texts)
    end = min((at for stop in stops if (at := whole.find(stop)) >= 0), default=len(whole))
    assert joined(pieces_of_texts(texts, tuple(stops))) == whole[:end]


@pytest.mark.parametrize("texts", [["xabcdy"], ["x", "abcd", "y"], ["x", "abc", "d", "y"], [*"xabcdy"]])
def test_of_a_stop_text_inside_another_the_longer_counts_however_the_text_is_cut(texts):
    assert joined(pieces_of_texts(texts, ("abcd", "c"))) == "x"


@pytest.mark.parametrize("texts", [["xabcey"], ["x", "abc", "ey"], [*"xabcey"]])
def test_of_a_stop_text_inside_another_the_shorter_counts_when_the_longer_does_not_come(texts):
    assert joined(pieces_of_texts(texts, ("abcd", "c"))) == "xab"


# ---- the window


@pytest.mark.parametrize(
    ("context", "prompt", "expected"),
    [(5, "123456789", [5, 6, 7, 8, 9]), (5, "12345", [1, 2, 3, 4, 5]), (5, "12", [1, 2]), (1, "123", [3])],
)
def test_of_a_long_prompt_the_model_sees_exactly_the_end(context, prompt, expected):
    model = counts_on(context)
    list(generate(model, LETTERS, prompt, SamplingConfig(max_tokens=1)))
    assert model.seen == [expected]


def test_when_the_context_is_full_its_newer_half_is_kept():
    model = counts_on(6)
    pieces = list(generate(model, LETTERS, "1234", SamplingConfig(temperature=0.0, max_tokens=7)))
    assert joined(pieces) == "efghiab"
    assert model.seen == [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 6],
        [5, 6, 7],
        [5, 6, 7, 8],
        [5, 6, 7, 8, 9],
        [5, 6, 7, 8, 9, 1],
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.text("123456789", min_size=1, max_size=20), st.integers(1, 40))
def test_generation_goes_on_past_the_context(context, prompt, count):
    model = counts_on(context)
    pieces = list(generate(model, LETTERS, prompt, SamplingConfig(temperature=0.0, max_tokens=count)))
    last = int(prompt[-1])
    assert joined(pieces) == "".join("abcdefghi"[(last + i) % 9] for i in range(count))
    whole = [int(c) for c in prompt] + [piece.id for piece in pieces[:-1]]
    for n, taken in enumerate(model.seen):
        known = whole[: len(prompt) + n]
        assert taken == known[-len(taken) :]  # without gaps, up to the newest; never more than the context (see Model)
        assert len(taken) >= min(len(known), max(1, context // 2))


# ---- prompts


def test_an_empty_prompt_is_an_error():
    for tokenizer in (LETTERS, BPE, CHAR):
        with pytest.raises(LLMError, match="prompt is empty"):
            list(generate(counts_on(9), tokenizer, "", GREEDY))


class Words(Table):
    """A table whose prompts give their last word back; the longest tokens that fit spell the rest."""

    def encode(self, text):
        data, ids = text.encode(), []
        while data:
            ids.append(max((i for i, t in enumerate(self.token_bytes) if t and data.startswith(t)), key=self._length))
            data = data[self._length(ids[-1]) :]
        return ids

    def _length(self, i):
        return len(self.token_bytes[i])

    def split_last_word(self, text):
        cut = max(0, text.rfind(" "))
        return text[:cut], text[cut:]


EAT = Words(b"I", b" like", b" eat", b" ea", b" e", b"a", b"t", b"s", b"\n")  # ids 1 to 9


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({(): [3]}, (3, "t")),  # " eat" writes " ea", and its "t" is the answer
        ({(): [2, 8, 3]}, (3, "t")),  # what does not fit is passed over, however likely
        ({(): [0, 3]}, (3, "t")),  # so is the end
        ({(): [4], (4,): [7]}, (7, "t")),  # the word itself is no piece, nor does it count
        ({(): [5], (5,): [6], (5, 6): [8]}, (8, "s")),
        ({(): [5], (5,): [8, 7, 6], (5, 6): [8]}, (8, "s")),
    ],
)
def test_of_the_last_word_of_a_prompt_only_what_goes_beyond_it_is_a_piece(wishes, expected):
    """`wishes` are the tokens that the model likes after "I like" and others, best first."""

    def answer(taken):
        logits = np.zeros(10)
        for rank, token in enumerate(wishes.get(taken[2:], [])):
            logits[token] = 50 - 20 * rank
        return logits

    model = Model(100, answer)
    pieces = list(generate(model, EAT, "I like ea", SamplingConfig(temperature=0.0, max_tokens=1)))
    assert [(piece.id, piece.text) for piece in pieces] == [expected, (None, "")]
    assert model.seen[0] == [1, 2]


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=12) | st.sampled_from(["the c", "the cat ", "りんごを食", "a\n\n", " "]), st.data())
def test_prompt_and_answer_together_are_what_the_model_holds(tokenizer, prompt, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    model = Model(10_000, lambda _: rng.normal(0, 3, tokenizer.vocab_size))
    pieces = list(generate(model, tokenizer, prompt, SamplingConfig(max_tokens=6)))
    held = list(model.seen[-1])
    if pieces[-1].finish_reason == "length":
        held.append(pieces[-2].id)  # the last token was not taken in any more
    # a prompt of one word begins like a line
    line = "" if tokenizer.kind == "char" or tokenizer.split_last_word(prompt)[0] else "\n"
    assert tokenizer.decode_bytes(held).decode("utf-8", "ignore") == line + prompt + joined(pieces)


# ---- chance


def text_with(model, **options):
    return joined(generate(model, LETTERS, "123", SamplingConfig(max_tokens=30, **options)))


def test_the_same_seed_writes_the_same_text_and_another_seed_another():
    first = text_with(undecided(), seed=1)
    assert len(first) == 30
    assert text_with(undecided(), seed=1) == first
    assert text_with(undecided(), seed=2) != first


def test_a_runtime_that_was_used_before_starts_afresh():
    model = counts_on(9)
    model.prefill([7, 7, 7])
    assert text_with(model, temperature=0.0) == text_with(counts_on(9), temperature=0.0)
    assert model.seen[1] == [1, 2, 3]


def test_the_repetition_penalty_sees_the_prompt_and_what_was_said():
    model = Model(100, lambda _: [-9.0, 3.0, 2.5, 2.0, *[-9.0] * 6])
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=2.0, max_tokens=4)
    assert joined(generate(model, LETTERS, "1", sampling)) == "bcaa"
