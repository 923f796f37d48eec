"""A conversation as text and tokens: templates by jinja2, and which tokens are learned."""

import itertools
import json
from dataclasses import replace

import pytest

from llmcli.data.conversations.chat_template import CHATML, ChatTemplate, with_chat_template
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers.tokenizer import IM_END, IM_START, Tokenizer
from llmcli.errors import LLMError
from tests.conftest import TEXT

BPE, CHAR = Tokenizer.train_bpe([TEXT], 300), Tokenizer.train_char([TEXT])
BOTH = pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
USER, ANSWER = Message("user", "Who ate the hat?"), Message("assistant", "The dog.")
CONVERSATIONS = {
    "a question": [USER],
    "an answer": [USER, ANSWER],
    "turns": [Message("system", "Be brief."), USER, ANSWER, Message("user", "りんご?"), Message("assistant", "🍎\n")],
    "nothing said": [Message("user", ""), Message("assistant", "")],
    "white space": [Message("user", "  \n"), Message("assistant", "\r\n a ")],
    "control tokens": [Message("user", f"{IM_END}\n{IM_START}a\n"), Message("assistant", f"<|endoftext|>{IM_END}")],
    "no messages": [],
}
# ChatML without marks, as SmolLM2 has it
PLAIN = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def learned_text(template: ChatTemplate, messages: list[Message]) -> list[str]:
    """The passages of learned tokens."""
    ids, loss_mask = template.encode_conversation(messages)
    tokenizer, passages = template.tokenizer, []
    for learned, run in itertools.groupby(zip(loss_mask, ids, strict=True), key=lambda pair: pair[0]):
        if learned:
            passages.append(b"".join(tokenizer.token_bytes[i] or tokenizer.label(i).encode() for _, i in run).decode())
    return passages


@BOTH
def test_text_of_messages_is_no_control_token(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(CHATML, tokenizer)
    start, end = tokenizer.control_ids[IM_START], tokenizer.control_ids[IM_END]
    for name, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            ids = template.encode(messages, add_generation_prompt=prompt)
            controls = [i for i in ids if not tokenizer.token_bytes[i]]
            assert controls == [start, end] * len(messages) + [start] * prompt, name
            names = b"".join(tokenizer.token_bytes[i] or tokenizer.label(i).encode() for i in ids)
            assert names.decode() == template.render(messages, add_generation_prompt=prompt), name


def test_an_answer_that_is_not_learned_is_context() -> None:
    for source in [CHATML, CHATML + " ", PLAIN]:
        template = ChatTemplate(source, BPE)
        first, last = Message("assistant", "The cat."), Message("assistant", "The mat.")
        messages = [USER, first, USER, ANSWER, USER, last]
        ids, _ = template.encode_conversation(messages)
        assert learned_text(template, messages) == [f"The {what}.{IM_END}" for what in ("cat", "dog", "mat")], source
        for i, expected in ((1, ("dog", "mat")), (3, ("cat", "mat")), (5, ("cat", "dog"))):
            weighted = [replace(one, is_learned=place != i) for place, one in enumerate(messages)]
            assert template.encode_conversation(weighted)[0] == ids, source
            assert learned_text(template, weighted) == [f"The {what}.{IM_END}" for what in expected], source
        ids, loss_mask = template.encode_conversation([USER, replace(ANSWER, is_learned=False)])
        assert not any(loss_mask) and ids, source


def test_answers_that_a_template_marks_otherwise_cannot_have_a_weight() -> None:
    source = "{% generation %}{% for message in messages %}{{ message['content'] }}{% endfor %}{% endgeneration %}"
    template = ChatTemplate(source, BPE)
    assert all(template.encode_conversation([USER, ANSWER, USER, ANSWER])[1])
    with pytest.raises(LLMError, match="marks 1 of the 2 answers in the conversation, so it is unclear which one"):
        template.encode_conversation([USER, ANSWER, USER, replace(ANSWER, is_learned=False)])


TEMPLATES = {
    # template -> (template, the learned passages of USER, ANSWER, "Why?", "Hunger.")
    "no generation prompt": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}",
        ["The dog.<|im_end|>", "Hunger.<|im_end|>"],
    ),
    "no control tokens": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        ["The dog.\n", "Hunger.\n"],
    ),
    "a space before the answer": (
        "{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}[A]{% else %}"
        "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        ["The dog. <|endoftext|>", "Hunger. <|endoftext|>"],
    ),
    "marks": (
        "{% for m in messages %}{{ m.role }}:{%- if m.role == 'assistant' -%}{%- generation -%}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
        ["The dog.", "Hunger."],
    ),
}  # fmt: skip


@pytest.mark.slow
def test_answers_are_found_in_templates_of_others() -> None:
    for name in TEMPLATES:
        source, expected = TEMPLATES[name]
        template = ChatTemplate(source, CHAR, {"eos_token": "<|endoftext|>"})  # no token is of a header and an answer
        messages = [USER, ANSWER, Message("user", "Why?"), Message("assistant", "Hunger.")]
        assert learned_text(template, messages) == expected, name


@pytest.mark.slow
def test_a_template_that_rewrites_earlier_turns_is_an_error() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = ChatTemplate(source, BPE)
    assert learned_text(template, [USER, ANSWER]) == ["<think></think>The dog.<|im_end|>"]
    with pytest.raises(LLMError, match="writes an answer differently once other messages follow"):
        template.encode_conversation([USER, ANSWER, USER, ANSWER])


@pytest.mark.slow
def test_the_end_of_a_turn_is_found_by_rendering_one() -> None:
    for source, expected in [
        (CHATML, {"<|endoftext|>", "<|im_end|>"}),
        (PLAIN, {"<|endoftext|>", "<|im_end|>"}),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", {"<|endoftext|>"}),
        ("{% for m in messages %}{{ m.content + eos_token }}<|im_start|>{% endfor %}", {"<|endoftext|>"}),
        ("{{ raise_exception('no') }}", {"<|endoftext|>"}),
        (
            "{% for m in messages %}{{ m.content | trim }}<|reserved_special_token_0|>{% endfor %}",
            {"<|endoftext|>", "<|reserved_special_token_0|>"},
        ),
    ]:
        template = ChatTemplate(source, BPE, {"eos_token": "<|endoftext|>"})
        assert {BPE.label(token) for token in template.stop_ids} == expected, source


def test_a_template_is_stored_beside_what_was_there() -> None:
    before = json.loads(BPE.to_config_json(64))
    after = json.loads(with_chat_template(json.dumps(before), CHATML))
    assert after == before | {"chat_template": CHATML}
    assert json.loads(with_chat_template("", "é")) == {"chat_template": "é"}


def test_the_template_of_a_config_is_its_default() -> None:
    for config, source in [
        ({}, None),
        ({"chat_template": None}, None),
        ({"chat_template": " "}, None),
        ({"chat_template": "a"}, "a"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}]}, None),
    ]:
        template = ChatTemplate.from_config(config, BPE)
        assert (template.source if template else None) == source, config


def test_a_template_gets_the_names_of_the_special_tokens() -> None:
    named = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "unk_token": None}
    for config, variables in [
        (named, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}), ({}, {"eos_token": "<|endoftext|>"}),
    ]:  # fmt: skip
        template = ChatTemplate.from_config({"chat_template": "x"} | config, BPE)
        assert template is not None and template._variables == variables
