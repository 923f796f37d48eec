"""Reading the header of a model in any format. Imports neither numpy nor modules that read tensors."""

from pathlib import Path

from llmcli.formats.open_file import is_gguf
from llmcli.formats.safetensors import header as safetensors_header
from llmcli.formats.safetensors.header import Header


def read_header(path: str | Path) -> Header:
    """Read the header of a model or any safetensors file; no tensor is read. Raises LLMError."""
    path = Path(path)
    if path.is_dir():
        # imported only for its format: short commands wait for imports
        from llmcli.formats import (
            hf_directory,
        )

        return hf_directory.read_header(path)
    if is_gguf(path):
        from llmcli.formats.gguf import reader as gguf_reader

        return gguf_reader.read_header(path)
    return safetensors_header.read_header(path)
