"""Documents and presentations of office programs: DOCX and PPTX (Office Open XML) and ODT (OpenDocument).

Extracted: paragraphs, headings, list items ("• "), tables (rows as lines, cells separated by tabs),
footnotes (after their paragraph), and the notes of slides. Left out: layout, headers and footers, comments,
deleted text.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from llmcli.data.documents import packages
from llmcli.data.documents.extracted import Extracted, ExtractionError, File, SkippedParts
from llmcli.data.documents.packages import END, START, Event
from llmcli.data.documents.paragraphs import Block, spaced

_MANIFEST = "META-INF/manifest.xml"  # in OpenDocument files
_SPACE = re.compile(r"[ \t\r\n]+")
_MAX_SPACES = 100  # limit for an element that represents several spaces
_HEADING = re.compile(r"(?i)heading|title|\d$")  # the identifier of a paragraph style
_OUTSIDE_SLIDE = ("dt", "ftr", "hdr", "sldNum")  # placeholders: date, footer, header, number


# name of an element, without its namespace -> its role, or the characters that it stands for
_OFFICE_OPEN = {
    "p": "paragraph",
    "t": "text",  # the element around text
    "tr": "row",
    "tc": "cell",
    "numId": "item",  # in the paragraph of a list item
    "pStyle": "style",
    "footnoteReference": "reference",
    "endnoteReference": "reference",
    "sp": "shape",
    "ph": "placeholder",
    "tab": "\t",
    "br": "\n",
    "cr": "\n",
    "noBreakHyphen": "-",
    **dict.fromkeys(("del", "moveFrom", "Fallback", "rt", "tabs", "tabLst"), "skipped"),
}
_OPEN_DOCUMENT = {  # all text in paragraphs is shown
    "p": "paragraph",
    "h": "paragraph",
    "table-row": "row",
    "table-cell": "cell",
    "list-item": "item",  # around the paragraphs of a list item
    "note": "note",
    "tab": "\t",
    "line-break": "\n",
    "s": " ",
    **dict.fromkeys(
        ("tracked-changes", "annotation", "ruby-text", "title", "desc", "binary-data", "note-citation"),
        "skipped",
    ),
}


_Notes: TypeAlias = dict[tuple[str, str], str]  # (referring element, identifier) -> text of a note


def extract(file: File, skipped: SkippedParts) -> Extracted:
    with packages.open_package(file) as package:
        names = package.namelist()
        if "content.xml" in names:
            if _MANIFEST in names and packages.elements(package, _MANIFEST, "encryption-data"):
                raise ExtractionError("is encrypted; save it without a password first")
            blocks = _blocks(package, "content.xml", _OPEN_DOCUMENT)
        elif not (main := next(iter(_related(package, "", "officeDocument").values()), "")):
            raise ExtractionError("is neither a text document nor a presentation")
        elif main.startswith("ppt/"):
            blocks = _slides(package, main)
        else:
            blocks = _blocks(package, main, _OFFICE_OPEN, _notes(package, main))
        yield from spaced(blocks)


def _slides(package: zipfile.ZipFile, main: str) -> Iterator[Block]:
    """Yield a block for each slide and one for its notes."""
    parts = _related(package, main, "slide")
    for _, slide in packages.elements(package, main, "sldId"):
        part = parts.get(slide.get("r:id", ""), "")
        for name in (part, *_related(package, part, "notesSlide").values()):
            if name:
                yield "\n".join(text for text, _ in _blocks(package, name, _OFFICE_OPEN) if text), False


def _notes(package: zipfile.ZipFile, main: str) -> _Notes:
    """Return a Word document's footnotes and endnotes."""
    notes = {}
    for kind in ("footnote", "endnote"):
        for part in _related(package, main, f"{kind}s").values():
            reader = _Reader(_OFFICE_OPEN, {})
            identifier = ""
            for event in packages.events(package, part):
                reader.read(event)
                if event[:2] == (START, kind):
                    identifier = event[2].get("id", "")
                elif event[:2] == (END, kind):
                    notes[f"{kind}Reference", identifier] = " ".join(text for text, _ in reader.blocks)
                    reader.blocks.clear()
    return notes


def _related(package: zipfile.ZipFile, part: str, kind: str) -> dict[str, str]:
    """Return {identifier: part} for the parts of this kind that a part refers to."""
    directory, _, file = part.rpartition("/")
    relations = f"{directory}/_rels/{file}.rels".lstrip("/")
    if relations not in package.namelist():
        return {}
    return {
        attributes.get("Id", ""): packages.relative_part(part, attributes.get("Target", ""))
        for _, attributes in packages.elements(package, relations, "Relationship")
        if attributes.get("Type", "").endswith(f"/{kind}")
    }


def _blocks(
    package: zipfile.ZipFile, part: str, markup: Mapping[str, str], notes: _Notes | None = None
) -> Iterator[Block]:
    reader = _Reader(markup, notes or {})
    for event in packages.events(package, part):
        reader.read(event)
        yield from reader.blocks
        reader.blocks.clear()


@dataclass
class _Paragraph:
    pieces: list[str] = field(default_factory=list)
    is_item: bool = False
    is_heading: bool = False


class _Reader:
    """Collects paragraphs and rows in `blocks`: (text, whether it is one of several lines, as in a list)."""

    def __init__(self, markup: Mapping[str, str], notes: _Notes) -> None:
        self.blocks: list[Block] = []
        self._markup = markup
        self._texts_of_notes = notes
        self._open: list[_Paragraph] = []  # text boxes and notes are inside paragraphs
        self._skipped = 0  # depth inside an element that is skipped
        self._marks_text = "text" in markup.values()
        self._in_text = not self._marks_text
        self._rows = 0  # open rows; tables may be nested
        self._cells: list[list[str]] = []  # cells of the outermost row
        self._item_begins = self._outside_slide = False
        self._note_number = self._open_notes = 0
        self._notes: list[str] = []  # notes on the current block

    def read(self, event: Event) -> None:
        kind, value, attributes = event
        if self._skipped:
            self._skipped += {START: 1, END: -1}.get(kind, 0)
        elif kind == START:
            self._start(value, attributes)
        elif kind == END:
            self._end(value)
        elif self._in_text:
            self._add(value if self._marks_text else _SPACE.sub(" ", value))

    def _add(self, text: str) -> None:
        if self._open:
            self._open[-1].pieces.append(text)

    def _start(self, element: str, attributes: Mapping[str, str]) -> None:
        match self._markup.get(element):
            case None | "shape":
                pass
            case "skipped":
                self._skipped = 1
            case "text":
                self._in_text = True
            case "paragraph":
                self._open.append(_Paragraph(is_item=self._item_begins))
                self._item_begins = False
            case "row":
                self._rows += 1
            case "cell":
                if self._rows == 1:
                    self._cells.append([])
            case "item" if self._open:
                self._open[-1].is_item = attributes.get("val") != "0" and not self._open[-1].is_heading
            case "item":
                self._item_begins = True
            case "note" | "reference" as role:
                self._note_number += 1
                mark = f"[{self._note_number}]"
                self._add(mark)
                if role == "reference":
                    text = self._texts_of_notes.get((element, attributes.get("id", "")), "")
                    self._notes.append(f"{mark} {text}")
                else:
                    self._open_notes += 1
            case "style":
                if self._open:
                    self._open[-1].is_heading = bool(_HEADING.match(attributes.get("val", "")))
            case "placeholder":
                self._outside_slide = attributes.get("type") in _OUTSIDE_SLIDE
            case characters:
                count = attributes.get("c", "1")[:3]  # <text:s text:c="3"/> stands for three spaces
                self._add(characters * (min(int(count), _MAX_SPACES) if count.isdecimal() else 1))

    def _end(self, element: str) -> None:
        match self._markup.get(element):
            case "text":
                self._in_text = False
            case "paragraph" if self._open:
                self._end_paragraph(self._open.pop())
            case "row":
                self._rows -= 1
                if not self._rows:
                    row = "\t".join(" ".join(cell).replace("\n", " ") for cell in self._cells)
                    self._end_block(row, is_line=True)
                    self._cells = []
            case "note":
                self._open_notes -= 1
            case "shape":
                self._outside_slide = False

    def _end_paragraph(self, paragraph: _Paragraph) -> None:
        text = "".join(paragraph.pieces).strip(" ")
        if self._outside_slide or not text:
            return
        if paragraph.is_item:
            text = f"• {text}"
        if self._open_notes:
            self._notes.append(f"[{self._note_number}] {text}")
        elif self._cells:
            self._cells[-1].append(text)
        else:
            self._end_block(text, is_line=paragraph.is_item)

    def _end_block(self, text: str, *, is_line: bool) -> None:
        self.blocks += [(text, is_line), *((note, True) for note in self._notes)]
        self._notes = []
