"""The cache of the Hugging Face hub on this machine, which other programs share."""

import contextlib
import json
from pathlib import Path

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def cache_directory() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached(repository: str, revision: str, file: str = "") -> Path | None:
    """Return the directory of a model, or its GGUF file, in the cache; None if it is missing or not
    complete."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        place = _place(repository)
        reference = place / "refs" / revision
        commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
        directory = place / "snapshots" / commit
        ggufs = [directory / file] if file else sorted(directory.glob("*.gguf"))
        if file or not (directory / "config.json").exists():
            return ggufs[0] if len(ggufs) == 1 and ggufs[0].is_file() else None
        names = {WEIGHTS}
        if (directory / INDEX).is_file():
            names = set(json.loads((directory / INDEX).read_text("utf-8"))["weight_map"].values())
        return directory if names and all((directory / name).is_file() for name in names) else None
    return None


def models_in_cache() -> list[tuple[str, Path]]:
    """Return the name and the path of each complete model in the cache."""
    found = []
    for place in sorted(cache_directory().glob("models--*--*")):
        repository = place.name.removeprefix("models--").replace("--", "/", 1)
        references = [path for path in sorted((place / "refs").rglob("*")) if path.is_file()]
        revisions = {
            path.read_text("utf-8").strip(): path.relative_to(place / "refs").as_posix()
            for path in references
        }
        for directory in sorted((place / "snapshots").glob("*")):
            revision = revisions.get(directory.name, directory.name)
            files = (
                [""]
                if (directory / "config.json").exists()
                else [path.name for path in directory.glob("*.gguf")]
            )
            for file in sorted(files):
                at = "" if revision == "main" else f"@{revision}"
                name = "/".join(filter(None, (f"hf:{repository}", file))) + at
                if path := cached(repository, revision, file):
                    found.append((name, path))
    return found


def forget_branch(repository: str) -> None:
    """Let the next use of a model ask the hub: its branch main is now another commit than in the cache."""
    with contextlib.suppress(OSError):
        (_place(repository) / "refs" / "main").unlink()


def _place(repository: str) -> Path:
    return cache_directory() / f"models--{repository.replace('/', '--')}"
