"""Downloading a model from the Hugging Face hub into its cache: safetensors or GGUF, and the small files with
them.

huggingface_hub resumes a download that was interrupted, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmcli import units
from llmcli.data.regular_file import MAX_BYTES, open_regular
from llmcli.errors import LLMError, OnNote, prefixed
from llmcli.formats.huggingface.hub import (
    cache_directory,
    check_endpoint,
    one_line,
    reason,
    show_progress,
)
from llmcli.formats.open_file import read_text, update_hash

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_MAX_NAMES = 5  # files listed
_ANSWER_SECONDS = 30.0  # time limit for the hub's answer; without it, huggingface_hub waits forever


class Download:
    """The download of a model into the cache."""

    def __init__(self, name: str, repository: str, revision: str, file: str) -> None:
        check_endpoint()
        from huggingface_hub import constants

        self._name = name
        self._repository = repository
        self._revision = revision
        self._file = file
        self._endpoint = constants.ENDPOINT
        self._cache = cache_directory()

    def run(self, on_note: OnNote, *, progress: bool) -> Path:
        from huggingface_hub import HfApi, constants

        from llmcli.data.tokenizers.tokenizer import Tokenizer
        from llmcli.formats.huggingface.directory import published_config

        if constants.HF_HUB_OFFLINE:
            raise LLMError(
                f"{self._name} is not in {self._cache}, and HF_HUB_OFFLINE forbids downloading it; unset "
                "this variable and run the command again"
            )
        show_progress(False)  # small files have no bars
        with one_line(self._explained):
            info = HfApi(endpoint=self._endpoint).model_info(
                self._repository, revision=self._revision, files_metadata=True, timeout=_ANSWER_SECONDS
            )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        weights = self._weights(sizes)
        hashes = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs}
        small = [] if weights[0].endswith(".gguf") else self._small_files(sizes)
        self._announce(info, sum(sizes[name] for name in (*small, *weights)), on_note)
        for name in small:  # config.json is the first
            path = self._get(name, hashes.get(name))
            with prefixed(f"{self._name} is not downloaded"):
                if name == "config.json":
                    config = published_config(path)
                elif name == "tokenizer.json":
                    Tokenizer.from_json(read_text(path), config.vocab_size)
        show_progress(progress)
        paths = [self._get(name, hashes.get(name)) for name in weights]  # the last one exists only if all do
        return paths[-1].parent if small else paths[-1]

    def _get(self, name: str, sha256: str | None) -> Path:
        """Download a file into the cache. If it is not the file that the hub lists, removes it and raises
        LLMError."""
        from huggingface_hub import hf_hub_download

        with one_line(self._explained):
            self._check_redirect(name)
            path = Path(
                hf_hub_download(
                    self._repository,
                    name,
                    revision=self._revision,
                    cache_dir=self._cache,
                    endpoint=self._endpoint,
                )
            )
        if sha256 and _sha256(path) != sha256:
            os.unlink(path.resolve())
            path.unlink(missing_ok=True)
            raise LLMError(
                f"{self._name}: {name} was damaged during the download (its sha256 differs from the hub's) "
                "and was removed; run the command again"
            )
        return path

    def _weights(self, sizes: Mapping[str, int]) -> list[str]:
        """Choose the files with the weights. Raises LLMError."""
        from llmcli.formats.huggingface.directory import INDEX, SHARD, WEIGHTS

        ggufs = [name for name in sizes if name.endswith(".gguf")]
        shards = [name for name in sizes if INDEX in sizes and SHARD.fullmatch(name)]
        if self._file:
            weights = [name for name in ggufs if name == self._file]
        else:
            weights = shards or [name for name in sizes if name == WEIGHTS] or ggufs
        if weights and (weights != ggufs or len(ggufs) == 1):
            return weights
        at = f"@{self._revision}" if self._revision != "main" else ""
        listed = units.listed([f"hf:{self._repository}/{name}{at}" for name in ggufs], _MAX_NAMES)
        if ggufs or self._file:
            problem = "there is no such file" if self._file else "name one file"
            raise LLMError(f"{self._name}: {problem}; its GGUF files: {listed or 'none'}")
        pickled = any(name.endswith((".bin", ".pth", ".pt")) for name in sizes)
        what = "only Python pickles, which can run code and are not read" if pickled else "no such weights"
        raise LLMError(f"{self._name} has {what}; wanted {WEIGHTS} or a .gguf file")

    def _small_files(self, sizes: Mapping[str, int]) -> list[str]:
        """Choose the files besides the weights. Raises LLMError if one is missing or too large."""
        from llmcli.formats.huggingface.directory import INDEX, TEXTS

        for name in ("config.json", "tokenizer.json"):
            if name not in sizes:
                raise LLMError(
                    f"{self._name} has no {name}, which a model needs; look for a converted version or a "
                    "GGUF file"
                )
        small = [name for name in (*TEXTS, INDEX) if name in sizes]
        for name in small:
            if sizes[name] > MAX_BYTES:
                raise LLMError(
                    f"{self._name}: {name} has {units.size(sizes[name])}, too large for a file of this kind"
                )
        return small

    def _announce(self, info: "ModelInfo", size: int, on_note: OnNote) -> None:
        """Note what will be downloaded. Raises LLMError if the disk has no space for it."""
        place = next(place for place in (self._cache, *self._cache.absolute().parents) if place.exists())
        if size > (free := shutil.disk_usage(place).free):
            raise LLMError(
                f"{self._name} has {units.size(size)}, and {self._cache} has space for {units.size(free)}; "
                "set HF_HOME to a directory on a disk with more"
            )
        license_ = getattr(info.card_data, "license", None) or "not stated"
        on_note(f"downloading {self._name}: {units.size(size)} to {self._cache} (license: {license_})")

    def _check_redirect(self, name: str) -> None:
        """Raise LLMError if a hub with https redirects to a host without it. huggingface_hub follows
        redirects of a hub or a mirror to any storage, but does not send the token there."""
        from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

        own = urlsplit(self._endpoint)
        url = hf_hub_url(self._repository, name, revision=self._revision, endpoint=self._endpoint)
        target = urlsplit(get_hf_file_metadata(url, token=get_token() or False).location)
        if own.scheme == "https" and target.scheme != "https":
            raise LLMError(
                f"{self._name}: {own.netloc} redirects {name} to {target.scheme}://{target.netloc}, which is "
                "not encrypted; nothing is downloaded from there"
            )

    def _explained(self, error: BaseException) -> str:
        from huggingface_hub import errors

        name = self._name
        place = f"{self._endpoint}/{self._repository}"
        match error:
            case errors.GatedRepoError():
                return (
                    f"{name} is gated: "
                    f"accept its terms at {place}, and set HF_TOKEN to a token of your account"
                )
            case errors.RepositoryNotFoundError():
                return f"there is no model {place}; check the name, or set HF_TOKEN if the model is private"
            case errors.RevisionNotFoundError():
                return f"{name}: there is no revision {self._revision}; leave it out for the newest"
        return f"cannot download {name} from {self._endpoint}: {reason(error)}; run the command again"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        update_hash(digest, file)
    return digest.hexdigest()
