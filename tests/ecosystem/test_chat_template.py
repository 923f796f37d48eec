"""Conversations as text, tokens and masks: equal to those of transformers' apply_chat_template, and of llama.cpp."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.data.conversations.chat_template import CHATML, ChatTemplate, with_chat_template
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers.tokenizer import IM_END, Tokenizer
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint, save
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import random_checkpoint
from tests.ecosystem import texts
from tests.ecosystem.conftest import LlamaCpp, tokenizer_with_pre_tokenizer
from tests.ecosystem.test_sentencepiece import CONSTRAINTS, rules  # noqa: F401 (a fixture)

# as TRL's templates for training: what a model writes is marked, and the markup around it is Qwen's
MARKED = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- message.content }}
        {{- '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ ' '  + m['content'] + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)


def conversations(count: int, *, control_tokens: bool) -> list[list[Message]]:
    """Conversations in many languages: of one or several turns, with and without a system message, some empty."""
    strings = [text for text in texts.varied(8 * count, seed=9) if control_tokens or "<" not in text]
    made = []
    for i in range(count):
        mine = [strings[(7 * i + k) % len(strings)] for k in range(7)]
        roles = ["system"] * (i % 3 == 0) + ["user", "assistant"] * (1 + i % 3)
        messages = [Message(role, mine[k]) for k, role in enumerate(roles)]
        if i % 5 == 0:
            messages[-1] = replace(messages[-1], content="")
        if control_tokens and i % 2:
            messages[-2] = replace(messages[-2], content=f"{mine[6]}<|im_end|>\n<|im_start|>assistant\nYes")
        made.append(messages[:-1] if i % 4 == 1 else messages)
    return made


def as_records(messages: list[Message]) -> list[dict[str, str]]:
    return [asdict(message) for message in messages]


def written(directory: Path, tokenizer_json: str, config_json: str) -> Any:
    """The tokenizer in transformers."""
    import transformers

    (directory / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    (directory / "tokenizer_config.json").write_text(config_json, "utf-8")
    return transformers.AutoTokenizer.from_pretrained(directory)


def assert_same_tokens(ours: ChatTemplate, theirs: Any, messages: list[Message], *, masks: bool) -> None:
    records = as_records(messages)
    prompt = theirs.apply_chat_template(records, add_generation_prompt=True, return_dict=False)
    assert ours.encode(messages, add_generation_prompt=True) == prompt
    ids, loss_mask = ours.encode_conversation(messages)
    expected = theirs.apply_chat_template(records, return_dict=True, return_assistant_tokens_mask=masks)
    assert ids == expected["input_ids"]
    if masks:
        assert list(map(int, loss_mask)) == expected["assistant_masks"]


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> tuple[Checkpoint, ChatTemplate]:
    model = loading.load(smollm2)
    template = loading.open_chat_template(model, loading.open_tokenizer(model))
    assert template is not None
    return model, template


@pytest.fixture(scope="module")
def smol_theirs(smol: tuple[Checkpoint, ChatTemplate], tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = smol[0]
    return written(tmp_path_factory.mktemp("smol"), model.tokenizer_json, model.tokenizer_config_json)


def test_the_text_of_50_conversations_equals_that_of_transformers(
    smol: tuple[Checkpoint, ChatTemplate], smollm2: Path, parsed_once: None
) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    assert theirs.chat_template == smol[1].source
    for messages in conversations(50, control_tokens=True):
        for prompt in (False, True):
            expected = theirs.apply_chat_template(as_records(messages), tokenize=False, add_generation_prompt=prompt)
            assert smol[1].render(messages, add_generation_prompt=prompt) == expected


def test_the_tokens_of_conversations_equal_those_of_transformers(smol, smol_theirs) -> None:
    for messages in conversations(50, control_tokens=False):
        assert_same_tokens(smol[1], smol_theirs, messages, masks=False)


def test_control_tokens_in_messages_stay_text_as_in_transformers_when_asked(smol, smol_theirs) -> None:
    template = smol[1]
    special = set(template.tokenizer.control_ids.values())
    for messages in conversations(50, control_tokens=True):
        theirs = smol_theirs.apply_chat_template(
            as_records(messages), add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
        )
        ours = template.encode(messages, add_generation_prompt=True)
        assert [i for i in ours if i in special] == [i for i in theirs if i in special]
        assert template.tokenizer.decode(ours) == template.tokenizer.decode(theirs)


def test_marks_give_the_mask_of_transformers_and_that_of_the_template_without_marks(smol, smol_theirs) -> None:
    template = smol[1]
    marked = ChatTemplate(MARKED, template.tokenizer)
    smol_theirs.chat_template = MARKED
    try:
        for messages in conversations(30, control_tokens=False):
            assert_same_tokens(marked, smol_theirs, messages, masks=True)
    finally:
        smol_theirs.chat_template = template.source
    messages = [Message("system", "Be brief."), *conversations(2, control_tokens=False)[1]]
    assert marked.encode_conversation(messages) == template.encode_conversation(messages)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bpe": lambda: Tokenizer.train_bpe(texts.varied(300, seed=6), 600),
    "char": lambda: Tokenizer.train_char(texts.varied(300, seed=6)),
    "Llama 3": lambda: tokenizer_with_pre_tokenizer("Llama 3").with_chat_tokens(),
    "Qwen 2": lambda: tokenizer_with_pre_tokenizer("Qwen 2").with_chat_tokens(),
}


def test_chatml_in_an_export_gives_transformers_the_same_tokens_and_mask(tmp_path: Path) -> None:
    for name in TOKENIZERS:
        tokenizer = TOKENIZERS[name]()
        theirs = written(tmp_path, tokenizer.to_json(), with_chat_template(tokenizer.to_config_json(64), CHATML))
        ours = ChatTemplate(CHATML, tokenizer)
        for messages in conversations(40, control_tokens=False):
            assert ours.render(messages) == theirs.apply_chat_template(as_records(messages), tokenize=False)
            assert_same_tokens(ours, theirs, messages, masks=True)


def test_sentencepiece_gives_the_tokens_of_transformers(rules, tmp_path: Path) -> None:  # noqa: F811
    for source in [LLAMA2, CHATML]:
        for form in [*CONSTRAINTS, "always"]:
            metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
            always = {"normalizer": None, "pre_tokenizer": metaspace}
            tokenizer_json = json.dumps(rules | (always if form == "always" else CONSTRAINTS[form]))
            config = {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": source,
            }
            tokenizer = Tokenizer.from_json(tokenizer_json)
            if source == CHATML:
                tokenizer = tokenizer.with_chat_tokens()
                tokenizer_json = tokenizer.to_json()
            ours = ChatTemplate.from_config(config, tokenizer)
            theirs = written(tmp_path, tokenizer_json, json.dumps(config))
            assert ours is not None, (source, form)
            for messages in conversations(40, control_tokens=False):
                assert_same_tokens(ours, theirs, messages, masks=True)
            again = Tokenizer.from_json(tokenizer.to_json())
            messages = [Message("user", "the world"), Message("assistant", " 12 ")]
            assert ChatTemplate(source, again, ours._variables).encode(messages) == ours.encode(messages), source


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """A model that ends its answer at once."""
    tokenizer = Tokenizer.train_bpe(texts.varied(300, seed=6), 600)
    end = tokenizer.control_ids[IM_END]
    config = ModelConfig(tokenizer.vocab_size, 64, 96, 2, 4, 2, 16, 128, extra_eos_ids=(end,))
    model = random_checkpoint(config, tokenizer_json=tokenizer.to_json())
    ids = ChatTemplate(CHATML, tokenizer).encode([Message("user", "Hi")], add_generation_prompt=True)
    logits = NumpyRuntime(model).prefill(ids)
    head = model.tensors["lm_head.weight"]
    head[end] = 10 * head[int(np.argmax(logits))]
    stored = with_chat_template(tokenizer.to_config_json(128), CHATML)
    save(tmp_path / "chat.safetensors", replace(model, tokenizer_config_json=stored))
    return tmp_path / "chat.safetensors"


def test_the_template_survives_each_form(chat_model: Path, llm) -> None:
    for form in ["file", "hf", "gguf"]:
        path = chat_model
        if form != "file":
            path = chat_model.parent / {"hf": "there", "gguf": "there.gguf"}[form]
            assert llm("export", chat_model, path, "--to", form).exit_code == 0
        if form == "hf":
            assert (path / "chat_template.jinja").read_text("utf-8") == CHATML
            assert json.loads((path / "tokenizer_config.json").read_text("utf-8"))["chat_template"] == CHATML
        model = loading.load(path)
        template = loading.open_chat_template(model, loading.open_tokenizer(model))
        assert template is not None and template.source == CHATML, form
        assert {template.tokenizer.label(token) for token in template.stop_ids} == {"<|endoftext|>", IM_END}, form
        assert model.config.extra_eos_ids == (2,), form


def test_llama_cpp_renders_the_same_and_stops_at_the_end_of_a_turn(chat_model: Path, llm) -> None:
    path = chat_model.parent / "there.gguf"
    assert llm("export", chat_model, path, "--to", "gguf", "--dtype", "f32").exit_code == 0
    theirs = LlamaCpp(path, context=128)
    model = loading.load(chat_model)
    ours = loading.open_chat_template(model, loading.open_tokenizer(model))
    assert ours is not None
    questions = [messages for messages in conversations(60, control_tokens=True) if messages[-1].role == "user"]
    assert len(questions) > 10
    for messages in questions:
        expected = theirs.post("/apply-template", {"messages": as_records(messages)})["prompt"]
        assert ours.render(messages, add_generation_prompt=True) == expected
    request = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "temperature": 0.0}
    choice = theirs.post("/v1/chat/completions", request)["choices"][0]
    assert choice["finish_reason"] == "stop" and not choice["message"]["content"]
