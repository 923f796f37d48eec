"""Hugging Face directories: reading a header, writing a directory.

A directory has a config.json, a tokenizer.json, and the weights in one .safetensors file or in several with
an index. transformers and all programs that build on it can read the output.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmcli.config import EMBEDDING, HEAD, ModelConfig
from llmcli.data.regular_file import MAX_BYTES
from llmcli.errors import LLMError
from llmcli.formats import atomic_io, checkpoint, training_stages
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.huggingface import conversion
from llmcli.formats.huggingface.config import check_architecture, parse_config
from llmcli.formats.metadata import Json, parse_document
from llmcli.formats.open_file import model_files, name_in_cache, read_text
from llmcli.formats.safetensors import header as safetensors_header
from llmcli.formats.safetensors.file import tensors_equal
from llmcli.formats.tensor_names import TRANSFORMERS

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# other files that are read ...
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)
# ... and files that transformers writes in addition
_OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
MAX_WEIGHT_FILES = 1 << 12
_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$")  # precomputed tables in older files


def read_header(directory: Path) -> Header:
    """Read the header of the model in a directory. Its config.json is completed with the end-of-text tokens
    from other files, and with tie_word_embeddings. Raises LLMError if something is missing or damaged."""
    if not (directory / "config.json").exists():
        inside = [*model_files(directory), *(path.parent for path in sorted(directory.glob("*/config.json")))]
        others = [str(model) for model in inside[:3]]
        hint = f"name a model in it: {', '.join(others)}" if others else "a Hugging Face directory has one"
        raise LLMError(f"{directory} is not a model: it has no config.json; {hint}")
    if not (directory / "tokenizer.json").exists():
        raise LLMError(f"{directory} has no tokenizer.json; save its fast tokenizer with transformers")
    tokenizer = read_text(directory / "tokenizer.json")
    tokenizer_config = _read_tokenizer_config(directory)
    config = _read_json(directory / "config.json")
    config |= _eos_tokens(directory, config, tokenizer_config, tokenizer)
    headers = [safetensors_header.read_header(path) for path in weight_files(directory)]
    stages = training_stages.from_metadata(headers[0].metadata.get(training_stages.METADATA_KEY))
    origin = _provenance(directory, config)
    tensors = _merge_tensors(directory, headers)
    model_type = config.get("model_type")
    problem = ""
    if scheme := headers[0].metadata.get("quantization"):
        problem = f"its weights are quantized as {scheme}, which is only read as a file: {headers[0].path}"
    try:
        tensors = conversion.convert_tensors(config, tensors)
        config = conversion.convert_config(config)
        check_architecture(config)
    except LLMError as error:
        problem = problem or str(error)
    if config.get("model_type") != model_type:
        origin["architecture"] = model_type
    config["tie_word_embeddings"] = tied = _is_tied(config, tensors)
    metadata = {
        "config.json": json.dumps(config),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": json.dumps(tokenizer_config, ensure_ascii=False, indent=2),
        "training.json": json.dumps({"imported": origin, **stages}, ensure_ascii=False),
    }
    if tied:
        head = tensors.pop(HEAD, None)
        if head:
            tensors.setdefault(EMBEDDING, head)
    elif HEAD not in tensors:
        problem = problem or f"it has no output head ({HEAD}); get the model for causal language modeling"
    size = sum(header.file_bytes for header in headers)
    return Header(directory, size, 0, tensors, metadata, "Hugging Face directory", problem=problem)


def published_config(path: Path) -> ModelConfig:
    """Read the config.json of a model whose weights are not downloaded yet. Raises LLMError if the model is
    not supported."""
    return parse_config(json.dumps(conversion.convert_config(_read_json(path))))


def files(directory: Path) -> list[Path]:
    """List all files of a model in a directory, including names that would be read if they existed."""
    return [*(directory / name for name in (*TEXTS, INDEX, WEIGHTS)), *weight_files(directory)]


def _read_json(path: Path) -> Json:
    """Read a JSON file; {} if it does not exist."""
    return parse_document(read_text(path), str(path)) if path.exists() else {}


def _read_tokenizer_config(directory: Path) -> Json:
    """Read tokenizer_config.json with a single chat template: from chat_template.jinja if that exists,
    otherwise the default of several named ones."""
    config = _read_json(directory / "tokenizer_config.json")
    template = directory / "chat_template.jinja"
    if template.exists():
        config["chat_template"] = read_text(template)
    elif isinstance(config.get("chat_template"), list):
        named = [
            template
            for template in config["chat_template"]
            if isinstance(template, dict) and template.get("name") == "default"
        ]
        config["chat_template"] = named[-1].get("template") if named else None
    return config


def _eos_tokens(directory: Path, config: Json, tokenizer_config: Json, tokenizer: str) -> Json:
    """Return the eos_token_id that config.json lacks: the tokens in generation_config.json or, if neither
    file has any, the token named in tokenizer_config.json. {} if config.json is complete."""
    own = config.get("eos_token_id")
    others = _read_json(directory / "generation_config.json").get("eos_token_id")
    if others is not None:
        tokens = [token for ids in (own, others) for token in (ids if isinstance(ids, list) else [ids])]
        return {"eos_token_id": [token for i, token in enumerate(tokens) if token not in (None, *tokens[:i])]}
    if own is not None:
        return {}
    eos_token = tokenizer_config.get("eos_token")
    content = eos_token.get("content") if isinstance(eos_token, dict) else eos_token
    with suppress(ValueError, RecursionError, KeyError, TypeError):  # opening the tokenizer reports the error
        for added in json.loads(tokenizer)["added_tokens"]:
            if added["content"] == content and type(added["id"]) is int:
                return {"eos_token_id": added["id"]}
    return {}


def _provenance(directory: Path, config: Json) -> Json:
    """Return the origin of the model for its record, with the license from the first lines of the model
    card."""
    origin: Json = {
        "file": atomic_io.name_of(directory.resolve()),
        "form": "Hugging Face directory",
    }
    card = directory / "README.md"
    if card.is_file() and card.stat().st_size < MAX_BYTES:
        front_matter = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", "replace")[:20_000], re.DOTALL)
        license_ = front_matter and re.search(
            r"(?m)^license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", front_matter[1]
        )
        if license_:
            origin["license"] = license_[1]
    name = name_in_cache(directory.resolve()) or config.get("_name_or_path")
    if isinstance(name, str) and name:
        origin["name"] = name
    return origin


def weight_files(directory: Path) -> list[Path]:
    """List the files with the weights, from the index if there is one. Raises LLMError if there are none."""
    index = directory / INDEX
    single = directory / WEIGHTS
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        named = list(weight_map.values()) if isinstance(weight_map, dict) else []
        beside = all(isinstance(name, str) and Path(name).name == name for name in named)
        names = list(dict.fromkeys(named)) if beside else []
        if not (beside and 0 < len(names) <= MAX_WEIGHT_FILES):
            raise LLMError(f"{index} has no valid weight_map: it must name files in the same directory")
        for name in names:
            if not (directory / name).exists():
                raise LLMError(f"{directory / name} is missing: the download is incomplete, get it again")
        return [directory / name for name in names]
    files = [single] if single.exists() else sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if not files and (list(directory.glob("*.bin")) or list(directory.glob("*.pth"))):
        raise LLMError(
            f"{directory} "
            "stores its weights as Python pickles, which can run code and are not read"
            "; convert them to safetensors with transformers"
        )
    contents = f"{len(files)} .safetensors files but no {INDEX}" if files else f"no {WEIGHTS}"
    raise LLMError(f"{directory} has {contents}; download all files of the model again")


def _merge_tensors(directory: Path, headers: list[Header]) -> dict[str, TensorInfo]:
    """Collect the tensors of all files. The names of a base model (transformers' AutoModel) lack the prefix
    "model.", which is added. Raises LLMError for a name that occurs twice."""
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if _NOT_WEIGHTS.search(name):
                continue
            if name in tensors:
                raise LLMError(f"{directory}: tensor {name[:100]} is in two of its files")
            tensors[name] = tensor._replace(path=header.path)
    if EMBEDDING.removeprefix("model.") not in tensors:
        return tensors
    named = ((name if name == HEAD else f"model.{name}", tensor) for name, tensor in tensors.items())
    return {name: tensor._replace(name=name) for name, tensor in named}


def _is_tied(config: Json, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether input and output embeddings are tied. If the config says that they are, but the files
    have two different matrices, both are used, as in transformers."""
    if "tie_word_embeddings" not in config:
        return HEAD not in tensors
    if not config["tie_word_embeddings"] or not {HEAD, EMBEDDING} <= tensors.keys():
        return bool(config["tie_word_embeddings"])
    return tensors_equal(tensors[HEAD], tensors[EMBEDDING])


def is_part(name: str) -> bool:
    """Return whether a file of this name is part of a model in a directory."""
    return name in (*TEXTS, *_OTHER_FILES, WEIGHTS, INDEX) or bool(SHARD.fullmatch(name))


def check_writable(directory: Path, *, force: bool) -> None:
    """Raise LLMError unless `write` may put a directory there."""

    def others() -> list[Path]:
        return [file for file in directory.iterdir() if file.is_dir() or not is_part(file.name)]

    atomic_io.check_directory(directory, others, "model", force=force)


def write(directory: Path, model: Checkpoint, metadata: Mapping[str, str], card: str) -> None:
    """Write a model as a directory, which replaces an earlier one as a whole. `metadata` is stored in the
    weights file, which is not quantized; `card` becomes README.md. Raises LLMError if the disk is full or
    fails."""
    config = json.loads(model.config_json)
    generation_config = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "do_sample": True,
    }
    model = replace(model, quantization=None)
    texts = {
        "config.json": conversion.dump_config(model),
        "generation_config.json": json.dumps(generation_config, indent=2),
        "tokenizer.json": model.tokenizer_json,
        "tokenizer_config.json": model.tokenizer_config_json,
        "README.md": card,
    }
    template = parse_document(model.tokenizer_config_json, "its tokenizer_config.json").get("chat_template")
    if isinstance(template, str):  # newer programs look for it in a file, older ones in tokenizer_config.json
        texts["chat_template.jinja"] = template
    with atomic_io.replace_directory(directory) as temporary:
        for name, text in texts.items():
            atomic_io.write(temporary / name, text.encode("utf-8"))
        stages = training_stages.to_metadata(model.record, metadata.get("name", ""))
        weights = temporary / WEIGHTS
        if model.config.model_type in TRANSFORMERS:
            conversion.write_tensors(weights, model, {**metadata, **stages})
        else:
            checkpoint.write_tensors(weights, {"": model}, {**metadata, **stages})
        # check again, since another program may have written there in the meantime
        check_writable(directory, force=True)
