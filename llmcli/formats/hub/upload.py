"""Uploading a model to the Hugging Face hub, in one commit: the model there is replaced as a whole or not at all."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llmcli import units
from llmcli.errors import LLMError, usage
from llmcli.formats import hf_directory
from llmcli.formats.hub import cache
from llmcli.formats.hub.library import kinds, one_line, reason, show_progress, status

_REPOSITORY = re.compile(r"(?:hf:)?([\w-][\w.-]*/[\w-][\w.-]*)")
_MAX_NAMES = 5  # files listed


class Target(NamedTuple):
    """A repository on the hub that may be written."""

    repository: str  # OWNER/NAME
    endpoint: str
    files: frozenset[str] | None  # file names in it; None: it does not exist

    @property
    def replaced(self) -> list[str]:
        """List the files of an older model."""
        return sorted(name for name in self.files or () if hf_directory.is_part(name))


def find_target(name: str, *, private: bool, force: bool) -> Target:
    """Return the repository to write. Raises LLMError if it is not the user's, is public in spite of `private` or,
    unless `force`, has a model."""
    from huggingface_hub import HfApi, constants, get_token

    if not (parts := _REPOSITORY.fullmatch(name)):
        raise usage(f"{name} is not the name of a repository on the Hugging Face hub; wanted `push` OWNER/NAME")
    repository, endpoint = parts[1], constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise LLMError(f"HF_HUB_OFFLINE forbids to upload to {endpoint}; unset it once")
    if not get_token():
        raise LLMError(f"uploading to {endpoint} needs a token; set HF_TOKEN to one with write access, from "
                       f"{endpoint}/settings/tokens")  # fmt: skip
    show_progress(False)
    target = Target(repository, endpoint, None)
    api = HfApi(endpoint=endpoint)
    with one_line(lambda error: _explained(target, error)):
        user = api.whoami()
        owners = [user["name"], *(organization["name"] for organization in user.get("orgs", ()))]
        owner, _, model = repository.partition("/")
        if owner.lower() not in map(str.lower, owners):
            yours = units.some([f"{owner}/{model}" for owner in owners], _MAX_NAMES)
            raise LLMError(f"{owner} is no account of yours on {endpoint}; names that you can give: {yours}")
        try:
            info = api.model_info(repository)
        except Exception as error:
            if "RepositoryNotFoundError" in kinds(error):
                return target
            raise
    target = target._replace(files=frozenset(file.rfilename for file in info.siblings or ()))
    if private and not info.private:
        raise LLMError(f"{endpoint}/{repository} exists and is public; make it private in its settings there, or leave "
                       "out `private`")  # fmt: skip
    if target.replaced and not force:
        raise LLMError(f"hf:{repository} exists; add `overwrite=True` to replace {_some(target.replaced)} in it (its "
                       "history keeps them), or give another name")  # fmt: skip
    return target


def push(target: Target, directory: Path, on_note: Callable[[str], None], *, private: bool, progress: bool) -> str:
    """Upload a directory; files of an older model that it lacks are deleted. Returns the commit. Raises LLMError."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = sorted(directory.iterdir())
    names = {file.name for file in files}
    stale = [name for name in target.replaced if name not in names]
    size = units.size(sum(file.stat().st_size for file in files))
    visible = "" if target.files is not None else " (new, private)" if private else " (new, public)"
    on_note(f"uploading {directory} to {target.endpoint}/{target.repository}{visible}: "
            f"{units.count(len(files), 'file')}, {size}")  # fmt: skip
    kept = sorted((target.files or frozenset()) - names - {*stale, ".gitattributes"})
    changes = {"replaces": sorted(names & (target.files or set())), "deletes": stale, "keeps": kept}
    if listed := [f"{verb} {_some(those)}" for verb, those in changes.items() if those]:
        on_note("; ".join(listed))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(file.name, str(file)) for file in files), *map(CommitOperationDelete, stale)
    ]  # fmt: skip
    show_progress(progress)
    again = f" with `overwrite=True`, since {directory} is written"
    with one_line(lambda error: _explained(target, error, again)), warnings.catch_warnings(record=True) as warned:
        api = HfApi(endpoint=target.endpoint)
        if target.files is None:
            api.create_repo(target.repository, private=private)
        commit = api.create_commit(target.repository, operations, commit_message="Upload model with llmcli")
    cache.forget_branch(target.repository)
    for warning in warned:  # the hub's warnings about the model card
        if warning.category is UserWarning:
            on_note(" ".join(str(warning.message).split()))
    return str(commit.oid)


def _some(names: list[str]) -> str:
    return units.some(names, _MAX_NAMES)


def _explained(target: Target, error: BaseException, again: str = "") -> str:
    place = f"{target.endpoint}/{target.repository}"
    match status(error):
        case 401:
            return (f"{target.endpoint} does not accept the token; set HF_TOKEN to one with write access, from "
                    f"{target.endpoint}/settings/tokens")  # fmt: skip
        case 403:
            return f"the token may not write {place} ({reason(error)}); set HF_TOKEN to one with write access"
        case 400:
            return f"{target.endpoint} refuses the files: {reason(error)}"
    return f"cannot upload to {place}: {reason(error)}; run the command again{again}"
