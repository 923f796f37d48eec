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
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from llmcli import units
from llmcli.data.regular_file import MAX_BYTES, open_regular
from llmcli.errors import LLMError, OnNote, prefixed
from llmcli.formats.huggingface.hub import (
    cache_directory,
    hub_address,
    one_line,
    reason,
    show_progress,
)
from llmcli.formats.open_file import read_text, update_hash

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_MAX_NAMES = 5  # files listed
_ANSWER_SECONDS = 30.0  # time limit for the hub's answer; without it, huggingface_hub waits forever


class Download(NamedTuple):
    """The download of a model into the cache."""

    name: str
    repository: str
    revision: str
    file: str

    def run(self, on_note: OnNote, *, progress: bool) -> Path:
        hub_address()  # raises LLMError where the following import would fail
        from huggingface_hub import HfApi, constants

        from llmcli.data.tokenizers.tokenizer import Tokenizer
        from llmcli.formats.huggingface.directory import published_config

        if constants.HF_HUB_OFFLINE:
            raise LLMError(
                f"{self.name} is not in {cache_directory()}, and HF_HUB_OFFLINE forbids downloading it; "
                "unset this variable and run the command again"
            )
        show_progress(False)  # small files have no bars
        with one_line(self._explained):
            info = HfApi().model_info(
                self.repository, revision=self.revision, files_metadata=True, timeout=_ANSWER_SECONDS
            )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        weights = self._weights(sizes)
        hashes = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs}
        small = [] if weights[0].endswith(".gguf") else self._small_files(sizes)
        self._announce(info, sum(sizes[name] for name in (*small, *weights)), on_note)
        for name in small:  # config.json is the first
            path = self._get(name, hashes.get(name))
            with prefixed(f"{self.name} is not downloaded"):
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
            path = Path(hf_hub_download(self.repository, name, revision=self.revision))
        if sha256 and _sha256(path) != sha256:
            os.unlink(path.resolve())
            path.unlink(missing_ok=True)
            raise LLMError(
                f"{self.name}: {name} was damaged during the download (its sha256 differs from the hub's) "
                "and was removed; run the command again"
            )
        return path

    def _weights(self, sizes: Mapping[str, int]) -> list[str]:
        """Choose the files with the weights. Raises LLMError."""
        from llmcli.formats.huggingface.directory import INDEX, SHARD, WEIGHTS

        ggufs = [name for name in sizes if name.endswith(".gguf")]
        shards = [name for name in sizes if INDEX in sizes and SHARD.fullmatch(name)]
        if self.file:
            weights = [name for name in ggufs if name == self.file]
        else:
            weights = shards or [name for name in sizes if name == WEIGHTS] or ggufs
        if weights and (weights != ggufs or len(ggufs) == 1):
            return weights
        at = f"@{self.revision}" if self.revision != "main" else ""
        listed = units.listed([f"hf:{self.repository}/{name}{at}" for name in ggufs], _MAX_NAMES)
        if ggufs or self.file:
            problem = "there is no such file" if self.file else "name one file"
            raise LLMError(f"{self.name}: {problem}; its GGUF files: {listed or 'none'}")
        pickled = any(name.endswith((".bin", ".pth", ".pt")) for name in sizes)
        what = "only Python pickles, which can run code and are not read" if pickled else "no such weights"
        raise LLMError(f"{self.name} has {what}; wanted {WEIGHTS} or a .gguf file")

    def _small_files(self, sizes: Mapping[str, int]) -> list[str]:
        """Choose the files besides the weights. Raises LLMError if one is missing or too large."""
        from llmcli.formats.huggingface.directory import INDEX, TEXTS

        for name in ("config.json", "tokenizer.json"):
            if name not in sizes:
                raise LLMError(
                    f"{self.name} has no {name}, which a model needs; look for a converted version or a "
                    "GGUF file"
                )
        small = [name for name in (*TEXTS, INDEX) if name in sizes]
        for name in small:
            if sizes[name] > MAX_BYTES:
                raise LLMError(
                    f"{self.name}: {name} has {units.size(sizes[name])}, too large for a file of this kind"
                )
        return small

    def _announce(self, info: "ModelInfo", size: int, on_note: OnNote) -> None:
        """Note what will be downloaded. Raises LLMError if the disk has no space for it."""
        cache = cache_directory()
        place = next(place for place in (cache, *cache.absolute().parents) if place.exists())
        if size > (free := shutil.disk_usage(place).free):
            raise LLMError(
                f"{self.name} has {units.size(size)}, and {cache} has space for {units.size(free)}; "
                "set HF_HOME to a directory on a disk with more"
            )
        license_ = getattr(info.card_data, "license", None) or "not stated"
        on_note(f"downloading {self.name}: {units.size(size)} to {cache} (license: {license_})")

    def _check_redirect(self, name: str) -> None:
        """Raise LLMError if a hub with https redirects to a host without it. huggingface_hub follows
        redirects of a hub or a mirror to any storage, but does not send the token there."""
        from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

        own = urlsplit(hub_address())
        url = hf_hub_url(self.repository, name, revision=self.revision)
        target = urlsplit(get_hf_file_metadata(url, token=get_token() or False).location)
        if own.scheme == "https" and target.scheme != "https":
            raise LLMError(
                f"{self.name}: {own.netloc} redirects {name} to {target.scheme}://{target.netloc}, which is "
                "not encrypted; nothing is downloaded from there"
            )

    def _explained(self, error: BaseException) -> str:
        from huggingface_hub import errors

        name = self.name
        place = f"{hub_address()}/{self.repository}"
        match error:
            case errors.GatedRepoError():
                return (
                    f"{name} is gated: "
                    f"accept its terms at {place}, and set HF_TOKEN to a token of your account"
                )
            case errors.RepositoryNotFoundError():
                return f"there is no model {place}; check the name, or set HF_TOKEN if the model is private"
            case errors.RevisionNotFoundError():
                return f"{name}: there is no revision {self.revision}; leave it out for the newest"
        return (
            f"cannot download {name} from {hub_address()}: {reason(error)}; check the connection and run the "
            "command again"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        update_hash(digest, file)
    return digest.hexdigest()
