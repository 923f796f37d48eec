"""The result of extracting text from a document. Each format module has `extract(file, skipped)`, where
`file` is seekable, and `skipped` counts the parts that are not read, by the reason in the singular: "image",
"quoted reply". The caller clears it after each block of text."""

from collections import Counter
from collections.abc import Iterator
from typing import IO, TypeAlias


class ExtractionError(Exception):
    """A document cannot be read. The message is one line for users that says what is wrong, without the
    document's name. Any other exception means that it is damaged."""


File: TypeAlias = IO[bytes]  # open for reading
SkippedParts: TypeAlias = Counter[str]
# blocks of text in reading order, each ending in "\n"; in a collection, such as a mailbox, each document
# begins with (its name, which is unique in the collection; its size in bytes)
Extracted: TypeAlias = Iterator[str | tuple[str, int]]
