"""Jupyter notebooks: the text and the code of their cells, without outputs."""

import json
import re
from collections.abc import Iterator
from typing import Any

from llmcli.data.documents.extracted import Extracted, ExtractionError, File, SkippedParts
from llmcli.data.documents.paragraphs import Block, spaced

_IMAGE_DATA = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=\s]+")


def extract(file: File, skipped: SkippedParts) -> Extracted:
    try:
        notebook = json.loads(file.read().decode("utf-8-sig"))
        cells = list(notebook["cells"])
    except (ValueError, RecursionError) as error:
        raise ExtractionError(f"is not a Jupyter notebook: it is not JSON ({error})") from error
    except (LookupError, TypeError) as error:
        raise ExtractionError("is not a Jupyter notebook: it has no list of cells") from error
    yield from spaced(_blocks(cells, _language(notebook), skipped))


def _language(notebook: dict[str, Any]) -> str:
    try:
        return notebook["metadata"]["kernelspec"]["language"] or "python"
    except (LookupError, TypeError):
        return "python"


def _blocks(cells: list[Any], language: str, skipped: SkippedParts) -> Iterator[Block]:
    for cell in cells:
        try:
            kind = cell["cell_type"]
            source = cell["source"]
            text = _IMAGE_DATA.sub("", source if isinstance(source, str) else "".join(source)).strip("\n")
            skipped["output"] += len(cell.get("outputs", ()))
        except (LookupError, TypeError, AttributeError):
            skipped["damaged cell"] += 1
            continue
        if kind not in ("markdown", "code"):
            skipped["cell of type raw" if kind == "raw" else "cell of an unknown type"] += 1
        elif text:
            yield (f"```{language}\n{text}\n```" if kind == "code" else text), False
