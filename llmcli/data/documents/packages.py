"""Documents that are ZIP archives of XML: EPUB, Office Open XML and OpenDocument.

expat parses their XML as a stream of events. Document types and entities are refused: none of these formats
needs them, and an entity may expand to gigabytes.
"""

import contextlib
import posixpath
import zipfile
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import unquote
from xml.parsers import expat

from llmcli.data.documents.extracted import ExtractionError, File

START = "start"
END = "end"
TEXT = "text"
# (START, element, attributes), (END, element, {}), (TEXT, text, {})
Event: TypeAlias = "tuple[str, str, dict[str, str]]"

_BLOCK_BYTES = 1 << 16
_MAX_PART = 1 << 26  # bytes of a part that is read as a whole
_ENCRYPTED = 0x1  # flag of a member


@contextlib.contextmanager
def open_package(file: File) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP archive. In this context, damage to the XML inside raises ExtractionError."""
    try:
        with zipfile.ZipFile(file) as package:
            yield package
    except expat.ExpatError as error:
        raise ExtractionError(f"is damaged: XML that cannot be parsed ({error})") from error


@contextlib.contextmanager
def open_part(package: zipfile.ZipFile, part: str) -> Iterator[File]:
    try:
        info = package.getinfo(part)
    except KeyError as error:
        raise ExtractionError(f"is damaged: it has no {part!r}") from error
    if info.flag_bits & _ENCRYPTED:
        raise ExtractionError("is encrypted; save it without a password first")
    with package.open(info) as file:
        yield file


def read_part(package: zipfile.ZipFile, part: str) -> bytes:
    with open_part(package, part) as file:
        data = file.read(_MAX_PART + 1)
    if len(data) > _MAX_PART:
        raise ExtractionError(f"has a part of over {_MAX_PART >> 20} MB, {part!r}")
    return data


def events(package: zipfile.ZipFile, part: str) -> Iterator[Event]:
    """Yield the elements of an XML part; names of elements and attributes have no namespace."""
    pending: list[Event] = []
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = lambda element, attributes: pending.append(
        (START, _local(element), {_attribute(key): value for key, value in attributes.items()})
    )
    parser.EndElementHandler = lambda element: pending.append((END, _local(element), {}))
    parser.CharacterDataHandler = lambda text: pending.append((TEXT, text, {}))
    parser.StartDoctypeDeclHandler = _refuse
    with open_part(package, part) as file:
        while block := file.read(_BLOCK_BYTES):
            parser.Parse(block, False)
            yield from pending
            pending.clear()
        parser.Parse(b"", True)
        yield from pending


def _refuse(*declaration: object) -> None:
    raise ExtractionError("declares a document type in its XML, which may hide entities; save it again")


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _attribute(name: str) -> str:
    """Return the name without its namespace, except for r:id, which refers to another part and differs from
    id."""
    namespace, _, local = name.rpartition(" ")
    return f"r:{local}" if namespace.endswith("/relationships") else local


def elements(package: zipfile.ZipFile, part: str, *names: str) -> list[tuple[str, dict[str, str]]]:
    """Return (name, attributes) of the elements with one of these names, in order."""
    return [
        (name, attributes)
        for kind, name, attributes in events(package, part)
        if kind == START and name in names
    ]


def relative_part(part: str, target: str) -> str:
    """Resolve a reference in a part to the name of another part.

    >>> relative_part("ppt/slides/slide1.xml", "../notesSlides/notes%201.xml")
    'ppt/notesSlides/notes 1.xml'
    >>> relative_part("a/b.xml", "/c.xml")
    'c.xml'
    """
    path = posixpath.join("/", posixpath.dirname(part), unquote(target.partition("#")[0]))
    return posixpath.normpath(path).lstrip("/")
