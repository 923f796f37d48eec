"""Conversations: what a model sees, what it processes again, what happens when the context is full or an answer is
stopped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import SamplingConfig
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.chat import READ_CHUNK, Assistant, Chat, PrefillProgress, TurnsDropped, messages_from
from llmcli.generation.generator import Piece
from tests.conftest import TEXT
from tests.generation.conversations import ASSISTANT, END, USER, CountingModel, Letters, Turns, answering

GREEDY = SamplingConfig(temperature=0.0, max_tokens=50)
LETTERS = Letters()
TEMPLATE = Turns(LETTERS)


def chat_of(next_token, context=1000, sampling=GREEDY, messages=()):
    model = CountingModel(next_token, context)
    return Chat(Assistant(model, LETTERS, TEMPLATE), sampling, messages), model


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, Piece))


def events_of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_a_template_that_renders_nothing_is_one_clear_error():
    template = ChatTemplate("{% if never %}x{% endif %}", Tokenizer.train_bpe([TEXT], 300))
    chat = Chat(Assistant(CountingModel(answering("c")), LETTERS, template), GREEDY)
    with pytest.raises(LLMError, match="chat template renders these messages to an empty text"):
        list(chat.answer("Hello"))
    assert chat.messages == []


# ---- what is processed


def test_the_second_answer_costs_only_its_new_tokens():
    chat, model = chat_of(answering("cd", "e"))
    assert text_of(chat.answer("xyz")) == "cd"
    assert model.processed == len([USER, "x", "y", "z", END, ASSISTANT]) + len("cd")
    before = model.processed
    events = list(chat.answer("pq"))
    assert text_of(events) == "e"
    assert model.processed - before == len([END, USER, "p", "q", END, ASSISTANT]) + len("e")
    assert events[0] == PrefillProgress(tokens=14, cached=8, processed=8)


def test_another_answer_to_the_same_question_processes_its_last_token_only():
    chat, model = chat_of(answering("cd"))
    list(chat.answer("xyz"))
    before = model.processed
    assert text_of(chat.regenerate()) == "cd"
    assert model.processed - before == 1 + len("cd")
    assert chat.messages == [Message("user", "xyz"), Message("assistant", "cd")]


def test_an_answer_that_is_encoded_differently_is_processed_again():
    """The model wrote "a", "b"; a tokenizer makes one token of "ab"."""
    chat, model = chat_of(answering("cab", "e"))
    list(chat.answer("x"))
    assert model.cached[-3:] == [3, 1, 2]
    [reading, *_] = chat.answer("y")
    kept = [USER, 24, END, ASSISTANT, 3]
    assert (reading.cached, model.cached[: len(kept)]) == (len(kept), kept)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["answer", "stop", "regenerate", "take_back", "reset", "system"]),
        st.text("abx", min_size=1, max_size=6),
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([16, 24, 1000]))
def test_the_model_always_sees_what_the_template_makes_of_the_messages(steps, context):
    chat, model = chat_of(answering("ab", "cdc", "", "bab"), context)
    for step, text in steps:
        try:
            if step in ("answer", "stop"):
                asked = [*chat.messages, Message("user", text)]
                check_prompt(chat.answer(text), asked, model, is_stopped=step == "stop")
            elif step == "regenerate":
                last = max(i for i, message in enumerate(chat.messages) if message.role == "user")
                check_prompt(chat.regenerate(), chat.messages[: last + 1], model)
            elif step == "take_back":
                chat.take_back()
            elif step == "reset":
                chat.reset()
            else:
                chat.set_system(text)
        except (LLMError, ValueError):  # a message that does not fit, or no question yet
            continue


def check_prompt(events, asked, model, is_stopped=False):
    system = asked[: asked[0].role == "system"]
    turns = asked[len(system) :]
    possible = [
        TEMPLATE.encode([*system, *turns[i:]], add_generation_prompt=True)
        for i in range(len(turns))
        if turns[i].role == "user"
    ]
    for event in events:
        if isinstance(event, Piece):
            assert any(model.cached[: len(ids)] == ids for ids in possible)
            assert event.finish_reason or len(model.cached) >= min(map(len, possible))
            if is_stopped:
                events.close()
                return


def test_a_long_conversation_is_read_in_chunks():
    chat, _ = chat_of(answering("c"))
    readings = events_of(list(chat.answer("x" * 600)), PrefillProgress)
    tokens = 600 + 3
    assert [one.processed for one in readings] == [0, READ_CHUNK, 2 * READ_CHUNK, tokens - 1]
    assert {(one.tokens, one.cached) for one in readings} == {(tokens, 0)}


def test_reading_that_is_stopped_goes_on_where_it_was():
    chat, model = chat_of(answering("c"))
    events = chat.answer("x" * 600)
    assert [next(events).processed, next(events).processed] == [0, READ_CHUNK]
    events.close()
    assert chat.messages == [] and model.processed == READ_CHUNK
    assert next(chat.answer("x" * 600)).cached == READ_CHUNK


def test_another_use_of_the_runtime_empties_the_cache():
    chat, model = chat_of(answering("cd", "e"))
    list(chat.answer("xyz"))
    model.rewind()
    model.prefill([5, 5, 5])
    [reading, *_] = chat.answer("p")
    assert reading.cached == 0 and model.cached[0] == USER


def test_after_an_interrupt_in_the_middle_of_a_token_everything_is_processed_again():
    def interrupted(cached):
        if len(cached) == 6:
            raise KeyboardInterrupt
        return answering("cde")(cached)

    chat, model = chat_of(interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(chat.answer("x"))
    assert model.length == 0 and chat.messages == [Message("user", "x"), Message("assistant", "cd")]


# ---- the context


def test_a_full_context_drops_the_oldest_turns_and_says_so():
    chat, model = chat_of(answering("c"), context=40, messages=[Message("system", "s")])
    notes = {}
    for turn in range(8):
        events = list(chat.answer("xyzw"))
        notes[turn] = events_of(events, TurnsDropped)
        assert model.cached[:3] == [29, 19, END]  # the system message stays
    # 3 tokens of the system message, 9 for each turn with its answer, 7 for the question
    # after three turns 3 + 27 + 7 = 37 > 40 - 10: the newest that fit 20 are 3 + 9 + 7 = 19
    assert notes == {
        0: [], 1: [], 2: [], 3: [TurnsDropped(2, 40)], 4: [], 5: [TurnsDropped(2, 40)], 6: [], 7: [TurnsDropped(2, 40)],
    }  # fmt: skip
    assert chat.turns == 8  # all of them can be saved


def test_after_turns_were_dropped_the_cache_is_used_again():
    chat, _ = chat_of(answering("z"), context=40)
    kept = []
    for letter in "cdefghij":
        events = list(chat.answer(letter * 4))
        kept.append((bool(events_of(events, TurnsDropped)), events_of(events, PrefillProgress)[0].cached))
    # a turn has 9 tokens, of which END is processed with the next question; 34 + 10 do not fit 40
    begun = [(False, 0), (False, 8), (False, 17)]
    dropped = (True, 1)  # the conversation has another beginning: only its first token, USER, is the same
    assert kept == [*begun, dropped, (False, 17), dropped, (False, 17), dropped]


def test_an_answer_ends_with_the_context_the_limit_of_tokens_or_at_once():
    limited = SamplingConfig(temperature=0.0, max_tokens=3)
    for next_token, context, sampling, text, reason in [
        (lambda cached: 3, 20, GREEDY, "c" * 14, "length"),
        (lambda cached: 3, 1000, limited, "ccc", "length"),
        (answering(""), 1000, GREEDY, "", "stop"),
    ]:
        chat, model = chat_of(next_token, context, sampling)
        events = list(chat.answer("xyz"))
        assert (text_of(events), events[-1].finish_reason) == (text, reason) and model.length <= context
        assert chat.messages[-1] == Message("assistant", text)


def test_a_message_that_does_not_fit_changes_nothing():
    chat, _ = chat_of(answering("c"), context=20)
    list(chat.answer("x"))
    before = list(chat.messages)
    with pytest.raises(LLMError, match="have 33 tokens even without earlier turns, and the context length is 20"):
        list(chat.answer("y" * 30))
    assert chat.messages == before
    assert text_of(chat.answer("y")) == "c"


# ---- answers


def test_only_the_end_of_the_turn_ends_an_answer():
    class OtherEnd(Turns):
        stop_ids = frozenset({26})

    model = CountingModel(lambda cached: 26 if cached[-1] == 3 else 3)
    chat = Chat(Assistant(model, LETTERS, OtherEnd(LETTERS)), GREEDY)
    events = list(chat.answer("x"))
    assert text_of(events) == "c" and events[-1].finish_reason == "stop"


def test_a_stopped_answer_stays_as_far_as_it_came():
    chat, _ = chat_of(lambda cached: 3)
    events = chat.answer("x")
    for event in events:
        if isinstance(event, Piece) and len(text_of([event])):
            break
    events.close()
    assert chat.messages == [Message("user", "x"), Message("assistant", "c")]


def test_the_repetition_penalty_does_not_delay_the_end():
    """END has occurred in every turn: a penalty on it would make an answer longer."""
    likely = np.zeros(31, np.float32)
    likely[END], likely[3] = 2.0, 1.5

    class Model(CountingModel):
        def prefill(self, ids):
            super().prefill(ids)
            return likely

    sampling = SamplingConfig(temperature=0.0, repetition_penalty=2.0, max_tokens=5)
    chat = Chat(Assistant(Model(lambda cached: 0), LETTERS, TEMPLATE), sampling)
    assert text_of(chat.answer("x")) == ""


def test_each_answer_has_a_seed_of_its_own_and_a_set_seed_repeats_it():
    class Uniform(CountingModel):
        def prefill(self, ids):
            super().prefill(ids)
            return np.array([-np.inf, *[0.0] * 26, *[-np.inf] * 4], np.float32)

    def conversation():
        chat = Chat(Assistant(Uniform(lambda cached: 0), LETTERS, TEMPLATE), SamplingConfig(max_tokens=8, seed=5))
        return chat, [text_of(chat.answer("x")), text_of(chat.regenerate()), text_of(chat.answer("x"))]

    chat, texts = conversation()
    assert len(set(texts)) == 3 and conversation()[1] == texts
    chat.reset()
    chat.set_sampling(SamplingConfig(max_tokens=8, seed=5))
    assert text_of(chat.answer("x")) == texts[0]
    assert chat.sampling.seed == 6


def test_the_space_that_a_sentencepiece_tokenizer_prepends_is_not_part_of_an_answer():
    class Spaces(Letters):
        adds_prefix_space = True

        def __init__(self):
            super().__init__()
            self.token_bytes[24:26] = [b" ", b" c"]

    model = CountingModel(lambda cached: END if cached.count(25) == 2 else 25)
    tokenizer = Spaces()
    chat = Chat(Assistant(model, tokenizer, Turns(tokenizer)), GREEDY)
    assert text_of(chat.answer("a")) == "c c"


def test_a_record_that_is_no_message_is_named():
    for record in [
        {"role": "robot", "content": "x"},
        {"role": "user"},
        {"role": "user", "content": 5},
        "Hi",
    ]:
        with pytest.raises(LLMError, match="message 2 must be"):
            messages_from([{"role": "user", "content": "x"}, record])
