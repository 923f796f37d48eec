"""Which tokens keep a text valid: compared with the decoder of Python."""

import codecs

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from llmcli.data.text.words import begins_with_letter
from llmcli.data.tokenizers.vocabulary import Vocabulary, unfinished

BYTES = [bytes([n]) for n in range(256)]


def decodes(data: bytes) -> str | None:
    """The complete characters of bytes; None if they are not the beginning of valid UTF-8."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return None
    rest = data[len(text.encode()) :]
    return None if rest[:1] == b"\xed" and rest[1:2] >= b"\xa0" else text  # Python waits for the third byte


@given(st.binary(max_size=6) | st.text(max_size=2).map(lambda text: text.encode()[:5]))
@example(b"\xed\xa0\x80")  # a surrogate
@example(b"\xed\xa0")
@example(b"\xf4\x90\x80\x80")  # beyond the last character
@example(b"\xe0\x9f\xbf")  # longer than needed
def test_the_unfinished_character_agrees_with_the_decoder_of_python(data: bytes) -> None:
    text = decodes(data)
    assert unfinished(data) == (None if text is None else data[len(text.encode()) :])


@given(
    st.lists(st.binary(max_size=4), min_size=1, max_size=30), st.text(max_size=3).map(lambda text: text.encode()[:7])
)
def test_a_token_is_allowed_if_the_text_stays_valid(tokens: list[bytes], before: bytes) -> None:
    vocabulary = Vocabulary(tokens)
    rest = unfinished(before) or b""
    mask = vocabulary.allowed(rest)
    expected = [decodes(before + data) is not None and (bool(data) or not rest) for data in tokens]
    assert mask is None or mask.tolist() == expected
    assert mask is not None or all(expected) or not any(expected)


def test_bytes_that_are_not_in_the_training_text_are_not_allowed() -> None:
    vocabulary = Vocabulary([b"", b"ab", b"ac", b"c", "é".encode(), b"\xc3", b"\xa9"], seen_bytes="abé".encode())
    allowed = vocabulary.allowed()
    assert allowed is not None and allowed.tolist() == [True, True, False, False, True, True, False]
    inside = vocabulary.allowed(b"\xc3")
    assert inside is not None and np.flatnonzero(inside).tolist() == [6]


def test_of_the_control_tokens_only_those_that_end_a_text_are_allowed() -> None:
    tokens = [b"", b"", b"", b"a", b"\xe3", b"\x81"]
    allowed = Vocabulary(tokens, None, {0, 2}).allowed()
    assert allowed is not None and allowed.tolist() == [True, False, True, True, True, False]
    inside = Vocabulary(tokens, None, {0, 2}).allowed(b"\xe3")
    assert inside is not None and inside.tolist() == [False] * 5 + [True]
    assert Vocabulary(tokens, None, {0, 2}, unrestricted=True).allowed() is None
    assert Vocabulary(tokens[:4]).allowed() is None


def test_if_no_token_is_allowed_all_are() -> None:
    assert Vocabulary([b"a", b"b"]).allowed(b"\xe3") is None


@given(
    st.lists(st.text("aé. ", max_size=3).map(str.encode) | st.binary(max_size=2), max_size=12),
    st.text("aé. ", min_size=1, max_size=2).map(str.encode) | st.just(b"\xff"),
)
def test_tokens_are_found_by_their_first_bytes(tokens: list[bytes], data: bytes) -> None:
    vocabulary = Vocabulary(tokens)
    assert sorted(vocabulary.prefixes_of(data)) == [i for i, t in enumerate(tokens) if t and data.startswith(t)]
    beyond = [i for i, t in enumerate(tokens) if t.startswith(data) and t != data]
    assert sorted(vocabulary.extensions_of(data).tolist()) == beyond
    result = vocabulary.find(data)
    assert tokens[result] == data if result is not None else data not in tokens


def test_which_bytes_begin_with_a_letter() -> None:
    letters, others = ("a", "7", "_x", "é", "ж", "\u0301", "한"), (" a", "'s", "漢", "ひ", "カ", "!", "", "😀")
    for text in (*letters, *others):
        letter = text in letters
        assert begins_with_letter(text.encode()) is letter, text
        assert Vocabulary([text.encode()]).begins_with_letter.tolist() == [letter], text
