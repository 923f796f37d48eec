"""The result of extracting text from a document. Each format module has `extract(file, skipped)`, where
`file` is seekable, and `skipped` counts the parts that are not read, by the reason in the singular: "image",
"quoted reply". The caller clears it after each block of text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TypeAlias


class ExtractionError(Exception):
    """A document cannot be read. The message is one line for users that says what is wrong, without the
    document's name. Any other exception means that it is damaged."""


@dataclass(frozen=True)
class DocumentStart:
    """The beginning of a document in a collection, such as a message in a mailbox."""

    name: str  # unique in the collection
    bytes: int


File: TypeAlias = IO[bytes]  # open for reading
SkippedParts: TypeAlias = Counter[str]
# blocks of text in reading order, each ending in "\n"; in a collection, each document begins with a
# DocumentStart
Extracted: TypeAlias = "Iterator[str | DocumentStart]"
