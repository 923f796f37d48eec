"""The `gguf` package, an extra: it knows the quantized types of GGUF, and writes files."""

from types import ModuleType

from llmcli.errors import LLMError


def import_gguf(purpose: str) -> ModuleType:
    """Raises LLMError when the package is not installed; `purpose` begins the message: "to write a GGUF"."""
    try:
        import gguf
    except ImportError as error:
        raise LLMError(f"{purpose} the gguf package is needed: pip install 'llmcli[gguf]'") from error
    module: ModuleType = gguf
    return module
