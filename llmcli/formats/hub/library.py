"""huggingface_hub: its errors in one line, its log and its progress bars."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmcli.errors import LLMError, brief


def check_endpoint() -> None:
    """Raise LLMError if HF_ENDPOINT is not an address: huggingface_hub then cannot be imported."""
    try:
        import huggingface_hub.constants  # noqa: F401
    except ValueError as error:
        raise LLMError(
            f"HF_ENDPOINT is not an address ({error}); unset it, or set it to one: https://HOST"
        ) from error


@contextmanager
def one_line(explain: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn an error of huggingface_hub into an LLMError."""
    try:
        yield
    except LLMError:
        raise
    except Exception as error:
        raise LLMError(explain(error)) from error


def reason(error: Any) -> str:
    """Return what the hub says, or else the error, on one line."""
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return brief(" ".join(text.split()), 200)


def show_progress(shown: bool) -> None:
    """Turn the progress bars on or off; the log is always off."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HF_HUB_DISABLE_PROGRESS_BARS may forbid it
        (enable_progress_bars if shown else disable_progress_bars)()
