"""A Hugging Face directory: read as a header in this program's terms, and written.

config.json, tokenizer.json and the weights in one .safetensors or in several with an index. transformers and all that
build on it read what is written here, with no code of ours.

Knows neither numpy nor torch.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmcli.errors import LLMError
from llmcli.formats import atomic_io, checkpoint, safetensors_file
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.hf_config import dump_config
from llmcli.formats.metadata import document
from llmcli.formats.safetensors_file import Header, TensorInfo

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# what else is read, ...
TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
         "README.md")  # fmt: skip
# ... and what transformers writes beside it
_OLDER = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
LARGEST_TEXT = 100_000_000  # bytes of a JSON file beside the weights
MOST_FILES = 1 << 12
_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$")  # tables that old files carry


def read_header(directory: Path) -> Header:
    """What a directory says of its model, in the terms of our own file; its config.json as it stands there. Raises
    LLMError when something is missing or damaged."""
    texts = {"config.json": _text(directory / "config.json")}
    if not (directory / "tokenizer.json").exists():
        old = next(
            (name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (directory / name).exists()), ""
        )
        found = f"there is {old}, an older form" if old else "none is there"
        raise LLMError(f"{directory} has no tokenizer.json ({found}); save the tokenizer with transformers, fast form")
    texts["tokenizer.json"] = _text(directory / "tokenizer.json")
    told = _json(directory / "tokenizer_config.json")
    template = directory / "chat_template.jinja"
    if template.exists():
        told["chat_template"] = _text(template)
    elif isinstance(told.get("chat_template"), list):  # named ones; the first called default is what all use
        named = [entry for entry in told["chat_template"] if isinstance(entry, dict)]
        default = [entry.get("template") for entry in named if entry.get("name") == "default"]
        told["chat_template"] = default[0] if default else None
    texts["tokenizer_config.json"] = json.dumps(told, ensure_ascii=False, indent=2)
    config = _json(directory / "config.json")
    ends = _json(directory / "generation_config.json").get("eos_token_id")
    if ends is not None:
        own = config.get("eos_token_id")
        listed = [*(own if isinstance(own, list) else [own]), *(ends if isinstance(ends, list) else [ends])]
        config["eos_token_id"] = list(dict.fromkeys(end for end in listed if end is not None))
        texts["config.json"] = json.dumps(config)
    elif config.get("eos_token_id") is None and (end := _end_of_text(told, texts["tokenizer.json"])) is not None:
        config["eos_token_id"] = end
        texts["config.json"] = json.dumps(config)
    texts["training.json"] = json.dumps({"imported": _provenance(directory)}, ensure_ascii=False)
    headers = [safetensors_file.read_header(path) for path in _files(directory)]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if _NOT_WEIGHTS.search(name):
                continue
            if name in tensors:
                raise LLMError(f"{directory}: tensor {name[:100]} is in two of its files")
            tensors[name] = replace(tensor, path=header.path)
    tensors = _of_a_language_model(tensors)
    tied = _is_tied(config, tensors)
    told_tied = config.get("tie_word_embeddings", False)
    if type(told_tied) is bool and tied != told_tied:
        texts["config.json"] = json.dumps(config | {"tie_word_embeddings": tied})
    problem = ""
    if tied:
        head = tensors.pop(_HEAD, None)
        if head is not None:
            tensors.setdefault(_EMBEDDING, head)
    elif _HEAD not in tensors:
        problem = (
            f"it has no output head ({_HEAD}), as a base model or a classifier, and its embeddings are not tied, so it "
            "cannot continue text; get the model for causal language modeling"
        )
    size = sum(header.file_bytes for header in headers)
    return Header(directory, size, 0, tensors, texts, "Hugging Face directory", problem=problem)


def _end_of_text(told: Mapping[str, Any], tokenizer: str) -> int | None:
    """The token that tokenizer_config.json calls eos_token, for a model whose configs name none; None if there is no
    such token."""
    named = told.get("eos_token")
    wanted = named.get("content") if isinstance(named, dict) else named
    try:
        added = [(entry["content"], entry["id"]) for entry in json.loads(tokenizer)["added_tokens"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None  # whoever opens the tokenizer says what is wrong with it
    return next((number for content, number in added if content == wanted and type(number) is int), None)


_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def _of_a_language_model(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under the names of a model with a head: those of a base model (transformers' AutoModel) lack the
    beginning "model."."""
    if _EMBEDDING.removeprefix("model.") not in tensors or any(name.startswith("model.") for name in tensors):
        return tensors
    names = {name: name if name == _HEAD else f"model.{name}" for name in tensors}
    return {names[name]: replace(tensor, name=names[name]) for name, tensor in tensors.items()}


def _is_tied(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether one matrix reads and writes tokens. Where the config says so but the files hold two matrices that differ,
    both are used, as transformers does."""
    if "tie_word_embeddings" not in config:
        return _HEAD not in tensors
    if not config["tie_word_embeddings"] or not {_HEAD, _EMBEDDING} <= tensors.keys():
        return bool(config["tie_word_embeddings"])
    return safetensors_file.equal(tensors[_HEAD], tensors[_EMBEDDING])


def _files(directory: Path) -> list[Path]:
    """The files that hold the weights."""
    if (directory / INDEX).exists():
        listed = _json(directory / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise LLMError(f"{directory / INDEX} has no weight_map of file names")
        names = list(dict.fromkeys(listed.values()))
        if len(names) > MOST_FILES or any(Path(name).name != name for name in names):
            raise LLMError(f"{directory / INDEX} names files that are not beside it")
        for name in names:
            if not (directory / name).exists():
                raise LLMError(f"{directory / name} is missing: the download is not whole, get it again")
        return [directory / name for name in names]
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    others = sorted(directory.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if not others and (list(directory.glob("*.bin")) or list(directory.glob("*.pth"))):
        raise LLMError(f"{directory} has its weights as Python pickles, which can run code and are not read; "
                       "convert them to safetensors with transformers")  # fmt: skip
    what = f"{len(others)} .safetensors files but no {INDEX}" if others else f"no {WEIGHTS}"
    raise LLMError(f"{directory} has {what}")


def files(directory: Path) -> list[Path]:
    """All that a model in a directory is made of, and what would become a part of it if it were there."""
    return [*(directory / name for name in (*TEXTS, INDEX, WEIGHTS)), *_files(directory)]


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise LLMError(f"{path} is not a regular file")
        if path.stat().st_size > LARGEST_TEXT:
            raise LLMError(f"{path} has over {LARGEST_TEXT:,} bytes, too many for what it should be")
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise LLMError(f"{path.parent} is no model: it has no {path.name}; a Hugging Face directory has one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise LLMError(f"{path} cannot be read as text: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file says; {} if it is not there."""
    if not path.exists():
        return {}
    return document(_text(path), path.name, str(path))


def _provenance(directory: Path) -> dict[str, Any]:
    """Where it comes from, for the record; its licence as the model card's first lines tell it."""
    told: dict[str, Any] = {"file": atomic_io.name_of(directory.resolve()), "form": "Hugging Face directory"}
    card = directory / "README.md"
    if card.is_file() and card.stat().st_size < LARGEST_TEXT:
        start = card.read_text("utf-8", "replace")[:20_000]
        front = re.match(r"---\n(.*?)\n---", start, re.DOTALL)
        found = front and re.search(r"^license:\s*([\w.+-]+)\s*$", front[1], re.MULTILINE)
        if found:
            told["license"] = found[1]
    name = _json(directory / "config.json").get("_name_or_path")
    if isinstance(name, str) and name:
        told["name"] = name
    return told


# ---- writing


def check_writable(directory: Path, *, force: bool) -> None:
    """Raises LLMError unless `write` may put a directory there."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise LLMError(f"{directory} is not a directory; give another name")
    if directory.is_dir():
        there = sorted(directory.iterdir())
        if there and not force:
            raise LLMError(f"{directory} has something in it; add --force to replace the model there, or name another")
        others = [file.name for file in there if not _is_of_a_model(file)]
        if others:
            raise LLMError(
                f"{directory} has {others[0]} in it, which is no part of a model as it is written here, and would be "
                "lost; move it away, or name another directory"
            )
        if (
            os.path.ismount(directory)
            or directory.resolve() in (here := Path.cwd()).parents
            or directory.samefile(here)
        ):
            raise LLMError(
                f"{directory} cannot be replaced as a whole: another disk is mounted there, or it is where you are; "
                f"name another directory, such as {directory / 'model'}"
            )
    if not directory.resolve().parent.is_dir():
        raise LLMError(f"there is no directory {directory.parent}; make it first: mkdir -p {directory.parent}")


def _is_of_a_model(file: Path) -> bool:
    return not file.is_dir() and (file.name in (*TEXTS, *_OLDER, WEIGHTS, INDEX) or bool(_SHARD.fullmatch(file.name)))


def write(directory: Path, model: Checkpoint, told: Mapping[str, str], card: str) -> None:
    """Write a model as a directory, old or new, never half; `told` goes into the weights' metadata, `card` becomes its
    README.md. Raises LLMError when the disk refuses."""
    config = json.loads(dump_config(model.config, model.torch_dtype))
    ends = config["eos_token_id"]
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": ends, "do_sample": True}
    sizes = {"F16": 2, "BF16": 2}
    shapes = model.config.tensor_shapes().items()
    atomic_io.check_space(directory, sum(math.prod(s) * sizes.get(model.dtypes.get(n, ""), 4) for n, s in shapes))
    texts = {
        "config.json": json.dumps(config, indent=2),
        "generation_config.json": json.dumps(generation, indent=2),
        "tokenizer.json": model.tokenizer_json,
        "tokenizer_config.json": model.tokenizer_config_json,
        "README.md": card,
    }
    with atomic_io.directory(directory) as place:
        for name, text in texts.items():
            atomic_io.write(place / name, [text.encode("utf-8")])
        checkpoint.save_weights(place / WEIGHTS, model, told)
        check_writable(directory, force=True)  # somebody may have put something there meanwhile
