"""The directory that `llm export --to handover` writes: model, tokens, text, and a file for each engine."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llmcli import units
from llmcli.data.tokens.tokens import token_type
from llmcli.errors import LLMError, require_torch
from llmcli.evaluation.figures import known_text
from llmcli.formats import atomic_io, loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.huggingface import directory as hf_directory
from llmcli.formats.metadata import Json
from llmcli.handover import engines
from llmcli.handover.corpus import MANIFEST, RecordedSplit
from llmcli.handover.splits import write_split
from llmcli.training.planning.model_shapes import SIZES, model_config
from llmcli.training.planning.plan import PlanRequest
from llmcli.version import __version__

CONTEXT = 2048  # minimum context length of a larger model
SEED = 0  # seed of its weights
FOLDERS = {
    "tokens": {"train.bin", "train.idx", "val.bin", "val.idx"},
    "text": {"train.parquet", "validation.parquet"},
}


def check_writable(directory: Path, *, force: bool) -> None:
    """Raise LLMError unless `Handover.write` may put a directory there."""

    def others() -> Iterable[Path]:
        if not (directory / MANIFEST).is_file():
            return directory.iterdir()
        paths = directory.rglob("*")
        return [path for path in paths if not _is_part(path.relative_to(directory), path.is_dir())]

    atomic_io.check_directory(directory, others, "handover", force=force)


def _is_part(path: Path, is_directory: bool) -> bool:
    """Return whether `Handover.write` writes a file or a folder of this name, as opposed to files that
    engines add to the directory, such as checkpoints."""
    match path.parts:
        case [name] if is_directory:
            return name in ("model", *FOLDERS)
        case [name]:
            return name == MANIFEST or name in engines.NAMES
        case ["model", name]:
            return not is_directory and hf_directory.is_part(name)
        case [folder, name]:
            return name in FOLDERS.get(folder, ())
    return False


def larger_model(model: Checkpoint, size: str) -> Checkpoint:
    """Return a model of a size in SIZES with random weights, and with the tokenizer of `model`."""
    require_torch()
    from llmcli.training.step.initialization import fresh_weights  # imports torch

    old = model.config
    layers, width = SIZES[size]
    context = max(CONTEXT, old.max_position_embeddings)
    config = model_config(
        PlanRequest(device="cuda"),
        layers,
        width,
        context,
        old.vocab_size,
        old.eos_token_id,
        induction=False,
    )
    config = replace(config, bos_token_id=old.bos_token_id, extra_eos_ids=old.extra_eos_ids)
    tokenizer_config = json.loads(model.tokenizer_config_json) | {"model_max_length": context}
    return Checkpoint(
        config,
        model.tokenizer_json,
        fresh_weights(config, SEED),
        tokenizer_config_json=json.dumps(tokenizer_config, indent=2, ensure_ascii=False),
    )


@dataclass(frozen=True)
class Handover:
    """The contents of a handover directory."""

    origin: str  # file of the model that was trained here
    trained: Checkpoint
    split: RecordedSplit
    size: str | None = None  # name of a larger model's size, which has random weights

    @property
    def included(self) -> list[str]:
        lines = ["the tokenizer, with its chat template if there is one"]
        if self.split.has_record:
            lines.append("the split: the same training text and the same held-out text")
            if not self.split.new:
                lines.append("the mixture: each document has the same share of the training tokens")
        if not self.size:
            lines.append("the weights of the network")
        return lines

    @property
    def not_included(self) -> list[str]:
        cache = self.trained.record.ngram_cache
        conversations = self.split.conversations
        left_out = self.split.repetitions.left_out
        known = known_text(self.split.repetitions.known_share)
        new = units.count(len(self.split.new), "text")
        changed = f"the mixture: {new} added, newly split"
        if not self.split.has_record:
            changed = f"the split and the mixture: the model has no record of them; {new} newly split"
        possible = {
            changed: self.split.new,
            f"{left_out:,} bytes of training text, which repeat held-out text": left_out,
            f"entirely new held-out text: {known}": known,
            "the trained weights: the larger model begins with random weights": self.size,
            "the n-gram cache: other programs run the network alone": cache is not None,
            f"conversations: {', '.join(conversations)}": conversations,
        }
        return [
            *(line for line, applies in possible.items() if applies),
            "the state of the optimizer and the learning rate: both start over, with a warm-up",
            "the order of the batches; dropout and BPE-dropout",
        ]

    def write(self, directory: Path, model: Checkpoint, metadata: Mapping[str, str], card: str) -> Json:
        """Write a directory, which replaces an earlier one as a whole. `model`, `metadata` and `card` are as
        in `hf_directory.write`. Returns the content of MANIFEST.

        Raises LLMError if no text was held out, if the disk is full, or if pyarrow is not installed.
        """
        training = self.split.repetitions.training
        held_out = self.split.held_out
        names = self.split.names
        if not (training.contents and held_out.contents):
            missing = "held out" if training.contents else "trained on"
            raise LLMError(
                f"no text was {missing}, but engines need some; add a file to `corpus`: new text is split"
            )
        tokenizer = loading.open_tokenizer(model)
        atomic_io.check_space(directory, model.stored_bytes + 4 * (training.text_bytes + held_out.text_bytes))
        with atomic_io.replace_directory(directory) as temporary:
            tokens = temporary / "tokens"
            text = temporary / "text"
            tokens.mkdir()
            text.mkdir()
            written = {
                "train": write_split(training, names, tokenizer, tokens / "train", text / "train.parquet"),
                "val": write_split(held_out, names, tokenizer, tokens / "val", text / "validation.parquet"),
            }
            manifest = {
                "llmcli": __version__,
                "model": {
                    "from": self.origin,
                    "weights": f"random (seed {SEED})" if self.size else "as trained",
                    "parameters": model.parameters,
                },
                "tokenizer_sha256": hashlib.sha256(model.tokenizer_json.encode("utf-8")).hexdigest(),
                "tokens": {
                    name: sum(part["tokens"] for part in parts.values()) for name, parts in written.items()
                },
                "dtype": token_type(tokenizer),
                "documents": _documents(written, names),
            }
            texts = engines.files(model.config, manifest, self.included, self.not_included)
            texts[MANIFEST] = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
            for name, content in texts.items():
                atomic_io.write(temporary / name, content.encode("utf-8"))
            hf_directory.write(temporary / "model", model, metadata, card)
            # check again, since another program may have written there in the meantime
            check_writable(directory, force=True)
        return manifest


def _documents(written: Mapping[str, Mapping[str, Json]], names: Mapping[str, str]) -> list[Json]:
    """List the documents with their parts and their share of the mixture, the training tokens."""
    total = sum(part["tokens"] for part in written["train"].values())
    documents: dict[str, Json] = {}
    for split, parts in written.items():
        for sha256, part in parts.items():
            entry = documents.setdefault(sha256, {"name": names[sha256], "sha256": sha256})
            entry[split] = part
            if split == "train":
                entry["share"] = round(part["tokens"] / total, 6)
    return list(documents.values())
