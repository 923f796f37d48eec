"""Train and query small language models: the command `llm`, and the same from Python.

    import llmcli
    model = llmcli.load("model.safetensors")
    model.generate("I like to eat")

Names are loaded on first use (PEP 562), so that importing the package takes no time.
"""

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the time to import typing; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from llmcli.api import Model as Model
    from llmcli.api import load as load
    from llmcli.config import ModelConfig as ModelConfig
    from llmcli.config import SamplingConfig as SamplingConfig
    from llmcli.errors import LLMError as LLMError

__version__ = "0.1.0"

_MODULES = {
    "LLMError": "errors",
    "Model": "api",
    "ModelConfig": "config",
    "SamplingConfig": "config",
    "load": "api",
}
__all__ = ["LLMError", "Model", "ModelConfig", "SamplingConfig", "__version__", "load"]


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module 'llmcli' has no attribute {name!r}")
    return getattr(import_module(f"llmcli.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
