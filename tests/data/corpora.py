"""Helpers for tests that read a corpus."""

import errno
import io
import os
from pathlib import Path

from llmcli.data.text.corpus import Corpus


def joined(corpus: Corpus, start: int = 0, end: int | None = None) -> str:
    return "".join(part for text in corpus.cut(start, end).texts() for part in text)


def put(name: str, data: bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def names(corpus: Corpus) -> list[str]:
    return [document.name for document in corpus.documents]


class FullDisk(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
