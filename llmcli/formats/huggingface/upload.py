"""Uploading a model to the Hugging Face hub, in one commit: an existing model is replaced as a whole or not
at all, and only if no other program has changed the repository in the meantime."""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcli import units
from llmcli.errors import LLMError, OnNote, usage
from llmcli.formats.huggingface import directory as hf_directory
from llmcli.formats.huggingface.hub import forget_branch, hub_address, one_line, reason, show_progress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_REPOSITORY = re.compile(r"(?:hf:)?([\w-][\w.-]*/[\w-][\w.-]*)")
_MAX_NAMES = 5  # files listed


class Target(NamedTuple):
    """A repository on the hub that may be written."""

    repository: str  # OWNER/NAME
    endpoint: str
    files: frozenset[str] | None = None  # file names in it; None: it does not exist
    commit: str | None = None  # the commit with these files

    @property
    def replaced(self) -> list[str]:
        """List the files of an older model."""
        return sorted(name for name in self.files or () if hf_directory.is_part(name))

    def at(self, info: "ModelInfo") -> "Target":
        """Return the repository with the files that the hub lists."""
        return self._replace(files=frozenset(file.rfilename for file in info.siblings or ()), commit=info.sha)


def find_target(name: str, *, private: bool, force: bool) -> Target:
    """Return the repository to write. Raises LLMError if it is not the user's, if it is public despite
    `private`, or if it has a model, unless `force`."""
    endpoint = hub_address()
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not (parts := _REPOSITORY.fullmatch(name)):
        raise usage(
            f"{name} is not the name of a repository on the Hugging Face hub; wanted `push` OWNER/NAME"
        )
    repository = parts[1]
    if constants.HF_HUB_OFFLINE:
        raise LLMError(f"HF_HUB_OFFLINE forbids uploading to {endpoint}; unset it and run the command again")
    if not get_token():
        raise LLMError(
            f"uploading to {endpoint} needs a token; set HF_TOKEN to a token with write access, from "
            f"{endpoint}/settings/tokens"
        )
    show_progress(False)
    target = Target(repository, endpoint)
    api = HfApi()
    with one_line(lambda error: _explained(target, error)):
        api.whoami()  # an invalid token is reported before the work
        try:
            info = api.model_info(repository)
        except RepositoryNotFoundError:
            return target
    target = target.at(info)
    if private and not info.private:
        raise LLMError(
            f"{endpoint}/{repository} exists and is public; make it private in its settings, or leave out "
            "`private`"
        )
    if target.replaced and not force:
        raise LLMError(
            f"hf:{repository} exists; add `overwrite=True` to replace its {_names_text(target.replaced)} "
            "(the history of the repository keeps them), or give another name"
        )
    return target


def push(target: Target, directory: Path, on_note: OnNote, *, private: bool, progress: bool) -> str:
    """Upload a directory; files of an older model that it lacks are deleted. Returns the commit. Raises
    LLMError."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = sorted(directory.iterdir())
    names = {file.name for file in files}
    stale = [name for name in target.replaced if name not in names]
    size = units.size(sum(file.stat().st_size for file in files))
    visible = ""
    if target.files is None:
        visible = " (new, private)" if private else " (new, public)"
    on_note(
        f"uploading {directory} to {target.endpoint}/{target.repository}{visible}: "
        f"{units.count(len(files), 'file')}, {size}"
    )
    kept = sorted((target.files or frozenset()) - names - {*stale, ".gitattributes"})
    changes = {"replaces": sorted(names & (target.files or set())), "deletes": stale, "keeps": kept}
    if listed := [f"{verb} {_names_text(changed)}" for verb, changed in changes.items() if changed]:
        on_note("; ".join(listed))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(file.name, str(file)) for file in files),
        *map(CommitOperationDelete, stale),
    ]
    show_progress(progress)
    again = f" with `overwrite=True`, since {directory} is written"
    with (
        one_line(lambda error: _explained(target, error, again)),
        warnings.catch_warnings(record=True) as warned,
    ):
        api = HfApi()
        if target.files is None:
            api.create_repo(target.repository, private=private)
            target = target.at(api.model_info(target.repository))
            if target.replaced:
                raise LLMError(_changed(target, again))
        commit = api.create_commit(
            target.repository,
            operations,
            commit_message="Upload model with llmcli",
            parent_commit=target.commit,
        )
    forget_branch(target.repository)
    for warning in warned:  # the hub's warnings about the model card
        if warning.category is UserWarning:
            on_note(" ".join(str(warning.message).split()))
    return str(commit.oid)


def _names_text(names: list[str]) -> str:
    return units.listed(names, _MAX_NAMES)


def _changed(target: Target, again: str) -> str:
    return (
        f"another program changed {target.endpoint}/{target.repository} in the meantime, so nothing was "
        f"uploaded; check it, and to replace it run the command again{again}"
    )


def _explained(target: Target, error: BaseException, again: str = "") -> str:
    place = f"{target.endpoint}/{target.repository}"
    # the hub's response is an attribute of huggingface_hub's error or of its cause
    causes = (error, error.__cause__)
    answers = [answer for cause in causes if (answer := getattr(cause, "response", None)) is not None]
    match answers[0].status_code if answers else 0:
        case 401:
            return (
                f"{target.endpoint} does not accept the token; set HF_TOKEN to a token with write access, "
                f"from {target.endpoint}/settings/tokens"
            )
        case 403:
            advice = "set HF_TOKEN to a token with write access"
            return f"the token may not write {place} ({reason(error)}); {advice}"
        case 400:
            return f"{target.endpoint} refuses the files: {reason(error)}"
        case 409 | 412:
            return _changed(target, again)
    return f"cannot upload to {place}: {reason(error)}; run the command again{again}"
