"""Aborting a training step or an evaluation that takes too long, after Ctrl-C or at a time limit: the model checks
between layers whether to stop. The signal itself is received in cli/terminal/signals.py."""

import contextlib
from collections.abc import Callable, Iterator

from llmcli.models.torch.transformer import LanguageModel


class CutShortError(Exception):
    """Raised by a forward pass that was asked to stop."""


@contextlib.contextmanager
def stop_between_layers(model: LanguageModel, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Inside, a forward pass of `model`, or of the teacher that it has in distillation, raises CutShortError before the
    next layer once `should_stop` returns True."""

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
