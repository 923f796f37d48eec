"""Rendering of untrusted chat templates in a separate process with limits on time, memory and output.

The process is started for the first template and renders all later ones; it ends with this process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.data.child_process import ChildProcess, NotStartedError
from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError

SECONDS = 5.0  # time limit for all renderings of a call
_worker = ChildProcess("llmcli.data.conversations.template_worker")


class TemplateRefusalError(LLMError):
    """The template refuses the messages; many templates refuse two consecutive turns of the same role."""


@dataclass(frozen=True)
class Rendering:
    """The text that a template produces from messages."""

    text: str
    answers: list[tuple[int, int]]  # spans of {% generation %} blocks: first character, one past the last


def render(
    source: str, variables: Mapping[str, Any], jobs: Sequence[tuple[Sequence[Message], bool]]
) -> list[Rendering]:
    """Render a template for each list of messages, with or without a generation prompt. Raises LLMError if
    rendering fails, and TemplateRefusalError if the template refuses the messages."""
    sent = [([{"role": m.role, "content": m.content} for m in messages], prompt) for messages, prompt in jobs]
    try:
        answer = _worker.ask({"template": source, "variables": dict(variables), "jobs": sent}, SECONDS)
    except NotStartedError as error:
        raise LLMError(
            "the process that renders chat templates did not start; it needs jinja2: pip install jinja2"
        ) from error
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
    return [Rendering(text, [(start, end) for start, end in spans]) for text, spans in answer["results"]]
