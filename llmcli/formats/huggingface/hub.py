"""The Hugging Face hub: its cache on this machine, shared with other programs, and huggingface_hub's errors,
log and progress bars."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmcli.errors import LLMError, brief


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


def _model_in(directory: Path, file: str) -> Path | None:
    """Return a directory if its model is complete, or its GGUF file: `file`, or for "" the only one."""
    from llmcli.formats.huggingface.directory import weight_files

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
    models = []
    for repository in repositories:
        for snapshot in repository.revisions if repository.repo_type == "model" else ():
            directory = snapshot.snapshot_path
            revision = min(snapshot.refs, default=snapshot.commit_hash)
            at = "" if "main" in snapshot.refs else f"@{revision}"
            is_directory = (directory / "config.json").exists()
            for file in [""] if is_directory else [path.name for path in directory.glob("*.gguf")]:
                if path := _model_in(directory, file):
                    name = "/".join(filter(None, (f"hf:{repository.repo_id}", file)))
                    models.append((name + at, path))
    return sorted(models)


def forget_branch(repository: str) -> None:
    """Make the next use of a model query the hub, because the cached commit of branch main is out of date."""
    with contextlib.suppress(OSError):
        (_place(repository) / "refs" / "main").unlink()


def _place(repository: str) -> Path:
    return cache_directory() / f"models--{repository.replace('/', '--')}"


# ---- huggingface_hub


def hub_address() -> str:
    """Return the address of the hub. Raises LLMError if HF_ENDPOINT is none: huggingface_hub then cannot be
    imported."""
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise LLMError(
            f"HF_ENDPOINT is not an address ({error}); unset it, or set it to an address: https://HOST"
        ) from error
    return constants.ENDPOINT


@contextlib.contextmanager
def one_line(explain: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn errors of huggingface_hub into an LLMError with one line."""
    try:
        yield
    except LLMError:
        raise
    except Exception as error:
        raise LLMError(explain(error)) from error


def reason(error: Any) -> str:
    """Return the hub's message, or else the error, on one line."""
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return brief(" ".join(text.split()), 200)


def show_progress(shown: bool) -> None:
    """Turn the progress bars on or off; the log is always off."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HF_HUB_DISABLE_PROGRESS_BARS may forbid it
        (enable_progress_bars if shown else disable_progress_bars)()
