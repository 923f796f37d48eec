"""Train and query small language models: the `llm` command and its Python API.

    import llmcli
    model = llmcli.load("model.safetensors")
    model.generate("I like to eat")

Names are loaded on first use (PEP 562), so that importing the package takes no time.
"""

from llmcli.version import __version__ as __version__

TYPE_CHECKING = False  # like typing.TYPE_CHECKING, without importing typing; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from llmcli.api import Model as Model
    from llmcli.api import load as load
    from llmcli.api import train as train
    from llmcli.config import ModelConfig as ModelConfig
    from llmcli.config import SamplingConfig as SamplingConfig
    from llmcli.errors import LLMError as LLMError
    from llmcli.training.loop.events import Evaluation as Evaluation
    from llmcli.training.loop.events import Prediction as Prediction
    from llmcli.training.loop.events import Restarted as Restarted
    from llmcli.training.loop.events import Sample as Sample
    from llmcli.training.loop.events import Step as Step
    from llmcli.training.loop.events import TeacherTrained as TeacherTrained
    from llmcli.training.session import Result as Result

_NAMES = {
    "api": ("Model", "load", "train"),
    "config": ("ModelConfig", "SamplingConfig"),
    "errors": ("LLMError",),
    "training.loop.events": ("Evaluation", "Prediction", "Restarted", "Sample", "Step", "TeacherTrained"),
    "training.session": ("Result",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(("__version__", *_MODULES))


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module 'llmcli' has no attribute {name!r}")
    return getattr(import_module(f"llmcli.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
