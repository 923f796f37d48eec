"""Opening a model in any format (our own, a Hugging Face directory, GGUF): a path -> its header -> a
Checkpoint or an Ensemble, so that other code is independent of the format.

Reading the header of a safetensors file imports neither numpy nor modules that read tensors.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.errors import LLMError, prefixed
from llmcli.formats.header import Header
from llmcli.formats.metadata import parse_document
from llmcli.formats.open_file import GGUF_MAGIC, open_for_reading, update_hash
from llmcli.formats.safetensors import header as safetensors_header
from llmcli.formats.training_record import seen_bytes

if TYPE_CHECKING:
    from llmcli.data.conversations.chat_template import ChatTemplate
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble


def read_header(path: str | Path) -> Header:
    """Read the header of a model or any safetensors file; no tensor is read. Raises LLMError."""
    path = Path(path)
    # other formats are imported only when needed, because imports delay short commands
    if path.is_dir():
        from llmcli.formats.huggingface import directory

        return directory.read_header(path)
    with open_for_reading(path) as file:
        if not file.peek(len(GGUF_MAGIC)).startswith(GGUF_MAGIC):
            return safetensors_header.parse_header(path, file)
        from llmcli.formats.gguf import reader

        return reader.parse_header(path, file)


def load(path: str | Path, *, accept_changes: bool = False) -> "Checkpoint":
    """Open a model in any format. Tensors stay on disk until they are accessed. Raises LLMError for a file
    that cannot be opened, for an ensemble, and, unless `accept_changes`, for a file written by llmcli that
    was changed."""
    from llmcli.formats.ensemble_file import Ensemble

    model = load_any(path, accept_changes=accept_changes)
    if isinstance(model, Ensemble):
        raise LLMError(
            f"{path} is an ensemble of models; name the file of one of them: {', '.join(model.names)}"
        )
    return model


def load_any(path: str | Path, *, accept_changes: bool = False) -> "Checkpoint | Ensemble":
    """Open a model in any format, or an ensemble. Raises LLMError like `load`."""
    from llmcli.formats import checkpoint, ensemble_file

    header = read_header(path)
    is_own = header.form == "safetensors file"
    is_ensemble = is_own and ensemble_file.MODEL_TYPE in header.metadata.get("config.json", "")[:200]
    model = ensemble_file.from_header(header) if is_ensemble else checkpoint.from_header(header)
    if not accept_changes:
        checkpoint.check_hash(header, model.stored)
    return model


def open_tokenizer(model: "Checkpoint | Ensemble") -> "Tokenizer":
    """Open a model's tokenizer. Raises LLMError if it is damaged or does not match the model's vocabulary
    size."""
    from llmcli.data.tokenizers.tokenizer import Tokenizer  # slow to import; not needed to inspect a file

    shared, config = model.shared, model.shared.config
    known_bytes = seen_bytes(model.records)
    eos_ids = config.eos_token_id, *config.extra_eos_ids
    with prefixed(shared.path or "the model"):
        tokenizer = Tokenizer.from_json(shared.tokenizer_source, config.vocab_size, eos_ids, known_bytes)
    tokenizer.imported = known_bytes is None and any(record.imported is not None for record in model.records)
    return tokenizer


def open_chat_template(model: "Checkpoint | Ensemble", tokenizer: "Tokenizer") -> "ChatTemplate | None":
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
    from llmcli.formats.huggingface import directory

    return directory.files(path)


def reject_overwriting(output: Path, kind: str, model: str | Path, role: str) -> None:
    """Raise LLMError if an output would replace a model or one of its files. `kind` describes the output,
    `role` what the command does with the model."""
    from llmcli.formats import atomic_io  # not needed to read a model

    part = "part of " if Path(model).is_dir() else ""
    atomic_io.reject_overwriting(output, kind, files(model), f"{part}{role}")


def fingerprint(model: "Checkpoint") -> str:
    """Return the sha256 of a model that was opened from a file: from its metadata, or of the files with its
    weights. Raises LLMError."""
    import hashlib  # not needed to inspect a file

    header = model.header
    assert header, "it was opened from a file"
    if "sha256" in header.metadata:
        return header.metadata["sha256"]
    content_hash = hashlib.sha256()
    for weights in dict.fromkeys(tensor.path or header.path for tensor in header.tensors.values()):
        with open_for_reading(weights) as file:
            update_hash(content_hash, file)
    return content_hash.hexdigest()


def source_fingerprint(model: "Checkpoint") -> str | None:
    """Return the fingerprint of the model that this one was imported from; None if the weights changed since,
    or if it was not imported."""
    record = model.record
    sha256 = (model.record.imported or {}).get("sha256")
    is_changed = record.train or record.adapter or record.average_of or model.quantization
    return sha256 if isinstance(sha256, str) and not is_changed else None
