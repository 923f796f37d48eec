"""Rendering of untrusted chat templates in a separate process with limits on time, memory and output.

The process is started for the first template and renders all later ones; it ends with this process.
"""

from collections.abc import Mapping
from typing import Any

from llmcli.data.child_process import ChildProcess
from llmcli.data.conversations.messages import Messages, Span
from llmcli.errors import LLMError

SECONDS = 5.0  # time limit of a rendering
_worker = ChildProcess(
    "llmcli.data.conversations.template_worker",
    "the process that renders chat templates did not start; it needs jinja2: pip install jinja2",
)


class TemplateRefusalError(LLMError):
    """The template refuses the messages; many templates refuse two consecutive turns of the same role."""


def render(
    source: str, variables: Mapping[str, Any], messages: Messages, add_generation_prompt: bool
) -> tuple[str, list[Span]]:
    """Return (the text that a template produces from messages, spans of its {% generation %} blocks). Raises
    LLMError if rendering fails, and TemplateRefusalError if the template refuses the messages."""
    request = {
        "template": source,
        "variables": dict(variables),
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        answer = _worker.ask(request, SECONDS)
    except TimeoutError:
        raise LLMError(
            f"the model's chat template ran for over {SECONDS:g} seconds and was stopped"
        ) from None
    except EOFError:
        raise LLMError(
            "the process that rendered the model's chat template died: it may have needed too much memory"
        ) from None
    if "refused" in answer:
        raise TemplateRefusalError(f"the model's chat template refuses these messages: {answer['refused']}")
    if "error" in answer:
        raise LLMError(f"the model's chat template cannot be rendered: {answer['error']}")
    return answer["text"], list(map(tuple, answer["answers"]))
