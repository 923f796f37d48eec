"""Opening a model in any format (our own, a Hugging Face directory, GGUF) as a Checkpoint, so that other code
is independent of the format."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.errors import LLMError, prefixed
from llmcli.formats import checkpoint, ensemble_file
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.headers import read_header
from llmcli.formats.metadata import parse_document
from llmcli.formats.open_file import open_for_reading
from llmcli.formats.safetensors import dtypes
from llmcli.formats.safetensors.file import BLOCK_BYTES

if TYPE_CHECKING:
    from llmcli.data.conversations.chat_template import ChatTemplate
    from llmcli.data.tokenizers.tokenizer import Tokenizer


def load(path: str | Path, *, accept_changes: bool = False) -> Checkpoint:
    """Open a model in any format. Tensors stay on disk until they are accessed. Raises LLMError, also for a
    file of our own that was changed unless `accept_changes` is True."""
    return single_model(load_any(path, accept_changes=accept_changes), path)


def single_model(model: Checkpoint | Ensemble, path: str | Path) -> Checkpoint:
    """Return a single model. Raises LLMError for an ensemble."""
    if isinstance(model, Ensemble):
        raise LLMError(
            f"{path} is an ensemble of models; name the file of one of them: {', '.join(model.names)}"
        )
    return model


def load_any(path: str | Path, *, accept_changes: bool = False) -> Checkpoint | Ensemble:
    """Open a model in any format, or an ensemble. Raises LLMError, as `load` does."""
    header = read_header(path)
    if accept_changes:
        header = replace(
            header, metadata={key: text for key, text in header.metadata.items() if key != "sha256"}
        )
    if header.form != "safetensors file":
        return checkpoint.from_header(header)
    is_ensemble = ensemble_file.MODEL_TYPE in header.metadata.get("config.json", "")[:200]
    return ensemble_file.from_header(header) if is_ensemble else checkpoint.from_own_header(header)


def check_packages(model: Checkpoint | Ensemble) -> None:
    """Raise LLMError if a package for reading the tensors is not installed, before they are read."""
    if not isinstance(model, Checkpoint) or not isinstance(model.tensors, checkpoint.TensorsOnDisk):
        return
    header = model.tensors.header
    if header.decode and (
        encoded := {t.dtype for t in header.tensors.values() if not dtypes.is_readable(t.dtype)}
    ):
        from llmcli.formats.gguf.reader import import_gguf

        import_gguf(f"reading {min(encoded)}")


def open_tokenizer(model: Checkpoint | Ensemble) -> "Tokenizer":
    """Open a model's tokenizer. Raises LLMError if it is damaged or does not match the model's vocabulary
    size."""
    from llmcli.data.tokenizers.tokenizer import Tokenizer  # slow to import, and not needed to inspect a file

    shared, config = model.shared, model.shared.config
    seen_bytes = checkpoint.seen_bytes(model.records)
    eos_ids = config.eos_token_id, *config.extra_eos_ids
    with prefixed(shared.path or "the model"):
        tokenizer = Tokenizer.from_json(shared.tokenizer_source, config.vocab_size, eos_ids, seen_bytes)
    tokenizer.imported = seen_bytes is None and any(record.imported is not None for record in model.records)
    return tokenizer


def open_chat_template(model: Checkpoint | Ensemble, tokenizer: "Tokenizer") -> "ChatTemplate | None":
    """Return a model's chat template with its tokenizer, from `open_tokenizer`; None if the model has no
    template."""
    from llmcli.data.conversations.chat_template import ChatTemplate

    config = parse_document(model.shared.tokenizer_config_json, "its tokenizer_config.json")
    return ChatTemplate.from_config(config, tokenizer)


def files(path: str | Path) -> list[Path]:
    """List the files from which a model is read. Raises LLMError."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    from llmcli.formats import hf_directory

    return hf_directory.files(path)


def fingerprint(model: str | Path | Checkpoint) -> str:
    """Return the sha256 of a model, from its metadata or of the files with its weights. Raises LLMError."""
    if isinstance(model, Checkpoint):
        assert isinstance(model.tensors, checkpoint.TensorsOnDisk), "it was opened from a file"
        header = model.tensors.header
    else:
        header = read_header(model)
    if "sha256" in header.metadata:
        return header.metadata["sha256"]
    content_hash = hashlib.sha256()
    for weights in dict.fromkeys(tensor.path or header.path for tensor in header.tensors.values()):
        with open_for_reading(weights) as file:
            while block := file.read(BLOCK_BYTES):
                content_hash.update(block)
    return content_hash.hexdigest()


def source_fingerprint(model: Checkpoint) -> str | None:
    """Return the fingerprint of the model that this one was imported from; None if the weights changed since,
    or if it was not imported."""
    record, sha256 = model.record, (model.record.imported or {}).get("sha256")
    is_changed = record.train or record.adapter or record.average_of or model.quantization
    return sha256 if isinstance(sha256, str) and not is_changed else None
