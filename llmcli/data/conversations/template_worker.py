"""Renders chat templates in a separate process, from requests on stdin to answers on stdout, each a line of
JSON.

A template from an untrusted file is a program, which may never end or fill the memory. Therefore jinja2 runs
it in a sandbox, as transformers does, and this process has limits. template_renderer.py kills it if it takes
too long.

    {"template": TEXT, "variables": {}, "messages": [...], "add_generation_prompt": BOOL}
    -> {"text": TEXT, "answers": [[start, end], ...]} or {"refused": message} or {"error": message}
"""

import functools
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llmcli.data.child_process import answer_requests

MEMORY = 1 << 29  # bytes, if the system can limit them
EXTRA_CHARACTERS = 1 << 20  # allowed output beyond twice the text of the messages
MAX_MESSAGE = 300  # characters in an error


def main() -> None:
    answer_requests(_answer, MEMORY)


def _answer(request: Mapping[str, Any], _: object) -> dict[str, Any]:
    try:
        template = _compiled(request["template"])
        return _render(template, request["messages"], request["add_generation_prompt"], request["variables"])
    except _RefusalError as error:
        return {"refused": _one_line(error)}
    except MemoryError:
        _compiled.cache_clear()
        return {"error": f"it needs over {MEMORY >> 20} MB of memory"}
    except Exception as error:
        return {"error": _one_line(error)}


@functools.lru_cache(maxsize=1)
def _compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_MESSAGE] or type(error).__name__


def _render(
    template: jinja2.Template,
    messages: list[dict[str, str]],
    add_generation_prompt: bool,
    variables: Mapping[str, str],
) -> dict[str, Any]:
    """Return the text, and the spans of its {% generation %} blocks."""
    limit = EXTRA_CHARACTERS + 2 * sum(len(message["content"]) for message in messages)
    tracker = template.environment.extensions[_Generation.identifier]
    assert isinstance(tracker, _Generation)
    tracker.position = 0
    tracker.spans = []
    arguments = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    parts = []
    for part in template.generate(**arguments, **variables):
        parts.append(part)
        tracker.position += len(part)
        if tracker.position > limit:
            raise TemplateError(f"it writes over {limit:,} characters")
    return {"text": "".join(parts), "answers": tracker.spans}


def environment() -> jinja2.Environment:
    """Return an environment like the one in which transformers renders chat templates."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda format: datetime.now().strftime(format),
        namespace=_Namespace,
    )
    return sandbox


class _RefusalError(TemplateError):
    """The template called raise_exception."""


class _Generation(jinja2.ext.Extension):
    """The block {% generation %}, which marks the assistant's text."""

    tags = {"generation"}  # noqa: RUF012 (the name and the type are jinja2's)

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.position = 0  # characters written so far
        self.spans: list[tuple[int, int]] = []

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        self.spans.append((self.position, self.position + len(text)))
        return text


def _raise_exception(message: str) -> None:
    raise _RefusalError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Format as JSON, without the HTML escapes of jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


class _Namespace(Namespace):
    """`namespace`, but without access to attributes that begin with an underscore (Python's own)."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *values = args  # allows namespace(self=...)
        attributes = dict(*values, **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"access to attribute {name[:40]!r} of a namespace is unsafe")
