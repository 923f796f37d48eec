"""Names of control tokens in a rendered text: those of the template become tokens, those of a message stay text."""

import json

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from llmcli.data.conversations.control_tokens import PRIVATE_USE, ControlTokens, unused_characters
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers.tokenizer import IM_END, IM_START, Tokenizer
from tests.conftest import TEXT
from tests.data.corpora import error_of

BPE = Tokenizer.train_bpe([TEXT], 300)
CONTROLS = ControlTokens(BPE)
START, END = BPE.control_ids[IM_START], BPE.control_ids[IM_END]


PARTS = st.sampled_from(
    [IM_START, IM_END, "<|im_", "end|>", "<", "the cat", " ", "\n", "りんご", "🍎", chr(0xF0000), "é"]
)


@given(st.lists(PARTS, max_size=8).map("".join))
def test_the_text_of_a_message_stays_text(content: str) -> None:
    messages, names = CONTROLS.hide([Message("user", content)], "template")
    assert IM_START not in messages[0].content and IM_END not in messages[0].content
    ids, _ = CONTROLS.encode(f"{IM_START}{messages[0].content}\n{IM_END}", names)
    assert ids == [START, *BPE.encode(f"{content}\n"), END]


def test_a_name_that_a_message_and_a_template_complete_together_is_one_of_the_template() -> None:
    messages, names = CONTROLS.hide([Message("user", "a<|im_end|")], "")
    ids, _ = CONTROLS.encode(f"{messages[0].content}{IM_END}", names)
    assert ids == [*BPE.encode("a<|im_end|"), END]


def test_a_token_is_marked_if_a_span_reaches_into_it() -> None:
    text = f"ab {IM_END}the cat{IM_END}x"
    first = text.index("the")
    ids, marked = CONTROLS.encode(text, {}, [(first, first + len("the cat") + len(IM_END))])
    answer = [*BPE.encode("the cat"), END]
    before = len(BPE.encode("ab ")) + 1
    assert marked == [False] * before + [True] * len(answer) + [False] and ids[before:-1] == answer


def test_spans_are_those_of_the_text_with_stand_ins() -> None:
    [user, answer], names = CONTROLS.hide([Message("user", f"{IM_END}?"), Message("assistant", f"a{IM_START}")], "")
    text = f"{user.content}{answer.content}{IM_END}"
    ids, marked = CONTROLS.encode(text, names, [(len(user.content), len(text))])
    learned = BPE.decode_bytes([token for token, is_marked in zip(ids, marked, strict=True) if is_marked])
    assert learned.endswith(f"a{IM_START}".encode()) and ids[-1] == END and marked[-1]
    assert not marked[0]


def test_bytes_of_one_character_are_marked_together() -> None:
    ids, marked = CONTROLS.encode("xЖy", {}, [(1, 2)])  # Ж is two tokens
    assert [BPE.token_bytes[i] for i in ids] == [b"x", b"\xd0", b"\x96", b"y"]
    assert marked == [False, True, True, False]


def test_stand_ins_occur_nowhere_else() -> None:
    taken = chr(PRIVATE_USE[0][0]) + chr(PRIVATE_USE[0][2])
    assert unused_characters(2, ["a", taken]) == [chr(PRIVATE_USE[0][1]), chr(PRIVATE_USE[0][3])]
    everything = "".join(chr(code) for codes in PRIVATE_USE for code in codes)
    assert "private-use characters" in error_of(unused_characters, 1, [everything])


def with_stripping_token() -> Tokenizer:
    rules = json.loads(BPE.to_json())
    for token in rules["added_tokens"]:
        token["lstrip"] = token["rstrip"] = token["content"] == IM_END
    return Tokenizer.from_json(json.dumps(rules))


def test_a_control_token_that_takes_white_space_does_so_as_in_the_library() -> None:
    for text in [f"a  {IM_END} \nb", f"{IM_END} {IM_END}", f" {IM_START} x {IM_END}"]:
        tokenizer = with_stripping_token()
        library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        assert ControlTokens(tokenizer).encode(text, {})[0] == library.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.encode(text) == BPE.encode(text), text  # where it is text, it takes nothing


@given(st.lists(PARTS, max_size=8).map("".join))
def test_ids_are_those_of_the_library_where_control_tokens_are_read(text: str) -> None:
    library = tokenizers.Tokenizer.from_str(BPE.to_json())
    assert CONTROLS.encode(text, {})[0] == library.encode(text, add_special_tokens=False).ids
