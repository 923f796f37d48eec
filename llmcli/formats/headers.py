"""The header of a model in any format, in the form of our own file. Imports neither numpy nor what reads tensors."""

from pathlib import Path

from llmcli.formats.open_file import is_gguf
from llmcli.formats.safetensors import header as safetensors_header
from llmcli.formats.safetensors.header import Header


def read_header(path: str | Path) -> Header:
    """The header of a model, or of any safetensors file; no tensor is read. Raises LLMError."""
    path = Path(path)
    if path.is_dir():
        from llmcli.formats import hf_directory  # each reader only for its format: a short command waits for imports

        return hf_directory.read_header(path)
    if is_gguf(path):
        from llmcli.formats.gguf import reader as gguf_reader

        return gguf_reader.read_header(path)
    return safetensors_header.read_header(path)
