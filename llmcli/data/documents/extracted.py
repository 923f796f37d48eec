"""What a format module takes from a document: each has `extract(file, name)`, where `file` is seekable.

Standard library only, as all format modules except for those of the extra `documents`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


class ExtractionError(Exception):
    """A document that cannot be read: one line for users that says what is wrong with it, without its name."""


@dataclass(frozen=True)
class Skipped:
    """Something in a document that is not read."""

    reason: str  # in the singular: "page without readable text", "image", "quoted reply"
    count: int = 1


Extracted: TypeAlias = "Iterator[str | Skipped]"  # blocks of text in reading order, each ending in "\n"
