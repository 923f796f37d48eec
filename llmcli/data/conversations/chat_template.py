"""Chat templates: conversations as the text and tokens that a model is trained on and prompted with.

Models trained here use ChatML, which this module renders itself. Any other template is untrusted jinja2 and
is rendered in a separate process (template_renderer.py). The tokens are the same as in transformers'
`apply_chat_template`, except that the text of a message never becomes a control token (control_tokens.py).
"""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import compress
from typing import Any

from llmcli.data.conversations import template_renderer
from llmcli.data.conversations.control_tokens import ControlTokens, unused_characters
from llmcli.data.conversations.messages import Message, Messages, Span
from llmcli.data.conversations.template_renderer import TemplateRefusalError
from llmcli.data.tokenizers.tokenizer import IM_END, IM_START, Tokenizer
from llmcli.errors import LLMError

# Each turn is enclosed in IM_START and IM_END, as in SmolLM2 and Qwen, without a default system message.
# {% generation %} marks the assistant's text, for programs that train with this template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class ChatTemplate:
    """A chat template and the tokenizer of its model."""

    def __init__(self, source: str, tokenizer: Tokenizer, variables: Mapping[str, Any] | None = None) -> None:
        """`source` is the jinja2 template; `variables` are its variables, such as bos_token."""
        self.source = source
        self.tokenizer = tokenizer
        self._variables = dict(variables or {})
        self._control_tokens = ControlTokens(tokenizer)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tokenizer: Tokenizer) -> "ChatTemplate | None":
        """Return the template in a parsed tokenizer_config.json, or None."""
        source = config.get("chat_template")
        if isinstance(source, list):  # several named templates
            source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
        if not isinstance(source, str) or not source.strip():
            return None
        names = {"eos_token": tokenizer.label(tokenizer.eos_id)}
        if tokenizer.bos_ids:
            names["bos_token"] = tokenizer.label(tokenizer.bos_id)
        for key, value in config.items():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                names[key] = content
        return cls(source, tokenizer, names)

    def with_variables(self, variables: Mapping[str, Any]) -> "ChatTemplate":
        """Return this template with different values of variables (keyword arguments in transformers)."""
        return ChatTemplate(self.source, self.tokenizer, self._variables | dict(variables))

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """Return a conversation as text; `add_generation_prompt` adds the header of the assistant's next
        turn. Raises LLMError if the template is invalid, refuses the messages or exceeds a limit."""
        return self._render(messages, add_generation_prompt)[0]

    def _render(self, messages: Messages, add_generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """Return (text, spans of the answers that the template marks)."""
        if self.source == CHATML:
            return _render_chatml(messages, add_generation_prompt)
        return template_renderer.render(self.source, self._variables, messages, add_generation_prompt)

    def encode(self, messages: Messages, *, add_generation_prompt: bool = False) -> list[int]:
        """Return the ids of a conversation; the text of a message never becomes a control token. Raises
        LLMError like `render`."""
        hidden, names = self._hide(messages)
        return self._control_tokens.encode(self._render(hidden, add_generation_prompt)[0], names)[0]

    def encode_conversation(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Return (ids of a conversation, loss mask, which is True for the answers to learn and the token that
        ends each). Raises LLMError like `render`, and if the template renders a turn differently
        when other turns follow."""
        hidden, names = self._hide(messages)
        text, answers = self._render(hidden)
        if not _MARKER.search(self.source):
            ends = [i for i, message in enumerate(hidden, 1) if message.role == "assistant"]
            answers = [self._answer(text, hidden[:end]) for end in ends]
        return self._control_tokens.encode(text, names, _learned_spans(answers, messages))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokenizer's end tokens, and the first control token that the template writes after an
        answer."""
        probe = unused_characters(1, [self.source])[0]
        try:
            text = self.render([Message("user", "Hello"), Message("assistant", probe)])
        except TemplateRefusalError:
            return self.tokenizer.eos_ids
        controls = self._control_tokens.find(text.partition(probe)[2])
        return self.tokenizer.eos_ids | {token for _, _, token in controls[:1]}

    def _hide(self, messages: Messages) -> tuple[list[Message], dict[str, str]]:
        values = (
            value if isinstance(value, str) else json.dumps(value) for value in self._variables.values()
        )
        return self._control_tokens.hide(messages, self.source + "".join(values))

    def _answer(self, whole: str, messages: Messages) -> Span:
        """Return the span of the last message, an answer, in the rendered conversation."""
        until, _ = self._render(messages)
        header = self._header(messages)
        controls = self._control_tokens.find(until[len(header) :])
        # exclude the line end after the token
        end = len(header) + controls[-1][1] if controls else len(until)
        if not until.startswith(header) or not whole.startswith(until[:end]):
            raise LLMError(
                "the model's chat template writes an answer differently once other messages follow, so it is "
                "unclear which tokens to learn; give each conversation one answer, or mark answers in the "
                "template with {% generation %}"
            )
        return len(header), end

    def _header(self, messages: Messages) -> str:
        """Return the text before the last message, an answer."""
        before = messages[:-1]
        if before:
            prompt, _ = self._render(before, add_generation_prompt=True)
            if prompt != self._render(before)[0]:
                return prompt
        # the template has no generation prompt, or needs a message before it
        probe = unused_characters(1, [self.source, *(message.content for message in messages)])[0]
        return self.render([*before, Message("assistant", probe)]).partition(probe)[0]


def _learned_spans(answers: list[Span], messages: Messages) -> list[Span]:
    """Select the spans of learned answers. Raises LLMError if it is unclear which spans belong to which
    answers."""
    learned = [message.is_learned for message in messages if message.role == "assistant"]
    if all(learned):
        return answers
    if len(answers) != len(learned):
        raise LLMError(
            f"the model's chat template marks {len(answers)} of the {len(learned)} "
            "answers in the conversation, so "
            'it is unclear which one has "weight": 0; remove the answers with this weight'
        )
    return list(compress(answers, learned))


def _render_chatml(messages: Messages, add_generation_prompt: bool) -> tuple[str, list[Span]]:
    """Return the same text as rendering CHATML."""
    text = ""
    answers = []
    for message in messages:
        text += f"{IM_START}{message.role}\n"
        start = len(text)
        text = f"{text}{message.content}{IM_END}"
        if message.role == "assistant":
            answers.append((start, len(text)))
        text += "\n"
    if add_generation_prompt:
        text += f"{IM_START}assistant\n"
    return text, answers


def with_chat_template(tokenizer_config_json: str, source: str) -> str:
    config = json.loads(tokenizer_config_json or "{}")
    return json.dumps(config | {"chat_template": source}, ensure_ascii=False, indent=2)
