"""Small documents of each format, made by the tests."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from email.message import EmailMessage
from typing import IO, Any

TextAt = tuple[float, float, float, str]  # x, y, font size, text


def extracted(module: Any, file: IO[bytes]) -> tuple[str, dict[str, int]]:
    """(the text of all parts, {reason: count} of what was skipped); each block ends in a line end."""
    skipped = Counter[str]()
    blocks = [block for block in module.extract(file, skipped) if isinstance(block, str)]
    assert all(block.endswith("\n") for block in blocks)
    return "".join(blocks), +skipped


def zipped(members: Mapping[str, str | bytes]) -> IO[bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def tarred(members: Mapping[str, bytes], *others: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for other in others:
            archive.addfile(other)
    return file.getvalue()


def epub(chapters: Mapping[str, str], spine: Iterable[str], others: Mapping[str, str] | None = None) -> IO[bytes]:
    """A book of XHTML bodies; `spine` names chapters, with attributes: 'notes linear="no"'."""
    properties = {"nav": 'properties="nav"'}
    items = "".join(
        f'<item id="{name}" href="text/{name}.xhtml" media-type="application/xhtml+xml" {properties.get(name, "")}/>'
        for name in chapters
    )
    order = "".join(
        f'<itemref idref="{name}" {attributes}/>' for name, _, attributes in (one.partition(" ") for one in spine)
    )
    return zipped({
        "mimetype": "application/epub+zip",
        "META-INF/container.xml":
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf":
            f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{order}</spine></package>',
        **{
            f"OEBPS/text/{name}.xhtml":
                '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml">'
                f"<head><title/><script src='a.js'/></head><body>{body}</body></html>"
            for name, body in chapters.items()
        },
        **(others or {}),
    })  # fmt: skip


_WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def relations(parts: Mapping[str, tuple[str, str]]) -> str:
    """{identifier: (kind, target)} as XML."""
    found = (f'<Relationship Id="{i}" Type="{_OFFICE}/{kind}" Target="{to}"/>' for i, (kind, to) in parts.items())
    return f'<Relationships xmlns="{_RELATIONS}">{"".join(found)}</Relationships>'


def docx(body: str, footnotes: str = "") -> IO[bytes]:
    mc = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    return zipped({
        "_rels/.rels": relations({"rId1": ("officeDocument", "word/document.xml")}),
        "word/document.xml": f"<w:document {_WORD} {mc}><w:body>{body}</w:body></w:document>",
        "word/_rels/document.xml.rels": relations({"rId1": ("footnotes", "footnotes.xml")}),
        "word/footnotes.xml": f"<w:footnotes {_WORD}>{footnotes}</w:footnotes>",
    })  # fmt: skip


def odt(body: str) -> IO[bytes]:
    spaces = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "text", "table", "drawing")
    )
    return zipped({
        "mimetype": "application/vnd.oasis.opendocument.text",
        "_rels/.rels": "<",  # damaged, but not read
        "content.xml": f"<office:document-content {spaces}><office:body><office:text>{body}</office:text></office:body>"
        "</office:document-content>",
    })  # fmt: skip


_SLIDE = (
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:r="{_OFFICE}"'
)


def shape(text: str, kind: str = "body") -> str:
    paragraphs = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    return f'<p:sp><p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr><p:txBody>{paragraphs}</p:txBody></p:sp>'


def pptx(slides: Sequence[str], order: Sequence[int], notes: Mapping[int, str] | None = None) -> IO[bytes]:
    """`slides` are the shapes of each, stored as slide1.xml and so on; `order` is that of the presentation."""
    notes = notes or {}
    ids = "".join(f'<p:sldId r:id="rId{number}" id="{256 + number}"/>' for number in order)
    return zipped({
        "_rels/.rels": relations({"rId1": ("officeDocument", "ppt/presentation.xml")}),
        "ppt/presentation.xml": f"<p:presentation {_SLIDE}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels":
            relations({f"rId{n}": ("slide", f"slides/slide{n}.xml") for n in range(1, len(slides) + 1)}),
        **{f"ppt/slides/slide{n}.xml": f"<p:sld {_SLIDE}>{shapes}</p:sld>" for n, shapes in enumerate(slides, 1)},
        **{
            f"ppt/slides/_rels/slide{n}.xml.rels": relations({"rId1": ("notesSlide", f"../notesSlides/notes{n}.xml")})
            for n in notes
        },
        **{f"ppt/notesSlides/notes{n}.xml": f"<p:notes {_SLIDE}>{shapes}</p:notes>" for n, shapes in notes.items()},
    })  # fmt: skip


def notebook(*cells: tuple[str, str | list[str]], language: str = "python") -> IO[bytes]:
    made = [
        {"cell_type": kind, "source": source, **({"outputs": [{"text": "out"}]} if kind == "code" else {})}
        for kind, source in cells
    ]
    metadata = {"kernelspec": {"language": language}}
    return io.BytesIO(json.dumps({"cells": made, "metadata": metadata, "nbformat": 4}).encode("utf-8"))


def message(subject: str, text: str, charset: str = "utf-8") -> EmailMessage:
    made = EmailMessage()
    made["Subject"], made["From"] = subject, "someone@example.org"
    made.set_content(text, charset=charset)
    return made


def mbox(*messages: EmailMessage) -> IO[bytes]:
    separator = b"From someone@example.org Sat Nov 28 20:00:00 2026\n"
    return io.BytesIO(b"\n".join(separator + one.as_bytes() for one in messages))


def warc(*pages: tuple[str, bytes]) -> IO[bytes]:
    """Response records: (header fields of HTTP, body)."""
    file = io.BytesIO()
    for number, (fields, body) in enumerate(pages):
        status = "HTTP/1.1 200 OK\r\n" if not fields.startswith("HTTP") else ""
        block = (status + fields + "\r\n\r\n").encode("ascii") + body
        file.write(
            f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012}>\r\n"
            f"WARC-Date: 2026-11-28T20:00:00Z\r\nWARC-Target-URI: http://example.org/{number}\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n".encode("ascii")
        )
        file.write(block + b"\r\n\r\n")
    file.seek(0)
    return file


def pdf(*pages: Sequence[TextAt], font: str = "", encrypt: str = "") -> IO[bytes]:
    """Pages of text in Helvetica, or in another `font` (a dictionary), whose texts are then hexadecimal."""
    font = font or "/Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding"
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", f"<< {font} >>".encode()]
    kids = []
    for page in pages:
        drawn = b"\n".join(
            f"BT /F {size} Tf 1 0 0 1 {x} {y} Tm ".encode() + _string(text, font) + b" Tj ET"
            for x, y, size, text in page
        )
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(drawn), drawn))
        resources = "/Resources << /Font << /F 3 0 R >> >> /MediaBox [0 0 595 842]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {len(objects)} 0 R >>".encode())
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    data, positions = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        positions.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(f"{at:010} 00000 n \n" for at in positions)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {encrypt} >>\nstartxref\n{len(data)}\n%%EOF\n"
    return io.BytesIO(data + table.encode() + trailer.encode())


def _string(text: str, font: str) -> bytes:
    if "Type0" in font:
        return f"<{text}>".encode()
    return b"(%b)" % text.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")


def lines_at(*texts: str, x: float = 72, top: float = 770, size: float = 10, leading: float = 12) -> list[TextAt]:
    return [(x, top - index * leading, size, text) for index, text in enumerate(texts)]
