"""Cells of notebooks."""

import io

import pytest

from llmcli.data.documents import notebook
from llmcli.data.documents.extracted import ExtractionError
from tests.data.documents import samples

BAD_FIELDS = ('"source": 3', '"source": [3]', '"outputs": 3')


def test_text_and_code_without_outputs() -> None:
    file = samples.notebook(
        ("markdown", ["# Title\n", "猫 ![](data:image/png;base64,iVBORw0KGgo=)"]), ("code", "print(1)\n"), ("raw", "x")
    )
    text, skipped = samples.extracted(notebook, file)
    assert text == "# Title\n猫 ![]()\n\n```python\nprint(1)\n```\n"
    assert skipped == {"output": 1, "cell of type raw": 1}


def test_other_json_is_an_error() -> None:
    for data in [b"", b"[]", b"{}", b"3", b'{"cells": 3}', b'{"worksheets": [1]}', b"\xff", b"[" * 99999]:
        with pytest.raises(ExtractionError, match=r"^is not a Jupyter notebook: it (is not JSON|has no list of cells)"):
            samples.extracted(notebook, io.BytesIO(data))


def test_a_damaged_cell_is_skipped() -> None:
    for cell in ["1", '"x"', "null", "{}", *(f'{{"cell_type": "code", {rest}}}' for rest in BAD_FIELDS)]:
        data = f'{{"cells": [{cell}, {{"cell_type": "markdown", "source": "x"}}], "metadata": 3}}'
        text, skipped = samples.extracted(notebook, io.BytesIO(data.encode()))
        assert (text, skipped) == ("x\n", {"damaged cell": 1}), cell
