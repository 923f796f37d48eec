"""Modelfiles, whose template writes the text that a model's chat template writes."""

import re

from llmcli.data.conversations.chat_template import CHATML, ChatTemplate
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.gguf.modelfile import modelfile

MESSAGES = [
    Message("system", "Be brief."), Message("user", "Which planet?\nThe largest."), Message("assistant", "Jupiter"),
    Message("user", "And?"),
]  # fmt: skip


def chat_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, Tokenizer.train_bpe(["the cat sat on the mat " * 50], 280))


def rendered(template: str) -> str:
    """What Go's text/template makes of the one construct that Modelfiles here use: a range over the messages."""
    before, turn, after = re.fullmatch(r"(.*){{ range .Messages }}(.*){{ end }}(.*)", template, re.S).groups()
    turns = [turn.replace("{{ .Role }}", one.role).replace("{{ .Content }}", one.content) for one in MESSAGES]
    return before + "".join(turns) + after


def test_the_template_writes_what_the_chat_template_writes() -> None:
    template = chat_template(CHATML)
    text = modelfile("m.gguf", 64, template)
    shown = re.search('TEMPLATE """(.*?)"""', text, re.S)[1]
    assert rendered(shown) == template.render(MESSAGES, add_generation_prompt=True)
    assert 'PARAMETER stop "<|im_end|>"\n' in text and "PARAMETER num_ctx 64\n" in text


def test_another_chat_template_is_left_to_the_gguf_file() -> None:
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
    text = modelfile("my model.gguf", 64, chat_template(source))
    assert "TEMPLATE" not in text and text.startswith('FROM "./my model.gguf"\n') and 'stop "<|im_end|>"' in text
