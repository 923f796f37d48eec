"""The errors of huggingface_hub, of which there are many kinds, in one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmcli.errors import LLMError, brief


@contextmanager
def one_line(explain: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn an error of huggingface_hub into an LLMError."""
    try:
        yield
    except LLMError:
        raise
    except Exception as error:
        raise LLMError(explain(error)) from error


def kinds(error: BaseException) -> set[str]:
    """Return the names of an error's classes: their modules differ between versions of huggingface_hub."""
    return {kind.__name__ for kind in type(error).__mro__}


def reason(error: Any) -> str:
    """Return what the hub says, or else the error, on one line."""
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return brief(" ".join(text.split()), 200)


def status(error: Any) -> int:
    """Return the HTTP status of an error, or of the error that caused it; 0 if there is none."""
    while error is not None:
        if response := getattr(error, "response", None):
            return int(response.status_code)
        error = error.__cause__
    return 0
