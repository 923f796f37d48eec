"""Interrupting a training step or an evaluation that takes too long after Ctrl-C or a time limit.

signals.py handles Ctrl-C, loop/clock.py decides when to interrupt, and loop/trainer.py then ends
the run.
"""

import contextlib
from collections.abc import Callable, Iterator

from llmcli.models.torch.transformer import LanguageModel


class CutShortError(Exception):
    """A forward pass was interrupted."""


@contextlib.contextmanager
def stop_between_layers(model: LanguageModel, should_stop: Callable[[], bool]) -> Iterator[None]:
    """In this context, passes of `model` and its teacher raise CutShortError before a layer if
    `should_stop()`."""

    def check() -> None:
        if should_stop():
            raise CutShortError

    models = [model, *([model.teacher.model] if model.teacher else [])]
    for each in models:
        each.between_layers = check
    try:
        yield
    finally:
        for each in models:
            each.between_layers = None
