"""Parquet tables of conversations, as pyarrow writes them."""

import hashlib
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.files import ConversationFile, table_lines
from llmcli.errors import LLMError
from tests.data.corpora import put, read_conversations
from tests.data.test_files import LISTS, MESSAGES, PAIRS, SHAPES, TEXT_BYTES, messages_of

pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)


def write(name: str, records: list[dict[str, Any]], **options: Any) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(records), name, **options)


def read(name: str) -> ConversationFile | None:
    return read_conversations(name)


def test_every_shape_gives_the_same_messages() -> None:
    for shape, record in [*SHAPES.items(), ("prompt/completion", LISTS["prompt/completion"])]:
        for name in ["a.parquet", "a.dat"]:
            write(name, [record(*pair) for pair in PAIRS], row_group_size=2)
            file = read(name)
            assert file and messages_of(file) == MESSAGES, name
            assert (file.shape, file.dropped, file.text_bytes, file.notes) == (shape, 0, TEXT_BYTES, ())
            assert [c.source for c in file.conversations] == [f"{name} row {i}" for i in (1, 2, 3)]
            assert file.sha256 == hashlib.sha256(Path(name).read_bytes()).hexdigest(), name


def test_columns_that_are_not_used_are_named() -> None:
    write("a.parquet", [{"id": i, "prompt": q, "completion": a, "blob": b"\xff"} for i, (q, a) in enumerate(PAIRS)])
    file = read("a.parquet")
    assert file and messages_of(file) == MESSAGES
    assert file.notes == ("a.parquet: read: prompt/completion; not used: id, blob",)


def test_a_damaged_file_is_an_error() -> None:
    write("a.parquet", [SHAPES["messages"](*pair) for pair in PAIRS])
    data = Path("a.parquet").read_bytes()
    for damaged in (b"PAR1\0", data[:-9], data[:20] + b"\xff" * 60 + data[80:]):
        put("b.parquet", damaged)
        with pytest.raises(LLMError, match=r"^b\.parquet cannot be read as a table in Parquet or Arrow: ") as caught:
            read("b.parquet")
        assert "\n" not in str(caught.value)


def test_without_pyarrow_the_error_says_what_to_install() -> None:
    with mock.patch.dict("sys.modules", {"pyarrow": None}), pytest.raises(LLMError) as caught:
        list(table_lines("a.parquet", io.BytesIO(b"PAR1" + bytes(20)), asdict(ReadOptions())))
    assert str(caught.value) == (
        'reading a.parquet needs pyarrow, which this installation lacks; install it: pip install "llmcli[parquet]"'
    )


def test_a_table_that_cannot_be_read_is_an_error_with_its_row() -> None:
    pairs = [{"prompt": "Hi", "completion": "Ho"}] * 3000
    answers = pyarrow.array([b"Ho"] * 1500 + [b"\xff"] + [b"Ho"] * 9, pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(answers), answers.buffers())
    prompts = pyarrow.array(["Hi"] * len(answers))
    tables = [
        (pyarrow.Table.from_pylist([*pairs, {"prompt": "Hi", "completion": None}]),
         ' row 3,001: "completion" is null; wanted text in quotes$'),
        (pyarrow.table({"prompt": prompts, "completion": column}), ": text that is not UTF-8 .* starting at row 1,409"),
        (pyarrow.table({"text": []}), " has no rows"),
        # it is not recommended to read it as plain text
        (pyarrow.Table.from_pylist([{"title": "One", "abstract": "Once upon a time"}]),
         ": unclear which columns to read: .* `column` title,abstract$"),
        (pyarrow.Table.from_pylist([{"id": 1}]), ": no column has text: 'id'; wanted .* in each record$"),
    ]  # fmt: skip
    for table, problem in tables:
        parquet.write_table(table, "a.parquet")
        with pytest.raises(LLMError, match=rf"^a\.parquet{problem}"):
            read("a.parquet")
