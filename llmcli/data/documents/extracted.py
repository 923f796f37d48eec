"""What a format module extracts from a document: each has `extract(file, name)`, where `file` is seekable."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


class ExtractionError(Exception):
    """A document that cannot be read: one line for users that says what is wrong with it, without its
    name."""


@dataclass(frozen=True)
class Skipped:
    """Something in a document that is not read."""

    reason: str  # a singular: "page without readable text", "image", "quoted reply"
    count: int = 1


@dataclass(frozen=True)
class DocumentStart:
    """Begins a document in a collection, such as a message in a mailbox: what follows belongs to it."""

    name: str  # unique in the collection
    bytes: int


# blocks of text in reading order, each ending in "\n"; in a collection, each document begins with a DocumentStart
Extracted: TypeAlias = "Iterator[str | Skipped | DocumentStart]"
