"""`llm serve`: an OpenAI-compatible HTTP API."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from llmcli.cli.options import Options, flag, model_path, option
from llmcli.cli.terminal import console
from llmcli.cli.terminal.invitation import invite
from llmcli.config import DEFAULT_MODEL
from llmcli.errors import LLMError, require_server, usage
from llmcli.signals import handled_by, stop_signals

if TYPE_CHECKING:
    import socket

    from llmcli.server.api.models import Models
    from llmcli.server.http.access import Access

API_KEY_VARIABLE = "LLMCLI_API_KEY"


class _Options(Options):
    models: list[str] | None = option(
        "FILE",
        f"Model to serve; can be repeated (default: $LLMCLI_MODEL or {DEFAULT_MODEL}).",
        names="-m --model",
    )
    log_prompts: bool = flag("Also log the prompts and the generated texts.")
    quantize: str | None
    no_cache: bool
    device: str
    quiet: bool
    _network: str = "Network"
    host: str = option(
        "HOST",
        "Address to listen on; 0.0.0.0: other computers can connect, with a key or the class code that is "
        "printed.",
        "127.0.0.1",
    )
    port: int = option("N", "Port to listen on; 0: a free one.", 8000, min=0, max=65535)
    api_key: str | None = option("KEY", f"Key that clients must send (default: ${API_KEY_VARIABLE}).")
    cors_origin: list[str] | None = option("ORIGIN", "Origin whose pages may send requests, or *.")
    _limits: str = "Limits"
    max_concurrent: int = option("N", "Maximum number of texts generated at once.", 16, min=1, max=256)
    context: int | None = option("N", "Context length in tokens (default: the model's).", min=2)


def serve(options: _Options) -> None:
    """Each model answers under the name of its file: food for food.safetensors. Ctrl-C ends the server.

    Example: llm serve -m model.safetensors
    """
    options.check({"quantize": "device"})
    require_server("llm serve")
    paths = [model_path(name) for name in options.models or (None,)]
    key = _api_key(options.api_key)
    origins = [_origin(value) for value in options.cors_origin or []]
    from llmcli.server.api.models import Models
    from llmcli.server.http.access import Access
    from llmcli.server.http.listening import bind

    with bind(options.host, options.port) as listener:
        access = Access.to(listener, options.host, key, origins)
        models = Models(
            paths,
            device=options.device,
            quantize=options.quantize,
            context=options.context,
            cache=not options.no_cache,
            on_note=console.note,
        )
        for served in models:
            if options.context is not None and served.context < options.context:
                console.note(
                    f"{served.name} has a context length of {served.context:,} tokens, less than --context"
                )
        _run(models, listener, access, options)


@contextmanager
def exits_at_once(stop: Callable[[], None]) -> Iterator[None]:
    """End the process immediately if a signal stops the server while a model is being loaded or analyzed,
    because native code in a thread would crash Python's finalization. `stop` ends a server that receives a
    signal before it listens."""
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        stop()

    try:
        with handled_by(receive, stop_signals()):
            yield
    finally:
        computing = [thread for thread in threading.enumerate() if thread.daemon]
        if received and computing:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + received[0])
        if received:
            signal.raise_signal(received[0])


def _api_key(typed: str | None) -> str | None:
    key = os.environ.get(API_KEY_VARIABLE) if typed is None else typed
    if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
        raise usage(
            "the API key must be printable ASCII characters, and not empty; give another: --api-key KEY"
        )
    return key and key.strip()  # HTTP drops spaces around it


def _origin(value: str) -> str:
    """Normalize an origin as browsers do."""
    origin = value.rstrip("/").lower()
    if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#]+", origin):
        raise usage(
            f"--cors-origin {value} is not an origin; give scheme and host: --cors-origin https://example.com"
        )
    return origin


def _run(models: "Models", listener: "socket.socket", access: "Access", options: _Options) -> None:
    """Serve until a signal. Raises LLMError if a single model cannot be loaded."""
    from llmcli.generation.engine.requests import EngineLimits
    from llmcli.server.http.app import create_app
    from llmcli.server.http.listening import Server, urls

    names = ", ".join(model.name for model in models)
    load_errors: list[BaseException] = []

    def on_load_error(error: BaseException) -> None:
        load_errors.append(error)
        server.stop()

    app = create_app(
        models,
        limits=EngineLimits(concurrent=options.max_concurrent),
        access=access,
        log=console.note,
        log_contents=options.log_prompts,
        on_ready=lambda: invite(f"serving {names} at", " (Ctrl-C ends it)", urls(listener), access.classroom),
        on_load_error=on_load_error,
    )
    server = Server(app)
    with exits_at_once(server.stop):
        server.run([listener])
    if load_errors:
        raise LLMError(str(load_errors[0])) from load_errors[0]
