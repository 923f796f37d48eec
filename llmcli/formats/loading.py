"""A model in any form -> one of ours: a file of this program, a Hugging Face directory, a GGUF file.

Each form is read as a header in the terms of our own file, so that whoever runs, measures, inspects or teaches a
model does not know which it was.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.errors import LLMError
from llmcli.formats import checkpoint, ensemble_file, gguf_file, hf_directory, safetensors_file
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.safetensors_file import Header

if TYPE_CHECKING:
    from llmcli.data.tokenizer import Tokenizer


def read_header(path: str | Path) -> Header:
    """What a model, or any safetensors file, says of itself; no tensor is read. Raises LLMError."""
    path = Path(path)
    if path.is_dir():
        return hf_directory.read_header(path)
    if gguf_file.is_gguf(path):
        return gguf_file.read_header(path)
    return safetensors_file.read_header(path)


def load(path: str | Path) -> Checkpoint:
    """Open a model in any form. Tensors stay on disk until they are asked for. Raises LLMError."""
    return single(load_any(path), path)


def single(found: Checkpoint | Ensemble, path: str | Path) -> Checkpoint:
    """What was opened, where it is one model. Raises LLMError."""
    if isinstance(found, Ensemble):
        raise LLMError(
            f"{path} is a mixture of models; here the file of one of them is wanted: {', '.join(found.names)}"
        )
    return found


def load_any(path: str | Path) -> Checkpoint | Ensemble:
    """Open a model in any form, or a mixture of several. Raises LLMError."""
    path = Path(path)
    if path.is_dir() or gguf_file.is_gguf(path):
        return checkpoint.opened(read_header(path))
    header = safetensors_file.read_header(path)
    return ensemble_file.opened(header) if ensemble_file.is_ensemble(header) else checkpoint.load(path)


def open_tokenizer(model: Checkpoint | Ensemble) -> "Tokenizer":
    """The tokenizer in a model. Raises LLMError when it is damaged or does not match the model's vocabulary size."""
    from llmcli.data.tokenizer import Tokenizer  # its library is slow to import, and inspecting a file needs no text

    checkpoint = model.shared
    config = checkpoint.config
    ends = (config.eos_token_id, *config.extra_eos_ids)
    try:
        tokenizer = Tokenizer.from_json(
            checkpoint.tokenizer_json, max_vocab_size=config.vocab_size, end_ids=ends, seen_bytes=model.seen_bytes
        )
    except LLMError as error:
        raise LLMError(f"{checkpoint.path}: {error}" if checkpoint.path else str(error)) from error
    tokenizer.imported = model.seen_bytes is None and any("imported" in record for record in model.records)
    return tokenizer


def files(path: str | Path) -> list[Path]:
    """What a model is read from. Raises LLMError."""
    path = Path(path)
    return hf_directory.files(path) if path.is_dir() else [path]


def fingerprint(path: str | Path) -> str:
    """The sha256 of a model: that in its metadata, else of the files that hold its weights."""
    header = read_header(path)
    if "sha256" in header.metadata:
        return header.metadata["sha256"]
    content = hashlib.sha256()
    for file in dict.fromkeys(tensor.path or header.path for tensor in header.tensors.values()):
        with safetensors_file.reading(file) as opened:
            while block := opened.read(safetensors_file.BLOCK):
                content.update(block)
    return content.hexdigest()


def source_hash(model: Checkpoint) -> str | None:
    """The fingerprint of what a model was imported from, while its weights are still the same."""
    origin = model.record.get("imported")
    changed = model.record.keys() & {"train", "adapter", "average_of"} or model.quantization
    found = origin.get("sha256") if isinstance(origin, dict) and not changed else None
    return found if isinstance(found, str) else None
