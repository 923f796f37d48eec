"""The cache of the Hugging Face hub on this machine, which other programs share."""

import contextlib
from pathlib import Path

from llmcli.errors import LLMError


def cache_directory() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached(repository: str, revision: str, file: str = "") -> Path | None:
    """Return the directory of a model, or its GGUF file, in the cache; None if it is missing or not
    complete."""
    with contextlib.suppress(OSError, ValueError):
        place = _place(repository)
        reference = place / "refs" / revision
        commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
        return _model_in(place / "snapshots" / commit, file)
    return None


def _model_in(directory: Path, file: str = "") -> Path | None:
    """Return a directory if its model is complete, or its GGUF file: `file`, or the only one."""
    from llmcli.formats.hf_directory import weight_files

    if file or not (directory / "config.json").exists():
        ggufs = [directory / file] if file else sorted(directory.glob("*.gguf"))
        return ggufs[0] if len(ggufs) == 1 and ggufs[0].is_file() else None
    with contextlib.suppress(LLMError):
        return directory if weight_files(directory) else None
    return None


def models_in_cache() -> list[tuple[str, Path]]:
    """Return the name and the path of each complete model in the cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir(cache_directory()).repos
    except CacheNotFound:
        return []
    found = []
    for repository in repositories:
        for snapshot in repository.revisions if repository.repo_type == "model" else ():
            directory, revision = snapshot.snapshot_path, min(snapshot.refs, default=snapshot.commit_hash)
            at = "" if "main" in snapshot.refs else f"@{revision}"
            is_directory = (directory / "config.json").exists()
            for file in [""] if is_directory else [path.name for path in directory.glob("*.gguf")]:
                if path := _model_in(directory, file):
                    name = "/".join(filter(None, (f"hf:{repository.repo_id}", file)))
                    found.append((name + at, path))
    return sorted(found)


def forget_branch(repository: str) -> None:
    """Let the next use of a model ask the hub: its branch main is now another commit than in the cache."""
    with contextlib.suppress(OSError):
        (_place(repository) / "refs" / "main").unlink()


def _place(repository: str) -> Path:
    return cache_directory() / f"models--{repository.replace('/', '--')}"
